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

    def __init__(self, table: nn.Embedding | nn.Linear, ids: Sequence[int]) -> None:
        super().__init__()
        self._plain = (table,)  # in a tuple, so that it is no part of this module
        self.weight = table.weight
        self.register_buffer("ids", torch.tensor(ids, device=table.weight.device), persistent=False)
        self.rows = nn.Parameter(table.weight.detach()[list(ids)].clone())

    def forward(self, tokens: Tensor) -> Tensor:
        among = tokens[..., None] == self.ids
        own = F.embedding(among.int().argmax(-1), self.rows)
        return torch.where(among.any(-1, keepdim=True), own, F.embedding(tokens, self.weight))

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
