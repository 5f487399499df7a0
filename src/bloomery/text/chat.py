"""The one renderer: messages to token ids and loss mask, for fine-tuning, rewards, rollouts and serving.

The chat template is executed once per shape of conversation with a placeholder for each content. What
the template wrote becomes control ids; what people wrote is encoded apart and cannot. The loss mask comes
from the places of the placeholders, so it is exact by construction.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bloomery.errors import DataError, UsageError
from bloomery.text.sandbox import compile_template
from bloomery.text.tokenizer import Tokenizer, default_template
from bloomery.types import Message

_MARK = "Bx7Content{}Wq9"
_MARKS = re.compile(r"Bx7Content(\d+)Wq9")


class Span(NamedTuple):
    """Where the content of message number `message` lies: tokens[start:stop]."""

    message: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """`mask[t]` is True where `tokens[t]` is trained on: content and end token of trained assistant turns.

    For user "Hi", assistant "Yo" with our template:

        tokens  <|user|>  Hi  <|end|>  <|assistant|>  Yo    <|end|>
        mask    False     F   False    False          True  True
    """

    tokens: list[int]
    mask: list[bool]
    spans: tuple[Span, ...] = ()


class Chat:
    """Renders conversations with a tokenizer and its chat template (or another `template`).

    Raises `UsageError` for a template that is missing, is not Jinja, loses or repeats a content, or does
    not end an assistant's turn with the tokenizer's end token (the model could then never learn to stop).
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None) -> None:
        source = tokenizer.template if template is None else template
        if source is None:
            raise UsageError("the tokenizer has no chat template", do="give one, or add chat_template.jinja")
        self.tokenizer = tokenizer
        self.template = source
        self.hash = hashlib.sha256(source.encode()).hexdigest()
        self._execute = compile_template(source)
        self._blind = source == default_template()  # ours never looks at contents; others are checked
        self._skeletons: dict[tuple[tuple[str, ...], bool], list[int | list[int]]] = {}
        self._texts: dict[tuple[tuple[str, ...], bool], list[int | str]] = {}
        self._check()

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> Rendered:
        """Token ids, loss mask and content spans of a conversation.

        Raises `DataError` where the template refuses the messages or would rewrite their contents.
        """
        roles = tuple(message.role for message in messages)
        pieces = self._skeleton(roles, generation_prompt)
        contents = [message.content for message in messages]
        if not self._blind:
            contents = self._as_template_writes(roles, contents, generation_prompt)
        encoded = self.tokenizer.encode_batch(contents)
        tokens: list[int] = []
        mask: list[bool] = []
        spans: list[Span] = []
        ends_turn = False
        for piece in pieces:
            if isinstance(piece, int):
                ids, trained = encoded[piece], messages[piece].trained
                spans.append(Span(piece, len(tokens), len(tokens) + len(ids)))
                mask += [trained] * len(ids)
                ends_turn = trained
            else:
                ids = piece
                mask += [ends_turn] + [False] * (len(ids) - 1)
            tokens += ids
        mask[0] = False
        return Rendered(tokens, mask, tuple(spans))

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Ids that an answer is sampled from: the messages and the opening of an assistant's turn."""
        if not messages or messages[-1].role == "assistant":
            raise DataError(
                "a prompt ends with somebody to answer",
                got="no messages" if not messages else "a last message by the assistant",
            )
        return self.render(messages, generation_prompt=True).tokens

    def _skeleton(self, roles: tuple[str, ...], generation_prompt: bool) -> list[int | list[int]]:
        """What the template writes for these roles: ids of its own text, and numbers of messages."""
        key = (roles, generation_prompt)
        if key not in self._skeletons:
            marks = [_MARK.format(i) for i in range(len(roles))]
            parts = _MARKS.split(self._run(roles, marks, generation_prompt))
            texts: list[int | str] = [int(p) if i % 2 else p for i, p in enumerate(parts) if i % 2 or p]
            if [piece for piece in texts if isinstance(piece, int)] != list(range(len(roles))):
                raise DataError(
                    "the chat template leaves out, repeats or reorders messages",
                    got=f"roles {', '.join(roles) or '(none)'}",
                )
            self._texts[key] = texts
            encode = self.tokenizer.encode_template
            self._skeletons[key] = [p if isinstance(p, int) else encode(p) for p in texts]
        return self._skeletons[key]

    def _as_template_writes(
        self, roles: tuple[str, ...], contents: list[str], generation_prompt: bool
    ) -> list[str]:
        """The contents as another template puts them: as they are, or trimmed; anything else is refused."""
        wanted = self._run(roles, contents, generation_prompt)
        texts = self._texts[roles, generation_prompt]
        for version in (contents, [content.strip() for content in contents]):
            if "".join(version[p] if isinstance(p, int) else p for p in texts) == wanted:
                return version
        raise DataError(
            "the chat template rewrites the content of a message, so no loss mask can be exact",
            got=f"roles {', '.join(roles)}",
            do="use a template that writes contents as they are",
        )

    def _run(self, roles: Sequence[str], contents: Sequence[str], generation_prompt: bool) -> str:
        names = self.tokenizer.names
        try:
            return self._execute(
                messages=[{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)],
                add_generation_prompt=generation_prompt,
                bos_token=names["doc"],
                eos_token=names["end"],
                pad_token=names["pad"],
            )
        except Exception as error:  # a template is a program: any of its failures is the data's or its own
            raise DataError(
                f"the chat template refuses these messages: {error}", got=f"roles {', '.join(roles)}"
            ) from None

    def _check(self) -> None:
        try:
            probe = self.render([Message(role="user", content="a"), Message(role="assistant", content="b")])
        except DataError as error:
            raise UsageError("the chat template cannot render a conversation", got=error) from None
        stop = probe.spans[1].stop
        if stop >= len(probe.tokens) or probe.tokens[stop] != self.tokenizer.end_id:
            raise UsageError(
                "the chat template does not end an assistant's turn with the tokenizer's end token",
                got=self.tokenizer.decode(probe.tokens[stop : stop + 1], skip_special=False) or "nothing",
                expected=self.tokenizer.names["end"],
            )


def require_trained(rendered: Rendered, where: object = None) -> Rendered:
    """The same value, or a `DataError` where a demonstration trains nothing at all."""
    if not any(rendered.mask):
        raise DataError(
            "nothing in this conversation is trained on",
            where=where,
            expected="at least one assistant turn whose weight is not 0",
        )
    return rendered
