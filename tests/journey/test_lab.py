"""What the laboratory makes of runs whose curves are known: made-up directories in which gold follows the two
laws exactly, and what the terminal and the report say of them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bloomery.data.loader import batch_indices
from bloomery.errors import ArtifactError
from bloomery.evals.overoptimisation import gained
from bloomery.journey import lab, lab_words
from bloomery.journey.settings import Journey
from bloomery.recipe import dump, load
from bloomery.report import build

STEPS, N = 40, 8
LEASHES = {0.0: 16.0, 0.1: 4.0}
"""KL at the end of a run, by its leash."""


def gold_of(d: float) -> float:
    """Gao's law of RL with start -0.2, alpha 1 and beta 0.8: highest at d = exp(0.25), KL 1.65."""
    return -0.2 + d * (1 - 0.8 * math.log(d)) if d else -0.2


def witness_of(d: float) -> float:
    """Highest a little later than gold, at d = 1.5."""
    return d * (1.5 - d / 2)


PROMPTS, SIZE = 30, 8
"""How many there are, and how many PPO asks at each step."""


def usual() -> np.ndarray:
    """What the SFT model gets for each prompt: some are far harder than others."""
    return np.random.default_rng(3).normal(0, 1, PROMPTS).round(2)


def write_baseline(path: Path) -> None:
    """Two answers to each prompt, graded around what is usual, which is -0.2 on average."""
    path.mkdir(parents=True)
    graded = usual() - usual().mean() - 0.2
    asked = [{"answers": [{"graded_reward": g + e} for e in (0.5, -0.5)]} for g in graded.tolist()]
    (path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))


