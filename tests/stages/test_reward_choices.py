"""The reward stage's choices: losses by name, 3H heads, annotators put together. Compared with each answer
read by itself and arithmetic on top; every setting makes a difference; heads fold into one number exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from bloomery.data.convert import write
from bloomery.errors import UsageError
from bloomery.feedback.weights import Reliability, ranks_of, strengths
from bloomery.lineage import digest_file
from bloomery.models import hub
from bloomery.models.llama import ScalarModel
from bloomery.objectives.reward import Wanted, pairwise
from bloomery.rewards.heads import fold, widen
from bloomery.rewards.model import score_slates
from bloomery.stages import lessons, reward
from bloomery.stages.common import Optimiser, is_held_out
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.slates import UNRATED, Slate, make_slates, prompt_id, told
from bloomery.text.chat import Chat
from bloomery.types import Ranking, Rating

ABC = ("red", "blue", "green")
RATES = Optimiser(learning_rate=0.01, schedule="constant", warmup=0, weight_decay=0.0)


def rate(*rows: tuple[int, int, int] | None) -> list[Rating | None]:
    return [None if r is None else Rating(helpful=r[0], honest=r[1], harmless=r[2]) for r in rows]


SAID = [
    tiny.ranking(
        "what", ABC, (1, 2, 3), "ada", ratings=rate((7, 5, 6), (4, 4, 6), (1, 2, 6)), correction="plum"
    ),
    tiny.ranking("what", ABC, (2, 1, 2), "bob", ratings=rate((5, 5, 5), None, (3, 7, 1))),
    tiny.ranking("one", ("tea", "milk"), (1, 1), "ada", ratings=rate((6, 2, 3), (2, 6, 3))),
    tiny.ranking("one", ("tea", "milk"), (2, 1), "cat"),
    tiny.ranking("two", ("jam", "tea jam"), (2, 1), "bob", ratings=rate(None, (6, 6, 6))),
]


def recipe(**changed: Any) -> RewardRecipe:
    nowhere: dict[str, Any] = {"model": Path("nowhere"), "rankings": (Path("nowhere"),)}
    return RewardRecipe(**{**nowhere, "compute": tiny.TRAINING, **changed})


def row_losses(
    settings: RewardRecipe, model: ScalarModel, chosen: Sequence[Slate], chat: Chat
) -> list[float]:
    scores, ranks, mask = reward.forward(model, chosen, chat.tokenizer.pad_id)
    said = told(chosen, ranks.shape[1], scores.device)
    found: list[float] = (reward.loss_named(settings)(scores, ranks, mask, said) * said.weights).tolist()
    return found


@pytest.fixture
def model(chat: Chat) -> ScalarModel:
    return tiny.scalar_model(chat.tokenizer.vocab_size, 3)


def alone(model: ScalarModel, slate: Slate) -> Tensor:
    """The scores of a slate's answers, each read by itself: `[K]` or `[K, H]`."""
    with torch.no_grad():
        return torch.stack([tiny.scores_of(model, sequence)[-1] for sequence in slate.sequences])


# ------------------------------------------------------------------------------ slates


def test_rows_hold_ratings_and_a_correction_has_none(chat: Chat) -> None:
    first, second, third = make_slates(SAID, chat, corrections=True)
    assert first.annotators == ("ada", "bob")
    assert first.ratings[0] == ((7, 5, 6), (4, 4, 6), (1, 2, 6), UNRATED)
    assert first.ratings[1] == ((5, 5, 5), UNRATED, (3, 7, 1), UNRATED)
    assert second.ratings == (((6, 2, 3), (2, 6, 3)), (UNRATED, UNRATED))
    said = told([first, third], 4, torch.device("cpu"))
    assert said.ratings.shape == (3, 4, 3)
    assert said.ratings[2, 1].tolist() == [6, 6, 6]
    assert said.ratings[2, 2:].isnan().all()
    assert said.weights.tolist() == [1, 1, 1]
    assert said.strengths is None


