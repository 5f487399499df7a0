"""PPO: our stage against the last TRL that had it (1.12, `trl.experimental.ppo`), episodes a second.

The same policy, reference, reward model, critic and prompts; as many passes, minibatches and tokens. Answers
are random, so their scores and entropies are compared in the mean over updates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import stage
from case import Case, Shape, means_agree

EPISODES, LONGEST, PASSES, MINIBATCHES = 64, 53, 4, 1
RATE, LEASH = 1e-6, 0.05


def cases(shape: Shape, precision: str | None) -> list[Case]:
    same = means_agree("objective/scores", "objective/entropy")
    steps = 2 if shape.width <= 256 else 1
    kinds = [precision] if precision else ["fp32", "bf16"]
    peers = {"fp32": "TRL 1.12", "bf16": "TRL 1.12 in fp32"}
    return [
        Case("ppo", peers[kind], "episodes/s", steps, "ours", "theirs", same, kind, "trl-ppo")
        for kind in kinds
    ]


def ours(pace: Any, settings: dict[str, Any]) -> None:
    material, episodes = Path(settings["material"]), settings.get("episodes", EPISODES)
    recipe = {
        "policy": material / "policy",
        "reference": material / "policy",
        "reward": material / "reward",
        "prompts": [material / "prompts.jsonl"],
        "steps": stage.ENDLESS,
        "prompts_per_step": episodes,
        "max_tokens": settings.get("longest", LONGEST),
        "kl_coef": LEASH,
        "epochs": PASSES,
        "minibatches": MINIBATCHES,
        "target_kl": None,
        "optimiser": stage.optimiser(learning_rate=RATE),
        "critic": stage.optimiser(learning_rate=RATE),
        "one_step_off": settings.get("one_step_off", False),
        "compute": stage.compute(settings),
    }
    stage.run(pace, settings, "ppo", recipe, episodes, "objective/scores", "objective/entropy")


def theirs(pace: Any, settings: dict[str, Any]) -> None:
    """In float32 whatever ours computes in."""
    import trl_side
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    settings = {**settings, "precision": "fp32"}
    tokenizer = trl_side.tokenizer(settings)
    tokenizer.padding_side = "left"
    options = trl_side.arguments(settings, EPISODES, RATE)
    trainer = PPOTrainer(
        args=PPOConfig(
            **options,
            num_mini_batches=MINIBATCHES,
            num_ppo_epochs=PASSES,
            total_episodes=EPISODES * 10_000,
            num_sample_generations=0,
            response_length=LONGEST,
            stop_token="eos",
            missing_eos_penalty=1.0,
            temperature=1.0,
            kl_coef=LEASH,
        ),
        processing_class=tokenizer,
        model=trl_side.model(settings, "policy"),
        ref_model=trl_side.model(settings, "policy"),
        reward_model=trl_side.model(settings, "reward"),
        value_model=trl_side.model(settings, "reward"),
        train_dataset=trl_side.dataset(
            [{"input_ids": ids} for ids in trl_side.read(settings, "prompts.json")]
        ),
    )
    names = ("objective/scores", "objective/entropy")
    trainer.add_callback(trl_side.held(pace, EPISODES, {name: name for name in names}))
    trainer.train()