def write_run(path: Path, farthest: float, noise: Callable[[], float]) -> None:
    """Gold follows the law but for how hard a step's prompts are."""
    path.mkdir(parents=True)
    rows = []
    for step in range(STEPS):
        asked = batch_indices(PROMPTS, SIZE, seed=7, step=step)
        easier = float(usual()[asked].mean() - usual().mean())
        kl = farthest * step / (STEPS - 1)
        d = math.sqrt(kl)
        rows.append(
            {
                **{"step": step, "objective/kl": kl if step else -1e-7, "objective/scores": 2 * d},
                **{"gold/graded_reward": gold_of(d) + easier + noise(), "watch/held-out/mean": witness_of(d)},
                "watch/ensemble/mean": 2 * d,
            }
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_best(path: Path, prompts: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Answers whose gold falls with the best scores; returns scores and gold, both [prompts, N]."""
    path.mkdir(parents=True)
    rng = np.random.default_rng(5)
    scores = rng.normal(0, 1, (prompts, N)).round(3)
    gold = (scores - 0.8 * np.maximum(scores, 0.4) ** 2 + rng.normal(0, 0.1, (prompts, N))).round(3)
    table = [{"n": n, "kl": math.log(n) - (n - 1) / n} for n in (1, 2, 4, 8)]
    (path / "best_of_n.json").write_text(json.dumps({"table": table}))
    asked = [
        {"answers": [{"score": s, "graded_reward": g} for s, g in zip(*pair, strict=True)]}
        for pair in zip(scores.tolist(), gold.tolist(), strict=True)
    ]
    asked.append({"answers": [{"score": 9.0}] * N})  # a prompt that the oracle does not know
    (path / "answers.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    return scores, gold


def made_up(out: Path, noise: Callable[[], float] = lambda: 0.0) -> tuple[np.ndarray, np.ndarray]:
    models = "[{name: weak, share: 0.05}, {name: odd, flipped: 0.3}]"
    settings = ["rounds=0", f"lab.reward_models={models}", f"lab.kl_coefs={list(LEASHES)}"]
    settings.append(f"first.ppo.prompts_per_step={SIZE}")
    write_baseline(out / "baseline")
    journey = load(Journey, overrides=[*settings, "lab.window=3", "lab.share=0", "lab.patience=4", "seed=7"])
    (out / "recipe.yaml").write_text(dump(journey))
    (out / "journey.json").write_text(json.dumps({"bloomery": "0", "steps": [], "seconds": 0.0}))
    for name in ("weak", "odd"):
        (out / f"reward-{name}").mkdir()
        card: dict[str, Any] = {"accuracy": 0.61, "low": 0.5, "high": 0.7}
        card |= {"verdict": {"kl": 3.0}} if name == "weak" else {}
        (out / f"reward-{name}" / "evaluation.json").write_text(json.dumps(card))
        (out / f"reward-{name}" / "lineage.json").write_text(json.dumps({"stage": "reward", "inputs": []}))
        for leash, farthest in LEASHES.items():
            write_run(out / f"ppo-{name}-{leash:g}", farthest, noise)
        found = write_best(out / f"best-{name}")
    return found


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Any]:
    made_up(tmp_path / "out")
    found = lab.collect(tmp_path / "out")
    assert found is not None
    assert json.loads((tmp_path / "out" / lab.FILE).read_text()) == found
    return found


def test_the_law_of_ppo_is_found_over_all_leashes_together(results: dict[str, Any]) -> None:
    (model, other) = results["reward_models"]
    assert (model["name"], other["name"], model["share"], other["flipped"]) == ("weak", "odd", 0.05, 0.3)
    assert model["accuracy"] == {"accuracy": 0.61, "low": 0.5, "high": 0.7}
    fit = model["rl"]["fits"]["rl"]
    assert [fit[key]["value"] for key in ("start", "alpha", "beta")] == pytest.approx([-0.2, 1.0, 0.8])
    assert fit["num"] == 2 * STEPS
    assert fit["r2"] == pytest.approx(1.0)
    assert fit["peak"]["kl"]["value"] == pytest.approx(math.exp(0.5))
    assert fit["peak"]["reached"]
    assert model["rl"]["nearest"] == "rl"
    curve = model["rl"]["curves"]["rl"]
    assert curve["d"][-1] == pytest.approx(4.0)
    assert curve["gold"] == pytest.approx([gold_of(d) for d in curve["d"]])


def test_what_a_step_s_prompts_are_is_taken_off(results: dict[str, Any]) -> None:
    """Every prompt of the made-up runs is as hard as for the SFT model, so nothing but the law is left."""
    assert results["start"] == pytest.approx(-0.2)
    for model in results["reward_models"]:
        for run in model["runs"]:
            assert run["gold"] == pytest.approx([gold_of(d) for d in run["d"]])


def test_the_peak_is_that_of_the_measured_curve(results: dict[str, Any]) -> None:
    model = results["reward_models"][0]
    d = np.concatenate([run["d"] for run in model["runs"]])
    gold = np.array([gold_of(x) for x in d])
    highest = -math.inf
    for x, y in zip(model["smooth"]["d"], model["smooth"]["gold"], strict=True):
        weights = np.exp(-(((d - x) / 0.2) ** 2) / 2)
        assert y == pytest.approx(float(weights @ gold / weights.sum()))
        highest = max(highest, y)
    peak = model["peak"]
    assert peak["gain"] == pytest.approx(highest + 0.2)
    assert peak["kl"] == pytest.approx(peak["d"] ** 2)
    assert peak["d"] == pytest.approx(math.exp(0.25), abs=0.15)
    assert peak["reached"]
    seen = model["smooth"]
    assert seen["proxy"][-1] == pytest.approx(2 * seen["d"][-1], abs=0.3)
    assert seen["ensemble"] == seen["proxy"] > seen["held-out"]


def test_a_curve_that_still_rises_has_no_peak_yet(tmp_path: Path) -> None:
    made_up(tmp_path / "out")
    for leash in LEASHES:
        shutil.rmtree(tmp_path / "out" / f"ppo-weak-{leash:g}")
        write_run(tmp_path / "out" / f"ppo-weak-{leash:g}", 1.0, lambda: 0.0)
    found = lab.collect(tmp_path / "out")
    assert found is not None
    weak, odd = found["reward_models"]
    assert (weak["peak"]["reached"], odd["peak"]["reached"]) == (False, True)
    page = build(tmp_path / "out").read_text(encoding="utf-8")
    assert page.count(">peak<") == 2  # both pictures of the other


def test_intervals_hold_what_noise_hides(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    made_up(tmp_path / "out", lambda: float(rng.normal(0, 0.1)))
    found = lab.collect(tmp_path / "out")
    assert found is not None
    fit = found["reward_models"][0]["rl"]["fits"]["rl"]
    for key, value in (("alpha", 1.0), ("beta", 0.8)):
        assert fit[key]["low"] < value < fit[key]["high"]
        assert fit[key]["high"] - fit[key]["low"] > 0.02
    assert fit["peak"]["kl"]["low"] < math.exp(0.5) < fit["peak"]["kl"]["high"]


def test_best_of_n_is_the_mean_over_all_subsets_of_answers(tmp_path: Path) -> None:
    scores, gold = made_up(tmp_path / "out")
    found = lab.collect(tmp_path / "out")
    assert found is not None
    best = found["reward_models"][0]["best_of_n"]
    assert best["n"] == [1, 2, 4, 8]
    assert best["d"][0] == 0.0
    for place, n in enumerate(best["n"]):
        picked = [
            [row[max(some, key=lambda i: proxy[i])] for some in combinations(range(N), n)]
            for row, proxy in zip(gold.tolist(), scores.tolist(), strict=True)
        ]
        gain = np.mean(picked) - gold.mean()
        assert best["gold"][place] == pytest.approx(-0.2 + gain)
    assert best["proxy"][-1] == pytest.approx(scores.max(axis=1).mean())
    assert best["proxy"] == sorted(best["proxy"])
    # A random answer is what the others are held against, so there is nothing to doubt at n = 1.
    bounds = list(zip(best["low"], best["gold"], best["high"], strict=True))
    assert bounds[0] == pytest.approx((-0.2, -0.2, -0.2))
    assert all(low < mid < high for low, mid, high in bounds[1:])
    top = np.array([one[s.argmax()] for one, s in zip(gold, scores, strict=True)]) - gold.mean(axis=1)
    spread = top.std() / math.sqrt(len(gold))
    assert best["high"][-1] - best["low"][-1] == pytest.approx(3.92 * spread, rel=0.15)
    assert best["fits"]["bon"]["num"] == 4


def test_what_is_gained_where_the_stop_rule_would_have_ended_a_run(results: dict[str, Any]) -> None:
    model = results["reward_models"][0]
    run, leashed = model["runs"]
    assert (run["kl_coef"], leashed["kl_coef"]) == (0.0, 0.1)
    assert run["d"][0] == 0.0
    stops = {stop["rule"]: stop for stop in run["stops"]}
    assert list(stops) == list(lab.STOPS)
    held, ensemble = stops["held-out"], stops["ensemble"]
    # The witness is highest at KL 2.25, steps are 16 / 39 of KL apart: the best mean of three is of 5, 6, 7.
    assert held["at"] == 7
    assert held["stop"] == held["at"] + 4
    assert held["kl"] == pytest.approx(16 * 7 / 39)
    gold = [gold_of(math.sqrt(16 * step / 39)) for step in range(STEPS)]
    assert held["gain"] == pytest.approx(gained(gold, -0.2, 7, 3))
    assert 0.9 < held["gain"] / model["peak"]["gain"] < 1.01
    # The ensemble rises with the score: it never stops, and has what is left at the end.
    assert ensemble["stop"] is None
    assert ensemble["at"] == STEPS - 1
    assert ensemble["gain"] == run["end"] == pytest.approx(gained(gold, -0.2, STEPS - 1, 3))
    assert run["end"] < 0
    # A budget of 3 nats, in means of three: steps 6 to 8 have spent 2.87, steps 7 to 9 more.
    assert model["budget"] == 3.0
    assert (stops["budget"]["at"], stops["budget"]["stop"]) == (8, 9)
    # The ensemble keeps pace for ever; at 6 nats it is not asked any longer: steps 13 to 15 have spent 5.74.
    assert (stops["ensemble in budget"]["at"], stops["ensemble in budget"]["stop"]) == (15, 16)
    assert stops["held-out in budget"] == {**held, "rule": "held-out in budget"}
    rules = model["by_rule"]
    assert rules["held-out"] == pytest.approx((held["gain"] + leashed["stops"][0]["gain"]) / 2)
    assert rules["ensemble"] == rules["no rule"] == pytest.approx((run["end"] + leashed["end"]) / 2)
    other = results["reward_models"][1]
    found = lab.overall([model, {**other, "peak": {"gain": 3.0}, "by_rule": {**rules, "held-out": 0.0}}])
    halved = {"peak": (model["peak"]["gain"] + 3) / 2, "held-out": rules["held-out"] / 2}
    assert found == pytest.approx({**rules, **halved})


def test_a_card_without_a_budget_leaves_it_to_the_witness(results: dict[str, Any]) -> None:
    odd = results["reward_models"][1]
    assert odd["budget"] is None
    rules = odd["by_rule"]
    assert rules["held-out in budget"] == rules["held-out"] != rules["no rule"]
    assert rules["budget"] == rules["ensemble in budget"] == rules["no rule"]


def test_words(results: dict[str, Any]) -> None:
    said = list(lab_words.lines(results))
    assert said[0].startswith("the SFT model is graded -0.20 by the oracle")
    assert said[1] == "weak: 5 % of the labels, 0 % turned over, right on 61 % of held-out pairs"
    assert "alpha 1.00 (1.00 to 1.00), beta 0.80 (0.80 to 0.80), R² 1.00" in said[2]
    assert said[2].endswith("gold peaks at KL 1.65 (1.65 to 1.65)")
    assert said[4].startswith("  kl_coef 0: held-out +0.98 (step 7), ensemble -")
    assert "(runs on), budget +" in said[4]
    assert said[6].startswith("  highest, over all of them: +1.0")
    found = lab.overall(results["reward_models"])
    assert said[-1].startswith(f"gold gained on average: {found['peak']:+.2f} at the peak, held-out +")


def test_a_world_that_knows_no_prompt_has_no_gold(tmp_path: Path) -> None:
    made_up(tmp_path / "out")
    file = tmp_path / "out" / "baseline" / "answers.jsonl"
    lines = file.read_text().splitlines()
    unknown = json.dumps({"answers": [{"score": 1.0}, {"score": 2.0}]})
    file.write_text("\n".join([*lines[:-1], unknown, ""]))
    assert np.isnan(lab.read_answers(file.parent)[1][-1]).all()
    found = lab.collect(tmp_path / "out")
    assert found is not None
    assert math.isfinite(found["reward_models"][0]["peak"]["gain"])
    file.write_text("\n".join([unknown] * len(lines)) + "\n")
    with pytest.raises(ArtifactError, match="no answer was graded"):
        lab.collect(tmp_path / "out")


def test_the_report_shows_it(results: dict[str, Any], tmp_path: Path) -> None:
    page = build(tmp_path / "out").read_text(encoding="utf-8")
    assert '<a href="#lab">' in page
    section = page[page.index('id="lab"') : page.index("</section>", page.index('id="lab"'))]
    assert section.count("<figure") == 4
    for words in (
        "Gold against “weak”",
        "What “odd” thinks",
        "best-of-n’s law",
        ">peak<",
        ">stop<",
        ">step 7<",
        ">mean<",
    ):
        assert words in section, words
    assert "NaN" not in section
    older = json.loads((tmp_path / "out" / lab.FILE).read_text())
    del older["reward_models"][0]["by_rule"]["held-out in budget"]
    (tmp_path / "out" / lab.FILE).write_text(json.dumps(older))
    page = build(tmp_path / "out").read_text(encoding="utf-8")
    assert 'id="lab"' not in page
    assert "of another version" in page
    (tmp_path / "out" / lab.FILE).write_text("{")
    assert "overoptimisation.json" in build(tmp_path / "out").read_text(encoding="utf-8")
    (tmp_path / "out" / lab.FILE).unlink()
    assert 'id="lab"' not in build(tmp_path / "out").read_text(encoding="utf-8")


def test_too_little_to_fit_is_said(tmp_path: Path) -> None:
    made_up(tmp_path / "out")
    for leash in LEASHES:
        file = tmp_path / "out" / f"ppo-odd-{leash:g}" / "metrics.jsonl"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:2]))
    found = lab.collect(tmp_path / "out")
    assert found is not None
    law = found["reward_models"][1]["rl"]
    assert law["fits"] is None
    assert "too few distances" in law["why"]
    assert any("no law: too few distances" in line for line in lab_words.lines(found))
    assert "too few distances" in build(tmp_path / "out").read_text(encoding="utf-8")


def test_a_run_without_gold_is_refused(tmp_path: Path) -> None:
    made_up(tmp_path / "out")
    file = tmp_path / "out" / "ppo-odd-0.1" / "metrics.jsonl"
    file.write_text(file.read_text().replace("gold/graded_reward", "gold"))
    with pytest.raises(ArtifactError, match="not every step logged gold/graded_reward"):
        lab.collect(tmp_path / "out")


def test_a_journey_without_a_laboratory_has_no_findings(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(dump(load(Journey)))
    assert lab.collect(tmp_path) is None
    assert not (tmp_path / lab.FILE).exists()
