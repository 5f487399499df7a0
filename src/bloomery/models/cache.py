"""Keys and values of the tokens already read, so that decoding runs each token once."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from bloomery.errors import UsageError
from bloomery.models.config import LlamaConfig


class KVCache:
    """For each layer, keys [B, Hkv, Dh, Tmax] and values [B, Hkv, Tmax, Dh]; row b holds `lengths[b]` tokens.

    Keys lie transposed, as decoding's product of one query with all keys reads them, and all Tmax places are
    handed out: a product over some of them would copy them first. Keep Tmax near the lengths held. Rows may
    differ in length: what lies at or beyond a row's length is never attended to and is written over by what
    comes next. A right-padded prefill is
    `model(tokens, cache=cache)` followed by `trim(lengths)`.
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
        heads, size = config.num_key_value_heads, config.head_dim
        self.batch, self.max_len = batch, max_len
        layers = range(config.num_hidden_layers)
        # Zeros: a masked place weighs nothing, but 0 times whatever memory held before could be NaN.
        self.keys = [torch.zeros(batch, heads, size, max_len, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.zeros(batch, heads, max_len, size, dtype=dtype, device=device) for _ in layers]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.longest = 0

    def positions(self, num: int) -> Tensor:
        """Where the next `num` tokens of each row go: [B, num]. Raises `UsageError` when there is no room."""
        if self.longest + num > self.max_len:
            raise UsageError(
                "the cache is full", got=self.longest + num, expected=f"at most {self.max_len} tokens"
            )
        self._rows = torch.arange(self.batch, device=self.lengths.device)[:, None]
        return self.lengths[:, None] + torch.arange(num, device=self.lengths.device)

    def append(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, Hkv, T, Dh] at `positions` [B, T]; return views of all places,
        [B, Hkv, Tmax, Dh]. The lengths move on only with `advance`, after the last layer."""
        num = keys.shape[2]
        if self.longest == 0:
            self.keys[layer][..., :num] = keys.transpose(2, 3)
            self.values[layer][:, :, :num] = values
        else:
            self.keys[layer][self._rows, :, :, positions] = keys.transpose(1, 2)
            self.values[layer][self._rows, :, positions] = values.transpose(1, 2)
        return self.keys[layer].transpose(2, 3), self.values[layer]

    def advance(self, num: int) -> None:
        """Count the `num` tokens just written to every row."""
        self.lengths = self.lengths + num
        self.longest += num

    def trim(self, lengths: Tensor) -> None:
        """Set each row's length [B], forgetting what lies beyond it (the padding of a prefill)."""
        self.lengths = lengths.to(self.lengths)
        self.longest = int(lengths.max()) if len(lengths) else 0

    def share(self, start: int, stop: int) -> KVCache:
        """An empty cache over the same memory, for rows start to stop: lets some rows be read without the
        others. `trim` it to lengths that are held already; call `trim` on this one when all are read."""
        part = copy(self)
        part.keys, part.values = [k[start:stop] for k in self.keys], [v[start:stop] for v in self.values]
        part.lengths, part.longest = torch.zeros_like(self.lengths[start:stop]), 0
        part.batch = stop - start
        return part

    def copy(self, source: int, target: int, length: int) -> None:
        """Let row `target` hold the first `length` tokens of row `source`."""
        for keys, values in zip(self.keys, self.values, strict=True):
            keys[target, :, :, :length] = keys[source, :, :, :length]
            values[target, :, :length] = values[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchange the first `length` tokens of two rows."""
        for keys, values in zip(self.keys, self.values, strict=True):
            for part in (keys[:, :, :, :length], values[:, :, :length]):
                kept = part[one].clone()
                part[one] = part[other]
                part[other] = kept

    def resize(self, batch: int, max_len: int) -> None:
        """Room for `batch` rows of `max_len` tokens. What both the old and the new shape hold is kept. Done a
        layer at a time, so that hardly more than the larger shape is ever taken."""
        rows, places = min(batch, self.batch), min(max_len, self.max_len)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            _, heads, size, _ = keys.shape
            self.keys[layer] = keys.new_zeros(batch, heads, size, max_len)
            self.keys[layer][:rows, :, :, :places] = keys[:rows, :, :, :places]
            self.values[layer] = values.new_zeros(batch, heads, max_len, size)
            self.values[layer][:rows, :, :places] = values[:rows, :, :places]
        lengths = self.lengths.new_zeros(batch)
        lengths[:rows] = self.lengths[:rows].clamp(max=places)
        self.lengths, self.batch, self.max_len = lengths, batch, max_len
        self.longest = int(lengths.max()) if batch else 0
