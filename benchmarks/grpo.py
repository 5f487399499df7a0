"""GRPO: our stage against TRL's GRPOTrainer, episodes a second.

The same policy, reference, reward model and prompts, eight answers a prompt, one update a step. Answers are
random: their lengths and the policy's entropy are compared in the mean over updates. The rewards are not:
TRL scores the answer's text tokenised again, we score the tokens that were sampled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stage
from case import Case, Shape, means_agree

PROMPTS, ANSWERS, LONGEST = 8, 8, 53
RATE, LEASH = 1e-6, 0.04


def cases(shape: Shape, precision: str | None) -> list[Case]:
    kind = precision or "fp32"
    same = means_agree("completions/mean_length", "entropy")
    steps = 3 if shape.width <= 256 else 1
    return [Case("grpo", "TRL 1.16", "episodes/s", steps, "ours", "theirs", same, kind, "trl")]


def ours(pace: Any, settings: dict[str, Any]) -> None:
    material, prompts = Path(settings["material"]), settings.get("prompts", PROMPTS)
    recipe = {
        "policy": material / "policy",
        "reward": material / "reward",
        "prompts": [material / "prompts.jsonl"],
        "steps": stage.ENDLESS,
        "prompts_per_step": prompts,
        "samples": ANSWERS,
        "max_tokens": settings.get("longest", LONGEST),
        "kl_coef": LEASH,
        "minibatches": 1,
        "target_kl": None,
        "missing_eos_penalty": 0.0,
        "optimiser": stage.optimiser(learning_rate=RATE),
        "one_step_off": settings.get("one_step_off", False),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "grpo", recipe, prompts * ANSWERS, "completions/mean_length", "entropy")


def theirs(pace: Any, settings: dict[str, Any]) -> None:
    import trl_side
    from trl import GRPOConfig, GRPOTrainer

    prompts = [
        {"prompt": [{"role": m["role"], "content": m["content"]} for m in p["messages"]]}
        for p in trl_side.read_lines(settings, "prompts.jsonl")
    ]
    episodes = settings.get("prompts", PROMPTS) * ANSWERS
    reward = trl_side.model(settings, "reward")
    reward.train(False)
    trainer = GRPOTrainer(
        model=trl_side.model(settings, "policy"),
        reward_funcs=reward,
        reward_processing_classes=trl_side.tokenizer(settings),
        args=GRPOConfig(
            **trl_side.arguments(settings, episodes, RATE),
            num_generations=ANSWERS,
            max_completion_length=settings.get("longest", LONGEST),
            beta=LEASH,
        ),
        train_dataset=trl_side.dataset(prompts),
        processing_class=trl_side.tokenizer(settings),
    )
    names = ("completions/mean_length", "entropy")
    trainer.add_callback(trl_side.held(pace, episodes, {name: name for name in names}))
    trainer.train()
