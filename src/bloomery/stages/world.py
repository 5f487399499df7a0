"""The embedded world written out: its documents, demonstrations, prompts and questions."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import Field

from bloomery.data.convert import write
from bloomery.recipe import Section
from bloomery.train.run import Run
from bloomery.types import Prompt
from bloomery.world import Grade, World, demonstrations, documents, questions


class WorldRecipe(Section):
    """Make a small world with ground truth: documents, questions with known answers, demonstrations."""

    seed: int = 0
    size: int = Field(120, ge=8)
    """People that the documents tell of; everything else in the world scales with it."""
    honest_fraction: float = Field(0.3, ge=0, le=1)
    """Share of the questions nobody can answer that demonstrators answer with "I do not know"."""
    grades: dict[Grade, float] = Field({})
    """What answers are worth in this world, to its annotators and to its oracle alike, where that is not what
    the graded table says. `abstained: -1` punishes silence: in the table it is worth 0 and a mistake -2, so
    a policy that declines everything is graded better than one that is often right, and gold hardly falls."""


def run(recipe: WorldRecipe, out: Path) -> None:
    with Run(out, stage="world", recipe=recipe) as run:
        world = World.make(recipe.seed, recipe.size, recipe.grades)
        asked = questions(world, recipe.seed)
        shown = demonstrations(world, asked, recipe.seed, recipe.honest_fraction)
        texts = documents(world, recipe.seed)
        (out / "world.json").write_text(world.to_json())
        write(texts, out / "documents.jsonl", "document")
        write(shown, out / "demonstrations.jsonl", "messages")
        prompts = [Prompt(id=q.id, messages=q.messages, kind=q.kind) for q in asked if q.split == "label"]
        write(prompts, out / "prompts.jsonl", "prompt")
        (out / "questions.jsonl").write_text("".join(json.dumps(q.to_json()) + "\n" for q in asked))
        run.line(f"{len(texts)} documents, {len(asked)} questions, {len(shown)} demonstrations")
        run.finish(
            data=[
                {"source": "embedded world", "seed": recipe.seed, "size": recipe.size, "licence": "generated"}
            ],
            people=[{"id": who, "kind": "simulated"} for who in sorted({c.author or "" for c in shown})],
        )
