"""Faults in best-of-n and in what is kept to learn from."""

from __future__ import annotations

from mutations.mutation import Mutation

FUNCTIONS, BEST = ("objectives/test_search.py",), ("stages/test_best_of_n.py",)
REJECTION = ("stages/test_rejection.py",)

SEARCH = (
    Mutation(
        "best-of-n-too-far", "objectives/search.py", "math.log(n) - (n - 1) / n", "math.log(n)", FUNCTIONS
    ),
    Mutation(
        "drawn-with-replacement",
        "objectives/search.py",
        "math.comb(i, n) / math.comb(num, n)",
        "(i / num) ** n",
        FUNCTIONS,
    ),
    Mutation("ties-counted-whole", "objectives/search.py", " / (upto - lower)", "", FUNCTIONS),
    Mutation("worst-kept", "objectives/search.py", "descending=True", "descending=False", FUNCTIONS),
    Mutation(
        "edge-of-the-share", "objectives/search.py", "scores >= may.topk", "scores > may.topk", FUNCTIONS
    ),
    Mutation(
        "gold-chooses-for-itself",
        "stages/best_of_n.py",
        "(weights[where] * worth).sum(dim=1)",
        "worth.amax(dim=1)",
        BEST,
    ),
    Mutation(
        "rates-of-other-prompts",
        "stages/best_of_n.py",
        "weights[where] * worth",
        "weights[: len(where)] * worth",
        BEST,
    ),
    Mutation(
        "best-of-all-shown", "stages/best_of_n.py", "for k in range(n) if", "for k in range(5) if", BEST
    ),
    Mutation(
        "first-turns-learned-too", "stages/best_of_n.py", 'update={"weight": 0}', 'update={"weight": 1}', BEST
    ),
    Mutation("cut-off-shown", "stages/best_of_n.py", "return finished and bool(", "return bool(", BEST),
    Mutation(
        "answers-forgotten-on-resume",
        "stages/best_of_n.py",
        'run.state.setdefault("rows", [])',
        "[]",
        BEST,
    ),
    Mutation(
        "state-alone-never-saved",
        "train/run.py",
        "if not self._tracked:",
        "if not self._modules:",
        BEST,
    ),
    Mutation("cut-off-learned", "stages/rejection.py", "fit.view_as(given) & ~", "~", REJECTION),
    Mutation(
        "constant-groups-learned",
        "stages/rejection.py",
        "~(constant & recipe.skip_constant)",
        "~(constant & False)",
        REJECTION,
    ),
    Mutation("nothing-forgotten", "stages/rejection.py", "window[-earlier:] if", "window if", REJECTION),
    Mutation("divergence-of-every-answer", "stages/rejection.py", "[:: recipe.samples]", "", REJECTION),
    Mutation(
        "divergence-at-temperature-1",
        "stages/rejection.py",
        "reader(reference, recipe.temperature",
        "reader(reference, 1.0",
        REJECTION,
    ),
    Mutation(
        "the-same-text-replayed",
        "stages/rejection.py",
        "learner.corpus, recipe.seed, number)",
        "learner.corpus, recipe.seed, 0)",
        REJECTION,
    ),
    Mutation(
        "losers-learned",
        "stages/rejection.py",
        "strict=True) if chosen]",
        "strict=True) if not chosen]",
        REJECTION,
    ),
)
