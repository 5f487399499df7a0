"""Pretraining against every document read by itself: the loss, bits per byte, micro-batches; and a corpus
whose entropy is known, below which no model can go."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from bloomery.data.batches import TokenBatch, one_pass, pack_documents
from bloomery.data.shards import Corpus
from bloomery.errors import UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub, llama
from bloomery.models.llama import Llama, init
from bloomery.stages import pretrain
from bloomery.stages.common import Optimiser
from bloomery.stages.pretrain import Pretrain
from bloomery.text.tokenizer import Tokenizer

CONTEXT = 32
SHAPE = {"width": 16, "depth": 1, "heads": 2, "context": CONTEXT, "tied": False}
RATES = Optimiser(learning_rate=0.01, schedule="constant", warmup=0)


@pytest.fixture(scope="module")
def corpus(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return tiny.corpus(tokenizer, tmp_path_factory.mktemp("pretrain") / "corpus", num=200)


def train(
    corpus: Corpus, tokenizer_dir: Path, out: Path, *, steps: int, **changed: Any
) -> list[dict[str, Any]]:
    usual = {"model": SHAPE, "batch": 8, "optimiser": RATES, "compute": tiny.TRAINING, "seed": 3}
    settings = {**usual, **changed}
    tokens = steps * settings["batch"] * CONTEXT
    pretrain.run(Pretrain(corpus=corpus.path, tokenizer=tokenizer_dir, tokens=tokens, **settings), out)
    return tiny.lines(out / "metrics.jsonl")


def untrained(tokenizer: Tokenizer) -> Llama:
    model = Llama(tiny.config(tokenizer.vocab_size, context=CONTEXT))
    init(model, 3)
    return model


def bytes_of(tokenizer: Tokenizer, batch: TokenBatch) -> int:
    return sum(len(tokenizer.decode(document[1:]).encode()) for document in tiny.documents_of(batch))


def batch_of(corpus: Corpus, split: str, step: int) -> TokenBatch:
    return pack_documents(corpus, split, batch_size=8, length=CONTEXT, seed=3, step=step)


def test_the_first_step_and_both_kinds_of_bits_per_byte_by_hand(
    tokenizer: Tokenizer, tokenizer_dir: Path, corpus: Corpus, tmp_path: Path
) -> None:
    still = Optimiser(learning_rate=1e-9, schedule="constant", warmup=0)
    (row,) = train(corpus, tokenizer_dir, tmp_path / "out", steps=1, optimiser=still, validation_batches=2)
    model, batch = untrained(tokenizer), batch_of(corpus, "train", 0)
    with torch.no_grad():
        loss = tiny.plain_text_loss(model, batch).item()
        assert row["train/loss"] == pytest.approx(loss, abs=1e-5)
        bits = loss * batch.num_tokens / math.log(2)
        assert row["train/bpb"] == pytest.approx(bits / bytes_of(tokenizer, batch), abs=1e-5)
        held = list(islice(one_pass(corpus, "val", batch_size=8, length=CONTEXT), 2))
        nats = sum(tiny.plain_text_loss(model, b).item() * b.num_tokens for b in held)
    num_bytes, counted = sum(bytes_of(tokenizer, b) for b in held), sum(b.num_tokens for b in held)
    assert row["val/bpb"] == pytest.approx(nats / math.log(2) / num_bytes, abs=1e-4)
    # Before training every token costs about log2(V) bits.
    assert row["val/bpb"] == pytest.approx(math.log2(tokenizer.vocab_size) * counted / num_bytes, rel=0.01)
    sources = {shard.source for shard in corpus.split("val")}
    assert {key for key in row if key.startswith("val/bpb/")} == {f"val/bpb/{name}" for name in sources}
    assert row["num_tokens"] == 8 * CONTEXT


@pytest.mark.parametrize("parts", [4, 3])
def test_micro_batches_change_no_weight(
    tokenizer_dir: Path, corpus: Corpus, tmp_path: Path, parts: int
) -> None:
    counts = [int(part.mask.sum()) for part in batch_of(corpus, "train", 0).split(parts)]
    assert len(set(counts)) > 1  # a mean of means would differ
    found = []
    slow = Optimiser(learning_rate=1e-3, schedule="constant", warmup=0)
    for name, micro_batches in (("whole", 1), ("parts", parts)):
        rows = train(
            corpus, tokenizer_dir, tmp_path / name, steps=3, micro_batches=micro_batches, optimiser=slow
        )
        found.append((hub.load(tmp_path / name).state_dict(), rows))
    (one, rows), (other, other_rows) = found
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)
    for a, b in zip(rows, other_rows, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo's own, which it hides from its users
def test_recomputing_changes_no_bit_and_compiling_is_timed(
    tokenizer_dir: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, again = torch.nn.Module.compile, list[str]()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: real(self, backend="aot_eager"))
    plain = llama.checkpoint
    monkeypatch.setattr(llama, "checkpoint", lambda *a, **k: (again.append(name), plain(*a, **k))[1])
    rows, bits = {}, {}
    for name in ("usual", "recompute", "compile"):
        compute = (
            {**tiny.TRAINING.model_dump(), name: True} if name != "usual" else tiny.TRAINING.model_dump()
        )
        rows[name] = train(corpus, tokenizer_dir, tmp_path / name, steps=2, compute=compute)
        bits[name] = digest_file(tmp_path / name / "model.safetensors")
    assert bits["usual"] == bits["recompute"]
    assert again == ["recompute"] * 2  # one layer, two steps
    assert all(("timing/compile" in row) == (name == "compile") for name in rows for row in rows[name])
    assert rows["compile"][0]["timing/compile"] > 0
    assert rows["compile"][1]["train/loss"] == pytest.approx(rows["usual"][1]["train/loss"], abs=1e-5)


def test_steps_follow_from_tokens_and_are_never_rounded_down(
    tokenizer_dir: Path, corpus: Corpus, tmp_path: Path
) -> None:
    recipe = {"corpus": corpus.path, "tokenizer": tokenizer_dir, "model": SHAPE, "compute": tiny.TRAINING}
    pretrain.run(Pretrain(**recipe, tokens=129, batch=2, validate_every=2), tmp_path / "out")
    rows = tiny.lines(tmp_path / "out" / "metrics.jsonl")
    assert len(rows) == 3  # of 64 tokens each
    assert ["val/bpb" in row for row in rows] == [False, True, True]


def test_the_shape_asked_for_is_the_shape_made(tokenizer_dir: Path, corpus: Corpus, tmp_path: Path) -> None:
    shape = {"width": 24, "depth": 2, "heads": 4, "kv_heads": 2, "context": CONTEXT, "tied": True}
    train(corpus, tokenizer_dir, tmp_path / "out", steps=1, model=shape)
    config = hub.read_config(tmp_path / "out")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (24, 2, 4)
    assert (config.num_key_value_heads, config.max_position_embeddings, config.tie_word_embeddings) == (
        2,
        32,
        True,
    )
    assert Tokenizer.load(tmp_path / "out").end_id == config.eos_token_id


def test_a_run_that_broke_off_goes_on_to_the_same_bytes(
    tokenizer_dir: Path, corpus: Corpus, tmp_path: Path
) -> None:
    often = tiny.TRAINING.model_copy(update={"checkpoint_every": 2})

    def again(out: Path) -> None:
        train(corpus, tokenizer_dir, out, steps=5, compute=often)

    tiny.goes_on_to_the_same_bytes(again, tmp_path, pretrain.update, "apply", 4, resumed=2)


def test_the_seed_is_the_only_chance(tokenizer_dir: Path, corpus: Corpus, tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(corpus, tokenizer_dir, tmp_path / name, steps=2, seed=seed)
        made.append(digest_file(tmp_path / name / "model.safetensors"))
    assert made[0] == made[1] != made[2]


def test_it_learns_what_there_is_to_learn_and_no_more(
    tokenizer: Tokenizer, tokenizer_dir: Path, corpus: Corpus, tmp_path: Path
) -> None:
    """The words of the corpus are drawn independently, so log(13) nats a word is what a perfect model pays on
    documents that it has not seen; less would mean that it sees what it predicts."""
    rows = train(corpus, tokenizer_dir, tmp_path / "out", steps=60, validate_every=30)
    model, held = hub.load(tmp_path / "out"), batch_of(corpus, "val", 0)
    with torch.no_grad():
        before = tiny.plain_text_loss(untrained(tokenizer), held).item()
        after = tiny.plain_text_loss(model, held).item()
    floor = math.log(len(tiny.WORDS))
    assert before > 5.5
    assert floor - 0.1 < after < floor + 0.5
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 2
    assert rows[-1]["val/bpb"] < rows[29]["val/bpb"] + 0.05


def test_a_corpus_without_held_out_documents_is_refused(
    tokenizer: Tokenizer, tokenizer_dir: Path, tmp_path: Path
) -> None:
    alone = tiny.corpus(tokenizer, tmp_path / "corpus", num=10, val_fraction=0.0)
    with pytest.raises(UsageError, match="no documents in 'val'"):
        train(alone, tokenizer_dir, tmp_path / "out", steps=1)
