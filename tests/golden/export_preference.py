"""Writes preference.json: what TRL's own loss code makes of a few pairs. Run once, where TRL is installed:

    pip install trl==1.16.0 && python tests/golden/export_preference.py

Its trainers compute a loss from a model's output, so each is called without being made, on a stand-in that
has what that method reads and on a stand-in for the model that returns given log-probs. Values are per pair
(one call each) with the derivatives by the two summed log-probs; KTO, whose loss is a mean over a batch, is
called on all pairs at once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

PAIRS = [
    # chosen: policy, reference, tokens; rejected: policy, reference, tokens
    ((-12.5, -14.0, 9), (-20.25, -17.5, 11)),
    ((-3.0, -2.5, 4), (-2.0, -2.25, 2)),
    ((-41.0, -38.0, 30), (-25.5, -33.0, 17)),
    ((-0.75, -6.0, 1), (-9.5, -7.0, 6)),
]
# The chosen answers, then the rejected ones, as somebody judged them alone.
GOOD = (True, False, False, False, False, False, True, False)
MOVED = (0.5, 3.25, -1.0, 2.0)  # log-ratios of answers to other prompts, for KTO's estimate of the KL
PROMPT = 3


class Accelerator:
    device = torch.device("cpu")

    def gather(self, x: Tensor) -> Tensor:
        return x

    gather_for_metrics = gather


def stand_in(**known: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **known,
    )


def laid_out(sums: Tensor, counts: list[int]) -> tuple[Tensor, Tensor]:
    """Rows of a prompt and an answer: log-probs of all but the first token, [B, T - 1], which add up to
    `sums`, and the mask [B, T] of the answers."""
    width = PROMPT + max(counts)
    mask = torch.zeros(len(counts), width, dtype=torch.long)
    for row, count in enumerate(counts):
        mask[row, PROMPT : PROMPT + count] = 1
    each = mask[:, 1:] * (sums / torch.tensor(counts, dtype=torch.float32))[:, None]
    return each, mask


def model(logprobs: Tensor) -> Callable[..., Any]:
    nothing = torch.zeros_like(logprobs)
    out = SimpleNamespace(log_probs=logprobs, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())
    return lambda **inputs: out


def dpo_trainer(kind: str, beta: float, noise: float = 0.0) -> list[list[float]]:
    found = []
    for chosen, rejected in PAIRS:
        sums = torch.tensor([chosen[0], rejected[0]], requires_grad=True)
        logprobs, mask = laid_out(sums, [chosen[2], rejected[2]])
        inputs = {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": torch.tensor([chosen[1]]),
            "ref_rejected_logps": torch.tensor([rejected[1]]),
        }
        trainer = stand_in(
            ld_alpha=None,
            f_divergence_type="reverse_kl",
            loss_types=[kind],
            loss_weights=[1.0],
            beta=beta,
            label_smoothing=noise,
            use_weighting=False,
        )
        loss = DPOTrainer._compute_loss(trainer, model(logprobs), inputs, False)
        found.append(entry(loss, sums))
    return found


def pairwise(
    loss_of: Callable[[Tensor, Tensor], Tensor], numbers: Callable[[tuple[float, ...]], float]
) -> Any:
    found = []
    for chosen, rejected in PAIRS:
        sums = torch.tensor([numbers(chosen), numbers(rejected)], requires_grad=True)
        found.append(entry(loss_of(sums[:1], sums[1:]).sum(), sums))
    return found


def entry(loss: Tensor, sums: Tensor) -> list[float]:
    (grad,) = torch.autograd.grad(loss, sums)
    return [loss.item(), *grad.tolist()]


def mean(answer: tuple[float, ...]) -> float:
    return answer[0] / answer[2]


def ratio(answer: tuple[float, ...]) -> float:
    return answer[0] - answer[1]


def kto_trainer(beta: float, desirable: float, undesirable: float, good: Sequence[bool]) -> list[float]:
    answers = [pair[0] for pair in PAIRS] + [pair[1] for pair in PAIRS]
    sums = torch.tensor([a[0] for a in answers], requires_grad=True)
    logprobs, mask = laid_out(sums, [int(a[2]) for a in answers])
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": torch.tensor(good),
        "ref_logps": torch.tensor([a[1] for a in answers]),
        "ref_KL_logps": torch.zeros(len(MOVED)),
    }
    trainer = stand_in(
        calculate_KL=True,
        _compute_kl_logps=lambda model, batch: torch.tensor(MOVED),
        loss_type="kto",
        beta=beta,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
    )
    return entry(KTOTrainer._compute_loss(trainer, model(logprobs), inputs, False), sums)


def cpo_trainer(kind: str, beta: float, noise: float = 0.0, gamma: float = 0.0) -> Any:
    trainer = stand_in(alpha=0.0, loss_type=kind, simpo_gamma=gamma, beta=beta, label_smoothing=noise)
    numbers = mean if kind == "simpo" else ratio
    return pairwise(lambda c, r: CPOTrainer.cpo_loss(trainer, c, r)[0], numbers)


def orpo_trainer(beta: float) -> Any:
    return pairwise(lambda c, r: -ORPOTrainer.odds_ratio_loss(stand_in(beta=beta), c, r)[0], mean)


def main() -> None:
    golden = {
        "made_by": f"trl {trl.__version__}, torch {torch.__version__}",
        "pairs": PAIRS,
        "moved": MOVED,
        "dpo": dpo_trainer("sigmoid", 0.3),
        "dpo smoothed": cpo_trainer("sigmoid", 0.3, noise=0.2),
        "robust": dpo_trainer("robust", 0.3, noise=0.2),
        "ipo": dpo_trainer("ipo", 0.4),
        "hinge": dpo_trainer("hinge", 0.2),
        "kto": kto_trainer(0.25, 1.0, 1.5, [True] * len(PAIRS) + [False] * len(PAIRS)),
        "good": GOOD,
        "kto judged": kto_trainer(0.25, 2.0, 1.5, GOOD),
        "orpo odds": orpo_trainer(0.7),
        "simpo": cpo_trainer("simpo", 2.5, gamma=0.5),
    }
    path = Path(__file__).parent / "preference.json"
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
