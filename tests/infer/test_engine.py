"""The engine against a plain loop over the uncached forward: same tokens, log-probs as a trainer would
recompute them, whatever the batch, its order, its size or its mates."""

from __future__ import annotations

import math

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.infer import Engine
from bloomery.infer.sampling import Draw, sample
from bloomery.models import Llama, LlamaConfig, build
from bloomery.models.lora import Adapter, adapted, attach
from bloomery.models.packed import Product
from bloomery.types import SamplingParams

STOP, PAD, VOCAB, CONTEXT = 20, 0, 60, 48


def random_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Llama:
    model = build(LlamaConfig.shape(32, 2, 4, VOCAB, kv_heads=2, context=CONTEXT))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
        model.model.norm.weight.fill_(2.0)
    return model.to(dtype)


@pytest.fixture(scope="module")
def model() -> Llama:
    return random_model()


@pytest.fixture(scope="module")
def exact() -> Llama:
    """In float64 rounding cannot move a draw across a boundary, so tokens may be compared for equality."""
    return random_model(torch.float64)


def requests(n: int, seed: int = 0) -> tuple[list[list[int]], list[SamplingParams]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 20, (n,), generator=generator).tolist()
    prompts = [torch.randint(21, VOCAB, (k,), generator=generator).tolist() for k in lengths]
    kinds = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7, "top_k": 8},
        {"temperature": 1.3, "top_p": 0.8, "min_p": 0.01, "logit_bias": ((30, 1.5), (STOP, 0.5))},
    ]
    params = [SamplingParams(max_tokens=4 + i % 9, seed=100 + i, **kinds[i % 4]) for i in range(n)]  # type: ignore[arg-type]
    return prompts, params


@torch.no_grad()
def plain_loop(model: Llama, prompt: list[int], params: SamplingParams) -> tuple[list[int], list[float], str]:
    """Generation without cache, batch or engine."""
    tokens, logprobs = list(prompt), []
    for step in range(params.max_tokens):
        logits = model.logits(model(torch.tensor([tokens])))[:, -1]
        token, logprob, _ = sample(logits, Draw.of([params]), step)
        tokens.append(int(token))
        logprobs.append(float(logprob))
        if tokens[-1] == STOP:
            return tokens[len(prompt) :], logprobs, "stop"
    return tokens[len(prompt) :], logprobs, "length"


def test_a_batch_equals_a_plain_loop(exact: Llama) -> None:
    prompts, params = requests(64)
    engine = Engine(exact, stop_id=STOP, pad_id=PAD, max_batch=40)
    completions = engine(prompts, params)
    reasons = set()
    for prompt, one, completion in zip(prompts, params, completions, strict=True):
        tokens, logprobs, reason = plain_loop(exact, prompt, one)
        assert list(completion.tokens) == tokens
        assert completion.logprobs == pytest.approx(logprobs, abs=1e-9)
        assert completion.finish_reason == reason
        reasons.add(reason)
    assert reasons == {"stop", "length"}, "both endings must occur for this to prove anything"


@pytest.mark.parametrize("max_batch", [1, 7, 64])
def test_neither_size_nor_order_nor_mates_change_a_completion(exact: Llama, max_batch: int) -> None:
    prompts, params = requests(64)
    expected = Engine(exact, stop_id=STOP, pad_id=PAD)(prompts, params)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(max_batch)).tolist()
    engine = Engine(exact, stop_id=STOP, pad_id=PAD, max_batch=max_batch)
    got = engine([prompts[i] for i in order], [params[i] for i in order])
    assert [c.tokens for c in got] == [expected[i].tokens for i in order]


def test_in_float32_the_logprobs_agree_between_batches(model: Llama) -> None:
    prompts, params = requests(64)
    many = Engine(model, stop_id=STOP, pad_id=PAD)(prompts, params)
    alone = Engine(model, stop_id=STOP, pad_id=PAD, max_batch=1)(prompts, params)
    same = [a.tokens == b.tokens for a, b in zip(many, alone, strict=True)]
    # A draw within rounding of a boundary may fall either way; it is about one in a million.
    assert sum(same) >= 63
    for a, b, equal in zip(many, alone, same, strict=True):
        if equal:
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_equal_those_a_trainer_recomputes(model: Llama, temperature: float) -> None:
    prompts, _ = requests(32)
    params = [SamplingParams(max_tokens=12, temperature=temperature, seed=i) for i in range(32)]
    completions = Engine(model, stop_id=STOP, pad_id=PAD)(prompts, params)
    width = max(len(p) + len(c.tokens) for p, c in zip(prompts, completions, strict=True))
    rows = [[*p, *c.tokens] for p, c in zip(prompts, completions, strict=True)]
    tokens = torch.tensor([r + [PAD] * (width - len(r)) for r in rows])
    logprobs = (model.logits(model(tokens)) / temperature).log_softmax(-1)[:, :-1]
    recomputed = logprobs.gather(2, tokens[:, 1:, None]).squeeze(2)  # [b, t]: token t + 1
    for b, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = len(prompt) - 1
        expected = recomputed[b, start : start + len(completion.tokens)].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("adapters", [False, True])
