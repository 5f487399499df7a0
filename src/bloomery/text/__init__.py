"""Text to token ids and back: the tokenizer, and the one renderer of conversations."""

from bloomery.text.chat import Chat, Rendered, Span, require_trained
from bloomery.text.tokenizer import SPECIALS, Tokenizer

__all__ = ["SPECIALS", "Chat", "Rendered", "Span", "Tokenizer", "require_trained"]
