"""Packing: every token of an epoch once, no document spread over rows unless it must be, masks
and segments as the rules of alignment say, batches a pure function of the step."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data.batches import TokenBatch, one_pass, pack, pack_documents
from bloomery.data.loader import ahead, batch_indices
from bloomery.data.pack import best_fit, freeze_weights, plan
from bloomery.data.shards import Corpus, write_shards
from bloomery.errors import DataError, UsageError
from bloomery.text.chat import Rendered
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Document

LENGTH = 24


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    documents = [
        Document(
            id=str(i), text=f"{i} " + "fox " * (i % 11) + "x" * (60 if i % 25 == 0 else 0), source="ab"[i % 2]
        )
        for i in range(100)
    ]
    return write_shards(documents, tokenizer, tmp_path_factory.mktemp("corpus"), val_fraction=0.2)


def segments(batch: TokenBatch) -> list[tuple[int, ...]]:
    """The tokens of each segment of each row, after checking the batch's own rules."""
    found: list[tuple[int, ...]] = []
    for tokens, mask, numbers in zip(
        batch.tokens.tolist(), batch.mask.tolist(), batch.segments.tolist(), strict=True
    ):
        used = [n for n in numbers if n]
        assert numbers == used + [0] * (len(numbers) - len(used))  # padding on the right only
        assert used == sorted(used)
        assert set(used) == set(range(1, max(used) + 1))
        for t, number in enumerate(numbers):
            first = number == 0 or t == 0 or numbers[t - 1] != number
            assert mask[t] == (not first)
        for number in sorted(set(used)):
            found.append(tuple(token for token, n in zip(tokens, numbers, strict=True) if n == number))
    return found


def pieces(corpus: Corpus, split: str, source: str | None = None) -> Counter[tuple[int, ...]]:
    """Every document of a split, those longer than a row cut by hand."""
    found: Counter[tuple[int, ...]] = Counter()
    for shard in corpus.split(split):
        for a, b in zip(shard.starts, shard.starts[1:], strict=False):
            if source in (None, shard.source):
                found.update(
                    tuple(shard.tokens[i : min(i + LENGTH, b)].tolist()) for i in range(a, b, LENGTH)
                )
    return found


def test_an_epoch_holds_every_document_once(corpus: Corpus, tokenizer: Tokenizer) -> None:
    rows = plan(corpus, "train", LENGTH, 7, 0).num_rows
    batch = pack_documents(corpus, "train", batch_size=rows, length=LENGTH, seed=7, step=0)
    assert Counter(segments(batch)) == pieces(corpus, "train")
    assert batch.tokens[batch.segments == 0].eq(tokenizer.pad_id).all()
    # All bytes of the text are counted, but those of the first token after a cut, which follows nothing.
    uncounted = sum(
        n * int(corpus.token_bytes[list(piece[:1])].sum()) for piece, n in pieces(corpus, "train").items()
    )
    assert batch.num_bytes == sum(shard.num_bytes for shard in corpus.split("train")) - uncounted
    assert batch.num_tokens == sum((len(p) - 1) * n for p, n in pieces(corpus, "train").items())
    assert (batch.tokens.dtype, batch.mask.dtype, batch.segments.dtype) == (
        torch.int64,
        torch.bool,
        torch.int32,
    )


def test_batches_depend_on_the_step_alone(corpus: Corpus) -> None:
    def tokens(step: int, size: int = 4, seed: int = 7) -> torch.Tensor:
        return pack_documents(corpus, "train", batch_size=size, length=LENGTH, seed=seed, step=step).tokens

    first = [tokens(step) for step in range(12)]
    plan.cache_clear()
    for step in (11, 3, 0, 7):
        assert torch.equal(tokens(step), first[step])
    assert torch.equal(torch.cat(first), tokens(0, size=48))  # the same stream, however it is cut
    assert not torch.equal(tokens(0, seed=8), first[0])


