"""Rollouts: our engine against transformers' `generate` and nanochat's engine, useful tokens a second.

Useful are the tokens up to and including the end token. The policy ends its answers at random, with
probability 1 / 32 a token (`material.make_it_end`). transformers reads our weights: the greedy tokens must be
ours, and the sampled ones as probable and as many. nanochat has an architecture of its own of the same width,
depth and vocabulary, made to end as often; its engine draws all samples of a round from one prompt, so
against it ours does too.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from case import SIZES, Case, Shape, all_of, means_agree, told_same

BATCH, PROMPT, LONGEST = 64, 32, 128
GREEDY_PROMPTS, GREEDY_TOKENS = 16, 24


def cases(shape: Shape, precision: str | None) -> list[Case]:
    steps = 3 if shape.width <= 256 else 1
    same = all_of(told_same("greedy"), means_agree("length", "nll"))
    return [
        Case("rollout", "transformers generate", "tok/s", steps, "ours", "transformers", same),
        Case(
            "rollout",
            "nanochat engine",
            "tok/s",
            steps,
            "ours",
            "nanochat",
            means_agree("length"),
            checkout="nanochat",
            settings={"one_prompt": True},
        ),
    ]


def prompts(settings: dict[str, Any], step: int) -> list[list[int]]:
    """The prompts of a step: text of the corpus, 32 tokens each, or one of them again and again."""
    import numpy as np

    rows = np.load(Path(settings["material"]) / "rows.npy").reshape(-1, SIZES[settings["size"]].context)
    first = 0 if settings.get("one_prompt") else step * BATCH
    chosen = [first if settings.get("one_prompt") else (first + i) % len(rows) for i in range(BATCH)]
    return [[int(t) for t in rows[i, 1 : PROMPT + 1]] for i in chosen]


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """The engine that the stages sample with."""
    from bloomery.types import SamplingParams

    engine = our_engine(settings)
    greedy = SamplingParams(max_tokens=GREEDY_TOKENS, temperature=0.0)
    asked = prompts(settings, 0)[:GREEDY_PROMPTS]
    pace.tell(greedy=[list(c.tokens) for c in engine(asked, [greedy] * len(asked))])
    sample(pace, engine, lambda step: prompts(settings, step))


def our_engine(settings: dict[str, Any]) -> Any:
    from bloomery.infer.engine import Engine
    from bloomery.models import hub
    from bloomery.text.tokenizer import Tokenizer
    from bloomery.train import precision

    precision.setup("fp32", settings["threads"])
    policy = Path(settings["material"]) / "policy"
    tokenizer = Tokenizer.load(policy)
    return Engine(hub.load(policy), stop_id=tokenizer.end_id, pad_id=tokenizer.pad_id)


def sample(pace: Any, engine: Any, asked: Callable[[int], list[list[int]]]) -> None:
    """A step is one call of the engine with the prompts that `asked` gives."""
    from bloomery.seeds import derive
    from bloomery.types import SamplingParams

    for step in count():
        pace.start()
        questions = asked(step)
        params = [
            SamplingParams(max_tokens=LONGEST, seed=derive(0, "bench", step, i))
            for i in range(len(questions))
        ]
        made = engine(questions, params)
        tokens = sum(len(c.tokens) for c in made)
        pace.end(tokens, length=tokens / len(made), nll=-sum(sum(c.logprobs) for c in made) / tokens)


def transformers(pace: Any, settings: dict[str, Any]) -> None:
    """`generate` with its cache, all rows until the last has ended; the log-probs are looked up untimed."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    policy = str(Path(settings["material"]) / "policy")
    model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32)
    model.train(False)
    end = model.config.eos_token_id

    def answers(asked: list[list[int]], **how: Any) -> list[list[int]]:
        with torch.inference_mode():
            ids = torch.tensor(asked)
            rows = model.generate(ids, attention_mask=torch.ones_like(ids), **how)[:, ids.shape[1] :].tolist()
        return [cut(row, end) for row in rows]

    asked = prompts(settings, 0)[:GREEDY_PROMPTS]
    pace.tell(greedy=answers(asked, do_sample=False, max_new_tokens=GREEDY_TOKENS))
    for step in count():
        pace.start()
        asked = prompts(settings, step)
        made = answers(asked, do_sample=True, max_new_tokens=LONGEST, top_k=0, top_p=1.0, temperature=1.0)
        lengths = [len(m) for m in made]
        pace.stop_clock()
        nll = -logprob(model, asked, made) / sum(lengths)
        pace.end(sum(lengths), length=sum(lengths) / BATCH, nll=nll)


