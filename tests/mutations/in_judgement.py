"""Faults in what people, reward models and the oracle say, in measurements, and in where things came from."""

from __future__ import annotations

from mutations.mutation import Mutation

AGREEMENT, LINEAGE = ("feedback/test_agreement.py",), ("test_lineage.py",)

JUDGEMENT = (
    Mutation(
        "alpha-pairs-a-value-with-itself",
        "feedback/agreement.py",
        "share.T @ counts - np.diag(share.sum(axis=0))",
        "share.T @ counts",
        AGREEMENT,
    ),
    Mutation(
        "alpha-weighs-crowded-units-more",
        "feedback/agreement.py",
        "counts / (counts.sum(axis=1, keepdims=True) - 1)",
        "counts / 1.0",
        AGREEMENT,
    ),
    Mutation(
        "tie-is-full-agreement",
        "feedback/agreement.py",
        "(directed * (1 + reference * np.sign(other)) / 2)",
        "(directed * (reference * np.sign(other) >= 0))",
        AGREEMENT,
    ),
    Mutation(
        "correction-shares-the-first-rank",
        "feedback/pairs.py",
        "(*(rank + 1 for rank in ranking.ranking), 1)",
        "(*ranking.ranking, 1)",
        ("feedback/test_feedback_pairs.py",),
    ),
    Mutation(
        "bradley-terry-tie-is-a-win",
        "feedback/bradley_terry.py",
        "weight * np.where(tie, 0.5, 1.0)",
        "weight * np.where(tie, 1.0, 1.0)",
        ("feedback/test_bradley_terry.py",),
    ),
    Mutation(
        "reversed-annotators-turned-round",
        "feedback/weights.py",
        "max(0.0, math.log(p / (1 - p)))",
        "math.log(p / (1 - p))",
        ("feedback/test_weights.py",),
    ),
    Mutation(
        "ensemble-pays-for-doubt",
        "rewards/ensemble.py",
        "scores.mean(axis=0) - penalty * scores.var(axis=0)",
        "scores.mean(axis=0) + penalty * scores.var(axis=0)",
        ("rewards/test_ensemble.py",),
    ),
    Mutation(
        "reward-part-clipped-after-its-weight",
        "rewards/parts.py",
        "t + part.weight * (c or 0.0) for t, c in zip(totals, cut, strict=True)",
        "t + _cut(part.weight * (s or 0.0), part.clip) for t, s in zip(totals, said, strict=True)",
        ("rewards/test_parts.py",),
    ),
    Mutation(
        "folded-heads-unweighted",
        "rewards/heads.py",
        "model.score.weight.copy_(weights[None] @ heads)",
        "model.score.weight.copy_(heads.mean(0, keepdim=True))",
        ("stages/test_reward_choices.py",),
    ),
    Mutation(
        "divergence-of-the-other-direction",
        "evals/divergence.py",
        "(log_p.exp() * (log_p - log_q))",
        "(log_q.exp() * (log_q - log_p))",
        ("evals/test_divergence.py",),
    ),
    Mutation(
        "bits-per-token",
        "evals/language.py",
        "size = sum(n for _, n in rows)",
        "size = len(rows)",
        ("evals/test_bits.py",),
    ),
    Mutation(
        "oracle-takes-another-persons-fact",
        "world/oracle.py",
        "good = people <= {subject} and stated == [right] and len(values) == 1",
        "good = stated == [right] and len(values) == 1",
        ("world/test_oracle.py",),
    ),
    Mutation(
        "oracle-takes-a-list-of-guesses",
        "world/oracle.py",
        "good = people <= {subject} and stated == [right] and len(values) == 1",
        "good = people <= {subject} and right in stated",
        ("world/test_oracle.py",),
    ),
    Mutation(
        "oracle-likes-refusals-to-the-harmless",
        "world/oracle.py",
        'return self._verdict(question, "abstained", refused=True)',
        'return self._verdict(question, "right_confident", refused=True)',
        ("world/test_oracle.py",),
    ),
    Mutation(
        "annotator-reads-its-order-backwards",
        "world/annotators.py",
        "place = 1 - 2 * shown.index(i)",
        "place = 1 - 2 * shown[i]",
        ("world/test_annotators.py",),
    ),
    Mutation(
        "digest-depends-on-key-order",
        "lineage.py",
        'json.dumps(value, sort_keys=True, separators=(",", ":")',
        'json.dumps(value, separators=(",", ":")',
        LINEAGE,
    ),
    Mutation(
        "verified-by-size-alone",
        "lineage.py",
        'elif digest_file(path) != manifest[name]["sha256"]:',
        'elif path.stat().st_size != manifest[name]["bytes"]:',
        LINEAGE,
    ),
    Mutation(
        "stage-key-blind-to-code",
        "lineage.py",
        '{"stage": stage, "recipe": resolved(recipe), "code": code_version()}',
        '{"stage": stage, "recipe": resolved(recipe)}',
        LINEAGE,
    ),
    Mutation(
        "rankings-counted-twice",
        "lineage.py",
        "given[source] = max(count, given.get(source, 0))",
        "given[source] = count + given.get(source, 0)",
        LINEAGE,
    ),
)
