"""The evaluation stage on tiny random models: what it writes, what must be equal, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bloomery.data.shards import write_shards
from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.evals import honesty
from bloomery.lineage import verify
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel, init
from bloomery.stages import evaluate
from bloomery.stages.evaluate import Evaluate
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Document, Message
from bloomery.world import World, questions

LIMIT = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world, a corpus, two models and a reward model, all tiny."""
    root = tmp_path_factory.mktemp("evaluate")
    world = World.make(5, 16)
    asked = questions(world, 5)
    (root / "world").mkdir()
    (root / "world" / "world.json").write_text(world.to_json())
    (root / "world" / "questions.jsonl").write_text("".join(json.dumps(q.to_json()) + "\n" for q in asked))
    tokenizer = Tokenizer.train([q.answer for q in asked], 400)
    tokenizer.save(root / "tokenizer")
    texts = [Document(id=q.id, text=q.answer, source="news") for q in asked[:80]]
    write_shards(texts, tokenizer, root / "corpus", val_fraction=0.2)
    config = LlamaConfig.shape(width=16, depth=1, heads=2, vocab=tokenizer.vocab_size, context=256)
    for seed, name in enumerate(("one", "two")):
        model = Llama(config)
        init(model, seed)
        hub.save(model, root / name, tokenizer_dir=root / "tokenizer")
    hub.save(ScalarModel.from_causal(model, seed=0), root / "reward", tokenizer_dir=root / "tokenizer")
    prompts = [{"prompt": q.messages[0].content} for q in asked[:7]]
    (root / "prompts.jsonl").write_text("".join(json.dumps(p) + "\n" for p in prompts))
    return root


@pytest.fixture(scope="module")
def whole(place: Path) -> dict[str, Any]:
    """Everything there is to measure, on one model."""
    recipe = Evaluate(
        model=place / "one",
        world=place / "world",
        reference=place / "two",
        corpus=place / "corpus",
        reward=place / "reward",
        limit=LIMIT,
        max_tokens=8,
    )
    evaluate.run(recipe, place / "whole")
    tree: dict[str, Any] = json.loads((place / "whole" / "evaluation.json").read_text())
    return tree


def test_everything_is_measured_with_an_interval(place: Path, whole: dict[str, Any]) -> None:
    assert whole["num_questions"] == LIMIT
    for decoding in ("sampled", "greedy"):
        assert set(whole[decoding]) == {*honesty.METRICS, "proxy_reward"}
        for estimate in whole[decoding].values():
            assert set(estimate) == {"mean", "low", "high", "n"}
        assert whole[decoding]["graded_reward"]["n"] == LIMIT
    assert whole["kl"]["mean"] > 0.0
    assert whole["bpb"]["all"] == whole["bpb"]["news"]
    assert whole["bpb"]["all"]["mean"] == pytest.approx(8.0, abs=8.0)
    assert verify(place / "whole") == []


def test_the_table_follows_from_the_answers_on_disk(place: Path, whole: dict[str, Any]) -> None:
    path = place / "whole" / "answers.jsonl"
    answers = honesty.read_answers(path.read_text().splitlines(), path)
    for decoding, judged in answers.items():
        again = {name: e.to_json() for name, e in honesty.measure(judged, seed=0).items()}
        assert again == whole[decoding]


def test_sample_conversations_show_every_kind(whole: dict[str, Any]) -> None:
    talks = whole["conversations"]
    assert len(talks) == 24
    assert {talk["kind"] for talk in talks} == set(whole["by_kind"]["sampled"])
    assert all({"grade", "text"} <= set(talk["greedy"]) for talk in talks)


def test_a_model_is_at_no_distance_from_itself(place: Path, tmp_path: Path) -> None:
    recipe = Evaluate(
        model=place / "one", world=place / "world", reference=place / "one", limit=5, max_tokens=4, samples=3
    )
    evaluate.run(recipe, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert tree["kl"]["mean"] == pytest.approx(0.0, abs=1e-9)
    assert tree["bpb"] is None
    assert len(tree["conversations"]) == 3


def test_two_models_answer_the_same_questions(place: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """So that they can be paired, and their samples shown side by side; a base model too."""
    recipe = Evaluate(model=place / "two", world=place / "world", chat=False, limit=LIMIT, max_tokens=4)
    evaluate.run(recipe, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [t["id"] for t in tree["conversations"]] == [t["id"] for t in whole["conversations"]]
    before, after = (
        honesty.read_answers((p / "answers.jsonl").read_text().splitlines())
        for p in (place / "whole", tmp_path / "out")
    )
    assert honesty.differences(after["greedy"], before["greedy"])["graded_reward"].n == LIMIT


def test_without_a_world_prompts_are_answered_but_not_judged(place: Path, tmp_path: Path) -> None:
    recipe = Evaluate(
        model=place / "one", questions=place / "prompts.jsonl", reward=place / "reward", max_tokens=5
    )
    evaluate.run(recipe, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert tree["num_questions"] == 7
    assert set(tree["sampled"]) == {"unfinished_rate", "length", "proxy_reward"}
    assert 1 <= tree["sampled"]["length"]["mean"] <= 5
    assert not (tmp_path / "out" / "answers.jsonl").exists()


def test_an_answer_that_fills_the_context_is_scored_as_it_is(place: Path, tmp_path: Path) -> None:
    """It was cut off, so it has no end token, and there would be no room for one."""
    chat = Chat(Tokenizer.load(place / "one"))
    empty = len(chat.prompt((Message(role="user", content=""),)))
    words = "a " * 400
    content = next(words[:n] for n in range(800) if len(chat.tokenizer.encode(words[:n])) == 256 - empty - 3)
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": content}) + "\n")
    recipe = Evaluate(model=place / "one", questions=file, reward=place / "reward", max_tokens=9)
    evaluate.run(recipe, tmp_path / "out")
    tree = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert tree["greedy"]["length"]["mean"] == 3
    assert tree["greedy"]["unfinished_rate"]["mean"] == 1.0
    assert tree["greedy"]["proxy_reward"]["n"] == 1


def test_refuses_what_cannot_be_asked(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to ask"):
        evaluate.run(Evaluate(model=place / "one"), tmp_path / "a")
    bad = tmp_path / "questions.jsonl"
    bad.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match=r"questions\.jsonl:1"):
        evaluate.run(Evaluate(model=place / "one", world=place / "world", questions=bad), tmp_path / "b")
    with pytest.raises(ArtifactError, match="questions"):
        evaluate.run(Evaluate(model=place / "one", world=place / "corpus"), tmp_path / "c")
