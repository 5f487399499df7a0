"""Fine-tuning against every conversation read by itself: which tokens count, the replayed text, who is held
out, and what is refused or left out aloud."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from bloomery import lineage
from bloomery.data.batches import TokenBatch, pack_documents
from bloomery.errors import DataError, UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub, llama
from bloomery.models.llama import Llama
from bloomery.stages import common, sft
from bloomery.stages.common import Optimiser, is_held_out
from bloomery.stages.sft import Sft
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer

Turn = tuple[str, str] | tuple[str, str, int]
RATES = Optimiser(learning_rate=0.003, schedule="constant", warmup=0, weight_decay=0.0)

TALKS: list[list[Turn]] = [
    [("user", "what is best"), ("assistant", " plum jam")],
    [("user", "one"), ("assistant", " two"), ("user", "three"), ("assistant", " tea milk red")],
    [
        ("system", "is red"),
        ("user", "blue"),
        ("assistant", " green", 0),
        ("user", "tea"),
        ("assistant", " jam"),
    ],
    [("user", "milk"), ("assistant", " milk"), ("user", "no answer to this")],
    [("user", "jam jam"), ("assistant", " one two three one two three")],
]


def rows(talks: Sequence[Sequence[Turn]], name: str = "talk") -> list[dict[str, Any]]:
    def message(turn: Turn) -> dict[str, Any]:
        weight = {"weight": turn[2]} if len(turn) == 3 else {}
        return {"role": turn[0], "content": turn[1], **weight}

    return [{"id": f"{name}-{i}", "messages": [message(t) for t in talk]} for i, talk in enumerate(talks)]


def spelled(tokenizer: Tokenizer, talk: Sequence[Turn]) -> tuple[list[int], list[bool]]:
    """Tokens and loss mask of a conversation, written out: <|role|> content <|end|> for each turn. What
    counts is the content and the end of an assistant's turn, unless its weight is 0."""
    tokens: list[int] = []
    mask: list[bool] = []
    for turn in talk:
        content = tokenizer.encode(turn[1])
        counts = turn[0] == "assistant" and turn[-1] != 0
        tokens += [tokenizer.id(f"<|{turn[0]}|>"), *content, tokenizer.end_id]
        mask += [False, *[counts] * (len(content) + 1)]
    return tokens, mask


