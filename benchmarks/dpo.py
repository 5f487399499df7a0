"""Direct preference optimisation: our stage against TRL's DPOTrainer, pairs a second.

Two rows: both sides read the frozen reference in every step, and both have read it before the first round.
Losses and the chosen answers' log-probs must agree step by step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stage
from case import Case, Shape, all_of, steps_agree

BATCH, RATE, BETA, COMPARED = 16, 1e-4, 0.1, 6


def cases(shape: Shape, precision: str | None) -> list[Case]:
    kind = precision or "fp32"
    close = kind == "fp32"
    same = all_of(
        steps_agree("loss", 0.005 if close else 0.1, COMPARED),
        steps_agree("logps/chosen", 0.1 if close else 5.0, COMPARED),
    )
    steps = 8 if shape.width <= 256 else 2
    return [
        Case("dpo", peer, "pairs/s", steps, "ours", "theirs", same, kind, "trl", settings={"before": before})
        for peer, before in (("TRL 1.16", False), ("TRL 1.16, reference read before", True))
    ]


def ours(pace: Any, settings: dict[str, Any]) -> None:
    material = Path(settings["material"])
    recipe = {
        "model": material / "policy",
        "rankings": [material / "pairs.jsonl"],
        "loss": "dpo",
        "loss_settings": {"beta": BETA},
        "precompute": settings["before"],
        "epochs": stage.ENDLESS,
        "batch": BATCH,
        "held_out": 0.0,
        "optimiser": stage.optimiser(learning_rate=RATE),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "prefer", recipe, BATCH, "loss", "logps/chosen")


def theirs(pace: Any, settings: dict[str, Any]) -> None:
    import trl_side
    from case import SIZES
    from trl import DPOConfig, DPOTrainer

    trainer = DPOTrainer(
        model=trl_side.model(settings, "policy"),
        ref_model=trl_side.model(settings, "policy"),
        args=DPOConfig(
            **trl_side.arguments(settings, BATCH, RATE),
            max_length=SIZES[settings["size"]].context,
            beta=BETA,
            precompute_ref_log_probs=settings["before"],
        ),
        train_dataset=trl_side.dataset(trl_side.read(settings, "dpo.json")),
        processing_class=trl_side.tokenizer(settings),
    )
    trainer.add_callback(trl_side.held(pace, BATCH, {"loss": "loss", "logps/chosen": "logps/chosen"}))
    trainer.train()