def test_rows_without_ratings_are_left_out_and_counted(chat: Chat) -> None:
    made, lines = make_slates(SAID, chat, corrections=True), list[str]()
    kept = lessons.with_ratings(made, 2, lines.append)
    assert [s.annotators for s in kept] == [("ada", "bob"), ("ada",)]
    assert [s.ranks for s in kept] == [made[0].ranks, made[1].ranks[:1]]
    assert lines == ["left out 2 of 5 rankings with fewer than 2 rated answers"]
    assert [len(s.ranks) for s in lessons.with_ratings(made, 1, lines.append)] == [2, 1, 1]
    unrated = make_slates([SAID[3]], chat, corrections=True)
    with pytest.raises(UsageError, match="no ranking has ratings"):
        lessons.with_ratings(unrated, 1, lines.append)


def test_put_together_by_hand(chat: Chat) -> None:
    slate = make_slates(SAID, chat, corrections=True)[0]
    made = lessons.put_together(slate)
    assert made.strengths == strengths(slate.ranks)
    assert made.ranks == (ranks_of(made.strengths),)
    # The correction beat all three; green came last and tied for second.
    assert made.ranks[0][3] == 1
    assert made.ranks[0][2] == 4
    assert made.ratings == (((6, 5, 5.5), (4, 4, 6), (2, 4.5, 3.5), UNRATED),)
    said = told([made], 5, torch.device("cpu"))
    assert said.strengths is not None
    assert said.strengths[0].tolist() == pytest.approx([*made.strengths, 0.0])


def test_an_annotator_nobody_knows_weighs_one(chat: Chat) -> None:
    slate = make_slates(SAID, chat, corrections=True)[0]
    made = lessons.weighed(slate, {"ada": Reliability("ada", 0.9, 1.7, 40)})
    assert made.weights == (1.7, 1.0)
    assert made.keep([1]).weights == (1.0,)


def test_reliability_is_learnt_from_what_is_trained_on_alone(chat: Chat) -> None:
    """Held-out prompts, on which bob contradicts everybody, say nothing of him."""
    seen, hidden = [f"seen {n}" for n in range(12)], [f"hidden {n}" for n in range(12)]
    said = [tiny.ranking(q, ABC, (1, 2, 3), who) for q in seen for who in ("ada", "bob", "cat")]
    said += [
        tiny.ranking(q, ABC, (3, 2, 1) if who == "bob" else (1, 2, 3), who)
        for q in hidden
        for who in ("ada", "bob", "cat")
    ]
    training = [
        s
        for s in make_slates(said, chat, corrections=True)
        if s.id in {prompt_id(tiny.user(q)) for q in seen}
    ]
    taught, people = lessons.lessons(training, said, "reliability", 0, print)
    assert people["bob"] == replace(people["ada"], annotator="bob")
    assert people["bob"].num_pairs == 3 * len(seen)
    assert [s.weights for s in taught] == [pytest.approx((1.0, 1.0, 1.0))] * len(seen)
    assert lessons.lessons(training, said, "raw", 0, print) == (training, {})


# ------------------------------------------------------------------------------ heads


