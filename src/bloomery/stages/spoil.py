"""Rankings made fewer and worse on purpose: label budgets and label noise for experiments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import Field, model_validator

from bloomery import lineage
from bloomery.data.convert import write
from bloomery.data.sources import OnBadRow, read_rankings
from bloomery.errors import UsageError
from bloomery.recipe import InputPath, Section
from bloomery.seeds import derive
from bloomery.stages.common import is_held_out, read_all
from bloomery.stages.people import authors, count_people
from bloomery.stages.slates import prompt_id
from bloomery.train.run import Run
from bloomery.types import Ranking


class Spoil(Section):
    """Keep a share of the rankings and turn some of them over: label budgets and noise for experiments."""

    rankings: tuple[InputPath, ...]
    share: float = Field(1.0, gt=0, le=1)
    """Of the prompts, whose rankings are kept."""
    part: int = Field(0, ge=0)
    """Which share: 0 the first, 1 the next, which has no prompt in common with it, and so on."""
    flipped: float = Field(0.0, ge=0, le=1)
    """Share of the kept rankings that is turned over, the best answer last."""
    held_out: float = Field(0.1, ge=0, lt=1)
    """That of the reward stage: what it holds out stays whole and right, so that report cards compare."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
    seed: int = 0

    @model_validator(mode="after")
    def _there(self) -> Spoil:
        if (self.part + 1) * self.share > 1 + 1e-9:
            raise UsageError(
                "there is no such part of the prompts", got=f"part {self.part} of shares of {self.share}"
            )
        return self


def run(recipe: Spoil, out: Path) -> None:
    with Run(out, stage="spoil", recipe=recipe) as run:
        rankings = read_all(read_rankings, recipe.rankings, recipe.on_bad_row, run.line)
        kept = shared(rankings, recipe)
        bad = chosen((r.id for r in kept if not exempt(r, recipe)), recipe.flipped, recipe.seed, "flipped")
        write((turned_over(r) if r.id in bad else r for r in kept), out / "rankings.jsonl", "ranking")
        run.line(f"kept {len(kept)} of {len(rankings)} rankings, {len(bad)} of them turned over")
        # Who gave rankings that a run made is in that run's lineage.
        brought = [path for path in recipe.rankings if lineage.of(path) is None]
        run.finish(
            data=[{"source": str(path)} for path in recipe.rankings],
            people=count_people(read_all(read_rankings, brought, "skip", lambda text: None)),
            teachers=authors(c for r in kept for c in r.completions),
        )


def shared(rankings: Sequence[Ranking], recipe: Spoil) -> list[Ranking]:
    """The rankings of the recipe's part of the prompts, and of all prompts that are held out.

    Raises `UsageError` when that leaves no prompt to learn from.
    """
    prompts = {prompt_id(r.prompt) for r in rankings if not exempt(r, recipe)}
    before, upto = (
        chosen(prompts, parts * recipe.share, recipe.seed, "share")
        for parts in (recipe.part, recipe.part + 1)
    )
    wanted = upto - before
    if not wanted:
        raise UsageError("no prompt is left", got=f"a share of {recipe.share} of {len(prompts)} prompts")
    return [r for r in rankings if exempt(r, recipe) or prompt_id(r.prompt) in wanted]


def exempt(ranking: Ranking, recipe: Spoil) -> bool:
    """Whether the reward stage holds the ranking out."""
    return is_held_out(prompt_id(ranking.prompt), recipe.held_out)


def chosen(names: Iterable[str], share: float, seed: int, why: str) -> set[str]:
    """A share of some names, drawn by the names themselves: a larger share holds the smaller one."""
    order = sorted(names, key=lambda name: derive(seed, why, name))
    return set(order[: round(share * len(order))])


def turned_over(ranking: Ranking) -> Ranking:
    """The worst answer best, ties still ties. Ratings and a correction, which would tell otherwise, go."""
    ranks = ranking.ranking or ()
    turned = tuple(1 + sum(other > rank for other in ranks) for rank in ranks)
    return ranking.model_copy(
        update={"ranking": turned if ranks else None, "ratings": None, "correction": None}
    )
