"""Talk to a model in the terminal. A reply streams as it is drawn; Ctrl-C stops the reply only.

Commands: /system TEXT, /reset, /regen, /temp NUMBER, /save FILE, /help, /quit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bloomery.errors import BloomeryError, UsageError
from bloomery.types import Conversation, Message, SamplingParams

if TYPE_CHECKING:
    from bloomery.text.chat import Chat

HELP = """\
/system TEXT   set the system message (no text: remove it)
/reset         forget the conversation
/regen         answer the last message again, with another seed
/temp NUMBER   sampling temperature; 0 always takes the likeliest token
/save FILE     write the conversation as one JSON line
/help          this list
/quit          leave (so does Ctrl-D)"""


class Streamer(Protocol):
    """One completion, token by token: `infer.engine.Engine.stream`."""

    def __call__(self, prompt: list[int], params: SamplingParams) -> Iterator[int]: ...


@dataclass(slots=True)
class Session:
    """A conversation with a model. `context` is the model's, in tokens; a part is kept for the answer."""

    chat: Chat
    stream: Streamer
    context: int
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 256
    seed: int = 0
    system: str | None = None
    history: list[Message] = field(default_factory=list)
    draws: int = 0

    def prompt(self) -> tuple[list[int], int]:
        """Token ids of the conversation, its oldest turns left out until an answer fits; and how many were.

        Raises `UsageError` when the last message alone is too long.
        """
        head = [Message(role="system", content=self.system)] if self.system else []
        room = self.context - min(self.max_tokens, self.context // 4)
        for start in (i for i, message in enumerate(self.history) if message.role == "user"):
            tokens = self.chat.prompt([*head, *self.history[start:]])
            if len(tokens) <= room:
                return tokens, start
        raise UsageError(
            "this message does not fit into the model's context",
            got=f"{len(tokens)} tokens",
            expected=f"at most {room}",
            do="send a shorter message, or a shorter /system",
        )

    def reply(self) -> Iterator[str]:
        """Pieces of the answer to the last user message; the whole of it joins the history, even when cut."""
        tokens, _ = self.prompt()
        end, ids, text = self.chat.tokenizer.end_id, list[int](), ""
        params = SamplingParams(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed + self.draws,
        )
        self.draws += 1
        try:
            for token in self.stream(tokens, params):
                if token == end:
                    break
                ids.append(token)
                now = self.chat.tokenizer.decode(ids)
                if not now.endswith("\ufffd"):  # a character whose last bytes are still to come
                    yield now[len(text) :]
                    text = now
            rest = self.chat.tokenizer.decode(ids)
            if rest != text:
                yield rest[len(text) :]
                text = rest
        finally:
            self.history.append(Message(role="assistant", content=text))


def visible(text: str) -> str:
    """Control characters shown, not obeyed: a reply must not move the cursor or recolour the terminal."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def talk(
    session: Session,
    lines: Iterable[str],
    write: Callable[[str], object] | None = None,
    note: Callable[[str], object] | None = None,
) -> None:
    """The loop. Replies go to `write` (standard output), everything else to `note` (standard error); returns
    at /quit or the end of `lines`."""
    write, note = write or _out, note or _aside
    for line in lines:
        text = line.strip()
        try:
            if text in ("/quit", "/exit"):
                return
            if text.startswith("/"):
                answer_again = command(session, text, note)
                if not answer_again:
                    continue
            elif not text:
                continue
            else:
                session.history.append(Message(role="user", content=text))
            answer(session, write, note)
        except BloomeryError as error:
            note(visible(str(error)))
            while session.history and session.history[-1].role == "user":
                session.history.pop()


def answer(session: Session, write: Callable[[str], object], note: Callable[[str], object]) -> None:
    """Stream one reply."""
    left_out = session.prompt()[1]
    if left_out:
        note(f"(the first {left_out} messages no longer fit into the context and are left out)")
    pieces = session.reply()
    try:
        for piece in pieces:
            write(visible(piece))
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        note(" (stopped)")
    write("\n")


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _aside(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def command(session: Session, text: str, note: Callable[[str], object]) -> bool:
    """Carry out a /command; True when the model has to answer."""
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if name == "/help":
        note(HELP)
    elif name == "/system":
        session.system = rest or None
        note("(system message set)" if rest else "(no system message)")
    elif name == "/reset":
        session.history.clear()
        note("(forgotten)")
    elif name == "/temp":
        session.temperature = _temperature(rest)
        note(f"(temperature {session.temperature:g})")
    elif name == "/save":
        save(session, rest)
        note(f"(saved to {rest})")
    elif name == "/regen":
        if not session.history:
            raise UsageError("there is nothing to answer again")
        while session.history and session.history[-1].role == "assistant":
            session.history.pop()
        if session.temperature == 0:
            note("(at temperature 0 the answer stays the same; try /temp 0.8)")
        return True
    else:
        raise UsageError(f"there is no command {name}", do="/help lists them")
    return False


def save(session: Session, name: str) -> None:
    """Append nothing, overwrite nothing: the file must be new."""
    if not name:
        raise UsageError("/save takes a file name")
    head = [Message(role="system", content=session.system)] if session.system else []
    if not session.history:
        raise UsageError("there is nothing to save")
    whole = Conversation(id=Path(name).stem, messages=(*head, *session.history))
    try:
        with Path(name).open("x", encoding="utf-8") as file:
            file.write(
                json.dumps(whole.model_dump(mode="json", exclude_none=True), ensure_ascii=False) + "\n"
            )
    except OSError as error:
        raise UsageError("cannot save there", where=name, got=error.strerror) from None


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise UsageError(
            "/temp takes a number", got=text or "nothing", expected="0 to 100, for example /temp 0.8"
        )
    return value
