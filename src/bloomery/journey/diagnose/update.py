"""Conditions of policy optimisation that concern the update: leash, ratio, clipping, critic, sampler."""

from __future__ import annotations

from statistics import fmean

from bloomery.journey.diagnose.finding import Finding, condition, from_to, plain, setting
from bloomery.journey.diagnose.table import Column, Table, number

POLICY = ("ppo", "grpo", "prefer_online", "rejection")

KL_NEGATIVE = -0.05
"""Nats an answer. The estimate's noise averages out over steps: what stays below this is bias."""
KL_PER_TOKEN = 1.0
"""Nats a token. Published GRPO runs are healthy to 0.5, lost above 2; the default journey ends below 0.2."""
KL_PER_ANSWER = 50.0
"""Nats an answer, where its length was not logged."""
LOOSE = 0.5
"""Nats an answer that nothing holds back before it is worth a word."""
RATIO = 0.1
"""The mean ratio is 1 by construction up to clipping; healthy runs stay within 0.01."""
RATIO_ROWS = 3
"""The first step of a run may be far off once or twice."""
RATIO_SPREAD = 0.5
"""The ratio's variance; healthy runs are at 0.001."""
CLIPPED_SHARE = 0.3
"""Published PPO and GRPO runs clip 0.05 to 0.2 of their tokens, the default journey 0.01."""
STOPPED = 0.9
"""Early stops now and then are what target_kl is for; at nine steps of ten the rest is never used."""
MISMATCH = 0.02
"""Nats a token, mean: bf16 samplers are at 0.005, an fp32 one that shares the forward at 0.00001."""
MISMATCH_FP32 = 1e-3
"""The same where both compute in fp32."""
VALUE_FELL = 0.95
"""A critic that learns lowers its loss by far more than 5 %, unless it could predict from the start."""
EXPLAINED = 0.3
"""A critic that explains this much need not improve."""
DROWNS = 20.0
"""Times the policy's own gradient."""


@condition("kl-negative", *POLICY)
def kl_negative(table: Table) -> Finding | None:
    """The estimated divergence from the reference stays negative over the last half of the run."""
    column = table.trend("objective/kl", "kl")
    if column is None:
        return None
    half = column.part(0.5, 1.0)
    below = sum(value < 0 for value in half)
    if fmean(half) >= KL_NEGATIVE or below < 0.8 * len(half):
        return None
    return Finding(
        "The KL to the reference is negative, which no divergence can be.",
        (
            f"mean {column.name} {plain(fmean(half))} in the second half; "
            f"negative in {below} of {len(half)} rows",
        ),
        (
            "sampler and trainer disagree: compare their log-probs of the same tokens",
            "use log-probs of the distribution that was sampled from (temperature, top-p, padding)",
            "check that policy and reference score the same tokens, with the same mask",
        ),
        column,
    )


@condition("kl-exploding", *POLICY)
def kl_exploding(table: Table) -> Finding | None:
    """The last fifth's divergence exceeds 1 nat a token (50 an answer where lengths were not logged)."""
    answers, length = table.get("objective/kl"), table.get("completions/mean_length")
    per_token = table.get("kl")
    if table.stage == "prefer_online":  # there `kl` is KTO's, of whole answers
        answers, per_token = per_token, None
    if per_token is not None:
        column, value, limit, unit = per_token, per_token.tail, KL_PER_TOKEN, "token"
    elif answers is not None and length is not None:
        column, value, limit, unit = answers, answers.tail / max(length.tail, 1.0), KL_PER_TOKEN, "token"
    elif answers is not None:
        column, value, limit, unit = answers, answers.tail, KL_PER_ANSWER, "answer"
    else:
        return None
    if value <= limit:
        return None
    return Finding(
        "The policy has left the reference behind: its KL has exploded.",
        (f"{plain(value)} nats a {unit} in the last fifth ({column.name}); above {plain(limit)} is lost",),
        (
            "raise the KL coefficient, or let it adapt to a target" + setting(table, "kl_coef"),
            "lower the learning rate, or do fewer passes over each step's answers"
            + setting(table, "optimiser.learning_rate"),
            "go back to a checkpoint from before it rose",
        ),
        column,
    )


@condition("no-leash", *POLICY)
def no_leash(table: Table) -> Finding | None:
    """The KL coefficient is 0 and the divergence grows beyond half a nat an answer."""
    coefficient = table.get("kl_coef")
    beta = coefficient.last if coefficient else number(table.settings.get("kl_coef"))
    column = table.trend("objective/kl", "kl")
    if beta != 0 or column is None or column.tail < LOOSE or column.moved() < 3:
        return None
    return Finding(
        "Nothing holds the policy to the reference: the KL coefficient is 0, and the KL grows.",
        (from_to(column),),
        (
            "give the leash a weight: 0.05 to 0.2 is usual",
            "without a leash, watch an independent judge of the answers and stop at its best",
        ),
        column,
    )


@condition("ratio-off", *POLICY)
def ratio_off(table: Table) -> Finding | None:
    """In three rows and a tenth of the run the mean ratio is over 0.1 from 1, or its variance above 0.5."""
    ratio, variance = (
        table.get("val/ratio", "sampling/importance_sampling_ratio/mean"),
        table.get("val/ratio_var"),
    )
    far = [i for i, v in enumerate(ratio.values) if abs(v - 1) > RATIO] if ratio else []
    wide = [i for i, v in enumerate(variance.values) if v > RATIO_SPREAD] if variance else []
    evidence = [_worst(ratio, far, 1.0)] if ratio and _often(far, ratio) else []
    evidence += [_worst(variance, wide, 0.0)] if variance and _often(wide, variance) else []
    if not evidence:
        return None
    return Finding(
        "New and old probabilities differ too much: the ratio is far from 1.",
        tuple(evidence),
        (
            "lower the learning rate, or do fewer passes over each step's answers" + setting(table, "epochs"),
            "if it is off in the very first minibatch, sampler and trainer disagree",
            "stop a step's passes at a target KL" + setting(table, "target_kl"),
        ),
        ratio or variance,
    )


