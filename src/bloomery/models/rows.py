"""Rows that learn in a table that does not: vectors of their own for tokens that a base has never read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TokenRows(nn.Module):
    """An embedding or a language head [V, D] of which the rows of `ids` learn, as PEFT's
    `trainable_token_indices`. It takes over the very weight of `table`, and has these rows as `rows` besides.

    Called it looks tokens up, [...] -> [..., D]; `logits` is the product with all rows.
    """

    learns = ("rows",)
    weight: Tensor
    ids: Tensor
    place: Tensor

    def __init__(self, table: nn.Embedding | nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self._plain = (table,)  # in a tuple, so that it is no part of this module
        self.weight = table.weight
        named = torch.tensor(ids, device=self.weight.device)
        place = torch.full((len(self.weight),), -1, device=self.weight.device)
        place[named] = torch.arange(len(ids), device=self.weight.device)
        self.register_buffer("ids", named, persistent=False)
        self.register_buffer("place", place, persistent=False)  # of a token among them, or -1
        self.rows = nn.Parameter(self.weight.detach()[named])

    def forward(self, tokens: Tensor) -> Tensor:
        place = self.place[tokens]
        own = F.embedding(place.clamp(min=0), self.rows)
        return torch.where((place >= 0)[..., None], own, F.embedding(tokens, self.weight))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] for hidden states [..., D]."""
        scores = F.linear(hidden, self.weight)
        return scores.index_copy_(-1, self.ids, F.linear(hidden, self.rows))

    def plain(self) -> nn.Embedding | nn.Linear:
        """The table without rows of its own: the same parameter."""
        table = self._plain[0]
        table.weight = self.weight
        return table

    def whole(self) -> Tensor:
        """The table [V, D] with these rows in it."""
        return self.weight.detach().index_copy(0, self.ids, self.rows.detach())