def test_products_in_bf16_are_those_of_a_forward_in_bf16(adapters: bool) -> None:
    """Under autocast, as training reads: log-probs are those of that forward, and not those of float32."""
    model = random_model()
    if adapters:
        attach(model, Adapter(rank=4, alpha=8.0))
        for layer in adapted(model).values():
            torch.nn.init.normal_(layer.lora_B, std=0.2, generator=torch.Generator().manual_seed(1))
    prompts, _ = requests(12)
    params = [SamplingParams(max_tokens=12, seed=i) for i in range(12)]
    engine = Engine(model, stop_id=STOP, pad_id=PAD, products=torch.bfloat16)
    kept = {one.weight.dtype for one in engine._weights().modules() if isinstance(one, Product)}
    assert adapters or kept == {torch.bfloat16}
    assert {part.dtype for part in engine._new_cache(1, 4).keys} == {torch.bfloat16}
    of_bf16, of_fp32 = [], []
    for prompt, completion in zip(prompts, engine(prompts, params), strict=True):
        tokens = torch.tensor([[*prompt, *completion.tokens]])
        for apart, precise in ((of_fp32, True), (of_bf16, False)):
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=not precise):
                logprobs = model.logits(model(tokens)).float().log_softmax(-1)
            drawn = logprobs[0, len(prompt) - 1 : -1].gather(1, tokens[0, len(prompt) :, None])[:, 0]
            apart.extend((drawn - torch.tensor(completion.logprobs)).abs().tolist())
    assert max(of_fp32) > 0.01
    assert max(of_bf16) < 0.001


def test_a_stop_token_cuts_the_completion_and_does_nothing_else(exact: Llama) -> None:
    prompts, _ = requests(32)
    params = [SamplingParams(max_tokens=12, seed=i) for i in range(32)]
    free = [c.tokens for c in Engine(exact, stop_id=-1, pad_id=PAD)(prompts, params)]
    for stop in sorted({tokens[2] for tokens in free})[:6]:
        got = Engine(exact, stop_id=stop, pad_id=PAD)(prompts, params)
        cut = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in free]
        assert [c.tokens for c in got] == cut
        assert [c.finish_reason == "stop" for c in got] == [stop in tokens for tokens in free]


def test_a_stream_gives_the_tokens_of_the_batch(exact: Llama) -> None:
    prompts, params = requests(12)
    engine = Engine(exact, stop_id=STOP, pad_id=PAD)
    for prompt, one, completion in zip(prompts, params, engine(prompts, params), strict=True):
        assert tuple(engine.stream(prompt, one)) == completion.tokens


def test_samples_of_one_prompt_differ_by_seed_and_repeat_by_it(exact: Llama) -> None:
    prompt = [7, 8, 9]
    params = [SamplingParams(max_tokens=8, seed=s) for s in (1, 2, 3, 1)]
    got = Engine(exact, stop_id=STOP, pad_id=PAD)([prompt] * 4, params)
    assert got[0] == got[3]
    assert len({c.tokens for c in got}) == 3


def test_a_completion_ends_where_the_context_does(exact: Llama) -> None:
    """A long prompt beside a short one with many tokens to go: the finished row stays within the cache."""
    engine = Engine(exact, stop_id=-1, pad_id=PAD)
    long, short = [6 + i % 50 for i in range(CONTEXT - 3)], [9]
    params = [SamplingParams(max_tokens=100, seed=1), *[SamplingParams(max_tokens=100, seed=2)] * 10]
    got = engine([long, *[short] * 10], params)
    assert [len(c.tokens) for c in got] == [3, *[CONTEXT - 1] * 10]
    assert {c.finish_reason for c in got} == {"length"}
    assert {c.tokens for c in got[1:]} == {engine([short], params[1:2])[0].tokens}


def test_the_engine_follows_the_weights_and_leaves_no_trace() -> None:
    model = random_model()
    engine = Engine(model, stop_id=STOP, pad_id=PAD)
    prompts, params = requests(4)
    before = engine(prompts, params)
    model(torch.tensor(prompts[:1])).sum().backward()  # rotary tables made before inference still train
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert engine(prompts, params) != before


def test_no_prompts_no_completions(model: Llama) -> None:
    assert Engine(model, stop_id=STOP, pad_id=PAD)([], []) == []


@pytest.mark.parametrize(
    ("prompts", "params", "match"),
    [
        ([[]], [SamplingParams()], "empty"),
        ([[6] * CONTEXT], [SamplingParams()], "context"),
        ([[VOCAB]], [SamplingParams()], "vocabulary"),
        ([[-1]], [SamplingParams()], "vocabulary"),
        ([[6]], [], "per prompt"),
        ([[6]], [SamplingParams(max_tokens=0)], "max_tokens"),
        ([[6]], [SamplingParams(temperature=1e-39)], "temperature"),
        ([[6]], [SamplingParams(logit_bias=tuple((i, -math.inf) for i in range(VOCAB)))], "bans every"),
    ],
)
def test_bad_requests_are_refused(model: Llama, prompts, params, match: str) -> None:
    engine = Engine(model, stop_id=STOP, pad_id=PAD)
    with pytest.raises(UsageError, match=match):
        engine(prompts, params)
    if params:
        with pytest.raises(UsageError, match=match):
            engine.submit(prompts[0], params[0])