def _often(where: list[int], column: Column) -> bool:
    return len(where) >= max(RATIO_ROWS, 0.1 * len(column))


def _worst(column: Column, where: list[int], usual: float) -> str:
    worst = max(where, key=lambda i: abs(column.values[i] - usual))
    return (
        f"{column.name} {plain(column.values[worst])} at step {column.steps[worst]:,}; "
        f"off in {len(where)} of {len(column)} rows"
    )


@condition("clip-fraction-high", *POLICY)
def clip_fraction_high(table: Table) -> Finding | None:
    """Over some fifth of the run more than 0.3 of the tokens are clipped."""
    column = table.trend("clip_fraction")
    if column is None:
        return None
    worst = max(mean for mean, _ in column.fifths())
    if worst <= CLIPPED_SHARE:
        return None
    return Finding(
        "Most of the update is clipped away: steps are too large.",
        (f"{column.name} {plain(worst)} in the worst fifth of the run, {plain(column.tail)} in the last",),
        (
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "fewer passes, or fewer minibatches, over each step's answers" + setting(table, "epochs"),
        ),
        column,
    )


@condition("always-stopped-early", *POLICY)
def always_stopped_early(table: Table) -> Finding | None:
    """Nine steps of ten end at the target KL before their passes are done."""
    column = table.get("policy/stopped_early", least=5)
    if column is None or fmean(column.values) < STOPPED:
        return None
    return Finding(
        "Nearly every step stops early: most passes are never made.",
        (f"{column.name} in {sum(v > 0 for v in column.values)} of {len(column)} steps",),
        (
            "lower the learning rate" + setting(table, "optimiser.learning_rate"),
            "fewer passes, since they are not made anyway" + setting(table, "epochs"),
            "a larger target, if the KL to the reference is small" + setting(table, "target_kl"),
        ),
        column,
    )


@condition("sampler-mismatch", *POLICY)
def sampler_mismatch(table: Table) -> Finding | None:
    """Sampler and trainer differ by 0.02 nats a token on average (0.001 where both compute in fp32)."""
    column = table.get("sampling/sampling_logp_difference/mean", "sampling/kl")
    limit = MISMATCH_FP32 if table.settings.get("compute.precision") == "fp32" else MISMATCH
    if column is None or column.mean(0.0, 1.0) <= limit:
        return None
    return Finding(
        "The sampler's log-probs are not the trainer's: the policy that learns is not the one that acts.",
        (f"{column.name} {plain(column.mean(0.0, 1.0))} on average, {plain(max(column.values))} at worst",),
        (
            "check that the sampler has the newest weights, and the same temperature and precision",
            "score the answers again with the trainer, or correct with importance weights",
        ),
        column,
    )


@condition("value-loss-not-falling", "ppo")
def value_loss_not_falling(table: Table) -> Finding | None:
    """The critic's loss does not fall by 5 %, and it explains less than 0.3 of the returns' variance."""
    column, explained = table.trend("loss/value_avg"), table.trend("explained_variance")
    if column is None or column.tail < VALUE_FELL * column.head:
        return None
    if explained is None and column.moved() < 3:  # flat may be as good as it gets: only a rise says enough
        return None
    if explained is not None and explained.tail > EXPLAINED:
        return None
    return Finding(
        "The critic does not learn.",
        (from_to(column), *((from_to(explained),) if explained else ())),
        (
            "raise the critic's learning rate" + setting(table, "critic.learning_rate"),
            "start the critic from the reward model, and normalise rewards",
            "widen the value clip" + setting(table, "value_clip"),
        ),
        column,
    )


@condition("explained-variance-negative", "ppo")
def explained_variance_negative(table: Table) -> Finding | None:
    """In the last fifth the critic predicts returns worse than their mean would."""
    column = table.trend("explained_variance")
    if column is None or column.tail >= 0:
        return None
    return Finding(
        "The critic is worse than a constant: advantages are noise.",
        (from_to(column),),
        (
            "train the critic alone for some steps before the policy moves",
            "raise the critic's learning rate" + setting(table, "critic.learning_rate"),
            "a method without a critic (RLOO, GRPO) where answers are short",
        ),
        column,
    )


@condition("ptx-drowns-policy", "ppo")
def ptx_drowns_policy(table: Table) -> Finding | None:
    """The pretraining term's gradient is twenty times the policy's."""
    text, policy = table.get("grad_norm/ptx", least=5), table.get("grad_norm/ppo", least=5)
    if text is None or policy is None or text.mean(0, 1) <= DROWNS * policy.mean(0, 1):
        return None
    return Finding(
        "The pretraining text drowns the reward: clipping leaves nothing of the policy's gradient.",
        (f"mean {text.name} {plain(text.mean(0, 1))}, mean {policy.name} {plain(policy.mean(0, 1))}",),
        (
            "lower the weight of the pretraining text" + setting(table, "ptx_coef"),
            "check whether the loss is a sum over tokens where a mean is meant",
        ),
        text,
    )
