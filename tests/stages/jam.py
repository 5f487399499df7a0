"""People who prefer answers that begin with jam, a model that begins with any word, and how to tell what a
model has learned of them: by what it says."""

from __future__ import annotations

import numpy as np
import tiny
import torch

from bloomery.infer.engine import Engine
from bloomery.models.llama import Llama
from bloomery.models.slates import answer_logprobs
from bloomery.stages.preferences import example
from bloomery.text.chat import Chat
from bloomery.types import Message, Ranking, SamplingParams

SPOKEN = [w for w in tiny.WORDS if w != "jam"]


def many(num: int, seed: int, shuffled: bool = False) -> list[Ranking]:
    """Prompts of three words, three answers each of two words; those that begin with jam are best."""
    draw = np.random.default_rng(seed)
    said = []
    for asked in draw.permutation(len(SPOKEN) ** 3)[:num]:
        question = " ".join(SPOKEN[asked // len(SPOKEN) ** p % len(SPOKEN)] for p in range(3))
        begin = draw.permutation(["jam", *draw.permutation(SPOKEN)[:2]])
        answers = [f"{word} {SPOKEN[draw.integers(len(SPOKEN))]}" for word in begin]
        ranks = [1 if word == "jam" else 2 for word in begin]
        if shuffled:
            ranks = [int(r) for r in draw.permutation(ranks)]
        said.append(tiny.ranking(question, answers, ranks))
    return said


def talker(chat: Chat) -> Llama:
    """A model that answers with any of the words: what learning is to start from."""
    model = tiny.language_model(chat.tokenizer.vocab_size, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    draw = np.random.default_rng(4)
    for _ in range(60):
        words = [" ".join(tiny.WORDS[i] for i in draw.integers(0, len(tiny.WORDS), 2)) for _ in range(32)]
        prompts = [r.prompt for r in many(32, seed=int(draw.integers(1000)))]
        shown = [
            [example(prompt, (Message(role="assistant", content=text),), chat)]
            for prompt, text in zip(prompts, words, strict=True)
        ]
        (-answer_logprobs(model, shown, chat.tokenizer.pad_id)[0].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def starts_with_jam(model: Llama, chat: Chat) -> float:
    """How often the model itself, asked something new, says jam first."""
    jam = chat.tokenizer.encode("jam")
    prompts = [chat.prompt(r.prompt) for r in many(150, seed=9)]
    engine = Engine(model, stop_id=chat.tokenizer.end_id, pad_id=chat.tokenizer.pad_id)
    said = engine(prompts, [SamplingParams(max_tokens=len(jam), seed=i) for i in range(len(prompts))])
    return sum(list(c.tokens) == jam for c in said) / len(said)
