"""The report card of a reward model, or of several as one, on rankings it was not trained on.

Writes evaluation.json: what `evals.reward.report_card` finds. The reward stage writes the same card of what
it held out; here a finished model meets other rankings, or the same with other categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from bloomery import lineage
from bloomery.data.sources import OnBadRow, read_prompts, read_rankings
from bloomery.errors import UsageError
from bloomery.evals.comparisons import Scored
from bloomery.evals.reward import read_gold, report_card
from bloomery.lineage import digest_file, digest_path, write_json
from bloomery.recipe import InputPath, Section, load
from bloomery.rewards.ensemble import pools
from bloomery.rewards.model import score_slates
from bloomery.rewards.sources import Tools, reward_model
from bloomery.stages.common import is_held_out, read_all
from bloomery.stages.people import count_people
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.slates import Slate, make_slates, prompt_id, within
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import precision
from bloomery.train.run import Run

FORMAT = "bloomery-reward-card-1"


class EvaluateReward(Section):
    """Measure a reward model: its report card on held-out rankings, and how far to optimise against it."""

    models: tuple[InputPath, ...] = Field(min_length=1)
    """One reward model, or several that are judged as one."""
    rankings: tuple[InputPath, ...] = Field(min_length=1)
    """Rankings or preference pairs, in any format that the reward stage reads."""
    pool: Literal["mean", "minimum", "uncertainty"] = "mean"
    """How several models become one (see `bloomery.rewards.ensemble`)."""
    held_out: float | None = Field(None, gt=0, le=1)
    """Share of the prompts that is judged, chosen as the reward stage chooses what it holds out; 1 is all.
    By default what a model held out of a file that it was trained on, and else all."""
    gold: tuple[InputPath, ...] = ()
    """The oracle's verdicts: categories, and a table by kind of comparison."""
    prompts: tuple[InputPath, ...] = ()
    """Prompts with their `kind`, which becomes the category of rankings of the same prompt."""
    use_corrections: bool = True
    """Let a written correction stand above every ranked answer."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions of one forward pass."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; all cores when not given."""


def run(recipe: EvaluateReward, out: Path) -> None:
    precision.setup("fp32", recipe.threads)
    with Run(out, stage="evaluate_reward", recipe=recipe) as run:
        share = judged_share(recipe)
        tools = Tools(Chat(Tokenizer.load(recipe.models[0])), precision.device())
        models = [reward_model(path, tools).model for path in recipe.models]
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        gold, kinds = read_gold(recipe.gold), categories(recipe, run)
        slates = make_slates(rankings, tools.chat, recipe.use_corrections)
        fit = within(slates, min(m.config.max_position_embeddings for m in models), run.line)
        held_out = [s for s in fit if is_held_out(s.id, share)]
        if not held_out:
            raise UsageError(
                "no comparison is held out",
                got=f"{len(fit)} prompts, of which a share of {share} is held out",
                do="give more rankings, or a larger held_out",
            )
        num = sum(len(s.texts) for s in held_out)
        run.line(f"scoring {num} answers to {len(held_out)} of {len(fit)} prompts")
        sequences = [s.sequences for s in held_out]
        pad, most = tools.chat.tokenizer.pad_id, recipe.batch_tokens
        with torch.no_grad():
            members = np.array([score_slates(m, sequences, pad, most).tolist() for m in models])
        pooled = pools[recipe.pool](members).tolist() if len(models) > 1 else members[0].tolist()
        seen = [s.judged([0.0] * len(s.texts)) for s in fit if not is_held_out(s.id, share)]
        card: dict[str, Any] = {
            "format": FORMAT,
            "models": [digest_path(path) for path in recipe.models],
            "held_out": share,
            "disagreement": float(members.std(axis=0).mean()) if len(models) > 1 else None,
        } | report_card(dealt(held_out, pooled), seen, gold, kinds)
        write_json(out / "evaluation.json", card)
        run.finish(data=[{"source": str(p)} for p in recipe.rankings], people=count_people(rankings))


def judged_share(recipe: EvaluateReward) -> float:
    """Which share of the prompts is judged. Raises `UsageError` where a model was trained on some of them."""
    limits = [share for path in recipe.models if (share := held_out_of(path, recipe.rankings)) is not None]
    if recipe.held_out is None:
        return min(limits, default=1.0)
    if limits and recipe.held_out > min(limits):
        raise UsageError(
            "a reward model was trained on some of these comparisons",
            got=f"held_out {recipe.held_out}",
            expected=f"at most {min(limits)}, which is what was held out from its training",
            do="leave held_out away, or give rankings that it was not trained on",
        )
    return recipe.held_out


def held_out_of(model: Path, rankings: Sequence[Path]) -> float | None:
    """The share that a reward model held out when it was trained on one of these files, else None."""
    made = lineage.of(model)
    if made is None or made.stage != "reward":
        return None
    if not {parent.digest for parent in made.inputs} & {digest_file(path) for path in rankings}:
        return None
    return load(RewardRecipe, model / "recipe.yaml").held_out


def categories(recipe: EvaluateReward, run: Run) -> dict[str, str]:
    """Prompt id -> kind, of the prompts that name one."""
    found = read_all(read_prompts, recipe.prompts, recipe.on_bad_row, run.line)
    return {prompt_id(prompt.messages): prompt.kind for prompt in found if prompt.kind}


def dealt(slates: Sequence[Slate], scores: Sequence[float]) -> list[Scored]:
    """Scores in the order of the slates' answers, each slate with its own."""
    rest = iter(scores)
    return [s.judged([next(rest) for _ in s.texts]) for s in slates]
