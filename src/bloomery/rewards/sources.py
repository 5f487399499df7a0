"""Reward sources in a recipe: each entry names one, and says what it weighs.

    rewards:
      - {kind: length, weight: 0.01, settings: {most: 40}}
      - {kind: ensemble, settings: {models: [runs/a, runs/b, runs/c], pool: minimum}}

The settings of a kind are the keyword-only arguments of the function registered under its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from bloomery.client import Client
from bloomery.errors import UsageError
from bloomery.infer.engine import Engine
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.objectives.process import step_rewards
from bloomery.recipe import InputPath, Section
from bloomery.registry import settings_of
from bloomery.rewards import rules
from bloomery.rewards.ensemble import Ensemble, pools
from bloomery.rewards.judge import TEMPLATE, Judge
from bloomery.rewards.model import RewardModel
from bloomery.rewards.parts import Combined, Opinion, Part
from bloomery.rewards.process import ProcessReward
from bloomery.rewards.tools import Tools, sources
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Generate

__all__ = ["Source", "Tools", "combined", "reward_model", "rules", "sources"]


class Source(Section):
    """One part of a reward."""

    kind: str
    """`model`, `process`, `ensemble`, `judge`, `exact`, `regex`, `numeric`, `length`, `graded`, or one of
    your own."""
    name: str | None = None
    """What it is logged as; its kind when not given."""
    weight: float = 1.0
    clip: float | None = Field(None, gt=0)
    """Its opinions are cut at plus or minus this, before they are weighed."""
    settings: SerializeAsAny[Section] = Field(default_factory=Section, validate_default=True)
    """The kind's own settings."""

    @field_validator("settings", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        given = value.model_dump() if isinstance(value, Section) else value
        if "kind" not in info.data or not isinstance(given, dict):
            return value
        try:
            sources.bind(info.data["kind"], given)
        except UsageError as error:
            raise ValueError(error.what) from None
        return settings_of(sources[info.data["kind"]]).model_validate(given)

    @property
    def logged(self) -> str:
        """The name it is logged under."""
        return self.name or self.kind

    def part(self, tools: Tools) -> Part:
        """The source made: models are loaded, files are read."""
        given = {name: getattr(self.settings, name) for name in type(self.settings).model_fields}
        opinion = sources[self.kind](tools, **given)
        return Part(self.logged, opinion, self.weight, self.clip)


def combined(listed: Sequence[Source], tools: Tools, first: Sequence[Part] = ()) -> Combined:
    """The listed sources as one reward, behind the parts that are there already."""
    return Combined([*first, *(source.part(tools) for source in listed)])


@sources.register("model")
def model(tools: Tools, *, path: InputPath) -> Opinion:
    """A reward model's score at the last token of prompt and answer."""
    return reward_model(path, tools)


@sources.register("process")
def process(
    tools: Tools,
    *,
    path: InputPath,
    pooling: str = "product",
    separator: Annotated[str, Field(min_length=1)] = "\n",
) -> Opinion:
    """A process reward model's probability that the steps are right: their `product`, their `minimum`, or the
    `last`. An answer has steps where `separator` divides it, which is the one the model was trained with."""
    return ProcessReward(scalar_model(path, tools), tools.chat.tokenizer, step_rewards[pooling], separator)


@sources.register("ensemble")
def ensemble(
    tools: Tools,
    *,
    models: tuple[InputPath, ...],
    pool: str = "mean",
    pool_settings: dict[str, float] | None = None,
) -> Opinion:
    """Several reward models, pooled by their `mean`, `minimum` or `uncertainty` (see rewards.ensemble)."""
    pooled = pools.bind(pool, pool_settings or {})
    return Ensemble([reward_model(path, tools) for path in models], pooled)


def reward_model(path: Path, tools: Tools) -> RewardModel:
    """A reward model that reads what the policy writes."""
    return RewardModel(scalar_model(path, tools), tools.chat.tokenizer.pad_id)


def scalar_model(path: Path, tools: Tools) -> ScalarModel:
    """The model of a reward, where the policy is.

    Raises `UsageError` for a model with another tokenizer: it would read other words than were written.
    """
    own, written = Tokenizer.load(path), tools.chat.tokenizer
    if own.digest != written.digest:
        raise UsageError(
            "this reward model has another tokenizer than the policy",
            where=path,
            got=f"{own.vocab_size} tokens, {own.digest[:12]}",
            expected=f"{written.vocab_size} tokens, {written.digest[:12]}",
            do="train the reward model from the policy's own SFT model",
        )
    beside = tools.policy
    return hub.load(path, "scalar").to(tools.device) if beside is None else hub.load_beside(path, beside)


@sources.register("judge")
def judge(
    tools: Tools,
    *,
    model: InputPath,
    url: str | None = None,
    template: str = TEMPLATE,
    low: float = 1.0,
    high: float = 10.0,
    max_tokens: Annotated[int, Field(ge=1)] = 8,
    temperature: Annotated[float, Field(ge=0)] = 0.0,
    seed: int = 0,
) -> Opinion:
    """A language model's verdict. `model` is its directory, of which only the tokenizer and the template are
    used when a server at `url` has the weights."""
    chat = Chat(Tokenizer.load(model))
    stop, pad = chat.tokenizer.end_id, chat.tokenizer.pad_id
    generate: Generate
    if url is None:
        generate = Engine(hub.load(model).to(tools.device).train(False), stop_id=stop, pad_id=pad)
    else:
        generate = Client(url)
    return Judge(
        generate,
        chat,
        template=template,
        low=low,
        high=high,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
