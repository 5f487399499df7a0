"""The tokenizer against its promises: ids 0..5 are the control tokens, any text comes back exactly, no text
that a person types becomes a control id, training is repeatable, and transformers reads the same ids."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.text.tokenizer import SMALLEST_VOCAB, SPECIALS, Tokenizer

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
typed = st.lists(st.one_of(texts, st.sampled_from(SPECIALS)), max_size=6).map("".join)


@pytest.fixture(scope="session")
def saved(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path)
    return path


def test_control_tokens_have_the_first_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.id(name) for name in SPECIALS] == [0, 1, 2, 3, 4, 5]
    assert (tokenizer.pad_id, tokenizer.doc_id, tokenizer.end_id) == (0, 1, 5)
    assert tokenizer.control_ids == {0, 1, 2, 3, 4, 5}
    assert tokenizer.vocab_size == 300


@given(typed)
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_no_control_id_comes_out(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & tokenizer.control_ids
    assert tokenizer.num_bytes(ids) == len(text.encode())


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    lines = [f"the cat {i} <|end|> sat" for i in range(20)]
    assert tokenizer.encode_batch(lines) == [tokenizer.encode(line) for line in lines]


def test_only_template_text_has_control_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_template("<|end|>") == [5]
    assert len(tokenizer.encode("<|end|>")) > 1


def test_numbers_are_split_into_digits(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token(i) for i in tokenizer.encode("345")] == ["3", "4", "5"]
    assert [tokenizer.token(i) for i in tokenizer.encode("a 12")][-2:] == ["1", "2"]


def test_training_is_repeatable(tokenizer: Tokenizer) -> None:
    lines = ["one two three", "two three four", "three four five"] * 5
    first, second = (Tokenizer.train(iter(lines), 280) for _ in range(2))
    assert first.digest == second.digest != tokenizer.digest
    with pytest.raises(UsageError, match="at least 262"):
        Tokenizer.train(lines, SMALLEST_VOCAB - 1)


def test_saving_and_loading_keeps_everything(tokenizer: Tokenizer, saved: Path, tmp_path: Path) -> None:
    again = Tokenizer.load(saved)
    assert again.digest == tokenizer.digest
    assert again.template == tokenizer.template
    again.save(tmp_path)
    for file in saved.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


@given(typed)
@settings(max_examples=100, deadline=None)
def test_transformers_gives_the_same_ids(tokenizer: Tokenizer, hf: object, text: str) -> None:
    """Typed control text is text: transformers must be told `split_special_tokens`."""
    assert hf(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)  # type: ignore[operator]
    assert hf(text)["input_ids"] == tokenizer.encode_template(text)  # type: ignore[operator]


@pytest.fixture(scope="session")
def hf(saved: Path) -> object:
    return AutoTokenizer.from_pretrained(saved)


def test_transformers_knows_the_parts(hf: object, tokenizer: Tokenizer) -> None:
    assert (hf.pad_token_id, hf.bos_token_id, hf.eos_token_id) == (0, 1, 5)  # type: ignore[attr-defined]
    ids = tokenizer.encode_template("<|user|>hi , you n't<|end|>")
    assert hf.decode(ids) == "<|user|>hi , you n't<|end|>"  # type: ignore[attr-defined]
    assert hf.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == "hi , you n't"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "text", ["a" * 100_000, "\u200d👩" * 20_000, "7" * 100_000, " \n" * 50_000, "<|end|>" * 20_000]
)
def test_long_odd_texts_are_quick_and_exact(tokenizer: Tokenizer, text: str) -> None:
    start = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - start < 2


def test_what_is_no_text_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no UTF-8 form"):
        tokenizer.encode("half \ud800 a pair")
    with pytest.raises(DataError, match="no UTF-8 form"):
        tokenizer.encode_batch(["fine"] * 20 + ["\udc00"])


def test_names_are_checked(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"did you mean '<\|end\|>'"):
        tokenizer.id("<|ende|>")
    with pytest.raises(UsageError, match="no such id"):
        tokenizer.token(10**6)


def change_config(path: Path, **changes: object) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((path / name).read_text()) | changes
        (path / name).write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_a_foreign_tokenizer_names_its_own_parts(saved: Path, tmp_path: Path) -> None:
    Tokenizer.load(saved).save(tmp_path)
    change_config(tmp_path, eos_token={"content": "<|user|>"}, bos_token=None)
    foreign = Tokenizer.load(tmp_path)
    assert (foreign.pad_id, foreign.doc_id, foreign.end_id) == (0, 3, 3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pad_token": "<|end|>"}, "padding shares its id"),
        ({"pad_token": None}, "names no pad_token"),
        ({"pad_token": None, "eos_token": None}, "no pad_token and no eos_token"),
    ],
)
def test_a_tokenizer_that_cannot_work_is_refused(
    saved: Path, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    Tokenizer.load(saved).save(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=says):
        Tokenizer.load(tmp_path)


def test_damaged_files_are_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: cannot read"):
        Tokenizer.load(tmp_path)
    Tokenizer.load(saved).save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json: this file is not JSON"):
        Tokenizer.load(tmp_path)
