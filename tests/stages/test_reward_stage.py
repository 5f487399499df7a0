"""The reward stage: how rankings become slates, its loss and gradient against every ranking scored one answer
at a time, what may and may not be trained on, and a planted preference against shuffled labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bloomery.data.batches import pack_documents
from bloomery.data.convert import write
from bloomery.errors import DataError, UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub, llama
from bloomery.models.llama import ScalarModel
from bloomery.stages import reward
from bloomery.stages.common import Optimiser, is_held_out
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.slates import Slate, make_slates, prompt_id
from bloomery.stages.zero import demonstrated
from bloomery.text.chat import Chat
from bloomery.types import Message, Policy, Ranking

ABC = ("red", "blue", "green")


# ------------------------------------------------------------------------------ slates


def test_annotators_of_the_same_answers_share_a_slate(chat: Chat) -> None:
    said = [
        tiny.ranking("what", ABC, (1, 2, 3), "ada"),
        tiny.ranking("why", ABC, (3, 2, 1), "ada"),
        tiny.ranking("what", ABC, (1, 1, 2), "bob"),  # a tie stays a tie
        tiny.ranking("what", ("red", "blue"), (2, 1), "cat"),  # other answers to the same prompt
    ]
    slates = make_slates(said, chat, corrections=True)
    assert [s.texts for s in slates] == [ABC, ABC, ("red", "blue")]
    assert [s.ranks for s in slates] == [((2, 3, 4), (2, 2, 3)), ((4, 3, 2),), ((3, 2),)]
    assert slates[0].id == slates[2].id == prompt_id(tiny.user("what"))
    assert slates[0].id != slates[1].id
    for text, sequence in zip(ABC, slates[0].sequences, strict=True):
        answer = Message(role="assistant", content=text)
        assert list(sequence) == chat.render((*tiny.user("what"), answer)).tokens
        assert sequence[-1] == chat.tokenizer.end_id


def test_a_correction_stands_above_every_answer_for_its_author_alone(chat: Chat) -> None:
    said = [
        tiny.ranking("what", ABC, (1, 2, 3), "ada", correction="plum"),
        tiny.ranking("what", ABC, (2, 1, 1), "bob"),
        tiny.ranking("what", ABC, (3, 2, 1), "cat", correction="jam"),
    ]
    (slate,) = make_slates(said, chat, corrections=True)
    assert slate.texts == (*ABC, "plum", "jam")
    assert slate.ranks == ((2, 3, 4, 1, 0), (3, 2, 2, 0, 0), (4, 3, 2, 0, 1))
    corrected = (*tiny.user("what"), Message(role="assistant", content="jam"))
    assert list(slate.sequences[4]) == chat.render(corrected).tokens
    (plain,) = make_slates(said, chat, corrections=False)
    assert plain.texts == ABC
    assert plain.ranks == ((2, 3, 4), (3, 2, 2), (4, 3, 2))


def test_only_submitted_records_count(chat: Chat) -> None:
    said = [
        tiny.ranking("what", ABC, None, "ada", status="skipped"),
        tiny.ranking("what", ABC, (1, 2, 3), "bob", status="skipped"),
        tiny.ranking("why", ABC, (1, 2, 3), "bob", status="flagged", correction="plum"),
        tiny.ranking("why", ABC, (3, 2, 1), "cat"),
    ]
    (slate,) = make_slates(said, chat, corrections=True)
    assert (slate.texts, slate.ranks) == (ABC, ((4, 3, 2),))


def test_a_slate_cannot_hold_a_grade() -> None:
    said = {"ranks", "annotators", "ratings", "leads", "weights", "strengths", "sources"}
    assert set(Slate.__dataclass_fields__) == {"id", "texts", "sequences"} | said


# ------------------------------------------------------------------------------ forward

SAID = [
    tiny.ranking("what is best", ABC, (1, 2, 3), "ada", correction="plum and jam"),
    tiny.ranking("what is best", ABC, (2, 1, 2), "bob"),
    tiny.ranking("what is best", ABC, (3, 1, 2), "cat", correction="tea"),
    tiny.ranking("one", ("red red red red", "two"), (2, 1), "ada"),
    tiny.ranking("two three", ("red", "blue", "green", "plum", "jam jam"), (1, 1, 3, 4, 5), "bob"),
    tiny.ranking("two three", ("red", "blue", "green", "plum", "jam jam"), (5, 4, 3, 2, 1), "cat"),
    tiny.ranking("jam jam", ("milk", "jam"), (1, 1), "bob"),
]


def own_answers(r: Ranking) -> list[tuple[str, int]]:
    """What one annotator compared: each answer with its rank, and the correction before them all."""
    answers = [(c.text, rank) for c, rank in zip(r.completions, r.ranking or (), strict=True)]
    return answers + ([(r.correction, 0)] if r.correction else [])


def scored(model: ScalarModel, chat: Chat, r: Ranking) -> list[Tensor]:
    """Each of `own_answers` read by itself, from beginning to end."""
    turns = [Message(role="assistant", content=text) for text, _ in own_answers(r)]
    return [tiny.scores_of(model, chat.render((*r.prompt, turn)).tokens)[-1] for turn in turns]


def plain_loss(model: ScalarModel, chat: Chat, r: Ranking) -> Tensor:
    """Mean of `-log sigmoid(better - worse)` over all pairs; a tie is half of each direction."""
    ranked = list(zip(scored(model, chat, r), [rank for _, rank in own_answers(r)], strict=True))
    losses = []
    for (a, first), (b, second) in combinations(ranked, 2):
        share = 0.5 if first == second else float(first < second)
        losses.append(-share * logsigmoid(a - b) - (1 - share) * logsigmoid(b - a))
    return torch.stack(losses).mean()


@pytest.fixture
def model(chat: Chat) -> ScalarModel:
    return tiny.scalar_model(chat.tokenizer.vocab_size, 3)


def test_forward_lays_out_each_annotators_answers_and_ranks(chat: Chat, model: ScalarModel) -> None:
    slates = make_slates(SAID, chat, corrections=True)
    assert [len(s.ranks) for s in slates] == [3, 1, 2, 1]
    scores, ranks, mask = reward.forward(model, slates, chat.tokenizer.pad_id)
    assert scores.shape == ranks.shape == mask.shape == (7, 5)
    for row, r in enumerate(SAID):
        want = sorted(
            (rank, s.item()) for (_, rank), s in zip(own_answers(r), scored(model, chat, r), strict=True)
        )
        got = sorted(zip((ranks[row][mask[row]] - 1).tolist(), scores[row][mask[row]].tolist(), strict=True))
        assert [rank for rank, _ in got] == [rank for rank, _ in want]
        assert [s for _, s in got] == pytest.approx([s for _, s in want], abs=1e-5)


def test_each_answer_is_read_once_however_many_rank_it(chat: Chat, model: ScalarModel) -> None:
    slates = make_slates(SAID, chat, corrections=True)
    read: Counter[tuple[int, ...]] = Counter()

    def spy(module: object, args: tuple[Tensor], kwargs: dict[str, Tensor]) -> None:
        for tokens, segments, prefix in zip(args[0], kwargs["segments"], kwargs["prefix"], strict=True):
            beginning = tokens[: int(prefix)].tolist()
            for number in range(2, int(segments.max()) + 1):
                read[(*beginning, *tokens[segments == number].tolist())] += 1

    handle = model.register_forward_pre_hook(spy, with_kwargs=True)
    reward.forward(model, slates, chat.tokenizer.pad_id)
    handle.remove()
    assert read == Counter(sequence for s in slates for sequence in s.sequences)
    assert sum(read.values()) == 5 + 2 + 5 + 2  # and not 4 + 3 + 4 + 2 + 5 + 5 + 2, nor two a pair


def test_the_report_card_reads_slates_together(chat: Chat, model: ScalarModel) -> None:
    slates, read = make_slates(SAID, chat, corrections=True), list[int]()
    handle = model.register_forward_pre_hook(lambda module, args: read.append(len(args[0])))
    found = reward.scored(model, slates, chat.tokenizer.pad_id)
    handle.remove()
    assert read == [len(slates)]
    for slate, one in zip(slates, found, strict=True):
        alone = [tiny.scores_of(model, sequence)[-1].item() for sequence in slate.sequences]
        assert (one.id, one.texts, one.ranks) == (slate.id, slate.texts, slate.ranks)
        assert one.scores == pytest.approx(alone, abs=1e-5)


def test_held_out_accuracy_counts_every_untied_pair(chat: Chat, model: ScalarModel) -> None:
    right = total = 0.0
    for r in SAID:
        ranked = list(zip(scored(model, chat, r), [rank for _, rank in own_answers(r)], strict=True))
        for (a, first), (b, second) in combinations(ranked, 2):
            if first != second:
                right, total = right + float((a > b) == (first < second)), total + 1
    slates = make_slates(SAID, chat, corrections=True)
    got = reward.held_out_accuracy(model, slates, chat.tokenizer.pad_id, torch.ones(3) / 3)
    assert total == 6 + 2 + 6 + 1 + 9 + 10
    assert got == {"eval_accuracy": pytest.approx(right / total)}


def test_where_all_is_tied_there_is_no_accuracy(chat: Chat, model: ScalarModel) -> None:
    slates = make_slates([SAID[-1]], chat, corrections=True)
    assert reward.held_out_accuracy(model, slates, chat.tokenizer.pad_id, torch.ones(3) / 3) == {}


# ------------------------------------------------------------------------------ the stage

RATES = Optimiser(learning_rate=0.003, schedule="constant", warmup=0, weight_decay=0.0)


def train(model: Path, rankings: Sequence[Path], out: Path, **changed: Any) -> dict[str, Any]:
    usual = {"batch": 8, "epochs": 1, "optimiser": RATES, "compute": tiny.TRAINING}
    reward.run(RewardRecipe(model=model, rankings=tuple(rankings), **{**usual, **changed}), out)
    card: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    return card


def save(said: Sequence[Ranking], path: Path) -> Path:
    write(said, path, "ranking")
    return path


def test_recomputing_changes_no_bit(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save(SAID, tmp_path / "said.jsonl")
    plain, seen, made = llama.checkpoint, list[str](), []
    monkeypatch.setattr(llama, "checkpoint", lambda *a, **k: (seen.append(name), plain(*a, **k))[1])
    for name in ("usual", "again"):
        compute = tiny.TRAINING.model_copy(update={"recompute": name == "again"})
        train(model_dir, [file], tmp_path / name, compute=compute)
        made.append(digest_file(tmp_path / name / "model.safetensors"))
    assert made[0] == made[1]
    assert set(seen) == {"again"}


@pytest.mark.parametrize("batch_tokens", [8192, 1])
@pytest.mark.parametrize("again", [False, True])
def test_the_first_step_by_hand(
    chat: Chat,
    model_dir: Path,
    tokenizer_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    again: bool,
    batch_tokens: int,
) -> None:
    """Loss and gradient of a step that holds every ranking once, against the sum over rankings of what each
    says by itself; with the squared score and the pretraining text beside it; from an SFT model or from the
    last round's reward model; in one part or each slate by itself."""
    share = 0.1
    training = [r for r in SAID if not is_held_out(prompt_id(r.prompt), share)]
    assert len(training) == 6  # all but the last
    skipped = tiny.ranking("one", ("red red red red", "two"), (1, 2), "dan", status="skipped")
    file = save([*SAID, skipped], tmp_path / "rankings.jsonl")
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus")
    language_model = hub.load(model_dir)
    start = ScalarModel.from_causal(language_model, seed=4)
    if again:
        start = tiny.scalar_model(chat.tokenizer.vocab_size, 9)
        hub.save(start, tmp_path / "start", tokenizer_dir=tokenizer_dir)

    losses = [plain_loss(start, chat, r) for r in training]
    squares = torch.stack([s for r in training for s in scored(start, chat, r)]).square()
    language_model.model = start.model
    text = tiny.plain_text_loss(
        language_model, pack_documents(corpus, "train", batch_size=2, length=24, seed=4, step=0)
    )
    want = torch.stack(losses).mean() + 0.3 * squares.mean() + 2.0 * text

    found: dict[str, Tensor] = {}

    def stop(optimizer: object, max_norm: object, *, loss: Tensor, **rest: object) -> float:
        found.update(objective=loss.detach(), gradient=tiny.held_gradient(models[-1]))
        raise KeyboardInterrupt

    models: list[ScalarModel] = []
    real = reward.score_batches

    def score_batches(model: ScalarModel, batches: Any) -> Any:
        models.append(model)
        return real(model, batches)

    monkeypatch.setattr(reward, "score_batches", score_batches)
    monkeypatch.setattr(reward.update, "apply", stop)
    with pytest.raises(KeyboardInterrupt):
        train(
            model_dir,
            [file],
            tmp_path / "out",
            seed=4,
            held_out=share,
            center=0.3,
            corpus=corpus.path,
            replay={"coef": 2.0, "batch": 2, "length": 24},
            batch=len({r.prompt for r in training}),
            start=tmp_path / "start" if again else None,
            batch_tokens=batch_tokens,
        )
    assert len(models) == (1 if batch_tokens > 1 else 3)
    assert found["objective"].item() == pytest.approx(want.item(), abs=1e-5)
    torch.testing.assert_close(found["gradient"], tiny.gradient(want, start), atol=1e-5, rtol=1e-4)