def test_epochs_follow_each_other_in_another_order(corpus: Corpus) -> None:
    rows = plan(corpus, "train", LENGTH, 7, 0).num_rows
    three = pack_documents(corpus, "train", batch_size=3 * rows, length=LENGTH, seed=7, step=0)
    epochs = [
        TokenBatch(*(x[i * rows : (i + 1) * rows] for x in (three.tokens, three.mask, three.segments)))
        for i in range(3)
    ]
    assert [Counter(segments(epoch)) for epoch in epochs] == [pieces(corpus, "train")] * 3
    assert not torch.equal(epochs[0].tokens, epochs[1].tokens)


def test_source_weights_are_numbers_of_epochs(corpus: Corpus) -> None:
    def drawn(weights: dict[str, float], epoch: int = 0) -> Counter[tuple[int, ...]]:
        here = plan(corpus, "train", LENGTH, 7, epoch, freeze_weights(corpus, weights))
        shards = corpus.split("train")
        rows = zip(here.shard, here.start, here.length, strict=True)
        return Counter(tuple(shards[s].tokens[a : a + n].tolist()) for s, a, n in rows)

    a, b = pieces(corpus, "train", "a"), pieces(corpus, "train", "b")
    assert drawn({"a": 0}) == b
    assert drawn({"a": 3, "b": 0}) == a + a + a
    extra = [drawn({"a": 0.5, "b": 0}, epoch) for epoch in (0, 1)]
    assert all(part <= a for part in extra)
    shard = next(s for s in corpus.split("train") if s.source == "a")
    starts = [sum(n for piece, n in part.items() if piece[0] == 1) for part in extra]  # 1 is <|doc|>
    assert starts == [round(shard.num_documents / 2)] * 2
    both = extra[0] + extra[1]
    assert sum((both & a).values()) >= sum(a.values()) - 3  # the second half is another half
    with pytest.raises(UsageError, match="no source 'c'"):
        drawn({"c": 1})
    with pytest.raises(UsageError, match="number of epochs"):
        drawn({"a": -1})
    with pytest.raises(UsageError, match="leave no document"):
        drawn({"a": 0, "b": 0})


def test_steps_go_on_across_epochs_of_different_length(corpus: Corpus) -> None:
    weights = {"a": 0.3}
    kwargs = {"batch_size": 5, "length": LENGTH, "seed": 1, "weights": weights}
    many = [pack_documents(corpus, "train", step=step, **kwargs).tokens for step in range(25)]  # type: ignore[arg-type]
    whole = pack_documents(corpus, "train", step=0, **(kwargs | {"batch_size": 125}))  # type: ignore[arg-type]
    assert torch.equal(torch.cat(many), whole.tokens)


@pytest.mark.parametrize("source", [None, "a", "b"])
def test_one_pass_is_every_document_once(corpus: Corpus, source: str | None) -> None:
    batches = list(one_pass(corpus, "val", batch_size=3, length=LENGTH, source=source))
    assert sum((Counter(segments(batch)) for batch in batches), Counter()) == pieces(corpus, "val", source)
    assert all(batch.tokens.shape == (3, LENGTH) for batch in batches[:-1])


def test_one_pass_names_an_unknown_source(corpus: Corpus) -> None:
    with pytest.raises(UsageError, match="no source 'z'"):
        list(one_pass(corpus, "val", batch_size=3, length=LENGTH, source="z"))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60))
@settings(max_examples=100, deadline=None)
def test_best_fit_fills_rows_and_never_overfills(sizes: list[int]) -> None:
    rows = best_fit(np.array(sizes), 12)
    used = np.bincount(rows, weights=sizes)
    assert used.max() <= 12
    assert set(rows) == set(range(len(used)))
    # Two rows that could be one would mean that the best fit was missed.
    assert sorted(used)[0] + (sorted(used)[1] if len(used) > 1 else 12) > 12


def test_best_fit_by_hand() -> None:
    # Sorted: 9 | 8 | 4 joins 8 (room 4, not 3 or a new row) | 3 joins 9 | 1 opens a row.
    assert best_fit(np.array([3, 8, 1, 9, 4]), 12).tolist() == [0, 1, 2, 0, 1]


