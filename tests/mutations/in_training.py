"""Faults in updates, checkpoints and resume, and in how the stages put their pieces together."""

from __future__ import annotations

from mutations.mutation import Mutation

STEP, OPTIM, CHECKPOINT = ("train/test_step.py",), ("train/test_optim.py",), ("train/test_checkpoint.py",)
RUN, SETTINGS = ("train/test_run_directory.py",), ("stages/test_stage_settings.py",)


def _stage(name: str, *tests: str) -> tuple[str, ...]:
    """Tests of a stage, not all of its file: they take long."""
    return tuple(f"stages/test_{name}.py::test_{test}" for test in tests)


TRAINING = (
    Mutation(
        "gradients-never-cleared",
        "train/step.py",
        "        optimizer.zero_grad(set_to_none=True)\n",
        "        pass\n",
        STEP,
    ),
    Mutation(
        "clipped-to-norm-squared",
        "train/step.py",
        "(grads, max_norm / norm)",
        "(grads, max_norm * norm)",
        STEP,
    ),
    Mutation(
        "bad-losses-forgiven",
        "train/step.py",
        "math.isfinite(norm) and math.isfinite(value)",
        "math.isfinite(norm)",
        STEP,
    ),
    Mutation("norms-decay", "train/optim.py", "if p.dim() >= 2]", "if p.dim() >= 1]", OPTIM),
    Mutation(
        "warmup-begins-at-nought",
        "train/schedule.py",
        "peak * (step + 1) / warmup",
        "peak * step / warmup",
        OPTIM,
    ),
    Mutation(
        "betas-exchanged",
        "stages/common.py",
        "betas=(self.beta1, self.beta2)",
        "betas=(self.beta2, self.beta1)",
        SETTINGS,
    ),
    Mutation(
        "floor-of-the-rate-forgotten", "stages/common.py", "            floor=self.floor,\n", "", SETTINGS
    ),
    # Resume.
    Mutation(
        "optimizer-not-restored",
        "train/checkpoint.py",
        "optimizer.load_state_dict(moments[name])",
        "pass",
        CHECKPOINT,
    ),
    Mutation(
        "newest-checkpoint-not-verified",
        "train/checkpoint.py",
        "        problems = verify(path)\n",
        "        problems: list[str] = []\n",
        CHECKPOINT,
    ),
    Mutation(
        "resume-repeats-a-step",
        "train/run.py",
        "for step in range(self.step, total):",
        "for step in range(max(0, self.step - 1), total):",
        RUN,
    ),
    Mutation(
        "stage-state-not-restored",
        "train/run.py",
        'self.step, self.state = found.step, found.state["stage"]',
        "self.step = found.step",
        RUN,
    ),
    Mutation(
        "metrics-written-twice-after-a-kill",
        "train/run.py",
        'MetricsWriter(self.out / FILE, own["lines"])',
        "MetricsWriter(self.out / FILE, 10**9)",
        RUN,
    ),
    Mutation(
        "minibatches-from-global-chance",
        "stages/online.py",
        'torch.from_numpy(stream(recipe.seed, "minibatches", step, epoch).permutation(num))',
        "torch.randperm(num)",
        _stage("grpo", "killed_and_gone_on_with_it_gives_the_same_bytes"),
    ),
    Mutation(
        "ppo-critic-not-in-the-checkpoint",
        "stages/ppo.py",
        "actor=learning, critic=critic, optimizer=optimizer",
        "actor=learning, optimizer=optimizer",
        _stage("ppo", "a_run_that_broke_off_goes_on_to_the_same_bytes"),
    ),
    Mutation(
        "answers-seeded-alike-every-step",
        "stages/online.py",
        'recipe.seed, "rollout", step)',
        'recipe.seed, "rollout")',
        _stage("ppo", "every_step_draws_other_answers"),
    ),
    # Supervised stages.
    Mutation(
        "sft-micro-batches-each-a-mean",
        "stages/sft.py",
        "loss = aggregate(nll(logprobs), part.mask, counted)",
        "loss = aggregate(nll(logprobs), part.mask, part.mask.sum()) / len(parts)",
        _stage("sft", "micro_batches_change_no_gradient"),
    ),
    Mutation(
        "pretraining-micro-batches-each-a-mean",
        "stages/pretrain.py",
        "aggregate(text_losses(model, part), part.mask, counted)",
        "aggregate(text_losses(model, part), part.mask, part.num_tokens) / recipe.micro_batches",
        _stage("pretrain", "micro_batches_change_no_weight"),
    ),
    Mutation(
        "held-out-names-depend-on-the-process",
        "stages/common.py",
        'derive(0, "held out", name)',
        "hash(name)",
        SETTINGS,
    ),
    Mutation(
        "sft-replays-the-same-text",
        "stages/sft.py",
        "recipe.replay.backward(model, corpus, recipe.seed, step, autocast)",
        "recipe.replay.backward(model, corpus, recipe.seed, 0, autocast)",
        _stage("sft", "every_step_replays_other_text"),
    ),
    Mutation(
        "reward-replays-the-same-text",
        "stages/reward.py",
        "recipe.replay.loss(reader, corpus, recipe.seed, step)",
        "recipe.replay.loss(reader, corpus, recipe.seed, 0)",
        _stage("reward_stage", "every_step_replays_other_text"),
    ),
    # Rewards and preferences.
    Mutation(
        "reward-shifted-the-other-way",
        "stages/reward.py",
        "model.shift -= score_sequences",
        "model.shift += score_sequences",
        _stage("reward_stage", "demonstrations_score_zero_on_average"),
    ),
    Mutation(
        "padding-scores-enter-the-loss",
        "stages/reward.py",
        "ranks.append([*row, *[0] * gap])",
        "ranks.append([*row, *[len(row) + 1] * gap])",
        _stage("reward_stage", "forward_lays_out_each_annotators_answers_and_ranks"),
    ),
    Mutation(
        "annotators-weigh-alike",
        "stages/reward.py",
        "loss(scores, ranks, mask, said) * said.weights",
        "loss(scores, ranks, mask, said)",
        _stage("reward_choices", "a_step_weighs_each_ranking_by_its_annotator"),
    ),
    Mutation(
        "dpo-without-its-reference",
        "stages/prefer.py",
        "ratio = logps - reference(slates)",
        "ratio = logps",
        _stage("prefer", "the_first_step_by_hand"),
    ),
    Mutation(
        "long-rankings-weigh-more",
        "stages/prefer.py",
        "            1 / len(several),\n",
        "            1.0,\n",
        _stage("prefer", "a_prompts_rankings_are_one_slate_and_each_weighs_one"),
    ),
    Mutation(
        "turns-of-the-prompt-trained",
        "stages/prefer.py",
        "[counts and t >= begin for t, counts in enumerate(rendered.mask)]",
        "list(rendered.mask)",
        _stage("prefer", "what_counts_is_the_answer_with_its_end_and_nothing_of_the_prompt"),
    ),
    Mutation(
        "kto-kl-takes-a-gradient",
        "stages/prefer.py",
        "ratio[strays].mean().clamp(min=0).detach()",
        "ratio[strays].mean().clamp(min=0)",
        _stage("prefer", "the_first_step_by_hand"),
    ),
    Mutation(
        "online-dpo-prefers-the-lower-score",
        "stages/prefer_online.py",
        "order = sorted(set(scores[start : start + samples]), reverse=True)",
        "order = sorted(set(scores[start : start + samples]))",
        _stage("prefer_online", "scores_become_pairs_and_ties_none"),
    ),
    Mutation(
        "online-dpo-compared-with-itself",
        "stages/prefer_online.py",
        "answer_logprobs(learner.reference, [s.answers",
        "answer_logprobs(learner.actor, [s.answers",
        _stage("prefer_online", "an_update_by_hand"),
    ),
    # Policies.
    Mutation(
        "critic-at-the-policys-rate",
        "stages/ppo.py",
        "recipe.critic.schedule_step(critic_optimizer",
        "recipe.optimiser.schedule_step(critic_optimizer",
        _stage("ppo", "policy_and_critic_each_learn_at_their_own_rate"),
    ),
    Mutation(
        "movement-measured-backwards",
        "stages/ppo.py",
        "policy.k3(-moved.detach())",
        "policy.k3(moved.detach())",
        _stage("ppo", "both_losses_by_hand_after_the_weights_have_moved"),
    ),
    Mutation(
        "grpo-stop-leaves-its-gradient",
        "stages/grpo.py",
        "            learner.optimizer.zero_grad(set_to_none=True)\n",
        "",
        _stage("grpo", "target_kl_ends_the_passes_before_another_step"),
    ),
    Mutation(
        "penalty-for-answers-that-ended",
        "stages/online.py",
        '(r.completion.finish_reason == "length")\n        for s, r',
        '(r.completion.finish_reason == "stop")\n        for s, r',
        _stage("ppo", "scores_are_clipped_and_only_a_cut_off_answer_pays"),
    ),
    Mutation(
        "score-clip-one-sided",
        "stages/online.py",
        "min(max(s, -limit), limit)",
        "min(s, limit)",
        _stage("ppo", "scores_are_clipped_and_only_a_cut_off_answer_pays"),
    ),
    Mutation(
        "sampler-trusted-blindly",
        "stages/online.py",
        "agree = bool(gap.max() <= tolerance)",
        "agree = bool(gap.mean() <= tolerance)",
        _stage("grpo", "one_token_that_differs_is_enough"),
    ),
    Mutation(
        "reader-forgets-the-temperature",
        "stages/online.py",
        "model(tokens), model.logits, tokens, mask, temperature, entropy=entropy",
        "model(tokens), model.logits, tokens, mask, entropy=entropy",
        _stage("ppo", "trainer_and_sampler_agree_on_every_log_prob"),
    ),
    Mutation(
        "advantages-not-whitened",
        "stages/ppo.py",
        "    advantages = advantage.whiten(advantages, mask)\n",
        "",
        _stage("ppo", "advantages_and_returns_by_hand"),
    ),
    Mutation(
        "minibatch-takes-others-advantages",
        "stages/ppo.py",
        "policy.ppo_clip(moved, experience.advantages[rows], recipe.clip)",
        "policy.ppo_clip(moved, experience.advantages[: len(rows)], recipe.clip)",
        _stage(
            "ppo",
            "both_losses_by_hand_after_the_weights_have_moved",
            "minibatches_are_means_over_their_own_tokens",
        ),
    ),
    Mutation(
        "values-clipped-around-themselves",
        "stages/ppo.py",
        "values, experience.old_values[rows], experience.returns[rows], recipe.value_clip",
        "values, values.detach(), experience.returns[rows], recipe.value_clip",
        _stage("ppo", "both_losses_by_hand_after_the_weights_have_moved"),
    ),
    Mutation(
        "ptx-without-its-coefficient",
        "stages/ppo.py",
        "actor_loss = actor_loss + recipe.ptx_coef * ptx",
        "actor_loss = actor_loss + ptx",
        _stage(
            "ppo", "one_backward_gives_the_ppo_gradient_plus_the_coefficient_times_the_pretraining_gradient"
        ),
    ),
    Mutation(
        "ptx-reads-the-same-text",
        "stages/ppo.py",
        "step=number",
        "step=step",
        _stage("ppo", "every_minibatch_reads_other_text"),
    ),
    Mutation(
        "target-kl-never-stops",
        "stages/ppo.py",
        'metrics["policy/approxkl_avg"] > recipe.target_kl',
        'metrics["policy/approxkl_avg"] < -recipe.target_kl',
        _stage("ppo", "target_kl_ends_the_passes_before_another_step"),
    ),
    Mutation(
        "grpo-pieces-each-a-mean",
        "stages/grpo.py",
        "learner, below[piece], counted)",
        "learner, denominators(mask[piece], recipe.averaging, recipe.max_tokens), counted)",
        _stage("grpo", "loss_and_gradient_by_hand_however_they_are_cut_into_pieces"),
    ),
    Mutation(
        "grpo-leash-pushes",
        "stages/grpo.py",
        "losses = losses + experience.kl_coef * recipe.divergence(away)",
        "losses = losses - experience.kl_coef * recipe.divergence(away)",
        _stage("grpo", "loss_and_gradient_by_hand_however_they_are_cut_into_pieces"),
    ),
    Mutation(
        "grpo-leash-to-the-old-policy",
        "stages/grpo.py",
        "away = log_ratio(logprobs, experience.reference_logprobs[rows, :width], mask)",
        "away = log_ratio(logprobs, old, mask)",
        _stage("grpo", "loss_and_gradient_by_hand_however_they_are_cut_into_pieces"),
    ),
)
