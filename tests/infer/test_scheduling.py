"""Who runs when: refill, chunked and shared reading, the cache's budget, cancellation, stops, and memory that
does not grow. Completions are compared with an engine that runs one request at a time."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from recorder import recorded

from bloomery.errors import UsageError
from bloomery.infer import Engine, Sequence
from bloomery.infer.engine import ends
from bloomery.infer.scheduler import Scheduler
from bloomery.models import KVCache, Llama, LlamaConfig, build
from bloomery.types import SamplingParams

STOP, VOCAB, CONTEXT = 20, 60, 48


@pytest.fixture(scope="module")
def model() -> Llama:
    """In float64 rounding cannot move a draw across a boundary, so tokens may be compared for equality."""
    made = build(LlamaConfig.shape(32, 2, 4, VOCAB, kv_heads=2, context=CONTEXT))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        made.model.norm.weight.fill_(2.0)
    return made.double()


def engine(model: Llama, stop_id: int = STOP, **settings) -> Engine:
    return Engine(model, stop_id=stop_id, pad_id=0, **settings)


def prompts(*lengths: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(21, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def sampled(n: int, max_tokens: int = 12) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=1 + (7 * i) % max_tokens, seed=i) for i in range(n)]


class Counted:
    """The tokens [rows, width] of every forward pass of an engine, and the rows and length of its cache."""

    def __init__(self, made: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passes: list[tuple[int, int]] = []
        self.caches: list[tuple[int, int]] = []
        weights = made._weights

        def counted():
            inner = weights()

            class Spy:
                logits = inner.logits

                def __call__(spy, tokens, cache):
                    self.passes.append(tuple(tokens.shape))
                    whole = made._scheduler.cache
                    self.caches.append((whole.batch, whole.max_len))
                    return inner(tokens, cache=cache)

            return Spy()

        monkeypatch.setattr(made, "_weights", counted)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch": 3},
        {"max_batch": 3, "chunk": 1},
        {"chunk": 5},
        {"cache_tokens": 60},
        {"cache_tokens": 130, "chunk": 3, "max_batch": 7},
        {"record": recorded},
        {"record": recorded, "chunk": 2, "max_batch": 11},
        {"record": recorded, "cache_tokens": 130, "chunk": 3, "max_batch": 7},
        {"record": recorded, "cache_tokens": 60},
    ],
)
def test_no_setting_changes_a_completion(model: Llama, settings: dict[str, Any]) -> None:
    """Short and long prompts, several of them equal, more than fit: refill, moves, swaps, followers."""
    asked = prompts(1, 30, 2, 17, 9, 30, 5, 1, 24, 3) * 3
    params = sampled(len(asked))
    alone = engine(model)
    expected = [alone([p], [one])[0] for p, one in zip(asked, params, strict=True)]
    got = engine(model, **settings)(asked, params)
    assert [c.tokens for c in got] == [c.tokens for c in expected]
    assert [c.finish_reason for c in got] == [c.finish_reason for c in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-9)
        assert a.full_logprobs == pytest.approx(b.full_logprobs, abs=1e-9)


def test_a_row_is_refilled_in_the_step_after_it_ends_and_none_works_in_vain(model, monkeypatch) -> None:
    made = engine(model, stop_id=-1, max_batch=4)
    counted = Counted(made, monkeypatch)
    lengths = [5, 1, 3, 9, 2, 2, 7, 1, 4]
    got = made(prompts(*[1] * 9), [SamplingParams(max_tokens=n) for n in lengths])
    assert sum(len(c.tokens) for c in got) == sum(lengths)
    rows = [r for r, width in counted.passes if width == 1]
    assert sum(rows) == sum(lengths), "one row of one pass for each token, no more"
    assert rows[:6] == [4] * 6, "while somebody waits, every row works"


def test_first_come_first_served(model: Llama) -> None:
    made = engine(model, stop_id=-1, max_batch=2)
    seqs = [made.submit(p, SamplingParams(max_tokens=3)) for p in prompts(2, 2, 2, 2, 2)]
    started: list[Sequence] = []
    while any(seq.finish_reason is None for seq in seqs):
        started += [seq for seq in made.step() if len(seq.tokens) == 1]
    assert started == seqs


def test_a_long_prompt_does_not_stall_those_who_decode(model, monkeypatch) -> None:
    made = engine(model, stop_id=-1, chunk=4)
    talking = made.submit(*prompts(1), SamplingParams(max_tokens=30))
    made.step()
    counted = Counted(made, monkeypatch)
    long = made.submit(*prompts(21), SamplingParams(max_tokens=5))
    for step in range(1, 5):
        made.step()
        assert (len(talking.tokens), len(long.tokens)) == (1 + step, 0)
    made.step()
    assert len(long.tokens) == 1
    assert [p for p in counted.passes if p[1] > 1] == [(1, 4)] * 5


def test_equal_prompts_are_read_once(model, monkeypatch) -> None:
    made = engine(model, stop_id=-1)
    counted = Counted(made, monkeypatch)
    one, other = prompts(20, 20)
    params = [SamplingParams(max_tokens=6, seed=i) for i in range(10)]
    got = made([one, other] * 5, params)
    assert counted.passes == [(2, 19), *[(10, 1)] * 6]
    assert got == made([one, other] * 5, params)
    assert len({c.tokens for c in got}) > 4


def test_who_comes_later_copies_from_a_row_that_still_runs(model, monkeypatch) -> None:
    made = engine(model, stop_id=-1)
    (prompt,) = prompts(20)
    expected = made([prompt], [SamplingParams(max_tokens=6, seed=3)])[0].tokens
    first = made.submit(prompt, SamplingParams(max_tokens=20))
    for _ in range(4):
        made.step()
    counted = Counted(made, monkeypatch)
    later = made.submit(prompt, SamplingParams(max_tokens=6, seed=3))
    while later.finish_reason is None:
        made.step()
    assert tuple(later.tokens) == expected
    assert {width for _, width in counted.passes} == {1}
    made.cancel(first)


def test_one_follower_reads_for_all_when_their_leader_is_cancelled(model, monkeypatch) -> None:
    (prompt,) = prompts(21)
    expected = engine(model)([prompt], [SamplingParams(seed=1)])[0].tokens
    made = engine(model, chunk=4)
    leader = made.submit(prompt, SamplingParams(seed=0))
    followers = [made.submit(prompt, SamplingParams(seed=seed)) for seed in (1, 2)]
    made.step()
    made.cancel(leader)
    counted = Counted(made, monkeypatch)
    while any(seq.finish_reason is None for seq in followers):
        made.step()
    assert tuple(followers[0].tokens) == expected
    assert [p for p in counted.passes if p[1] > 1] == [(1, 16), (1, 4)]
    assert leader.completion().finish_reason == "cancelled"


def test_prompts_read_together_stay_within_the_context(model: Llama) -> None:
    """The first has read almost all of the context when the second joins it."""
    asked = prompts(46, 40)
    params = [SamplingParams(max_tokens=2)] * 2
    expected = [engine(model)([p], params[:1])[0].tokens for p in asked]
    assert [c.tokens for c in engine(model, chunk=5)(asked, params)] == expected


def test_reading_a_short_prompt_leaves_a_long_row_whole() -> None:
    """The cache is cut when it is much longer than its rows: all of them, not only those that read."""
    made = build(LlamaConfig.shape(16, 1, 2, VOCAB, context=300)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    long, short = prompts(250, 4)
    params = SamplingParams(max_tokens=12)
    expected = engine(made)([long], [params])[0]
    busy = engine(made)
    first = busy.submit(long, params)
    busy.step()
    busy.submit(short, SamplingParams(max_tokens=40))
    while first.finish_reason is None:
        busy.step()
    assert first.completion().tokens == expected.tokens
    assert first.logprobs == pytest.approx(expected.logprobs, abs=1e-9)
    busy.step()
    assert busy._scheduler.cache is not None
    assert busy._scheduler.cache.max_len < 100, "and cut it is, once the long row has gone"


def test_the_cache_stays_within_its_budget_and_others_wait(model, monkeypatch) -> None:
    made = engine(model, stop_id=-1, cache_tokens=100)
    counted = Counted(made, monkeypatch)
    asked = prompts(*[4, 20, 4, 4, 20, 4, 4, 4, 4, 4, 4, 4])
    got = made(asked, [SamplingParams(max_tokens=8, seed=i) for i in range(12)])
    assert [len(c.tokens) for c in got] == [8] * 12
    assert max(rows * tokens for rows, tokens in counted.caches) <= 100
    assert max(rows for rows, width in counted.passes if width == 1) == 9, "short ones: 9 of 11 tokens"
    assert min(rows for rows, width in counted.passes if width == 1) < 4, "beside a long one only 3"


def test_the_cache_stays_within_its_budget_whatever_comes(model, monkeypatch) -> None:
    """Prompts of every length, some half read when others join them, little to draw, more than fit."""
    sizes: list[int] = []

    def noted(method):
        def call(cache, *given, **more):
            method(cache, *given, **more)
            sizes.append(cache.batch * cache.max_len)

        return call

    for name in ("__init__", "resize"):
        monkeypatch.setattr(KVCache, name, noted(getattr(KVCache, name)))
    for trial in range(12):
        draws = random.Random(trial)
        asked = prompts(*(draws.randint(1, CONTEXT - 4) for _ in range(draws.randint(2, 8))), seed=trial)
        params = [SamplingParams(max_tokens=draws.randint(1, 4), seed=i) for i in range(len(asked))]
        need = max(len(p) + one.max_tokens - 1 for p, one in zip(asked, params, strict=True))
        budget, chunk = need * draws.randint(1, 4), draws.choice([2, 8, 16, 33])
        made = engine(model, stop_id=-1, max_batch=6, cache_tokens=budget, chunk=chunk)
        seqs = [made.submit(p, one) for p, one in zip(asked, params, strict=True)]
        sizes.clear()
        while any(seq.finish_reason is None for seq in seqs):
            made.step()
        assert max(sizes) <= budget, f"trial {trial}"


def test_a_row_almost_read_does_not_lengthen_the_cache(model, monkeypatch) -> None:
    """Prompts of 1, 30 and 20 tokens: the second has read 28 when the third joins with 19 to read."""
    made = engine(model, stop_id=-1, chunk=28, max_batch=3, cache_tokens=3 * 31)
    counted = Counted(made, monkeypatch)
    talking, *reading = [made.submit(p, SamplingParams(max_tokens=2)) for p in prompts(1, 30, 20)]
    while any(seq.finish_reason is None for seq in (talking, *reading)):
        made.step()
    assert max(rows * tokens for rows, tokens in counted.caches) <= 3 * 31


def test_nobody_waiting_costs_nothing() -> None:
    """Hashing a prompt takes as long as it is long; no resident is looked at while nobody waits."""

    class Unhashable(tuple):
        __hash__ = None  # type: ignore[assignment]

    resident = Sequence(Unhashable(range(9)), SamplingParams(), 4, frozenset(), cached=8)
    scheduler = Scheduler(8, 1000, lambda rows, tokens: None)
    scheduler.rows, scheduler.running = [resident], 1
    scheduler.admit()
    scheduler.waiting.append(Sequence((1,), SamplingParams(), 2000, frozenset()))
    scheduler.admit()
    assert scheduler.rows == [resident], "nor when whoever waits does not fit"


def test_a_request_that_can_never_fit_is_refused(model: Llama) -> None:
    made = engine(model, cache_tokens=20)
    assert made.submit(*prompts(11), SamplingParams(max_tokens=10)).need == 20
    with pytest.raises(UsageError, match="never fit"):
        made.submit(*prompts(11), SamplingParams(max_tokens=11))
    with pytest.raises(UsageError, match="never fit"):
        engine(model, cache_tokens=20)(prompts(2, 30), [SamplingParams(max_tokens=5)] * 2)


def test_cancelling_frees_the_place_at_once(model: Llama) -> None:
    made = engine(model, stop_id=-1, max_batch=2, chunk=2)
    asked = prompts(3, 9, 3, 3)
    running, reading, waiting, last = (made.submit(p, SamplingParams(max_tokens=6)) for p in asked)
    made.step()
    made.step()
    for seq in (reading, running, waiting):
        made.cancel(seq)
        made.cancel(seq)
    while last.finish_reason is None:
        stepped = made.step()
        assert stepped == [last] or not stepped
    assert last.completion() == engine(model, stop_id=-1)([asked[3]], [last.params])[0]
    assert waiting.completion().tokens == ()
    assert made.step() == []


def test_one_who_runs_can_be_cancelled_beside_others(model: Llama) -> None:
    """Between steps, when the cache has grown in one: the last row moves to its place."""
    made = engine(model, stop_id=-1)
    asked, params = prompts(3, 4, 5), sampled(3, 30)
    seqs = [made.submit(p, SamplingParams(max_tokens=40, seed=i)) for i, p in enumerate(asked)]
    for _ in range(3):
        made.step()
    late = made.submit([*asked[0], 30], params[1])
    made.step()
    made.cancel(seqs[0])
    while not all(seq.finish_reason for seq in (*seqs, late)):
        made.step()
    for prompt, seq in zip((*asked[1:], [*asked[0], 30]), (*seqs[1:], late), strict=True):
        assert seq.completion().tokens == engine(model, stop_id=-1)([prompt], [seq.params])[0].tokens


def test_a_stream_that_is_left_cancels_its_request(model: Llama) -> None:
    made = engine(model, stop_id=-1)
    stream = made.stream(*prompts(3), SamplingParams(max_tokens=30))
    next(stream)
    assert not made._scheduler.idle
    stream.close()
    assert made._scheduler.idle


def test_an_error_in_a_call_leaves_nothing_behind(model: Llama) -> None:
    made = engine(poisoned(model))
    with pytest.raises(UsageError, match="request 2 cannot go on"):
        made([*prompts(3, 3), [STOP, 30]], [SamplingParams()] * 3)
    assert made._scheduler.idle
    assert made._scheduler.cache is None


def poisoned(model: Llama) -> Llama:
    """The same, but whoever asks with the id `STOP` has logits that are no numbers."""
    other = build(LlamaConfig.shape(32, 2, 4, VOCAB, kv_heads=2, context=CONTEXT, tied=False)).double()
    head = model.model.embed_tokens.weight.detach().clone()
    other.load_state_dict({**model.state_dict(), "lm_head.weight": head})
    with torch.no_grad():
        other.model.embed_tokens.weight[STOP] = float("nan")
    return other


@pytest.mark.parametrize("bad", [[STOP], [30, STOP], [STOP, *[30] * 12], [*[30] * 12, STOP, 31]])
@pytest.mark.parametrize(
    "settings", [{}, {"max_batch": 2}, {"chunk": 5}, {"max_batch": 3, "chunk": 2}, {"record": recorded}]
)
def test_a_request_without_logits_ends_alone_and_leaves_nothing_in_its_place(
    model, bad: list[int], settings: dict[str, Any]
) -> None:
    """NaN that stayed in the cache would reach whoever has the row next, through places that are masked."""
    sick = poisoned(model)
    asked = prompts(8, 3, 14, 2, 9, 5)
    params = [SamplingParams(max_tokens=4 + 3 * i, seed=i) for i in range(6)]
    expected = [engine(sick)([p], [one])[0] for p, one in zip(asked, params, strict=True)]
    made = engine(sick, **settings)
    seqs = []
    for prompt, one in zip(asked, params, strict=True):
        seqs += [made.submit(bad, SamplingParams(max_tokens=3)), made.submit(prompt, one)]
    ended: list[Sequence] = []
    while any(seq.finish_reason is None for seq in seqs):
        ended += [seq for seq in made.step() if seq.finish_reason is not None]
    assert sorted(map(id, ended)) == sorted(map(id, seqs)), "each is told once that it ended"
    assert all(seq.completion().finish_reason == "error" and not seq.tokens for seq in seqs[::2])
    for seq, one in zip(seqs[1::2], expected, strict=True):
        assert seq.completion().tokens == one.tokens
        assert seq.logprobs == pytest.approx(one.logprobs, abs=1e-9)
    with pytest.raises(UsageError, match="request 0"):
        list(made.stream(bad, SamplingParams()))


def test_a_prompt_that_cannot_be_read_ends_with_its_first_piece(model: Llama) -> None:
    """What is not a number must not wait in the cache until it is drawn from: rows are swapped and left."""
    made = engine(poisoned(model), stop_id=-1, chunk=2)
    talking = made.submit(*prompts(1), SamplingParams(max_tokens=30, temperature=0.5))
    made.step()
    sick = made.submit([STOP, *[30] * 12], SamplingParams())
    assert made.step() == [sick, talking]
    assert (sick.finish_reason, talking.finish_reason) == ("error", None)
    assert made._scheduler.rows == [talking]


def test_stop_ids_of_one_request_do_not_stop_another(model: Llama) -> None:
    asked = prompts(5) * 2
    (free,) = engine(model, stop_id=-1)(asked[:1], [SamplingParams(max_tokens=12)])
    at = next(i for i in range(2, 12) if free.tokens[i] not in free.tokens[:i])
    stop = free.tokens[at]
    cut, whole = engine(model, stop_id=-1)(
        asked, [SamplingParams(max_tokens=12, stop_ids=(58, stop)), SamplingParams(max_tokens=12)]
    )
    assert (cut.tokens, cut.finish_reason) == (free.tokens[: at + 1], "stop")
    assert whole.tokens == free.tokens


def test_a_stop_string_ends_a_completion_at_the_token_that_completes_it(model: Llama) -> None:
    def decode(ids: list[int]) -> str:
        return "".join(chr(ord("A") + i) for i in ids)

    (asked,) = prompts(5)
    made = engine(model, stop_id=-1, decode=decode)
    (free,) = made([asked], [SamplingParams(max_tokens=12)])
    text = decode(list(free.tokens))
    for stop in (text[2:5], text[7]):
        (got,) = made([asked], [SamplingParams(max_tokens=12, stop=("nowhere", stop))])
        assert (got.tokens, got.finish_reason) == (free.tokens[: text.index(stop) + len(stop)], "stop")
    assert made([asked], [SamplingParams(max_tokens=12, stop=("nowhere",))])[0] == free
    with pytest.raises(UsageError, match="decode"):
        engine(model)([asked], [SamplingParams(stop=("x",))])


@pytest.mark.parametrize("silent", [0, 1, 5, 40])
def test_a_stop_string_is_seen_across_ids_that_spell_nothing(silent: int) -> None:
    """Control ids are decoded to nothing; some ids spell half a character."""
    spelled = {1: b"a", 2: b"b", 3: b"", 4: "é".encode()[:1], 5: "é".encode()[1:], 6: b"b and much more"}
    spelled |= {7 + i: bytes([byte]) for i, byte in enumerate("€".encode())}

    def decode(ids: list[int]) -> str:
        return b"".join(spelled[i] for i in ids).decode(errors="replace")

    gap = [3] * silent
    assert ends(("ab",), [1, *gap, 2], decode)
    assert ends(("xx", "ab and"), [1, *gap, 6], decode)
    assert ends(("aé",), [1, *gap, 4, 5], decode)
    assert ends(("aé",), [*[4] * 9, 1, *gap, 4, 5], decode)
    assert ends(("€€",), [*[1] * 9, 7, 8, 9, *gap, 7, 8, 9], decode), "marks of broken characters are no text"
    assert not ends(("aé", "b"), [1, *gap, 4], decode)
    assert not ends(("ba",), [1, *gap, 2], decode)


def test_an_engine_looks_back_past_ids_that_spell_nothing(model: Llama) -> None:
    (asked,) = prompts(5)
    params = SamplingParams(max_tokens=30, temperature=4.0)
    (free,) = engine(model, stop_id=-1)([asked], [params])
    at = max(i for i, token in enumerate(free.tokens) if token not in free.tokens[:i])
    first, last = free.tokens[0], free.tokens[at]
    assert free.tokens[:at][::-1].index(first) > 9, "far apart"

    def decode(ids: list[int]) -> str:
        return "".join({first: "a", last: "b"}.get(i, "") for i in ids)

    (got,) = engine(model, stop_id=-1, decode=decode)([asked], [replace(params, stop=("ab",))])
    assert (got.tokens, got.finish_reason) == (free.tokens[: at + 1], "stop")


def test_memory_does_not_grow_over_ten_thousand_requests() -> None:
    """Of short and long prompts, some equal, that end by a stop id, a stop string or their length, or are
    cancelled while they wait, read or run: nothing of them stays, and the cache is what a wave needs."""
    tiny = build(LlamaConfig.shape(8, 1, 1, 32, context=16))
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.fill_(0.1)

    def decode(ids: list[int]) -> str:
        return "".join(chr(ord("A") + i) for i in ids if i < 26)

    made = Engine(tiny, stop_id=0, pad_id=0, max_batch=200, cache_tokens=2000, chunk=256, decode=decode)
    scheduler, reasons, done = made._scheduler, Counter[str | None](), 0
    held: list[tuple[int, int]] = []
    for wave in range(20):
        seqs = []
        for i in range(500):
            how = SamplingParams(max_tokens=1 + i % 3, seed=wave * 500 + i, stop=("B", "CD") if i % 5 else ())
            seqs.append(made.submit([1 + i % 29] * (1 + i % 13), how))
        step = 0
        while any(seq.finish_reason is None for seq in seqs):
            for seq in seqs[step::41]:
                made.cancel(seq)
            made.step()
            step += 1
        reasons.update(seq.finish_reason for seq in seqs)
        done += len(seqs)
        assert scheduler.idle
        assert scheduler.cache is not None
        assert scheduler.cache.batch * scheduler.cache.max_len <= 2000
        del seqs, seq
        if wave in (2, 19):
            gc.collect()
            held.append(
                (sum(type(one) is torch.Tensor for one in gc.get_objects()), sys.getallocatedblocks())
            )
    assert done == 10_000
    assert min(reasons[reason] for reason in ("stop", "length", "cancelled")) > 500
    assert not any(type(one) is Sequence for one in gc.get_objects())
    (tensors, blocks), (later_tensors, later_blocks) = held
    assert later_tensors <= tensors
    assert later_blocks - blocks < 1000, "8,500 requests and not an object for each"
    made.release()
    assert scheduler.cache is None


def test_a_step_is_recorded_once_for_each_number_of_rows_and_place_of_the_cache(model: Llama) -> None:
    made, count = [], 0

    def counted(work):
        nonlocal count
        count += 1
        return recorded(work)

    one = engine(model, stop_id=-1, record=counted)
    params = [SamplingParams(max_tokens=n) for n in (12, 12, 9, 9, 9, 4, 4, 4, 4)]
    made = one(prompts(*[5] * 9), params)
    assert [len(c.tokens) for c in made] == [p.max_tokens for p in params]
    assert count == 3  # nine rows, the cache has no more; 8 for five of them; two
    one(prompts(*[5] * 9), params)
    assert count == 6, "weights and cache are others in the next call"


def test_what_follows_the_rows_that_run_is_left_as_it_was(model: Llama) -> None:
    """A long prompt is read piece by piece in the rows that a recording takes along."""
    asked = prompts(2, 2, 2, 40, 39)
    params = [SamplingParams(max_tokens=n) for n in (30, 20, 10, 4, 4)]
    usual = engine(model, stop_id=-1, chunk=3)(asked, params)
    again = engine(model, stop_id=-1, chunk=3, record=recorded)(asked, params)
    assert [c.tokens for c in again] == [c.tokens for c in usual]


def test_a_row_the_cache_does_not_have_yet_can_change_places_with_one_that_reads(model: Llama) -> None:
    """Prompts of one token are read at once, and run while a long one before them is still being read."""
    made = engine(model, stop_id=-1, chunk=2)
    params = SamplingParams(max_tokens=6)
    talking = made.submit(*prompts(3), SamplingParams(max_tokens=30))
    for _ in range(3):
        made.step()
    long = made.submit(*prompts(30, seed=2), params)
    made.step()
    asked = prompts(1, 1, 1, seed=3)
    seqs = [talking, long, *(made.submit(prompt, params) for prompt in asked)]
    while any(seq.finish_reason is None for seq in seqs):
        made.step()
    alone = engine(model, stop_id=-1)
    for seq in seqs[1:]:
        assert tuple(seq.tokens) == alone([seq.prompt], [params])[0].tokens


@pytest.mark.parametrize("record", [None, recorded], ids=["plain", "recorded"])
def test_one_token_each_fits_after_longer_answers(model: Llama, record: Any) -> None:
    made = engine(model, stop_id=-1, record=record)
    list(made.stream(prompts(5)[0], SamplingParams(max_tokens=3)))
    seqs = [made.submit([token], SamplingParams(max_tokens=1)) for token in (30, 40)]
    made.step()
    assert [len(seq.tokens) for seq in seqs] == [1, 1]


@pytest.mark.parametrize(
    ("record", "products"),
    [(None, None), (recorded, None), (recorded, torch.bfloat16)],
    ids=["plain", "recorded", "recorded in bf16"],
)
def test_whatever_comes_and_goes_every_request_gets_its_own_answer(
    model: Llama, record: Any, products: torch.dtype | None
) -> None:
    """Arrivals, limits, cancellations, chunks and caches of every kind, against each request alone (in bf16,
    where rounding may move a draw, against the same engine without a recorder)."""
    for seed in range(12):
        luck = random.Random(seed)
        settings = {"chunk": luck.choice([1, 2, 5, 64]), "max_batch": luck.choice([2, 3, 7, 11, 20])}
        if luck.random() < 0.4:
            settings["cache_tokens"] = luck.choice([48, 70, 130, 300])
        texts = prompts(1, 1, 2, 3, 9, 30, seed=seed)
        plans = list[list[tuple[list[int], SamplingParams]]]()
        for step in range(25):
            limits = [luck.choice([1, 1, 2, 5, 17]) for _ in range(luck.choice([0, 0, 1, 2, 5]))]
            coming = [SamplingParams(max_tokens=n, seed=9 * i + step) for i, n in enumerate(limits)]
            plans.append([(luck.choice(texts), params) for params in coming])
        cancelled = {step: luck.random() for step in range(25) if luck.random() < 0.2}
        seqs = drive(engine(model, record=record, products=products, **settings), plans, cancelled)
        if products is None:
            alone = engine(model)
            expected = [alone([seq.prompt], [seq.params])[0].tokens for seq in seqs]
        else:
            usual = drive(engine(model, products=products, **settings), plans, cancelled)
            expected = [tuple(seq.tokens) for seq in usual]
        for seq, tokens in zip(seqs, expected, strict=True):
            kept = len(seq.tokens) if seq.finish_reason == "cancelled" else None
            assert tuple(seq.tokens) == tokens[:kept], (seed, settings)


def drive(
    made: Engine, plans: list[list[tuple[list[int], SamplingParams]]], cancelled: dict[int, float]
) -> list[Sequence]:
    """All requests, after what comes in each step, and who is cancelled in which, has been done."""
    seqs = list[Sequence]()
    for step, coming in enumerate(plans):
        seqs += [made.submit(prompt, params) for prompt, params in coming]
        if seqs and step in cancelled:
            made.cancel(seqs[int(cancelled[step] * len(seqs))])
        made.step()
    while any(seq.finish_reason is None for seq in seqs):
        made.step()
    return seqs