def cut(row: Sequence[int], end: int) -> list[int]:
    """A row up to and including its first end token."""
    return list(row[: row.index(end) + 1] if end in row else row)


def logprob(model: Any, asked: list[list[int]], made: list[list[int]]) -> float:
    """The summed log-prob of answers under a model, read one by one."""
    import torch

    total = 0.0
    with torch.inference_mode():
        for prompt, answer in zip(asked, made, strict=True):
            rows = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            total += float(rows.gather(1, torch.tensor(answer)[:, None]).sum())
    return total


def nanochat(pace: Any, settings: dict[str, Any]) -> None:
    """Its model and its engine, float32 as it chooses on a CPU; the prompt is read once for all samples."""
    sys.path.insert(0, settings["checkout"])
    for name in ("rustbpe", "tiktoken"):  # its tokenizer's libraries, which nothing here calls
        sys.modules.setdefault(name, types.ModuleType(name))
    import torch
    from nanochat.engine import Engine  # type: ignore[import-not-found]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    shape = SIZES[settings["size"]]
    config = GPTConfig(
        sequence_len=shape.context,
        vocab_size=shape.vocab,
        n_layer=shape.depth,
        n_head=shape.heads,
        n_kv_head=shape.heads,
        n_embd=shape.width,
        window_pattern="L",
    )
    model = GPT(config)
    model.init_weights()
    end = 5
    make_it_end(model, end)
    engine = Engine(model, Vocabulary(end))
    for step in count():
        pace.start()
        prompt = prompts(settings, step)[0]
        rows, _ = engine.generate_batch(
            prompt, num_samples=BATCH, max_tokens=LONGEST, temperature=1.0, seed=step
        )
        # It leaves the end token out of what it returns.
        lengths = [min(len(row) - PROMPT + 1, LONGEST) for row in rows]
        pace.end(sum(lengths), length=sum(lengths) / BATCH)


class Vocabulary:
    """The control ids that nanochat's engine asks for; only the end of an answer can be sampled."""

    def __init__(self, end: int) -> None:
        self.end = end

    def encode_special(self, name: str) -> int:
        return self.end if name == "<|assistant_end|>" else -1

    def get_bos_token_id(self) -> int:
        return -1


def make_it_end(model: Any, end: int) -> None:
    """`material.make_it_end` for nanochat's weights, whose logits are squashed to 15 tanh(x / 15)."""
    import math

    import torch
    from material import LOGIT_STD, MEAN_ANSWER

    embed, head = model.transformer.wte.weight, model.lm_head.weight
    with torch.no_grad():
        embed[:, 0] = embed[:, 1:].norm(dim=1).mean()
        for block in model.transformer.h:
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                torch.nn.init.normal_(layer.weight, std=0.02)
                layer.weight[0] = 0
        head.normal_()
        head[:, 0] = 0
        head[end] = 0
        tokens = torch.randint(0, model.config.vocab_size, (16, 64))
        head *= LOGIT_STD / model.config.n_embd**0.5
        others = model(tokens).index_fill(-1, torch.tensor([end]), float("-inf")).logsumexp(-1)
        wanted = 15 * math.atanh((float(others.mean()) - math.log(MEAN_ANSWER - 1)) / 15)
        head[end, 0] = 1.0
        one = 15 * math.atanh(float(model(tokens)[..., end].mean()) / 15)
        head[end, 0] = wanted / one