def train(model: Path, demonstrations: Sequence[Path], out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual = {"batch": 4, "epochs": 1, "held_out": 0.0, "optimiser": RATES, "compute": tiny.TRAINING}
    sft.run(Sft(model=model, demonstrations=tuple(demonstrations), **{**usual, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def counted_of(batch: TokenBatch) -> list[list[int]]:
    """What counts of each conversation."""
    return [
        tokens[mask & (segments == number)].tolist()
        for tokens, mask, segments in zip(batch.tokens, batch.mask, batch.segments, strict=True)
        for number in range(1, int(segments.max()) + 1)
    ]


class Watch:
    """Every batch of answers and every update of the next runs, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[TokenBatch] = []
        self.objectives: list[float] = []
        self.gradients: list[Tensor] = []
        self.names: list[list[str]] = []
        real_logprobs, real_apply = sft.answer_logprobs, sft.update.apply

        def answer_logprobs(model: Llama, batch: TokenBatch) -> tuple[Tensor, Tensor]:
            if torch.is_grad_enabled():
                self.batches.append(batch)
                self.model = model
            return real_logprobs(model, batch)

        def apply(*args: Any, loss: float, batch: list[str], **rest: Any) -> float:
            self.objectives.append(loss)
            self.gradients.append(tiny.held_gradient(self.model))
            self.names.append(batch)
            return real_apply(*args, loss=loss, batch=batch, **rest)

        monkeypatch.setattr(sft, "answer_logprobs", answer_logprobs)
        monkeypatch.setattr(sft.update, "apply", apply)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def test_the_first_step_by_hand(chat: Chat, model_dir: Path, tmp_path: Path, watch: Watch) -> None:
    """All five conversations in one step, with pretraining text beside them."""
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus")
    start = hub.load(model_dir)
    nats, counted = [], 0
    for talk in TALKS:
        tokens, mask = spelled(chat.tokenizer, talk)
        nats.append(-tiny.logprobs_of(start, tokens)[torch.tensor(mask)].sum())
        counted += sum(mask)
    loss = torch.stack(nats).sum() / counted
    text = tiny.plain_text_loss(
        start, pack_documents(corpus, "train", batch_size=3, length=20, seed=2, step=0)
    )
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    replay = {"coef": 0.25, "batch": 3, "length": 20}
    metrics = train(model_dir, [file], tmp_path / "out", seed=2, batch=5, corpus=corpus.path, replay=replay)[
        0
    ]
    assert metrics["num_tokens"] == counted
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics["loss/replay"] == pytest.approx(text.item(), abs=1e-5)
    assert watch.objectives[0] == pytest.approx((loss + 0.25 * text).item(), abs=1e-5)
    want = tiny.gradient(loss + 0.25 * text, start)
    torch.testing.assert_close(watch.gradients[0], want, atol=1e-5, rtol=1e-4)


def test_what_the_assistant_says_is_trained_once_and_so_is_each_of_its_ends(
    chat: Chat, model_dir: Path, tmp_path: Path, watch: Watch
) -> None:
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    train(model_dir, [file], tmp_path / "out", batch=5)
    (batch,) = watch.batches
    end = chat.tokenizer.end_id
    said = [t[1] for talk in TALKS for t in talk if t[0] == "assistant" and t[-1] != 0]
    assert len(said) == 6
    assert int((batch.tokens[batch.mask] == end).sum()) == len(said)
    assert len(batch.tokens) < 5  # packed
    trained = sorted(chat.tokenizer.decode(ids) for ids in counted_of(batch))
    assert trained == sorted(
        [" plum jam", " two tea milk red", " jam", " milk", " one two three one two three"]
    )
    assert int((batch.tokens == end).sum()) == sum(len(talk) for talk in TALKS)


def test_gradient_reaches_only_the_states_that_choose_an_assistants_token(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[list[int], Tensor]] = []
    real = Llama.forward

    def forward(self: Llama, *args: Any, **kwargs: Any) -> Tensor:
        hidden = real(self, *args, **kwargs)
        hidden.retain_grad()
        states.append((kwargs["at"].tolist(), hidden))
        return hidden

    monkeypatch.setattr(Llama, "forward", forward)
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS[2:3]))
    train(model_dir, [file], tmp_path / "out", batch=1)
    at, hidden = states[0]
    assert hidden.grad is not None
    assert bool((hidden.grad.abs().sum(-1) > 0).all())
    _, mask = spelled(chat.tokenizer, TALKS[2])
    assert at == [i - 1 for i, counts in enumerate(mask) if counts]


def test_without_weight_or_corpus_no_text_is_replayed(chat: Chat, model_dir: Path, tmp_path: Path) -> None:
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus").path
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    runs: dict[str, dict[str, Any]] = {
        "none": {},
        "zero": {"corpus": corpus, "replay": {"coef": 0.0}},
        "some": {"corpus": corpus, "replay": {"coef": 1.0, "length": 20}},
    }
    made = {}
    for name, changed in runs.items():
        metrics = train(model_dir, [file], tmp_path / name, **changed)
        assert ("loss/replay" in metrics[0]) == (name == "some")
        made[name] = digest_file(tmp_path / name / "model.safetensors")
    assert made["none"] == made["zero"] != made["some"]


def test_every_step_replays_other_text(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = tiny.replayed(monkeypatch)
    text = {"corpus": tiny.corpus(chat.tokenizer, tmp_path / "corpus").path, "replay": {"length": 20}}
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    metrics = train(model_dir, [file], tmp_path / "out", batch=2, epochs=2, **text)
    assert numbers == [row["step"] for row in metrics] == [0, 1, 2, 3, 4]


def test_the_next_steps_text_is_packed_while_a_step_is_under_way(
    chat: Chat, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = tiny.makers(monkeypatch, common, "pack_documents")
    text = {"corpus": tiny.corpus(chat.tokenizer, tmp_path / "corpus").path, "replay": {"length": 20}}
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    train(model_dir, [file], tmp_path / "out", batch=2, epochs=1, **text)
    assert makers == ["MainThread", "ahead_0"]


def test_who_is_held_out_is_decided_by_name(model_dir: Path, tmp_path: Path, watch: Watch) -> None:
    few = rows([TALKS[i % 5] for i in range(20)], "few")
    more = rows([TALKS[i % 4] for i in range(15)], "more")
    files = [tiny.write_lines(tmp_path / f"{n}.jsonl", r) for n, r in (("few", few), ("more", more[::-1]))]
    learned: list[set[str]] = []
    for number, demonstrations in enumerate((files[:1], files[::-1])):
        watch.names.clear()
        train(model_dir, demonstrations, tmp_path / str(number), held_out=0.3, epochs=2, evaluate_every=1)
        learned.append({name for names in watch.names for name in names})
    names = {row["id"] for row in few}
    assert 2 <= len(names - learned[0]) <= 12
    assert learned[1] & names == learned[0]
    everyone = names | {row["id"] for row in more}
    assert learned[1] == {name for name in everyone if not is_held_out(name, 0.3)}


def test_the_held_out_loss_by_hand(chat: Chat, model_dir: Path, tmp_path: Path) -> None:
    talks = [TALKS[i % 5] for i in range(20)]
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(talks))
    metrics = train(model_dir, [file], tmp_path / "out", held_out=0.3, batch=3, evaluate_every=100)
    assert [n for n, row in enumerate(metrics) if "eval_loss" in row] == [len(metrics) - 1]
    made, nats, counted = hub.load(tmp_path / "out"), 0.0, 0
    for row, talk in zip(rows(talks), talks, strict=True):
        if is_held_out(row["id"], 0.3):
            tokens, mask = spelled(chat.tokenizer, talk)
            with torch.no_grad():
                nats -= float(tiny.logprobs_of(made, tokens)[torch.tensor(mask)].sum())
            counted += sum(mask)
    assert metrics[-1]["eval_loss"] == pytest.approx(nats / counted, abs=1e-4)


def test_a_conversation_longer_than_the_context_is_left_out_and_counted(
    model_dir: Path, tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    fits: list[Turn] = [("user", " one"), ("assistant", " two" * 59)]
    long: list[Turn] = [("user", " one"), ("assistant", " two" * 60)]
    # With both roles and both ends that is one token a word and four more: 64, which is the context, and 65.
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows([fits, long, *TALKS]))
    train(model_dir, [file], tmp_path / "out", epochs=2)
    said = f"left out 1 of {2 + len(TALKS)} conversations longer than 64 tokens"
    assert said in capsys.readouterr().err
    names = {name for names in watch.names for name in names}
    assert names == {row["id"] for row in rows([fits, long, *TALKS])} - {"talk-1"}
    assert max(batch.tokens.shape[1] for batch in watch.batches) == 64
    file = tiny.write_lines(tmp_path / "long.jsonl", rows([long]))
    with pytest.raises(UsageError, match="there are no conversations of at most 64 tokens"):
        train(model_dir, [file], tmp_path / "none")


def test_a_conversation_that_trains_nothing_is_refused_by_name(model_dir: Path, tmp_path: Path) -> None:
    silent: list[Turn] = [("user", "one"), ("assistant", " two", 0)]
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows([TALKS[0], silent]))
    with pytest.raises(DataError, match=r"talks\.jsonl:2.*nothing in this conversation is trained on"):
        train(model_dir, [file], tmp_path / "out")


def test_conversations_of_two_files_that_share_their_names_are_all_trained_on(
    model_dir: Path, tmp_path: Path, watch: Watch
) -> None:
    files = [tiny.write_lines(tmp_path / f"{n}.jsonl", rows(TALKS[n : n + 2])) for n in (0, 3)]
    train(model_dir, files, tmp_path / "out", batch=4)
    assert sorted(watch.names[0]) == ["talk-0", "talk-0", "talk-1", "talk-1"]
    assert len({tuple(document) for document in tiny.documents_of(watch.batches[0])}) == 4
    data = lineage.read(tmp_path / "out").data
    assert [entry["conversations"] for entry in data] == [2, 2]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_run_that_broke_off_goes_on_to_the_same_bytes(
    chat: Chat, model_dir: Path, tmp_path: Path, threads: int
) -> None:
    """With two threads demonstrations and text are read at the same time, into the same gradients."""
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    often = tiny.TRAINING.model_copy(update={"checkpoint_every": 2, "threads": threads})
    text = {"corpus": tiny.corpus(chat.tokenizer, tmp_path / "corpus").path, "replay": {"length": 20}}

    def again(out: Path) -> None:
        train(model_dir, [file], out, batch=2, epochs=2, compute=often, **text)

    tiny.goes_on_to_the_same_bytes(again, tmp_path, sft.update, "apply", 4, resumed=2)


@pytest.mark.parametrize("parts", [2, 3, 9])
def test_micro_batches_change_no_gradient(
    chat: Chat, model_dir: Path, tmp_path: Path, watch: Watch, parts: int
) -> None:
    """Parts hold unlike numbers of counted tokens: a mean of means would differ."""
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus")
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    settings = {"batch": 5, "corpus": corpus.path, "replay": {"coef": 0.25, "batch": 3, "length": 20}}
    whole = train(model_dir, [file], tmp_path / "whole", **settings)[0]
    cut = train(model_dir, [file], tmp_path / "parts", **settings, micro_batches=parts)[0]
    assert len(watch.batches) == 1 + min(parts, 5)
    torch.testing.assert_close(watch.gradients[0], watch.gradients[1], atol=1e-6, rtol=1e-5)
    assert watch.objectives[0] == pytest.approx(watch.objectives[1], abs=1e-6)
    assert cut == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 40])
def test_a_budget_of_tokens_bounds_what_is_computed_at_a_time_and_changes_no_gradient(
    model_dir: Path, tmp_path: Path, watch: Watch, batch_tokens: int
) -> None:
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows([*TALKS, *TALKS]))
    whole = train(model_dir, [file], tmp_path / "whole", batch=10)[0]
    (packed,) = watch.batches
    parts = train(model_dir, [file], tmp_path / "parts", batch=10, batch_tokens=batch_tokens)[0]
    (num_rows, width), sizes = packed.tokens.shape, [part.tokens.shape for part in watch.batches[1:]]
    assert sum(rows for rows, _ in sizes) == num_rows
    assert len(sizes) > 1
    assert all(rows == 1 or rows * width <= batch_tokens for rows, width in sizes)
    assert any(rows > 1 for rows, _ in sizes) == (batch_tokens >= 2 * width)
    torch.testing.assert_close(watch.gradients[0], watch.gradients[1], atol=1e-6, rtol=1e-5)
    assert parts == pytest.approx(whole, abs=1e-5)


def test_authors_of_a_file_are_people_and_those_of_a_run_are_named_by_it(
    model_dir: Path, tmp_path: Path
) -> None:
    talks = [row | {"author": who} for row, who in zip(rows(TALKS), "abbac", strict=True)]
    tiny.write_lines(tmp_path / "talks.jsonl", talks)
    train(model_dir, [tmp_path / "talks.jsonl"], tmp_path / "out")
    assert [(p.id, p.kind) for p in lineage.read(tmp_path / "out").people] == [
        (who, "human") for who in "abc"
    ]
    made = lineage.read(tmp_path / "out").model_copy(
        update={"people": (lineage.Person(id="b", kind="simulated"),), "inputs": ()}
    )
    (tmp_path / "made").mkdir()
    lineage.write(tmp_path / "made", made)
    tiny.write_lines(tmp_path / "made" / "talks.jsonl", talks)
    train(model_dir, [tmp_path / "made" / "talks.jsonl"], tmp_path / "other")
    assert [(p.id, p.kind) for p in lineage.read(tmp_path / "other").people] == [("b", "simulated")]


def test_recomputing_changes_no_bit(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(TALKS))
    plain, seen, made = llama.checkpoint, list[str](), []
    monkeypatch.setattr(llama, "checkpoint", lambda *a, **k: (seen.append(name), plain(*a, **k))[1])
    for name in ("usual", "again"):
        compute = tiny.TRAINING.model_copy(update={"recompute": name == "again"})
        train(model_dir, [file], tmp_path / name, compute=compute)
        made.append(digest_file(tmp_path / name / "model.safetensors"))
    assert made[0] == made[1]
    assert set(seen) == {"again"}


def test_it_learns_to_answer_and_to_stop(chat: Chat, model_dir: Path, tmp_path: Path) -> None:
    """Greedy answers by a plain loop, before and after."""
    talks: list[list[Turn]] = [
        [("user", f"{a} {b}"), ("assistant", f" {b}")] for a in tiny.WORDS[:4] for b in tiny.WORDS[4:8]
    ]
    file = tiny.write_lines(tmp_path / "talks.jsonl", rows(talks))
    fast = Optimiser(learning_rate=0.02, warmup=5, weight_decay=0.0)
    train(model_dir, [file], tmp_path / "out", epochs=25, batch=16, optimiser=fast)

    def right(model: Llama) -> int:
        found = 0
        for talk in talks:
            tokens = chat.prompt(tiny.user(talk[0][1]))
            with torch.no_grad():
                for _ in range(2):
                    tokens.append(int(model.logits(model(torch.tensor([tokens])))[0, -1].argmax()))
            found += tokens[-2:] == [*chat.tokenizer.encode(talk[1][1]), chat.tokenizer.end_id]
        return found

    assert right(hub.load(model_dir)) == 0
    assert right(hub.load(tmp_path / "out")) >= 15
