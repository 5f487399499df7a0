"""A model's weights laid out for decoding: the same forward over fewer, faster matrix products.

Decoding multiplies few rows by every weight, so the products' fixed costs tell. The queries, keys and values
come from one product, the gate and what it gates from another, and on a CPU each float32 weight is put once
into the order that oneDNN computes in, which a plain product would do anew every time.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery.models.layers import Attention, Block, SwiGLU
from bloomery.models.llama import Llama
from bloomery.models.lora import LoraLinear
from bloomery.models.rows import TokenRows

# Rows for which oneDNN chooses a weight's layout; any number of rows may be multiplied.
USUAL_ROWS = 64


class Product(nn.Module):
    """One or more linear layers over the same input as one product: [..., D] -> [..., sum of outputs]. The
    weights are kept in `dtype`, if given: read under autocast to the same, which casts what comes in."""

    def __init__(self, *layers: nn.Linear | LoraLinear, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.widths = [len(layer.weight) for layer in layers]
        weight = torch.cat([_whole(layer) for layer in layers]).to(dtype)
        biases = [layer.bias.detach().to(dtype) for layer in layers if layer.bias is not None]
        self.bias = torch.cat(biases) if biases else None
        self.onednn = weight.dtype == torch.float32 and weight.device.type == "cpu" and _has_onednn()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, USUAL_ROWS) if self.onednn else weight

    def forward(self, x: Tensor) -> Tensor:
        if self.onednn:
            out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return out
        return F.linear(x, self.weight, self.bias)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        """What each of the layers gives."""
        parts: tuple[Tensor, ...] = self(x).split(self.widths, dim=-1)
        return parts


def _whole(layer: nn.Linear | nn.Embedding | LoraLinear | TokenRows) -> Tensor:
    """A layer's weight, with what an adapter or rows of its own make of it."""
    return layer.whole() if isinstance(layer, LoraLinear | TokenRows) else layer.weight.detach()


def _has_onednn() -> bool:
    """Whether torch was built with the operators that its own compiler uses for frozen weights."""
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in ("_reorder_linear_weight", "_linear_pointwise")
    )


class PackedAttention(Attention):
    """`Attention` whose three projections are one product."""

    def __init__(self, source: Attention, dtype: torch.dtype | None) -> None:
        nn.Module.__init__(self)
        self.layer, self.head_dim = source.layer, source.head_dim
        self.qkv = Product(source.q_proj, source.k_proj, source.v_proj, dtype=dtype)
        self.o_proj = cast(nn.Linear, Product(source.o_proj, dtype=dtype))

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv.parts(x)


class PackedSwiGLU(SwiGLU):
    """`SwiGLU` whose two products over the input are one."""

    def __init__(self, source: SwiGLU, dtype: torch.dtype | None) -> None:
        nn.Module.__init__(self)
        self.wide = Product(source.gate_proj, source.up_proj, dtype=dtype)
        self.down_proj = cast(nn.Linear, Product(source.down_proj, dtype=dtype))

    def widen(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.wide.parts(x)


class PackedLlama(Llama):
    """`Llama` over packed weights; embeddings, norms and rotary tables are shared with the source."""

    def __init__(self, source: Llama, dtype: torch.dtype | None) -> None:
        with torch.device("meta"):
            super().__init__(source.config)
        trunk = source.model
        self.model.embed_tokens, self.model.norm = trunk.embed_tokens, trunk.norm
        self.model.cos, self.model.sin = trunk.cos, trunk.sin
        for mine, theirs in zip(self.model.layers, trunk.layers, strict=True):
            mine, theirs = cast(Block, mine), cast(Block, theirs)
            mine.input_layernorm = theirs.input_layernorm
            mine.post_attention_layernorm = theirs.post_attention_layernorm
            mine.self_attn = PackedAttention(theirs.self_attn, dtype)
            mine.mlp = PackedSwiGLU(theirs.mlp, dtype)
        self.unembed = Product(_unembedding(source), dtype=dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.unembed(hidden)
        return out


def _unembedding(model: Llama) -> nn.Linear:
    """The language head as a layer, for tied embeddings a view of them."""
    table = model.model.embed_tokens if model.config.tie_word_embeddings else model.lm_head
    vocabulary, width = table.weight.shape
    layer = nn.Linear(width, vocabulary, bias=False, device="meta")
    layer.weight = nn.Parameter(_whole(table), requires_grad=False)
    return layer


def pack(model: Llama, dtype: torch.dtype | None = None) -> Llama:
    """A twin of `model` for inference: equal results to rounding, not trainable, a snapshot of the weights.
    Adapters are summed into the weights. With `dtype` the weights of its products are kept in that, for a
    forward under autocast to it.

    A model whose projections are other layers than these is returned as it is; with `dtype` one with adapters
    too, as their sum rounds otherwise than its two parts: log-probs would be others than a trainer's.
    """
    projections = (
        layer
        for block in model.model.layers
        for part in (cast(Block, block).self_attn, cast(Block, block).mlp)
        for layer in part.children()
    )
    kinds = (nn.Linear, LoraLinear) if dtype is None else (nn.Linear,)
    if all(type(layer) in kinds for layer in projections):
        return PackedLlama(model, dtype)
    return model
