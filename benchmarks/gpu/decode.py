"""Decoding a fixed number of rows at once, tokens a second, beside the bytes that must be read for it.

`ours` is the engine, as it is or with `recorded` steps, `theirs` transformers' `generate`. `forward` is the
model's pass over one token of each row and nothing else: as it is launched, captured as a CUDA graph, or
compiled and captured; it says what the engine could be on this device if launches cost nothing. Weights are
random, the embedding is tied; nothing ends before `DRAWN` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from case import SIZES
from torch import Tensor

from bloomery.infer.capture import cuda_graph
from bloomery.infer.engine import Engine
from bloomery.models import KVCache, Llama, LlamaConfig, init
from bloomery.models.packed import pack
from bloomery.seeds import derive
from bloomery.types import SamplingParams

PROMPT, DRAWN = 32, 224


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """A step is one call of the engine, the reading of the prompts included."""
    made, rows = model(settings), settings["rows"]
    asked = prompts(rows, made.config.vocab_size)
    here = torch.device(settings["device"])
    record = cuda_graph(here) if settings["recorded"] and here.type == "cuda" else None
    engine = Engine(made, stop_id=-1, pad_id=0, max_batch=rows, record=record)
    pace.tell(bytes=mean_bytes(made, rows))
    for step in count():
        params = [SamplingParams(max_tokens=DRAWN, seed=derive(0, "decode", step, i)) for i in range(rows)]
        pace.start()
        pace.end(sum(len(c.tokens) for c in engine(asked, params)))


def theirs(pace: Any, settings: dict[str, Any]) -> None:
    """Our weights in transformers' Llama, sampled with its cache."""
    import transformers

    made, rows, device = model(settings), settings["rows"], settings["device"]
    peer = transformers.LlamaForCausalLM(transformers.LlamaConfig(**made.config.to_json()))
    peer.load_state_dict(made.state_dict(), strict=False)
    peer.tie_weights()
    peer.to(device, made.model.norm.weight.dtype).train(False)
    asked = torch.tensor(prompts(rows, made.config.vocab_size), device=device)
    how = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0, "pad_token_id": 0}
    pace.tell(bytes=mean_bytes(made, rows))
    while True:
        pace.start()
        with torch.inference_mode():
            found = peer.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=DRAWN, **how)
        pace.end(found[:, PROMPT:].numel())


def forward(pace: Any, settings: dict[str, Any]) -> None:
    """A step is one token of each row, in the middle of an answer; logits, no sampling."""
    made, rows, held = pack(model(settings)), settings["rows"], PROMPT + DRAWN // 2
    weight = made.model.norm.weight
    cache = KVCache(made.config, rows, held + 1, dtype=weight.dtype, device=weight.device)
    for part in (*cache.keys, *cache.values):
        part.normal_()
    tokens = torch.tensor(prompts(rows, made.config.vocab_size), device=weight.device)[:, :1]
    lengths = torch.full((rows,), held, device=weight.device)

    def one() -> Tensor:
        cache.lengths, cache.longest = lengths, held
        return made.logits(made(tokens, cache=cache)[:, -1])

    with torch.no_grad():
        plain = one().float().clone()
        again = WAYS[settings["way"]](one)
        apart = float((again().float() - plain).norm() / plain.norm())
        pace.tell(bytes=read(made, rows, held + 1), apart=apart)
        while True:
            pace.start()
            again()
            pace.end(rows)


def captured(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The kernels of `work` launched all at once. On a device without graphs, `work` itself."""
    if not torch.cuda.is_available():
        return work
    out, replay = cuda_graph(torch.device("cuda"))(work)

    def again() -> Tensor:
        replay()
        return out

    return again


WAYS: dict[str, Callable[[Callable[[], Tensor]], Callable[[], Tensor]]] = {
    "plain": lambda work: work,
    "captured": captured,
    "compiled and captured": lambda work: captured(torch.compile(work, dynamic=False)),
}


def model(settings: dict[str, Any]) -> Llama:
    """Random weights of a size, in bf16 on a GPU."""
    torch.set_num_threads(settings["threads"])
    shape, device = SIZES[settings["size"]], settings["device"]
    config = LlamaConfig.shape(shape.width, shape.depth, shape.heads, shape.vocab, context=shape.context)
    made = Llama(config)
    init(made, 0)
    return made.to(device, torch.bfloat16 if device == "cuda" else torch.float32).train(False)


def prompts(rows: int, vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(derive(0, "decode"))
    found: list[list[int]] = torch.randint(0, vocabulary, (rows, PROMPT), generator=generator).tolist()
    return found


def read(made: Llama, rows: int, held: int) -> float:
    """The bytes that one token of each row must read: every weight once (a tied embedding is the language
    head), and the keys and values of the `held` tokens of each row."""
    config, size = made.config, made.model.norm.weight.element_size()
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return float(size * (config.num_parameters() + rows * held * per_token))


def mean_bytes(made: Llama, rows: int) -> float:
    """`read` on average over an answer."""
    return read(made, rows, 0) + (read(made, rows, 2) - read(made, rows, 0)) / 2 * (PROMPT + (DRAWN - 1) / 2)