def test_the_next_steps_slates_are_laid_out_while_a_step_is_under_way(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = tiny.makers(monkeypatch, reward, "laid_out")
    train(model_dir, [save(SAID, tmp_path / "said.jsonl")], tmp_path / "out", batch=1)
    assert makers == ["MainThread", "ahead_0", "ahead_0"]


@pytest.mark.parametrize("center_on", ["answers", "pairs"])
def test_parts_of_a_step_leave_the_gradient_of_the_whole(
    chat: Chat, model: ScalarModel, center_on: str
) -> None:
    """Slates with unlike numbers of annotators and answers: a mean of means would differ."""
    slates = make_slates(SAID, chat, corrections=True)
    nowhere: dict[str, Any] = {"model": Path("nowhere"), "rankings": (Path("nowhere"),)}
    found = []
    for batch_tokens in (8192, 1):
        recipe = RewardRecipe(**nowhere, center=0.3, center_on=center_on, batch_tokens=batch_tokens)
        groups, loss = reward.laid_out(recipe, slates, 64, 0), reward.loss_named(recipe)
        objective, metrics = reward.backward(
            recipe, model, loss, slates, groups, torch.ones(3) / 3, nullcontext
        )
        found.append([objective, tiny.held_gradient(model), torch.tensor(list(metrics.values()))])
        model.zero_grad()
    assert len(groups) == 4
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_every_step_replays_other_text(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = tiny.replayed(monkeypatch)
    text = {
        "corpus": tiny.corpus(chat.tokenizer, tmp_path / "corpus").path,
        "replay": {"coef": 1.0, "length": 20},
    }
    train(model_dir, [save(SAID, tmp_path / "said.jsonl")], tmp_path / "out", batch=1, **text)
    steps = [row["step"] for row in tiny.lines(tmp_path / "out" / "metrics.jsonl")]
    assert numbers == steps
    assert len(steps) > 1


def many(num: int, seed: int) -> list[Ranking]:
    """Prompts of three words, three answers each; those that speak of jam are best."""
    draw = np.random.default_rng(seed)
    words = [w for w in tiny.WORDS if w != "jam"]
    said = []
    for asked in draw.permutation(len(words) ** 3)[:num]:
        question = " ".join(words[asked // len(words) ** p % len(words)] for p in range(3))
        answers: list[str] = []
        for place in draw.permutation(3):
            answer = [words[i] for i in draw.integers(0, len(words), 3 + len(answers))]
            if place == 0 or (place == 1 and draw.random() < 0.5):
                answer[int(draw.integers(len(answer)))] = "jam"
            answers.append(" ".join(answer))
        ranks = [1 if "jam" in a else 2 for a in answers]
        said.append(tiny.ranking(question, answers, ranks))
    return said


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[set[str], set[str]]:
    """Ids of the slates that give gradient, and of those on the report card; filled by the next run."""
    learned, held = set[str](), set[str]()
    real_rows, real_card = reward.in_rows, reward.report_card

    def in_rows(scores: Tensor, slates: Sequence[Slate]) -> Any:
        if torch.is_grad_enabled():
            learned.update(s.id for s in slates)
        return real_rows(scores, slates)

    def card(slates: Any, *rest: Any) -> Any:
        held.update(s.id for s in slates)
        return real_card(slates, *rest)

    monkeypatch.setattr(reward, "in_rows", in_rows)
    monkeypatch.setattr(reward, "report_card", card)
    return learned, held


def test_what_is_held_out_stays_held_out_in_every_round(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = many(30, seed=0)
    second = [tiny.ranking(r.prompt[0].content, ("tea", "jam"), (2, 1), "bob") for r in first[::2]]
    files = [save(first, tmp_path / "1.jsonl"), save([*many(15, seed=1), *second], tmp_path / "2.jsonl")]
    sides = []
    for number, rankings in enumerate((files[:1], files, files[::-1])):
        learned, held = watched(monkeypatch)
        train(model_dir, rankings, tmp_path / f"out{number}", held_out=0.3, epochs=1.5, batch=16)
        monkeypatch.undo()
        assert not learned & held
        sides.append((learned, held))
    ids = {prompt_id(r.prompt) for r in first}
    assert 4 < len(sides[0][1]) < 15
    assert all(sides[n][1] & ids == sides[0][1] for n in (1, 2))
    assert sides[1] == sides[2]
    assert sides[1][0] | sides[1][1] == ids | {prompt_id(r.prompt) for r in many(15, seed=1)}


def test_gold_is_for_the_report_card_only(model_dir: Path, tmp_path: Path) -> None:
    said = many(30, seed=0)
    gold = [
        {
            "prompt": prompt_id(r.prompt),
            "kind": "taste",
            "grades": {
                c.text: {"grade": "jam" if "jam" in c.text else "none", "reward": float("jam" in c.text)}
                for c in r.completions
            },
        }
        for r in said
    ]
    paths = {"with": (tiny.write_lines(tmp_path / "gold.jsonl", gold),), "without": ()}
    file = save(said, tmp_path / "rankings.jsonl")
    cards = {n: train(model_dir, [file], tmp_path / n, gold=g, held_out=0.4) for n, g in paths.items()}
    weights = [digest_file(tmp_path / name / "model.safetensors") for name in cards]
    assert weights[0] == weights[1]
    assert cards["without"]["by_kind"] == {}
    (kind,) = cards["with"].pop("by_kind").items()
    assert kind[0] == "taste: jam over none"
    # The oracle agrees with every annotator here.
    assert kind[1]["accuracy"] == pytest.approx(cards["with"]["accuracy"])
    cards["without"].pop("by_kind")
    categories = {name: card["groups"].pop("category") for name, card in cards.items()}
    assert [row["name"] for row in categories["with"]] == ["taste"]
    assert categories["without"] == []
    assert cards["with"] == cards["without"]


def test_gold_of_several_rounds_is_put_together(tmp_path: Path) -> None:
    good, bad = {"grade": "right", "reward": 1.0}, {"grade": "wrong", "reward": 0.0}
    one = tiny.write_lines(tmp_path / "1", [{"prompt": "p", "kind": "fact", "grades": {"a": good}}])
    two = tiny.write_lines(
        tmp_path / "2",
        [
            {"prompt": "p", "kind": "fact", "grades": {"b": bad}},
            {"prompt": "q", "kind": "list", "grades": {"c": bad}},
        ],
    )
    assert reward.read_gold([one, two]) == {
        "p": {"kind": "fact", "grades": {"a": good, "b": bad}},
        "q": {"kind": "list", "grades": {"c": bad}},
    }


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "grades": {}},
        {"prompt": "p", "kind": "fact", "grades": ["a"]},
        {"prompt": "p", "kind": "fact", "grades": {"a": 1.0}},
        {"prompt": "p", "kind": "fact", "grades": {"a": {"grade": "right"}}},
    ],
)
def test_gold_that_is_none_is_refused_before_training(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    right = {"prompt": "q", "kind": "fact", "grades": {"a": {"grade": "right", "reward": 1.0}}}
    gold = tiny.write_lines(tmp_path / "gold.jsonl", [right, row])
    monkeypatch.delattr(reward.update, "apply")
    with pytest.raises(DataError, match=r"gold\.jsonl:2: this line holds no verdict of the oracle"):
        train(model_dir, [save(SAID, tmp_path / "rankings.jsonl")], tmp_path / "out", gold=[gold])


def test_demonstrations_score_zero_on_average(chat: Chat, model_dir: Path, tmp_path: Path) -> None:
    talks = [
        [*tiny.user(q), Message(role="assistant", content=a)] for q, a in zip(ABC, ABC[::-1], strict=True)
    ]
    rows = [
        {"id": str(i), "messages": [m.model_dump(exclude_none=True) for m in t]} for i, t in enumerate(talks)
    ]
    shown = tiny.write_lines(tmp_path / "shown.jsonl", rows)
    file = save(many(20, seed=0), tmp_path / "rankings.jsonl")
    mean = {}
    for name, demonstrations in (("shifted", shown), ("plain", None)):
        train(model_dir, [file], tmp_path / name, demonstrations=demonstrations)
        made = hub.load(tmp_path / name, "scalar")
        scores = [tiny.scores_of(made, chat.render(t).tokens)[-1].item() for t in talks]
        mean[name] = sum(scores) / len(scores)
    assert mean["shifted"] == pytest.approx(0.0, abs=1e-5)
    assert abs(mean["plain"]) > 0.01


def test_demonstrations_that_cannot_be_read_or_do_not_fit_are_counted_or_refused(
    model_dir: Path, tmp_path: Path, chat: Chat
) -> None:
    def talk(answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": answer}]}

    rows = [{"id": "a", **talk("two")}, {"id": "b", **talk("two " * 70)}, {"id": "c", "messages": []}]
    shown, said = tiny.write_lines(tmp_path / "shown.jsonl", rows), list[str]()
    (only,) = demonstrated(shown, chat, 64, "skip", said.append)
    assert only == chat.render([*tiny.user("one"), Message(role="assistant", content="two")]).tokens
    assert said[0].startswith("skipped 1 bad rows of 3; the first: ")
    assert said[1:] == ["left out 1 of 2 demonstrations longer than 64 tokens"]
    with pytest.raises(DataError, match=r"shown\.jsonl:3"):
        demonstrated(shown, chat, 64, "error", said.append)
    assert demonstrated(None, chat, 64, "error", said.append) == []


def test_demonstrations_of_which_none_fits_are_refused_before_training(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two " * 70}]
    long = tiny.write_lines(tmp_path / "long.jsonl", [{"id": "a", "messages": messages}])
    file = save(SAID, tmp_path / "rankings.jsonl")
    monkeypatch.delattr(reward.update, "apply")
    with pytest.raises(UsageError, match="no demonstrations of at most 64 tokens") as refused:
        train(model_dir, [file], tmp_path / "out", demonstrations=long)
    assert "got: 1 demonstrations, the shortest of " in str(refused.value)
    assert "give shorter demonstrations, or none" in str(refused.value)


def test_slates_longer_than_the_context_are_left_out_and_counted(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = many(20, seed=0)
    long = tiny.ranking("why", ("red", " ".join(["one"] * 70)), (1, 2))
    learned, held = watched(monkeypatch)
    train(model_dir, [save([*said, long], tmp_path / "rankings.jsonl")], tmp_path / "out", epochs=2)
    assert "left out 1 of 21 prompts with compared answers longer than 64 tokens" in capsys.readouterr().err
    assert prompt_id(long.prompt) not in learned | held


def test_lineage_names_who_ranked_and_who_answered(model_dir: Path, tmp_path: Path) -> None:
    train(model_dir, [save(SAID, tmp_path / "rankings.jsonl")], tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert {p["id"]: p["rankings"] for p in lineage["people"]} == {"ada": 2, "bob": 3, "cat": 2}
    assert [t["id"] for t in lineage["teachers"]] == ["sft"]
    named = reward.authors(
        c.model_copy(update={"policy": policy})
        for c, policy in zip(
            SAID[4].completions,
            [Policy(id="b"), Policy(id="a", digest="2"), Policy(id="a")] * 2,
            strict=False,
        )
    )
    assert named == [Policy(id="a", digest="2"), Policy(id="a"), Policy(id="b")]


@pytest.mark.parametrize("planted", [True, False])
def test_it_learns_a_planted_preference_and_nothing_from_shuffled_labels(
    chat: Chat, model_dir: Path, tmp_path: Path, planted: bool
) -> None:
    said = many(160, seed=2)
    if not planted:
        draw = np.random.default_rng(3)
        said = [
            r.model_copy(update={"ranking": tuple(int(i) for i in draw.permutation(r.ranking or ()))})
            for r in said
        ]
    file = save(said, tmp_path / "rankings.jsonl")
    fast = Optimiser(learning_rate=0.01, warmup=2, weight_decay=0.0)
    card = train(
        model_dir, [file], tmp_path / "out", optimiser=fast, epochs=4 if planted else 1, held_out=0.4
    )
    # Fresh answers, each read by itself: how often does one that speaks of jam beat one that does not?
    made = hub.load(tmp_path / "out", "scalar")
    beaten = []
    for r in many(40, seed=5):
        with torch.no_grad():
            ranked = list(zip(scored(made, chat, r), r.ranking or (), strict=True))
        beaten += [float(a > b) for a, i in ranked for b, j in ranked if i < j]
    fresh = sum(beaten) / len(beaten)
    if planted:
        assert card["accuracy"] > 0.9
        assert fresh > 0.9
        assert card["low"] <= card["accuracy"] <= card["high"]
    else:
        assert 0.35 < card["accuracy"] < 0.65


def test_rankings_of_which_none_fits_are_an_error() -> None:
    long = Slate("a", ("x", "y"), ((1,) * 9, (2,) * 3), ((1, 2),))
    with pytest.raises(UsageError, match="no prompts with compared answers of at most 8 tokens") as refused:
        reward.split([long], 8, 0.1, lambda text: None)
    assert "got: 1 prompts with compared answers, the shortest of 9 tokens" in str(refused.value)
    with pytest.raises(UsageError, match="0 prompts with compared answers"):
        reward.split([], 8, 0.1, lambda text: None)
    said: list[str] = []
    short = [Slate(str(n), ("x", "y"), ((1,) * 8, (2,) * 3), ((1, 2),)) for n in range(200)]
    training, held_out = reward.split([*short, long], 8, 0.1, said.append)
    assert [s.id for s in sorted((*training, *held_out), key=lambda s: int(s.id))] == [s.id for s in short]
    assert 5 < len(held_out) < 40
    assert said == ["left out 1 of 201 prompts with compared answers longer than 8 tokens"]
