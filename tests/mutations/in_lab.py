"""Faults in the laws of over-optimisation, the stop rule and the laboratory."""

from __future__ import annotations

from mutations.mutation import Mutation

LAWS, STOP = ("evals/test_overoptimisation.py",), ("stages/test_stop.py",)
SPOIL, FINDINGS, PLAN = ("stages/test_spoil.py",), ("journey/test_lab.py",), ("journey/test_lab_plan.py",)
OVER = "evals/overoptimisation.py"

LAB = (
    Mutation("no-start-level", OVER, "np.ones_like(x)", "np.zeros_like(x)", LAWS),
    Mutation("laws-exchanged", OVER, 'x * x if law == "bon"', 'x * x if law == "rl"', LAWS),
    Mutation("fall-added", OVER, "x, -falls]", "x, falls]", LAWS),
    Mutation("peak-of-the-other-law", OVER, "np.exp(alpha / beta - 1)", "np.exp(alpha / beta)", LAWS),
    Mutation("distance-for-divergence", OVER, "ranged(d * d, ds * ds)", "ranged(d, ds)", LAWS),
    Mutation("peak-where-none-is", OVER, "np.where(found[:, 2] > 0,", "np.where(found[:, 2] != 0,", LAWS),
    Mutation("blocks-of-one", OVER, "np.arange(block)", "np.zeros(block, dtype=int)", LAWS),
    Mutation("residuals-without-the-law", OVER, "Floats = curve + np.concat", "Floats = y + np.concat", LAWS),
    Mutation("witness-need-not-keep-pace", OVER, "window) - share * p", "window)", LAWS),
    Mutation("proxy-not-asked", OVER, " and p[step] > p[best])", ")", LAWS),
    Mutation("patience-late-by-one", OVER, "step - best >= patience", "step - best > patience", LAWS),
    Mutation(
        "best-of-the-window-s-start", OVER, "Verdict(best + window - 1, step", "Verdict(best, step", LAWS
    ),
    Mutation(
        "heard-from-the-whole-budget-on", OVER, "(budget / 2, 2 * budget)", "(budget, 2 * budget)", LAWS
    ),
    Mutation("band-without-an-end", OVER, "elif spent[step] > most or (", "elif (", LAWS),
    Mutation("best-beyond-the-band", OVER, " and spent[step] <= most:", ":", LAWS),
    Mutation("leap-is-kept", OVER, "max(best + window - 2, 0), best", "best + window - 1, best", LAWS),
    Mutation("budget-overspent-by-a-step", OVER, "Verdict(max(stop - 1, 0)", "Verdict(max(stop, 0)", LAWS),
    Mutation(
        "budget-not-passed-on",
        "stages/stop.py",
        "witness[0] if witness else None, self.budget",
        "witness[0] if witness else None, None",
        STOP,
    ),
    Mutation("budget-for-every-rule", "journey/lab.py", "budget if within else None", "budget", FINDINGS),
    Mutation("window-not-centred", OVER, "at - window // 2", "at", LAWS),
    Mutation("best-after-its-update", "stages/stop.py", "said.best == step", "said.best == step - 1", STOP),
    Mutation("best-never-kept", "stages/stop.py", "self.kept.load_state_dict(self.a", "dict(self.a", STOP),
    Mutation("last-weights-saved", "stages/stop.py", "self.learning.load_state_dict(", "dict(", STOP),
    Mutation("kept-not-in-checkpoints", "stages/ppo.py", '{"best": best.kept} if best', "{} if best", STOP),
    Mutation("run-not-ended", "stages/ppo.py", "if ends:", "if ends and step < 0:", STOP),
    Mutation(
        "watched-is-rewarded",
        "stages/online.py",
        "self.judge = combined(recipe.rewards, tools, parts)",
        "self.judge = combined((*recipe.rewards, *recipe.watch), tools, parts)",
        STOP,
    ),
    Mutation("ties-torn", "stages/spoil.py", "sum(other > rank", "sum(other >= rank", SPOIL),
    Mutation("correction-left", "stages/spoil.py", ', "correction": None', "", SPOIL),
    Mutation(
        "held-out-turned-over",
        "stages/spoil.py",
        " for r in kept if not exempt(r, recipe))",
        " for r in kept)",
        SPOIL,
    ),
    Mutation("parts-overlap", "stages/spoil.py", "wanted = upto - before", "wanted = upto", SPOIL),
    Mutation("twin-of-the-same-labels", "journey/plan.py", "part=part,", "part=0,", PLAN),
    Mutation("watches-itself", "journey/plan.py", '{"path": pair[1]}', '{"path": pair[0]}', PLAN),
    Mutation(
        "one-leash-for-all", "journey/plan.py", '"kl_coef": kl_coef}', '"kl_coef": j.lab.kl_coefs[0]}', PLAN
    ),
    Mutation(
        "gold-chosen-by-gold",
        "journey/lab.py",
        "expected_best(scores, values, n)",
        "expected_best(values, values, n)",
        FINDINGS,
    ),
    Mutation("back-to-the-stop", "journey/lab.py", "else said.best", "else said.stop", FINDINGS),
    Mutation("prompts-not-taken-off", "journey/lab.py", "row[GOLD] - ease", "row[GOLD]", FINDINGS),
    Mutation("harder-for-easier", "journey/lab.py", "row[GOLD] - ease", "row[GOLD] + ease", FINDINGS),
    Mutation("law-through-nought", "journey/lab.py", "gold, drawn, start)", "gold, drawn, 0.0)", FINDINGS),
    Mutation("baseline-of-some-prompts", "journey/plan.py", '"limit": None, "at"', '"at"', PLAN),
    Mutation("residuals-off-centre", OVER, "- (y - curve).mean(), len", ", len", LAWS),
    Mutation("leashes-drawn-apart", OVER, "len(x) // runs", "len(x)", LAWS),
    Mutation(
        "best-of-n-at-its-own-level",
        "journey/lab.py",
        "worth += start - gold",
        "worth += 0.0 * gold",
        FINDINGS,
    ),
    Mutation("peak-of-what-still-rises", "journey/lab.py", "at < POINTS - 1", "at < POINTS", FINDINGS),
    Mutation("start-not-given", OVER, "(y - (start or 0.0)) @", "y @", LAWS),
    Mutation("smoothed-by-nobody-near", OVER, "/ width) / 2", "* width) / 2", LAWS),
)
