"""Keys and values of the tokens already read, so that decoding runs each token once."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.models.config import LlamaConfig


class KVCache:
    """For each layer, keys and values [B, Hkv, Tmax, Dh]; row b holds `lengths[b]` tokens.

    Rows may differ in length: what lies at or beyond a row's length is never attended to and is written over
    by what comes next. A right-padded prefill is `model(tokens, cache=cache)` followed by `trim(lengths)`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, config.num_key_value_heads, max_len, config.head_dim)
        self.max_len = max_len
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)]
        self.values = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_hidden_layers)
        ]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0

    def positions(self, num: int) -> Tensor:
        """Where the next `num` tokens of each row go: [B, num]. Raises `UsageError` when there is no room."""
        if self.longest + num > self.max_len:
            raise UsageError(
                "the cache is full", got=self.longest + num, expected=f"at most {self.max_len} tokens"
            )
        return self.lengths[:, None] + torch.arange(num, device=self.lengths.device)

    def append(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, Hkv, T, Dh] at `positions` [B, T]; return views of all that is held,
        [B, Hkv, longest + T, Dh]. The lengths move on only with `advance`, after the last layer."""
        num = keys.shape[2]
        if self.longest == 0:
            self.keys[layer][:, :, :num] = keys
            self.values[layer][:, :, :num] = values
        else:
            rows = torch.arange(len(keys), device=keys.device)[:, None]
            self.keys[layer][rows, :, positions] = keys.transpose(1, 2)
            self.values[layer][rows, :, positions] = values.transpose(1, 2)
        held = self.longest + num
        return self.keys[layer][:, :, :held], self.values[layer][:, :, :held]

    def advance(self, num: int) -> None:
        """Count the `num` tokens just written to every row."""
        self.lengths = self.lengths + num
        self.longest += num

    def trim(self, lengths: Tensor) -> None:
        """Set each row's length [B], forgetting what lies beyond it (the padding of a prefill)."""
        self.lengths = lengths.to(self.lengths)
        self.longest = int(lengths.max()) if len(lengths) else 0

    def share(self, start: int, stop: int) -> KVCache:
        """An empty cache over the same memory, for rows start to stop: lets rows of like length be read
        together. Call `trim` on this one when all are read."""
        part = copy(self)
        part.keys, part.values = [k[start:stop] for k in self.keys], [v[start:stop] for v in self.values]
        part.lengths, part.longest = torch.zeros_like(self.lengths[start:stop]), 0
        return part

    def select(self, rows: Tensor) -> None:
        """Keep the rows of this index [N], in its order: drops finished rows, or repeats a shared prompt."""
        self.lengths = self.lengths[rows]
        for held in (self.keys, self.values):
            for layer, tensor in enumerate(held):
                held[layer] = tensor.index_select(0, rows)
        self.longest = int(self.lengths.max()) if len(rows) else 0
