"""The layers of a Llama-family decoder. Parameter names are those of transformers.

Letters: B rows, T tokens, S keys attended to, H heads, Hkv key-value heads, Dh size of a head, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.models.cache import KVCache
from bloomery.models.config import LlamaConfig


@dataclass(frozen=True, slots=True)
class Reading:
    """What every layer needs to know of one forward pass.

    `cos`, `sin`: [T, Dh] or [B, 1, T, Dh]. `bias`, broadcastable to [B, H, T, S]: 0 where a query may look
    and -inf where not; None means plain causal. `held` says that keys come from the cache, not only go
    there; `positions` [B, T] is where it writes.
    """

    cos: Tensor
    sin: Tensor
    bias: Tensor | None
    cache: KVCache | None = None
    held: bool = False
    positions: Tensor | None = None


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, in the precision of the products that read it: cast once, not by each of them."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps).to(product_dtype(x))


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which matrix products of `x` are computed here: autocast's, if it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def rope_tables(head_dim: int, theta: float, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, Dh] of the angles position / theta^(2i/Dh) (Su et al. 2021), each frequency
    twice, in transformers' half-split layout; the first half of the sines is negated for `rotate`."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    angle = torch.arange(length, dtype=torch.float32, device="cpu")[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + Dh/2]) of [B, H, T, Dh] by their position's angle."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat((second, first), dim=-1), sin)


def by_products(queries: int, keys: int, device: torch.device) -> bool:
    """Whether attention is faster as two plain products than as torch's fused kernel: for one query a row
    (decoding), and on a CPU for short rows."""
    return queries == 1 or (device.type == "cpu" and keys <= 512)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(Dh) + bias) v for q [B, H, T, Dh] and k, v [B, Hkv, S, Dh] -> [B, H, T, Dh].

    The H / Hkv queries that share a key-value head lie side by side in the products. Both ways of computing
    are equal to rounding.
    """
    b, h, t, dh = q.shape
    kv_heads, s = k.shape[1:3]
    if bias is not None and by_products(t, s, q.device):
        grouped = (q * dh**-0.5).reshape(b, kv_heads, -1, dh)
        # Not in place: of a view that is written to, autograd copies the whole gradient three times.
        scores = (grouped @ k.transpose(-1, -2)).view(b, h, t, s) + bias
        weights = scores.softmax(dim=-1).to(v.dtype).view(b, kv_heads, -1, s)
        out: Tensor = weights @ v
        return out.view(b, h, t, dh)
    if kv_heads != h:
        k, v = (x.repeat_interleave(h // kv_heads, dim=1) for x in (k, v))
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, reading: Reading) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (one.view(b, t, -1, self.head_dim).transpose(1, 2) for one in self.project(x))
        q, k = rotate(q, reading.cos, reading.sin), rotate(k, reading.cos, reading.sin)
        if reading.cache is not None and reading.positions is not None:
            held = reading.cache.append(self.layer, k, v, reading.positions)
            if reading.held:
                k, v = held
        out = attend(q, k, v, reading.bias)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, t, -1))
        return projected

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries [B, T, H * Dh], keys and values [B, T, Hkv * Dh] of x [B, T, D]."""
        return products(x, self.q_proj, self.k_proj, self.v_proj)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.widen(x)
        out: Tensor = self.down_proj(F.silu(gate) * up)
        return out

    def widen(self, x: Tensor) -> tuple[Tensor, ...]:
        """The gate before its silu, and what it gates: both [B, T, inner]."""
        return products(x, self.gate_proj, self.up_proj)


def products(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """What each layer makes of x [..., D]: one product where x has rows enough to be worth laying the weights
    side by side."""
    plain = all(type(layer) is nn.Linear for layer in layers)
    if not plain or x.shape[:-1].numel() < sum(layer.out_features for layer in layers):
        return tuple(layer(x) for layer in layers)
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return tuple(F.linear(x, weight, bias).split([layer.out_features for layer in layers], dim=-1))


class Block(nn.Module):
    """Pre-norm residual block: attention, then SwiGLU."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(self, x: Tensor, reading: Reading, at: Tensor | None = None) -> Tensor:
        """x [B, T, D] after the block; or [N, D], with `at` [N], only of these among the B * T positions."""
        x = x + self.self_attn(self.input_layernorm(x), reading)
        if at is not None:
            x = x.flatten(0, 1).index_select(0, at)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
