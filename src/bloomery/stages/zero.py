"""Where a reward model's zero is: what people demonstrated scores 0 on average."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bloomery.data.sources import OnBadRow, read_conversations
from bloomery.models.llama import ScalarModel
from bloomery.rewards.model import score_sequences
from bloomery.stages.common import read_all, short_enough
from bloomery.text.chat import Chat


def demonstrated(
    path: Path | None, chat: Chat, limit: int, on_bad_row: OnBadRow, say: Callable[[str], None]
) -> list[list[int]]:
    """The demonstrations whose mean score is to be 0, as tokens: those of at most `limit` of them; says how
    many are longer. None without a file.

    Raises `UsageError` where the file holds none: it is read before the training that this would end.
    """
    if path is None:
        return []
    conversations = read_all(read_conversations, [path], on_bad_row, say)
    sequences = [chat.render(c.messages).tokens for c in conversations]
    do = "give shorter demonstrations, or none: then scores are not shifted"
    return short_enough(sequences, len, limit, "demonstrations", say, do)


@torch.no_grad()
def shift_to_zero(model: ScalarModel, demonstrations: Sequence[Sequence[int]], pad_id: int) -> None:
    """Shift the output so that demonstrations score 0 on average (Stiennon et al. 2020, section 3.4)."""
    model.shift -= score_sequences(model, demonstrations, pad_id).mean()
