"""Who runs when: refill, chunked and shared reading, the cache's budget, cancellation, stops, and memory that
does not grow. Completions are compared with an engine that runs one request at a time."""

from __future__ import annotations

import gc

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.infer import Engine, Sequence
from bloomery.models import Llama, LlamaConfig, build
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
    ],
)
def test_no_setting_changes_a_completion(model: Llama, settings: dict[str, int]) -> None:
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


def test_a_stream_that_is_left_cancels_its_request(model: Llama) -> None:
    made = engine(model, stop_id=-1)
    stream = made.stream(*prompts(3), SamplingParams(max_tokens=30))
    next(stream)
    assert not made._scheduler.idle
    stream.close()
    assert made._scheduler.idle


def test_an_error_in_a_call_leaves_nothing_behind(model: Llama) -> None:
    made = engine(model)
    banned = tuple((token, float("-inf")) for token in range(VOCAB))
    with pytest.raises(UsageError, match="banned"):
        made(prompts(3, 3), [SamplingParams(), SamplingParams(logit_bias=banned)])
    assert made._scheduler.idle
    assert made._scheduler.cache is None


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


def test_memory_does_not_grow_over_ten_thousand_requests() -> None:
    """Nothing of an ended request stays, and the cache is what a wave of requests needs."""
    tiny = build(LlamaConfig.shape(8, 1, 1, 32, context=16))
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.fill_(0.1)
    made = Engine(tiny, stop_id=-1, pad_id=0, max_batch=500)
    shapes, done = set(), 0
    for wave in range(20):
        seqs = [made.submit([1 + i % 30] * (1 + i % 3), SamplingParams(max_tokens=2)) for i in range(500)]
        while any(seq.finish_reason is None for seq in seqs):
            made.step()
        done += len(seqs)
        assert made._scheduler.cache is not None
        shapes.add((made._scheduler.cache.batch, made._scheduler.cache.max_len))
        del seqs
        if wave == 0:
            gc.collect()
            held = sum(type(one) is torch.Tensor for one in gc.get_objects())
    gc.collect()
    assert done == 10_000
    assert len(shapes) == 1
    assert not any(type(one) is Sequence for one in gc.get_objects())
    assert sum(type(one) is torch.Tensor for one in gc.get_objects()) <= held
    made.release()
    assert made._scheduler.cache is None
