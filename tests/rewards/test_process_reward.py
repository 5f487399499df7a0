"""Where steps end, by hand and against a scan of every prefix; their scores against each answer read alone;
and their pooling through the source that a recipe names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bloomery.errors import UsageError
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import ScalarModel
from bloomery.rewards.parts import Measured
from bloomery.rewards.process import ProcessReward, Stepped, read_steps, step_ends
from bloomery.rewards.sources import Source, Tools, combined
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Completion, Message, Prompt, Rollout

TEXTS = ("red jam\ntea", "tea\njam red\n\n \nred", "good\n", "jam", "", "\n \n", "tea\ntea\ntea\ntea")
STEPS = (2, 3, 1, 1, 0, 0, 4)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["red jam tea good\n\n", "+;+;+"] * 20, 320)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> ScalarModel:
    shape = LlamaConfig.shape(width=16, depth=2, heads=2, vocab=tokenizer.vocab_size, context=64)
    made = ScalarModel(shape).train(False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return made


def rollout(tokenizer: Tokenizer, text: str, asked: tuple[int, ...] = (7, 8), ended: bool = True) -> Rollout:
    tokens = (*tokenizer.encode(text), *([tokenizer.end_id] if ended else []))
    prompt = Prompt(id="p", messages=(Message(role="user", content="x"),))
    finish = "stop" if ended else "length"
    return Rollout(prompt, asked, Completion(tokens, (0.0,) * len(tokens), finish), text)


def test_where_steps_end_by_hand(tokenizer: Tokenizer) -> None:
    pieces = ["red", " jam", "\n", "tea", "\n", " tea"]
    tokens = [one for piece in pieces for one in tokenizer.encode(piece)]
    assert [tokenizer.decode([t]) for t in tokens] == pieces
    assert tokens == tokenizer.encode("".join(pieces))
    assert step_ends([*tokens, tokenizer.end_id], tokenizer, "\n") == [2, 4, 6]
    assert step_ends(tokens, tokenizer, "\n") == [2, 4, 5]  # cut off: at what there is
    assert step_ends(tokens[:5], tokenizer, "\n") == [2, 4]  # nothing after the last separator
    assert step_ends([*tokens, tokenizer.end_id], tokenizer, " tea") == [5]
    assert step_ends(tokens, tokenizer, "jam\n") == [2, 5]  # a separator of two tokens: where it is whole


@pytest.mark.parametrize("separator", ["\n", "\n\n", "a", "é\n"])
def test_where_steps_end_against_every_prefix(tokenizer: Tokenizer, separator: str) -> None:
    for text in (*TEXTS, "jé\nam é\n\nré\n\n\nd"):
        tokens = [*tokenizer.encode(text), tokenizer.end_id]
        parts = text.split(separator)
        want = []
        for n, part in enumerate(parts[:-1], 1):
            ends = [k for k in range(len(tokens)) if tokenizer.decode(tokens[: k + 1]).count(separator) >= n]
            want += [ends[0]] if part.strip() else []
        assert step_ends(tokens, tokenizer, separator) == want + [len(tokens) - 1] * bool(parts[-1].strip())


def alone(model: ScalarModel, tokens: tuple[int, ...], ends: list[int]) -> list[float]:
    with torch.no_grad():
        scores = model(torch.tensor([tokens]))[0]
    return [float(scores[end]) for end in ends]


@pytest.mark.parametrize("batch_tokens", [1, 24, 8192])
def test_answers_read_together_score_as_each_alone(
    model: ScalarModel, tokenizer: Tokenizer, batch_tokens: int
) -> None:
    """Answers to one prompt, to another, and one by itself; as many steps as they like."""
    slates = [
        [Stepped((7, 8, 9, 20, 21), 3, (3, 4)), Stepped((7, 8, 9, 30, 31, 32, 33), 3, (6,))],
        [Stepped((40, 41, 42, 43, 44, 45), 1, (1, 3, 5))],
        [Stepped((7, 8, 5, 6), 2, (2, 3)), Stepped((7, 8, 5, 6), 2, (3,))],
    ]
    with torch.no_grad():
        scores, mask = read_steps(model, slates, tokenizer.pad_id, batch_tokens)
    answers = [a for slate in slates for a in slate]
    assert mask.sum(1).tolist() == [2, 1, 3, 2, 1]
    for row, own, answer in zip(scores, mask, answers, strict=True):
        want = alone(model, tuple(answer.tokens), list(answer.ends))
        assert row[own].tolist() == pytest.approx(want, abs=1e-5)


@pytest.fixture(scope="module")
def home(model: ScalarModel, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("process")
    tokenizer.save(root / "tokenizer")
    hub.save(model, root / "model", tokenizer_dir=root / "tokenizer")
    return root


def pooled(pooling: str, scores: list[float]) -> float | None:
    right = [1 / (1 + math.exp(-s)) for s in scores]
    if not right:
        return None
    return {"product": math.prod(right), "minimum": min(right), "last": right[-1]}[pooling]


@pytest.mark.parametrize("pooling", ["product", "minimum", "last"])
@pytest.mark.parametrize("separator", ["\n", "a"])
def test_the_source_pools_the_steps_of_each_answer(
    home: Path, model: ScalarModel, tokenizer: Tokenizer, pooling: str, separator: str
) -> None:
    """Two prompts, finished and cut off; an answer without a step is no opinion, not a certainty."""
    asked = [(7, 8)] * 4 + [(9, 10, 11)] * 3
    answers = [rollout(tokenizer, *each) for each in zip(TEXTS, asked, strict=True)]
    answers.append(rollout(tokenizer, "red\njam", ended=False))
    settings = {"path": str(home / "model"), "pooling": pooling, "separator": separator}
    part = Source.model_validate({"kind": "process", "settings": settings}).part(
        Tools(Chat(tokenizer), torch.device("cpu"))
    )
    want = []
    for one in answers:
        start = len(one.prompt_tokens)
        # Of two steps that end in one token (`am`, cut off, divided by `a`) the token is read once.
        ends = [start + end for end in dict.fromkeys(step_ends(one.completion.tokens, tokenizer, separator))]
        want.append(pooled(pooling, alone(model, one.tokens, ends)))
    assert list(part.opinion(answers)) == [None if w is None else pytest.approx(w, abs=1e-5) for w in want]
    assert want[4] is None
    assert isinstance(part.opinion, Measured)
    if separator == "\n":
        assert part.opinion.metrics == {"steps": pytest.approx((sum(STEPS) + 2) / 8)}


def test_a_recipe_names_it(home: Path, tokenizer: Tokenizer) -> None:
    tools = Tools(Chat(tokenizer), torch.device("cpu"))
    usual = Source.model_validate({"kind": "process", "settings": {"path": str(home / "model")}})
    assert usual.settings.model_dump(exclude={"path"}) == {"pooling": "product", "separator": "\n"}
    judge = combined([usual], tools)
    judge([rollout(tokenizer, "red\njam"), rollout(tokenizer, "")])
    assert judge.metrics["rewards/process/steps"] == 1.0
    assert judge.metrics["rewards/process/abstained"] == 0.5
    assert combined([usual], tools)([rollout(tokenizer, "")]) == [0.0]
    wrong = Source.model_validate(
        {"kind": "process", "settings": {"path": str(home / "model"), "pooling": "minium"}}
    )
    with pytest.raises(UsageError, match=r"no step reward is called 'minium' .did you mean 'minimum'"):
        wrong.part(tools)
    with pytest.raises(UsageError, match="another tokenizer than the policy"):
        usual.part(Tools(Chat(Tokenizer.train(["other words"] * 9, 300)), torch.device("cpu")))


def test_steps_that_end_in_one_token_are_read_once(model: ScalarModel, tokenizer: Tokenizer) -> None:
    (token,) = tokenizer.encode("+;+;+")
    answer = rollout(tokenizer, "+;+;+")
    assert step_ends([token, tokenizer.end_id], tokenizer, ";") == [0, 0, 1]
    judge = ProcessReward(model, tokenizer, lambda scores, mask: mask.sum(1), ";")
    assert judge([answer]) == [2]
