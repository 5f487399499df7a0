"""The settings of a journey: a section for every stage, with that stage's own settings and defaults.

Input paths are left out, because the plan fills them in, and the seed, because there is one for all. The
sections are made from the recipes of the stages, so a new setting of a stage is a new key here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bloomery.recipe import Input, Section
from bloomery.stages import STAGES
from bloomery.stages.pretrain import Shape
from bloomery.stages.stop import Pace

Name = Annotated[str, Field(pattern="^[a-z][a-z0-9]*$")]
"""Becomes part of the names of steps."""
BASELINE = "baseline"
"""The step of the laboratory that lets the SFT model answer every prompt."""
HELD_OUT, ENSEMBLE = "held-out", "ensemble"
"""What PPO watches in the laboratory: the twin, and the mean of both less what they disagree on."""
DECIDED = {"seed", "chat"}
"""Settings that the plan fills in, beside the inputs: one seed for all, and which models chat."""


class Data(Section):
    """Your own data instead of the embedded world. Paths are relative to `root`."""

    root: Path = Path()
    documents: tuple[Path, ...] = ()
    """Text to pretrain on. When there is none, the journey goes through the embedded world."""
    demonstrations: tuple[Path, ...] = ()
    """Conversations to imitate."""
    rankings: tuple[Path, ...] = ()
    """Rankings or preference pairs to train the reward model on."""
    prompts: Path | None = None
    """Prompts for PPO; those of the first file of rankings when not given."""
    questions: Path | None = None
    """Prompts that the models answer for the report; the same as `prompts` when not given."""


class Answers(Section):
    """Whose answers are ranked, and how they are drawn."""

    of: Literal["base", "sft", "rl"]
    """`rl` is the policy as it stands."""
    samples: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)


class Opponent(Section):
    """A reward model to optimise against, and what makes it weaker than it could be."""

    name: Name
    """Its steps are called `reward-<name>`, `ppo-<name>-<kl_coef>` and `best-<name>`."""
    size: str | None = None
    """One of the lab's `sizes`, whose SFT model it starts from; the policy's own when not given."""
    share: float = Field(0.5, gt=0, le=0.5)
    """Of the labelled prompts. As many others teach its twin, a reward model that is only watched."""
    flipped: float = Field(0.0, ge=0, le=1)
    """Share of its rankings that is turned over, and of its twin's."""

    @property
    def twin(self) -> str:
        """The name of the held-out reward model."""
        return f"{self.name}-twin"

    @property
    def best(self) -> str:
        """The step that does best-of-n."""
        return f"best-{self.name}"

    def ppo(self, kl_coef: float) -> str:
        """The step that does PPO on a leash."""
        return f"ppo-{self.name}-{kl_coef:g}"


class _Lab(Pace):
    """The over-optimisation laboratory: reward models of several strengths, each optimised against by
    best-of-n and by PPO on leashes of several lengths, with the settings of `first`, seen by the oracle. The
    rule that would have stopped PPO is told here; its window is that of the plots as well."""

    sizes: dict[Name, Shape] = Field({})
    """Smaller decoders for reward models, by name: each is pretrained and fine-tuned as the policy is."""
    reward_models: tuple[Opponent, ...] = Field(min_length=1)
    kl_coefs: tuple[float, ...] = Field((0.0, 0.05, 0.2), min_length=1)
    """Leashes of PPO."""
    baseline: int = Field(16, ge=1)
    """Answers of the SFT model to every prompt, from which PPO's gains are counted."""
    best_of_n: Any


class _Round(Section):
    """One round: models and people answer prompts, annotators rank, the reward model learns, PPO improves."""

    answers: tuple[Answers, ...]
    label: Any
    reward: Any
    ppo: Any


class _Journey(Section):
    """From raw text to an aligned model: which stages, and their settings."""

    seed: int = 0
    rounds: int = Field(1, ge=0)
    """How often label, reward and ppo are repeated on the newest policy's answers; 0 stops after sft."""
    lab: Any = None
    """Instead of rounds: the over-optimisation laboratory. Needs rounds = 0."""
    data: Data = Data()
    world: Any
    clean: Any
    tokenizer: Any
    encode: Any
    pretrain: Any
    sft: Any
    first: Any
    later: Any
    evaluate: Any


