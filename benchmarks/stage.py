"""Our side of the training benchmarks: the stage that `bloomery NAME` runs, held between rounds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Steps that no benchmark reaches; a round ends long before.
ENDLESS = 1_000_000


def run(
    pace: Any,
    settings: Mapping[str, Any],
    name: str,
    recipe: Mapping[str, Any],
    units: float | Callable[[Mapping[str, Any]], float],
    *facts: str,
) -> None:
    """Run stage `name` with a recipe, step by step as `pace` allows; nothing of the stage is replaced.

    `units` is the work in a step, or how to read it off the step's metrics; `facts` are metrics to tell.
    """
    from bloomery.stages import STAGES
    from bloomery.train.run import Run

    stage, steps, log = STAGES[name], Run.steps, Run.log
    logged: dict[str, Any] = {}

    def paced_steps(self: Run, total: int) -> Iterator[int]:
        for step in steps(self, total):
            pace.start()
            yield step
            done = units(logged) if callable(units) else units
            pace.end(done, **{fact: logged[fact] for fact in facts})

    def kept_log(self: Run, step: int, metrics: Mapping[str, Any]) -> None:
        logged.update(metrics)
        log(self, step, metrics)

    setattr(Run, "steps", paced_steps)  # noqa: B010
    setattr(Run, "log", kept_log)  # noqa: B010
    out = Path(settings["scratch"]) / f"ours-{name}"
    shutil.rmtree(out, ignore_errors=True)
    stage.run(stage.recipe.model_validate(dict(recipe)), out)


def compute(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's section on arithmetic."""
    compiled = {"compile": True} if settings["compile"] else {}
    plain = {"precision": settings["precision"], "threads": settings["threads"], "checkpoint_every": 0}
    return plain | compiled


def optimiser(**changes: Any) -> dict[str, Any]:
    """A constant learning rate and nothing else that a peer would have to imitate."""
    return {"kind": "adamw", "schedule": "constant", "warmup": 0, "weight_decay": 0.0, **changes}