def test_heads_fold_into_their_weighted_sum(model: ScalarModel) -> None:
    means, weights = [4.0, 5.0, 6.5], torch.tensor([0.5, 0.2, 0.3])
    widen(model, means, seed=1)
    tokens = torch.randint(6, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        heads = model(tokens)
        assert heads.shape == (2, 9, 3)
        hidden = model.model(tokens)
        for h in range(3):
            want = hidden @ model.score.weight[h] + means[h]
            torch.testing.assert_close(heads[..., h], want)
        fold(model, weights)
        torch.testing.assert_close(model(tokens), heads @ weights)
    assert sum(p.numel() for p in model.score.parameters()) == hidden.shape[-1]
    assert len({row.sum().item() for row in heads.flatten(0, 1).T}) == 3


def test_many_heads_share_one_reading_of_each_answer(chat: Chat, model: ScalarModel) -> None:
    widen(model, [0.0, 0.0, 0.0], seed=1)
    made = make_slates(SAID, chat, corrections=True)
    with torch.no_grad():
        found = score_slates(model, [s.sequences for s in made], chat.tokenizer.pad_id)
    torch.testing.assert_close(found, torch.cat([alone(model, s) for s in made]), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------ losses, answer by answer


def test_the_rating_losses_by_hand(chat: Chat, model: ScalarModel) -> None:
    made = make_slates(SAID, chat, corrections=True)
    weights = {"helpful": 2.0, "honest": 1.0, "harmless": 1.0}
    found = row_losses(recipe(loss="squared", weights=weights), model, made, chat)
    want = []
    for s in made:
        scores = alone(model, s).tolist()
        for row in s.ratings:
            errors = [
                (score - (2 * r[0] + r[1] + r[2]) / 4) ** 2
                for score, r in zip(scores, row, strict=True)
                if r is not UNRATED
            ]
            want.append(sum(errors) / max(1, len(errors)))
    assert found == pytest.approx(want, rel=1e-4)
    widen(model, [4.0, 4.0, 4.0], seed=1)
    found = row_losses(recipe(loss="squared", head="3h"), model, made, chat)
    want = []
    for s in made:
        heads = alone(model, s).tolist()
        for row in s.ratings:
            pairs = [(p, r) for p, r in zip(heads, row, strict=True) if r is not UNRATED]
            errors = [(p[h] - r[h]) ** 2 for p, r in pairs for h in range(3)]
            want.append(sum(errors) / max(1, len(errors)))
    assert found == pytest.approx(want, rel=1e-4)


def test_heads_that_learn_orders_by_hand(chat: Chat, model: ScalarModel) -> None:
    widen(model, [0.0, 0.0, 0.0], seed=1)
    (slate,) = make_slates([SAID[2]], chat, corrections=True)
    (tea, milk) = alone(model, slate).tolist()
    # Tea was rated more helpful, milk more honest, and they were equally harmless, whatever their ranks.
    costs = [math.log1p(math.exp(milk[0] - tea[0])), math.log1p(math.exp(tea[1] - milk[1]))]
    costs.append(sum(math.log1p(math.exp(s * (tea[2] - milk[2]))) for s in (-1, 1)) / 2)
    assert row_losses(recipe(head="3h"), model, [slate], chat) == pytest.approx([sum(costs) / 3], rel=1e-4)


def test_an_answer_that_was_not_rated_is_in_no_head_s_order(chat: Chat, model: ScalarModel) -> None:
    """Bob ranked three answers and rated two: the heads learn from the pair that those two are."""
    widen(model, [0.0, 0.0, 0.0], seed=1)
    (slate,) = make_slates([SAID[1]], chat, corrections=True)
    red, _, green = alone(model, slate).tolist()
    costs = [math.log1p(math.exp(s * (green[h] - red[h]))) for h, s in ((0, 1), (1, -1), (2, 1))]
    assert row_losses(recipe(head="3h"), model, [slate], chat) == pytest.approx([sum(costs) / 3], rel=1e-4)


def test_margins_are_the_weighted_ratings_lead(chat: Chat, model: ScalarModel) -> None:
    slate = make_slates([SAID[0]], chat, corrections=False)[0]
    scores = alone(model, slate)[None]
    wanted = Wanted(
        torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool(), worth=torch.tensor([[6.0, 14 / 3, 3.0]])
    )
    found = row_losses(recipe(loss_settings={"margin": 0.5}), model, [slate], chat)
    assert found == pytest.approx(pairwise(scores, wanted, margin=0.5).tolist(), rel=1e-4)
    assert found != pytest.approx(row_losses(recipe(), model, [slate], chat), rel=1e-3)


LED = tiny.ranking("three", ("tea", "jam"), (2, 1), "dan", margin=1.5, ratings=rate((1, 1, 1), (4, 4, 4)))


def test_a_margin_that_was_told_is_the_lead_whatever_the_ratings(chat: Chat, model: ScalarModel) -> None:
    """Llama 2 (Touvron et al. 2023), equation 2, with the annotator's own m; by hand."""
    (slate,) = make_slates([LED], chat, corrections=True)
    tea, jam = alone(model, slate).tolist()
    assert slate.leads == ((0.0, 1.5),)
    for times in (0.0, 1.0, 0.4):
        found = row_losses(recipe(loss_settings={"margin": times}), model, [slate], chat)
        assert found == pytest.approx([math.log1p(math.exp(-(jam - tea - times * 1.5)))], rel=1e-4)


def test_a_margin_holds_in_its_own_row_and_not_for_a_correction(chat: Chat, model: ScalarModel) -> None:
    two = [
        LED.model_copy(update={"correction": "plum"}),
        tiny.ranking("three", ("tea", "jam"), (1, 2), "eve"),
    ]
    (slate,) = make_slates(two, chat, corrections=True)
    assert slate.leads[0][:2] == (0.0, 1.5)
    assert math.isnan(slate.leads[0][2])
    assert all(map(math.isnan, slate.leads[1]))
    assert slate.keep([0]).leads == slate.leads[:1]
    assert lessons.put_together(slate).leads[0][:2] == (0.0, 1.5)
    tea, jam, plum = alone(model, slate).tolist()
    plain, led = (row_losses(recipe(loss_settings={"margin": m}), model, [slate], chat) for m in (0.0, 1.0))
    assert led[1] == plain[1]
    cost = [math.log1p(math.exp(-gap)) for gap in (jam - tea - 1.5, plum - tea, plum - jam)]
    assert led[0] == pytest.approx(sum(cost) / 3, rel=1e-4)


@pytest.mark.parametrize(
    ("ranks", "margin"), [((1, 2, 3), 1.0), ((1, 1), 1.0), ((1, 2), -0.5), ((1, 2), math.inf)]
)
def test_a_margin_of_no_pair_or_of_no_size_is_refused(ranks: tuple[int, ...], margin: float) -> None:
    with pytest.raises(ValueError, match="margin"):
        tiny.ranking("what", ABC[: len(ranks)], ranks, margin=margin)


def test_a_ranking_counts_as_much_as_its_annotator(chat: Chat, model: ScalarModel) -> None:
    made = make_slates(SAID, chat, corrections=True)
    plain = row_losses(recipe(), model, made, chat)
    people = {who: Reliability(who, None, w, 0) for who, w in (("ada", 1.5), ("bob", 0.0), ("cat", 0.25))}
    found = row_losses(recipe(), model, [lessons.weighed(s, people) for s in made], chat)
    assert found == pytest.approx([w * x for w, x in zip([1.5, 0, 1.5, 0.25, 0], plain, strict=True)])


def test_strengths_are_what_pairs_learn_from(chat: Chat, model: ScalarModel) -> None:
    made = lessons.put_together(make_slates(SAID, chat, corrections=True)[0])
    found = row_losses(recipe(), model, [made], chat)
    scores, costs = alone(model, made).tolist(), []
    for i in range(4):
        for j in range(i):
            share = 1 / (1 + math.exp(made.strengths[j] - made.strengths[i]))
            gap = scores[i] - scores[j]
            costs.append(share * math.log1p(math.exp(-gap)) + (1 - share) * math.log1p(math.exp(gap)))
    assert found == pytest.approx([sum(costs) / 6], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss": "pears"}, "no reward loss is called 'pears'"),
        ({"loss_settings": {"margins": 1.0}}, "did you mean 'margin'"),
        ({"loss": "huber", "loss_settings": {"delta": 0}}, "greater than 0"),
        ({"weights": {"helpful": 0, "honest": 0, "harmless": 0}}, "all weights of the three H are 0"),
    ],
)
def test_a_choice_that_there_is_not_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        reward.loss_named(recipe(**changed))


def test_settings_that_change_nothing_are_named(chat: Chat) -> None:
    weights = {"helpful": 2.0}
    rated, bare, led = (make_slates([r], chat, corrections=True) for r in (SAID[0], SAID[3], LED))
    assert len(list(reward.idle(recipe(weights=weights, center_on="pairs"), rated))) == 2
    for changed in ({"head": "3h"}, {"loss": "squared"}, {"loss_settings": {"margin": 1.0}}):
        assert list(reward.idle(recipe(weights=weights, **changed), rated)) == []
    assert list(reward.idle(recipe(), bare)) == []
    margin = recipe(loss_settings={"margin": 1.0})
    assert "`margin` changes nothing" in next(reward.idle(margin, bare))
    assert list(reward.idle(margin, led)) == list(reward.idle(margin, [*bare, *rated])) == []


# ------------------------------------------------------------------------------ the stage


def crowd(num: int, seed: int) -> list[Ranking]:
    """Three annotators on every prompt: jam is helpful, tea is harmless, and mad turns everything round."""
    draw, said = np.random.default_rng(seed), []
    words = [w for w in tiny.WORDS if w not in ("jam", "tea")]
    for n in range(num):
        question = " ".join(words[i] for i in draw.integers(0, len(words), 4)) + f" {words[n % len(words)]}"
        answers = [" ".join(words[i] for i in draw.integers(0, len(words), 3)) for _ in range(3)]
        answers = [answers[0] + " jam", answers[1] + " tea", answers[2]]
        answers = [answers[i] for i in draw.permutation(3)]
        worth = [2 * ("jam" in a) + ("tea" in a) for a in answers]
        stars = [(7 if "jam" in a else 2, 4, 7 if "tea" in a else 2) for a in answers]
        for who in ("ada", "bob", "mad"):
            ranks = [(w + 1) if who == "mad" else (3 - w) for w in worth]
            noisy = [tuple(int(np.clip(x + draw.integers(-1, 2), 1, 7)) for x in row) for row in stars]
            said.append(tiny.ranking(question, answers, ranks, who, ratings=rate(*noisy)))  # type: ignore[arg-type]
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("said") / "rankings.jsonl"
    write(crowd(14, seed=0), path, "ranking")
    return path


def train(model: Path, rankings: Path, out: Path, **changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "batch": 8,
        "epochs": 1,
        "held_out": 0.2,
        "optimiser": RATES,
        "compute": tiny.TRAINING,
    }
    reward.run(RewardRecipe(model=model, rankings=(rankings,), **{**usual, **changed}), out)
    card: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return card


def test_every_choice_makes_a_difference(model_dir: Path, said: Path, tmp_path: Path) -> None:
    choices: list[dict[str, Any]] = [
        {},
        {"loss": "plackett-luce"},
        {"loss": "squared"},
        {"loss_settings": {"label_smoothing": 0.1}},
        {"loss_settings": {"margin": 0.2}},
        {"head": "3h"},
        {"combine": "bradley-terry"},
        {"combine": "reliability"},
        {"center": 0.1},
        {"center": 0.1, "center_on": "pairs"},
    ]
    made = {}
    for number, changed in enumerate(choices):
        out = tmp_path / str(number)
        train(model_dir, said, out, **changed)
        hub.load(out, "scalar")  # however it was trained: one number, in the usual file
        made[digest_file(out / "model.safetensors")] = changed
        rows = tiny.lines(out / "metrics.jsonl")
        assert all(math.isfinite(row["loss"]) for row in rows)
    assert len(made) == len(choices)


def test_annotators_who_turn_things_round_are_not_believed(
    model_dir: Path, said: Path, tmp_path: Path
) -> None:
    card = train(model_dir, said, tmp_path / "out", combine="reliability")
    assert card["annotators"]["mad"]["weight"] == 0.0
    assert card["annotators"]["ada"]["weight"] == pytest.approx(1.5)
    assert "annotators" not in train(model_dir, said, tmp_path / "plain")


def test_a_step_weighs_each_ranking_by_its_annotator(
    chat: Chat, model_dir: Path, said: Path, tmp_path: Path
) -> None:
    """The first loss of a run by hand: ada and bob always agree and weigh 1.5 each, mad weighs nothing."""
    slates = make_slates(crowd(14, seed=0), chat, corrections=False)
    taught = [s for s in slates if not is_held_out(s.id, 0.2)]
    train(model_dir, said, tmp_path / "out", combine="reliability", batch=len(taught))
    start, costs = ScalarModel.from_causal(hub.load(model_dir), seed=0), []
    for slate in taught:
        scores = alone(start, slate)[None]
        for who, ranks in zip(slate.annotators, slate.ranks, strict=True):
            wanted = Wanted(torch.tensor([ranks]), torch.ones(1, 3).bool())
            costs.append(0.0 if who == "mad" else 1.5 * pairwise(scores, wanted).item())
    (row,) = tiny.lines(tmp_path / "out" / "metrics.jsonl")
    assert row["loss"] == pytest.approx(sum(costs) / len(costs), rel=1e-4)


def beats(made: ScalarModel, chat: Chat, better: str, worse: str) -> float:
    """How often, on fresh answers each read by itself, one with the first word beats one with the second."""
    draw, won = np.random.default_rng(9), []
    words = [w for w in tiny.WORDS if w not in ("jam", "tea")]
    for _ in range(40):
        question = " ".join(words[i] for i in draw.integers(0, len(words), 4))
        said = [
            tiny.ranking(
                question, [" ".join(words[i] for i in draw.integers(0, len(words), 3)) + f" {w}"] * 2, (1, 2)
            )
            for w in (better, worse)
        ]
        scores = [alone(made, make_slates([r], chat, False)[0])[0].item() for r in said]
        won.append(float(scores[0] > scores[1]))
    return sum(won) / len(won)


@pytest.mark.parametrize("loss", ["squared", "pairs"])
def test_the_weights_of_the_heads_decide_what_is_good(
    chat: Chat, model_dir: Path, tmp_path: Path, loss: str
) -> None:
    """Jam is helpful and tea is harmless: which of them is better is for the weights to say. The rankings,
    of which a third are turned round, are not looked at."""
    write(crowd(40, seed=1), tmp_path / "rankings.jsonl", "ranking")
    for name, weights, better, worse in (
        ("helpful", {"harmless": 0.0, "honest": 0.0}, "jam", "tea"),
        ("harmless", {"helpful": 0.0, "honest": 0.0}, "tea", "jam"),
    ):
        out = tmp_path / name
        train(model_dir, tmp_path / "rankings.jsonl", out, head="3h", loss=loss, weights=weights, epochs=4)
        assert beats(hub.load(out, "scalar"), chat, better, worse) > 0.85


def test_heads_resume_byte_for_byte(
    model_dir: Path, said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"head": "3h", "loss": "squared", "epochs": 3, "combine": "reliability"}
    settings["compute"] = tiny.TRAINING.model_copy(update={"checkpoint_every": 2})
    train(model_dir, said, tmp_path / "whole", **settings)
    real, calls = reward.update.apply, list[int]()

    def stop(*rest: Any, **named: Any) -> float:
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("pulled the plug")
        return real(*rest, **named)

    monkeypatch.setattr(reward.update, "apply", stop)
    with pytest.raises(RuntimeError, match="plug"):
        train(model_dir, said, tmp_path / "cut", **settings)
    monkeypatch.undo()
    train(model_dir, said, tmp_path / "cut", **settings)
    files = [tmp_path / name / "model.safetensors" for name in ("whole", "cut")]
    assert digest_file(files[0]) == digest_file(files[1])
    assert json.loads((tmp_path / "cut" / "trainer_state.json").read_text())["resumed_at"]


# ------------------------------------------------------------------------------ bad input


def test_rankings_in_which_all_is_tied_pull_scores_together(chat: Chat, model: ScalarModel) -> None:
    tied = make_slates([tiny.ranking("what", ABC, (1, 1, 1))], chat, corrections=True)
    before = alone(model, tied[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(10):
        optimizer.zero_grad()
        scores, ranks, mask = reward.forward(model, tied, chat.tokenizer.pad_id)
        reward.loss_named(recipe())(scores, ranks, mask, told(tied, 3, scores.device)).sum().backward()
        optimizer.step()
    assert alone(model, tied[0]).std() < before.std()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ranking": (1, 2)}, "ranking has 2 ranks for 3 completions"),
        ({"ranking": (0, 1, 2)}, "ranks start at 1, got 0"),
        ({"ranking": None}, "a submitted record needs a ranking"),
    ],
)
def test_ranks_that_are_missing_or_none_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.ranking("what", ABC, changed["ranking"])


def test_one_answer_is_no_ranking_and_equal_ranks_are_ties(chat: Chat) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        tiny.ranking("what", ("red",), (1,))
    (slate,) = make_slates([tiny.ranking("what", ABC, (2, 2, 5))], chat, corrections=True)
    assert slate.ranks == ((3, 3, 6),)
    assert replace(slate, ranks=((1, 1, 2),)).ranks == ((1, 1, 2),)
