"""Byte-level BPE: any text to ids and back, exactly; what a user types never becomes a control id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from bloomery.errors import ArtifactError, DataError, UsageError, nearest

SPECIALS = ("<|pad|>", "<|doc|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

# GPT-2's split, with digits one by one (so that numbers have one spelling) and marks kept with letters.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+|\s+(?!\S)|\s+"

SMALLEST_VOCAB = len(SPECIALS) + 256
_NAMES = {"pad": "pad_token", "doc": "bos_token", "end": "eos_token"}


def default_template() -> str:
    """The chat template that our own tokenizers are saved with."""
    return resources.files("bloomery.text").joinpath("chat.jinja").read_text(encoding="utf-8")


class Tokenizer:
    """A trained vocabulary with its control ids and its chat template.

    `names` gives the token that plays each part: "pad", "doc" (starts a document) and "end" (ends a turn).
    A tokenizer made elsewhere works too, where its files name those tokens: bos is doc, eos is end.

    Raises `ArtifactError` where a part has no token, or padding shares an id with another part.
    """

    def __init__(self, backend: Backend, names: dict[str, str], template: str | None) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = False
        self._control = backend  # template text: "<|end|>" is a control id
        self._plain = Backend.from_str(backend.to_str())  # user text: "<|end|>" is seven characters
        self._plain.encode_special_tokens = True
        self.names = names
        self.template = template
        self.pad_id, self.doc_id, self.end_id = (self.id(names[part]) for part in ("pad", "doc", "end"))
        if self.pad_id in (self.doc_id, self.end_id):
            raise ArtifactError(
                "padding shares its id with another control token, so a model could never learn to stop",
                got=names,
                do="give the tokenizer a pad_token of its own",
            )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts`; the same texts give the same tokenizer. Ids 0..5 are `SPECIALS`.

        The vocabulary can come out smaller than asked for where the texts hold too few distinct words.
        Raises `UsageError` when `vocab_size` has no room for the control tokens and the 256 bytes.
        """
        if vocab_size < SMALLEST_VOCAB:
            raise UsageError("vocab_size is too small", got=vocab_size, expected=f"at least {SMALLEST_VOCAB}")
        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(name, special=True, normalized=False) for name in SPECIALS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer=trainer)
        names = {"pad": "<|pad|>", "doc": "<|doc|>", "end": "<|end|>"}
        return cls(backend, names, default_template())

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read a tokenizer directory: ours, or one in Hugging Face's layout that names its tokens.

        Raises `ArtifactError` for a missing or damaged file, and for a missing pad or end token.
        """
        path = Path(path)
        try:
            backend = Backend.from_file(str(path / "tokenizer.json"))
        except Exception as error:  # the library raises a bare Exception
            raise ArtifactError(
                "cannot read the tokenizer",
                where=path / "tokenizer.json",
                got=error,
                do="name a directory that holds tokenizer.json",
            ) from None
        config = _read_json(path / "special_tokens_map.json") | _read_json(path / "tokenizer_config.json")
        names = {part: name for part, key in _NAMES.items() if (name := _token_text(config.get(key)))}
        if "end" in names:
            names.setdefault("doc", names["end"])
        missing = [_NAMES[part] for part in ("pad", "end") if part not in names]
        if missing:
            raise ArtifactError(
                f"the tokenizer names no {' and no '.join(missing)}",
                where=path / "tokenizer_config.json",
                do="add it to tokenizer_config.json",
            )
        return cls(backend, names, _read_template(path, config))

    def save(self, path: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja.

        The same tokenizer gives the same bytes, and transformers' AutoTokenizer gives the same ids.
        """
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        tokens = {_NAMES[part]: self.names[part] for part in ("doc", "end", "pad")}
        parts = set(tokens.values())
        others = [t.content for t in self._specials.values() if t.content not in parts]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **tokens,
            "extra_special_tokens": others,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**9,
            "padding_side": "right",
        }
        (path / "tokenizer.json").write_text(self._control.to_str(pretty=True), encoding="utf-8")
        _write_json(path / "tokenizer_config.json", config)
        _write_json(path / "special_tokens_map.json", tokens)
        if self.template is not None:
            (path / "chat_template.jinja").write_text(self.template, encoding="utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of a text as a person wrote it: the text of a control token is text like any other.

        Raises `DataError` for lone surrogates, which are no text.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return _encode(self._plain, texts)

    def encode_template(self, text: str) -> list[int]:
        """Ids of a template's own text, in which control tokens are control ids. Never for user text."""
        return _encode(self._control, [text])[0]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of `ids`; `decode(encode(text)) == text`. An unfinished character shows as U+FFFD."""
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def id(self, token: str) -> int:
        """The id of a token by its name. Raises `UsageError` for a name that is not in the vocabulary."""
        found = self._control.token_to_id(token)
        if found is None:
            names = [t.content for t in self._specials.values()]
            raise UsageError(f"the tokenizer has no token '{token}'{nearest(token, names)}")
        return found

    def token(self, id: int) -> str:
        """The name of one id as the vocabulary spells it (bytes as printable letters)."""
        found = self._control.id_to_token(id)
        if found is None:
            raise UsageError("the tokenizer has no such id", got=id, expected=f"0..{self.vocab_size - 1}")
        return found

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: the number of rows that a model's embedding needs."""
        return max(self._control.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self._specials)

    @cached_property
    def token_bytes(self) -> NDArray[np.uint16]:
        """[vocab_size] UTF-8 bytes that each id stands for; control ids stand for none."""
        added = self._control.get_added_tokens_decoder()
        byte_level = "ByteLevel" in json.dumps(json.loads(self._control.to_str())["decoder"])
        sizes = np.zeros(self.vocab_size, dtype=np.uint16)
        for token, i in self._control.get_vocab(with_added_tokens=True).items():
            if i in added:
                sizes[i] = 0 if added[i].special else len(added[i].content.encode())
            elif byte_level:
                sizes[i] = len(token)  # one printable letter for each byte
            else:
                sizes[i] = 1 if _is_byte_token(token) else len(token.replace("▁", " ").encode())
        return sizes

    def num_bytes(self, ids: Iterable[int]) -> int:
        """UTF-8 bytes of the text that `ids` stand for."""
        return int(self.token_bytes[np.fromiter(ids, dtype=np.int64)].sum())

    @cached_property
    def digest(self) -> str:
        """sha256 of all that decides ids: vocabulary, merges, splitting, and which token plays which part."""
        content = json.dumps([json.loads(self._control.to_str()), self.names], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @cached_property
    def _specials(self) -> dict[int, AddedToken]:
        found = self._control.get_added_tokens_decoder()
        return {i: token for i, token in sorted(found.items()) if token.special}


def _encode(backend: Backend, texts: Sequence[str]) -> list[list[int]]:
    try:
        if len(texts) < 16:  # threads cost more than they bring
            return [backend.encode(text, add_special_tokens=False).ids for text in texts]
        return [e.ids for e in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    except (UnicodeEncodeError, TypeError):
        bad = next(
            (t for t in texts if not isinstance(t, str) or any("\ud800" <= c <= "\udfff" for c in t)), ""
        )
        raise DataError(
            "this text has no UTF-8 form", got=repr(bad)[:80], expected="text without lone surrogates"
        ) from None


def _is_byte_token(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _token_text(value: Any) -> str | None:
    """Hugging Face writes a token as a string or as {"content": string, ...}."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else None


def _read_template(path: Path, config: dict[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ArtifactError("the chat template is not UTF-8", where=file, got=error) from None
    template = config.get("chat_template")
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError("this file is not JSON", where=path, got=error) from None
    if not isinstance(value, dict):
        raise ArtifactError("this file should hold a JSON object", where=path, got=type(value).__name__)
    return value


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
