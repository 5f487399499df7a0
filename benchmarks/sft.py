"""Supervised fine-tuning: our stage against TRL's SFTTrainer, padded and packed, tokens a second.

Tokens are those of the conversations, padding not counted; only answers are trained on, on both sides.
Padded, TRL sees the same batches, so its losses must be ours step by step. Packed, its batches are others
of about the same size, so only the mean loss of a pass is compared.
"""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import stage
from case import Case, Shape, Side, steps_agree

BATCH, RATE, COMPARED = 16, 1e-4, 6
ALIKE = 0.2  # nats between the mean losses of passes that batch differently


def cases(shape: Shape, precision: str | None) -> list[Case]:
    kind = precision or "fp32"
    padded = steps_agree("loss", 0.001 if kind == "fp32" else 0.05, COMPARED)
    steps = 16 if shape.width <= 256 else 4
    return [
        Case("sft", "TRL 1.16 padded", "tok/s", steps, "ours", "padded", padded, kind, "trl"),
        Case("sft", "TRL 1.16 packed", "tok/s", steps, "ours", "packed", same_mean, kind, "trl"),
    ]


def same_mean(ours: Side, theirs: Side) -> str:
    a, b = fmean(ours.facts["loss"]), fmean(theirs.facts["loss"])
    return "" if abs(a - b) <= ALIKE else f"mean losses are {a:.3f} and {b:.3f}"


def ours(pace: Any, settings: dict[str, Any]) -> None:
    from trl_side import read

    material = Path(settings["material"])
    recipe = {
        "model": material / "policy",
        "demonstrations": [material / "demonstrations.jsonl"],
        "epochs": stage.ENDLESS,
        "batch": BATCH,
        "held_out": 0.0,
        "optimiser": stage.optimiser(learning_rate=RATE),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "sft", recipe, tokens_of_a_step(read(settings, "sft.json")), "loss")


def tokens_of_a_step(rows: list[dict[str, Any]]) -> float:
    """On average; a round is whole passes over the conversations where its length allows."""
    return fmean(len(row["input_ids"]) for row in rows) * BATCH


def padded(pace: Any, settings: dict[str, Any]) -> None:
    theirs(pace, settings, packing=False)


def packed(pace: Any, settings: dict[str, Any]) -> None:
    theirs(pace, settings, packing=True)


def theirs(pace: Any, settings: dict[str, Any], packing: bool) -> None:
    import trl_side
    from case import SIZES
    from trl import SFTConfig, SFTTrainer

    context = SIZES[settings["size"]].context
    rows = trl_side.read(settings, "sft.json")
    tokens = tokens_of_a_step(rows)
    # As many rows of the full context as hold the tokens of our batch.
    batch = max(1, round(tokens / context)) if packing else BATCH
    trainer = SFTTrainer(
        model=trl_side.model(settings, "policy"),
        args=SFTConfig(
            **trl_side.arguments(settings, batch, RATE),
            max_length=context,
            packing=packing,
            completion_only_loss=True,
        ),
        train_dataset=trl_side.dataset(rows),
        processing_class=trl_side.tokenizer(settings),
    )
    if packing:
        tokens = sum(len(row["input_ids"]) for row in rows) / len(trainer.train_dataset) * batch
    trainer.add_callback(trl_side.held(pace, tokens, {"loss": "loss"}))
    trainer.train()
