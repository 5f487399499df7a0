"""Writes policy.json: what TRL's own code makes of a few answers. Run once, where TRL is installed:

    pip install trl==1.16.0 && python tests/golden/export_policy.py

The methods of its trainers that compute advantages and losses are called without making a trainer, on a
stand-in that has what they read; in the place of a model's log-probs they get given numbers. Losses come with
their derivatives by every log-prob.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

LENGTHS = [3, 5, 1, 4, 2, 5]
WIDTH, GENERATIONS = 5, 3
REWARDS = [1.0, -0.5, 0.25, 2.0, 2.0, 2.0]
REWARDS_OF_MORE = [1.0, -0.5, 0.25, 2.0, 1.75, -3.0]

# name -> what TRL calls it: loss_type, importance_sampling_level, epsilon, epsilon_high, beta
LOSSES: dict[str, tuple[str, str, float, float, float]] = {
    "ppo/sequence": ("grpo", "token", 0.2, 0.2, 0.0),
    "ppo/sequence/k3": ("grpo", "token", 0.2, 0.2, 0.3),
    "ppo/token": ("dapo", "token", 0.2, 0.2, 0.0),
    "ppo/constant": ("dr_grpo", "token", 0.2, 0.2, 0.0),
    "dapo/token": ("dapo", "token", 0.2, 0.28, 0.0),
    "dapo/token/k3": ("dapo", "token", 0.2, 0.28, 0.1),
    "cispo/token": ("cispo", "token", 0.2, 1.5, 0.0),
    "gspo/sequence": ("grpo", "sequence", 0.1, 0.15, 0.0),
    "gspo/token": ("dapo", "sequence", 0.1, 0.15, 0.0),
}


class Accelerator:
    device = torch.device("cpu")
    num_processes = 1
    process_index = 0
    sync_gradients = True

    def gather(self, x: Tensor) -> Tensor:
        return x

    def reduce(self, x: Tensor, reduction: str) -> Tensor:
        return x


def numbers() -> dict[str, Tensor]:
    """Log-probs under the policy, at sampling and under the reference; 0 beyond the end of an answer."""
    draw = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), WIDTH)
    mask = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    old = -3 * torch.rand(shape, generator=draw) - 0.1
    new = (old + 0.4 * torch.randn(shape, generator=draw)).clamp(max=-0.01)
    reference = (old + 0.7 * torch.randn(shape, generator=draw)).clamp(max=-0.01)
    advantages = 1.5 * torch.randn(len(LENGTHS), generator=draw)
    return {
        "mask": mask,
        "old": old * mask,
        "new": new * mask,
        "reference": reference * mask,
        "advantages": advantages,
    }


def stand_in(**known: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        accelerator=Accelerator(),
        aux_loss_enabled=False,
        use_vllm=False,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=1,
        _metrics=defaultdict(lambda: defaultdict(list)),
        **known,
    )


def loss(name: str, of: dict[str, Tensor]) -> dict[str, Any]:
    kind, level, low, high, beta = LOSSES[name]
    new = of["new"].clone().requires_grad_()
    trainer = stand_in(
        beta=beta,
        loss_type=kind,
        importance_sampling_level=level,
        epsilon_low=low,
        epsilon_high=high,
        max_completion_length=8,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.zeros_like(new), None),
    )
    empty = torch.zeros(len(LENGTHS), 0, dtype=torch.long)
    inputs = {
        "prompt_ids": empty,
        "prompt_mask": empty,
        "completion_ids": torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long),
        "completion_mask": of["mask"].long(),
        "advantages": of["advantages"],
        "old_per_token_logps": of["old"],
        "ref_per_token_logps": of["reference"],
        "num_items_in_batch": of["mask"].sum(),
    }
    value = GRPOTrainer._compute_loss(trainer, None, inputs)
    (gradient,) = torch.autograd.grad(value, new)
    metrics = {k: v[0] for k, v in trainer._metrics["train"].items()}
    return {"loss": value.item(), "gradient": gradient.tolist(), "metrics": metrics}


def advantages(kind: type, rewards: list[float], of: dict[str, Tensor], **known: Any) -> list[float]:
    ids = [[7] * length for length in LENGTHS]
    generated = ([[5, 6]] * len(ids), ids, None, ["x"] * len(ids), None, {}, None, None)
    given = iter((of["old"], of["reference"]))  # RLOO asks for the policy's, then for the reference's
    trainer = stand_in(
        environment_factories=None,
        environments=None,
        tools=None,
        use_vllm_correction=False,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _generate=lambda prompts: generated if kind is GRPOTrainer else (generated[0], ids, ["x"] * len(ids)),
        _get_per_token_logps_and_entropies=lambda *a, **k: (next(given), None, None),
        _calculate_rewards=lambda *a: torch.tensor(rewards)[:, None],
        reward_weights=torch.ones(1),
        reward_func_names=["score"],
        reward_clip_range=None,
        num_generations=GENERATIONS,
        num_iterations=1,
        ref_model=SimpleNamespace(training=False),
        args=SimpleNamespace(
            per_device_train_batch_size=6,
            gradient_accumulation_steps=1,
            steps_per_generation=1,
            gradient_checkpointing_kwargs=None,
        ),
        multi_objective_aggregation="sum_then_normalize",
        _logs=defaultdict(list, rewards=defaultdict(list), extra=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        log_multimodal=False,
        **known,
    )
    made = kind._generate_and_score_completions(trainer, [{"prompt": "p"}] * len(ids))
    found: list[float] = made["advantages"].tolist()
    return found


def main() -> None:
    of = numbers()
    grpo: dict[str, Any] = {"beta": 0.0}
    tree = {
        "made_by": f"trl {trl.__version__}, torch {torch.__version__}",
        "generations": GENERATIONS,
        "longest": 8,
        **{name: value.tolist() for name, value in of.items()},
        "losses": {name: {"settings": LOSSES[name], **loss(name, of)} for name in LOSSES},
        "rewards": [REWARDS, REWARDS_OF_MORE],
        "grpo": [
            advantages(GRPOTrainer, r, of, scale_rewards="group", **grpo) for r in (REWARDS, REWARDS_OF_MORE)
        ],
        "dr_grpo": [
            advantages(GRPOTrainer, r, of, scale_rewards="none", **grpo) for r in (REWARDS, REWARDS_OF_MORE)
        ],
        "rloo": [
            advantages(RLOOTrainer, r, of, beta=0.0, normalize_advantages=False)
            for r in (REWARDS, REWARDS_OF_MORE)
        ],
        "rloo_kl_coef": 0.2,
        "rloo_with_kl": [
            advantages(RLOOTrainer, r, of, beta=0.2, normalize_advantages=False)
            for r in (REWARDS, REWARDS_OF_MORE)
        ],
    }
    path = Path(__file__).parent / "policy.json"
    path.write_text(json.dumps(tree, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
