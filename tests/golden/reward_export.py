"""Writes reward.json: what TRL's own reward trainer makes of a few scores. Needs TRL, which the tests do not.

    python -m venv trl && trl/bin/pip install -c constraints.txt trl==1.16.0
    trl/bin/python tests/golden/reward_export.py

`RewardTrainer.compute_loss` is called as it stands, on a model that answers with scores we chose.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from trl.trainer.reward_trainer import RewardTrainer

CHOSEN = [1.5, -0.25, 3.0, 0.75, -2.0]
REJECTED = [0.5, 0.5, -1.0, 0.25, -2.5]
MARGIN = [1.0, 0.0, 3.0, 0.5, 2.0]


def case(name: str, margin: list[float] | None, center: float) -> dict[str, Any]:
    # Chosen answers first, then the rejected ones, one logit each.
    logits = torch.tensor(CHOSEN + REJECTED)[:, None].requires_grad_()
    model = SimpleNamespace(training=True)
    trainer = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=center or None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list)},
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(10, 1)}
    if margin is not None:
        inputs["margin"] = torch.tensor(margin)
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)
    loss.backward()
    gradient = logits.grad.reshape(2, -1).T.tolist()
    return {
        "name": name,
        "chosen": CHOSEN,
        "rejected": REJECTED,
        "margin": margin,
        "center": center,
        "loss": loss.item(),
        "gradient": gradient,
        "accuracy": trainer._metrics["train"]["accuracy"][0],
    }


if __name__ == "__main__":
    cases = [
        case("plain", None, 0.0),
        case("margin", MARGIN, 0.0),
        case("centred", None, 0.05),
        case("both", MARGIN, 0.05),
    ]
    made_by = {"trl": trl.__version__, "torch": torch.__version__}
    text = json.dumps({"made_by": made_by, "pairs": cases}, indent=1)
    Path(__file__).with_name("reward.json").write_text(text + "\n")