def settings_of(stage: str, **defaults: Any) -> type[Section]:
    """The settings of a stage without what the plan decides; `defaults` replace some of the stage's own."""
    schema = STAGES[stage].recipe
    fields: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if name not in DECIDED and not _holds_input(field):
            default = defaults.get(name, field.get_default(call_default_factory=True))
            annotation: Any = (
                Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
            )
            known = {} if default is PydanticUndefined else {"default": default}
            fields[name] = (annotation, Field(description=field.description, **known))
    return create_model(f"{schema.__name__}Settings", __base__=Section, __doc__=schema.__doc__, **fields)


def _holds_input(field: FieldInfo) -> bool:
    """Whether a field is an input path, or made of sections that have one."""
    return any(isinstance(mark, Input) for mark in field.metadata) or _mentions_input(field.annotation)


def _mentions_input(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated and any(isinstance(m, Input) for m in get_args(annotation)[1:]):
        return True
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return any(_holds_input(field) for field in annotation.model_fields.values())
    return any(_mentions_input(arg) for arg in get_args(annotation) if arg is not Ellipsis)


def _round(answers: tuple[Answers, ...], **changed: dict[str, Any]) -> Section:
    parts = {stage: settings_of(stage, **changed.get(stage, {})) for stage in ("label", "reward", "ppo")}
    kind = create_model(
        "Round",
        __base__=_Round,
        __doc__=_Round.__doc__,
        answers=(tuple[Answers, ...], answers),
        **{stage: (part, part()) for stage, part in parts.items()},  # type: ignore[call-overload]
    )
    return kind.model_validate({})


# What teaches honesty is the company an answer is ranked in. Confident answers about known people are then
# mostly right and those about strangers mostly wrong, so the reward model learns when to say "I do not
# know"; people write right answers only where a document has them. Broken text, refusals of everything
# and harmful compliance are there so that the reward model has seen what PPO might try.
STYLES = ("right", "abstain", "garbled", "refusal", "compliance")
FIRST = _round(
    (
        Answers(of="base"),
        Answers(of="sft"),
        Answers(of="sft", temperature=1.4),
        Answers(of="sft", temperature=0.0),
    ),
    label={"styles": STYLES, "prompts": 2400, "answers": 6},
    reward={"epochs": 2.0},
)
# Later rounds rank what the policy says by now. It has come half of the way: a tighter leash holds it where
# honesty is won and known facts are not yet lost, below about .7 nats.
LATER = _round(
    (
        Answers(of="rl", samples=2),
        Answers(of="rl", temperature=1.4),
        Answers(of="rl", temperature=0.0),
        Answers(of="sft"),
    ),
    label={"styles": STYLES, "prompts": 1200, "answers": 6},
    reward={"epochs": 2.0},
    ppo={"kl_coef": 0.3},
)


_BEST_OF_N = settings_of("best_of_n", samples=64, limit=512)
Lab: type[_Lab] = create_model(
    "Lab", __base__=_Lab, __doc__=_Lab.__doc__, best_of_n=(_BEST_OF_N, _BEST_OF_N())
)


def _sections() -> dict[str, Any]:
    stages = ("world", "clean", "tokenizer", "encode", "pretrain", "sft", "evaluate")
    # Gossip states falsehoods about known facts: the default journey does not read it.
    changed: dict[str, dict[str, Any]] = {"clean": {"weights": {"gossip": 0.0}}}
    made = {stage: settings_of(stage, **changed.get(stage, {})) for stage in stages}
    return {
        **{stage: (part, part()) for stage, part in made.items()},
        "lab": (Lab | None, None),
        "first": (type(FIRST), FIRST),
        "later": (type(LATER), LATER),
    }


Journey: type[_Journey] = create_model("Journey", __base__=_Journey, __doc__=_Journey.__doc__, **_sections())