def test_little_is_wasted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    documents = [Document(id=str(i), text="fox " * int(rng.integers(3, 40))) for i in range(400)]
    corpus = write_shards(documents, tokenizer, tmp_path, val_fraction=0)
    here = plan(corpus, "train", 128, 0, 0)
    assert here.num_cut == 0
    assert here.num_rows * 128 < 1.02 * here.num_tokens


def test_packed_examples_by_hand() -> None:
    """The longest, of 4, is a row; the one of 3 opens another, where the single token, given before it, has
    the first place; the pair opens a third."""
    f, t = False, True
    examples = [Rendered([5], [f]), ([7, 8, 9], [t, f, t]), ([1, 2, 3, 4], [f, f, t, t]), ([6, 6], [f, t])]
    batch = pack(examples, pad_id=0, num_bytes=4)
    assert batch.tokens.tolist() == [[1, 2, 3, 4], [5, 7, 8, 9], [6, 6, 0, 0]]
    assert batch.mask.tolist() == [[f, f, t, t], [f, f, f, t], [f, t, f, f]]  # a first position never counts
    assert batch.segments.tolist() == [[1, 1, 1, 1], [1, 2, 2, 2], [1, 1, 0, 0]]
    assert (batch.num_tokens, batch.num_bytes) == (4, 4)
    assert batch.to("cpu").tokens.equal(batch.tokens)
    for wrong in ([], [([1], [False]), ([], [])], [([1, 2], [True])]):
        with pytest.raises(DataError):
            pack(wrong, pad_id=0)  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_packed_examples_are_all_there_and_whole(sizes: list[int]) -> None:
    examples = [([n + 1] * size, [True] * size) for n, size in enumerate(sizes)]
    batch = pack(examples, pad_id=0)
    assert batch.tokens.shape[1] == max(sizes)
    runs = [
        (row[segments == s].tolist(), int(mask[segments == s].sum()))
        for row, segments, mask in zip(batch.tokens, batch.segments, batch.mask, strict=True)
        for s in range(1, int(segments.max()) + 1)
    ]
    assert sorted(runs) == [(ids, len(ids) - 1) for ids, _ in examples]
    assert (batch.tokens[batch.segments == 0] == 0).all()


def test_batches_made_ahead_are_the_batches(corpus: Corpus) -> None:
    """Bit for bit those of the plain call, from whatever step a resumed run starts, and no step beyond the
    last; all but the first of them come from another thread."""
    asked: list[tuple[int, int]] = []

    def make(step: int) -> TokenBatch:
        asked.append((step, threading.get_ident()))
        return pack_documents(corpus, "train", batch_size=3, length=LENGTH, seed=1, step=step)

    of = ahead(make, total=7)
    for step in range(3, 7):
        got, want = of(step), pack_documents(corpus, "train", batch_size=3, length=LENGTH, seed=1, step=step)
        for one, other in ((got.tokens, want.tokens), (got.mask, want.mask), (got.segments, want.segments)):
            assert one.equal(other)
    assert [step for step, _ in asked] == [3, 4, 5, 6]
    assert [thread == threading.get_ident() for _, thread in asked] == [True, False, False, False]


def test_what_goes_wrong_ahead_comes_out_at_its_own_step() -> None:
    def make(step: int) -> int:
        if step == 2:
            raise DataError("no batch")
        return step

    of = ahead(make, total=5)
    assert [of(0), of(1)] == [0, 1]
    with pytest.raises(DataError, match="no batch"):
        of(2)
    assert of(4) == 4  # a step that nobody expected


def test_the_order_of_examples() -> None:
    steps = [batch_indices(10, 4, seed=3, step=step) for step in range(5)]
    flat = [i for step in steps for i in step]
    assert sorted(flat[:10]) == sorted(flat[10:]) == list(range(10))
    assert flat[:10] != flat[10:]
    assert batch_indices(10, 4, seed=3, step=3) == steps[3]
    assert batch_indices(10, 20, seed=3, step=0) == flat
    assert batch_indices(10, 4, seed=4, step=0) != steps[0]
    assert batch_indices(1, 3, seed=0, step=0) == [0, 0, 0]
    with pytest.raises(UsageError, match="no examples"):
        batch_indices(0, 4, seed=0, step=0)
