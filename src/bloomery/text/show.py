"""What a conversation looks like to the model: every token, its borders, and what is trained on."""

from __future__ import annotations

from rich.text import Text

from bloomery.text.chat import Rendered
from bloomery.text.tokenizer import Tokenizer

TRAINED = "bold green"
CONTROL = "magenta"
CONTEXT = "default"
BORDER = "dim"


def show(rendered: Rendered, tokenizer: Tokenizer) -> Text:
    """A coloured text: one line per turn, tokens between bars, a legend and counts below.

    It can be read without colour too: a line that trains anything starts with `*`, and `^` under the line
    marks the trained tokens.
    """
    out = Text()
    for line in _lines(rendered.tokens, tokenizer.end_id):
        trained = [rendered.mask[t] for t in line]
        words = [_visible(tokenizer.decode([rendered.tokens[t]], skip_special=False)) for t in line]
        out.append("* " if any(trained) else "  ", TRAINED)
        for t, word, counts in zip(line, words, trained, strict=True):
            control = rendered.tokens[t] in tokenizer.control_ids
            out.append(word, TRAINED if counts else CONTROL if control else CONTEXT)
            out.append("|", BORDER)
        out.append("\n")
        if any(trained):
            marks = (
                ("^" if counts else " ") * Text(word).cell_len
                for word, counts in zip(words, trained, strict=True)
            )
            out.append("  " + " ".join(marks).rstrip() + "\n", TRAINED)
    num_trained = sum(rendered.mask)
    out.append("trained on", TRAINED).append(f" {num_trained} of {len(rendered.tokens)} tokens   ")
    out.append("control", CONTROL).append("   ").append("context", CONTEXT)
    out.append("   ⏎ newline   ").append("|", BORDER).append(" end of a token\n")
    return out


def _lines(tokens: list[int], end_id: int) -> list[range]:
    """Token positions by turn: a line ends with an end token."""
    ends = [t + 1 for t, token in enumerate(tokens) if token == end_id]
    if not ends or ends[-1] != len(tokens):
        ends.append(len(tokens))
    return [range(start, stop) for start, stop in zip([0, *ends], ends, strict=False)]


def _visible(piece: str) -> str:
    """Control characters would move the cursor; show them instead."""
    piece = piece.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in piece)
