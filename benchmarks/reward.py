"""The reward model: our stage against TRL's RewardTrainer, pairs a second.

Pairs are two answers each on both sides. A ranking of six is one slate to us and 15 pairs to TRL, which
knows nothing else; the losses are the same mean over pairs, so they must agree step by step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stage
from case import PAIRS_OF_SIX, Case, Shape, steps_agree

RATE, COMPARED = 1e-4, 6
SLATES = {"pairs": 16, "rankings": 4}
PAIRS = {"pairs": 1, "rankings": PAIRS_OF_SIX}


def cases(shape: Shape, precision: str | None) -> list[Case]:
    kind = precision or "fp32"
    same = steps_agree("loss", 0.001 if kind == "fp32" else 0.05, COMPARED)
    steps = 16 if shape.width <= 256 else 4
    return [
        Case(work, "TRL 1.16", "pairs/s", n, "ours", "theirs", same, kind, "trl", settings={"data": data})
        for work, data, n in (("reward", "pairs", steps), ("reward_k6", "rankings", max(2, steps // 4)))
    ]


def ours(pace: Any, settings: dict[str, Any]) -> None:
    material, data = Path(settings["material"]), settings["data"]
    recipe = {
        "model": material / "policy",
        "start": material / "reward",
        "rankings": [material / f"{data}.jsonl"],
        "epochs": stage.ENDLESS,
        "batch": SLATES[data],
        "held_out": 1e-9,
        "optimiser": stage.optimiser(learning_rate=RATE),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "reward", recipe, SLATES[data] * PAIRS[data], "loss")


def theirs(pace: Any, settings: dict[str, Any]) -> None:
    import trl_side
    from case import SIZES
    from trl import RewardConfig, RewardTrainer

    data = settings["data"]
    batch = SLATES[data] * PAIRS[data]
    trainer = RewardTrainer(
        model=trl_side.model(settings, "reward"),
        args=RewardConfig(
            **trl_side.arguments(settings, batch, RATE),
            max_length=SIZES[settings["size"]].context,
        ),
        train_dataset=trl_side.dataset(trl_side.read(settings, f"{data}.json")),
        processing_class=trl_side.tokenizer(settings),
    )
    trainer.add_callback(trl_side.held(pace, batch, {"loss": "loss"}))
    trainer.train()
