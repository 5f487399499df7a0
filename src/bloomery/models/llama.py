"""The Llama family: a decoder over token ids, with a language head or a scalar head.

Module and parameter names are exactly those of transformers' LlamaForCausalLM and
LlamaForSequenceClassification, so weights need no renaming in either direction.
"""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bloomery import seeds
from bloomery.errors import UsageError
from bloomery.models.cache import KVCache
from bloomery.models.config import LlamaConfig
from bloomery.models.layers import Block, Reading, RMSNorm, by_products, product_dtype, rope_tables
from bloomery.models.rows import TokenRows


def segment_positions(segments: Tensor) -> Tensor:
    """Positions [B, T] that restart at 0 where the segment number changes.

    >>> segment_positions(torch.tensor([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    index = torch.arange(segments.shape[1], device=segments.device).expand_as(segments)
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def segment_mask(segments: Tensor) -> Tensor:
    """True [B, 1, T, T] where query t may look at key s: s <= t, in the same segment. Padding (segment 0)
    looks at padding, so that no row of the softmax is empty."""
    t = segments.shape[1]
    causal = torch.ones(t, t, dtype=torch.bool, device=segments.device).tril()
    return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]


def fork(segments: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Mask [B, 1, T, T] and positions [B, T] of rows that hold a prompt and several answers to it.

    The first `prefix` [B] tokens of a row are the prompt; each segment after it sees the prompt and itself,
    and its positions go on where the prompt ended, so that every answer reads as if it stood alone.

    >>> fork(torch.tensor([[1, 1, 2, 2, 3, 0]]), torch.tensor([2]))[1].tolist()
    [[0, 1, 2, 3, 2, 0]]
    """
    index = torch.arange(segments.shape[1], device=segments.device)
    prompt, answers = index < prefix[:, None], (index >= prefix[:, None]) & (segments > 0)
    mask = segment_mask(segments) | (answers[:, :, None] & prompt[:, None, :])[:, None]
    return mask, segment_positions(segments) + torch.where(answers, prefix[:, None], 0)


class Trunk(nn.Module):
    """Embeddings, blocks and the final norm: tokens [B, T] -> hidden [B, T, D].

    With `recompute` the backward pass computes each block again from its input, the only thing of it that is
    kept: less memory for more time, the same gradients.
    """

    cos: Tensor
    sin: Tensor
    recompute = False

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        cos, sin = rope_tables(config.head_dim, config.rope_theta, config.max_position_embeddings)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] after the final norm, each aligned with its token; or [N, D], with `at`
        [N], only of these among the B * T positions: the last block then leaves out what nobody reads.

        `segments` [B, T] packs several documents into a row (numbered from 1; 0 is padding): no token
        attends across them and positions restart; with `prefix` [B] the first tokens of a row are a prompt
        that all its segments share (see `fork`). Without segments attention is causal, so right padding never
        reaches a real token. With `cache` the tokens continue each row of the cache, which then holds them.
        `positions` [B, T] overrides the rotary positions.
        Raises `UsageError` when a row is longer than the context, or for `segments` with a `cache`.
        """
        x = self.embed_tokens(tokens)
        reading = self._reading(tokens, segments, prefix, cache, positions, product_dtype(x))
        again = self.recompute and cache is None and torch.is_grad_enabled()
        for number, layer in enumerate(self.layers, 1):
            given = (x, reading, at if number == len(self.layers) else None)
            if again:
                x = checkpoint(layer, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                # Compiled blocks are for training: a cache has another shape with every step.
                x = layer(*given) if cache is None else layer.forward(*given)
        if cache is not None:
            cache.advance(tokens.shape[1])
        out: Tensor = self.norm(x)
        return out

    def _reading(
        self,
        tokens: Tensor,
        segments: Tensor | None,
        prefix: Tensor | None,
        cache: KVCache | None,
        positions: Tensor | None,
        dtype: torch.dtype,
    ) -> Reading:
        length, context = tokens.shape[1], self.config.max_position_embeddings
        if length + (cache.longest if cache is not None else 0) > context:
            raise UsageError(
                "the sequence is longer than the model's context",
                got=length + (cache.longest if cache is not None else 0),
                expected=f"at most {context} tokens",
            )
        held = cache is not None and cache.longest > 0
        mask, places = None, None
        if cache is not None:
            if segments is not None:
                raise UsageError("packed segments cannot be combined with a cache")
            places = cache.positions(length)
            if held:
                seen = torch.arange(cache.max_len, device=tokens.device)
                mask = (seen <= places[:, :, None])[:, None]
        elif segments is not None and prefix is not None:
            mask, places = fork(segments, prefix)
        elif segments is not None:
            mask, places = segment_mask(segments), segment_positions(segments)
        if mask is None and by_products(length, length, tokens.device):
            mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
        if positions is None and (held or segments is not None):
            positions = places
        if positions is None:
            cos, sin = self.cos[:length], self.sin[:length]
        else:
            cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        return Reading(cos.to(dtype), sin.to(dtype), bias, cache, held, places)


class Llama(nn.Module):
    """The causal language model. With tied embeddings there is no `lm_head` parameter."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tokens: Tensor,
        *,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D], or [N, D] `at` some positions; see `Trunk.forward`. Logits are computed
        apart, only where wanted."""
        hidden: Tensor = self.model(
            tokens, segments=segments, prefix=prefix, cache=cache, positions=positions, at=at
        )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V] of the token that comes next, for hidden states [..., D]. Index `hidden` first
        where only some positions matter: this product is the dearest of a small model."""
        table = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return table.logits(hidden) if isinstance(table, TokenRows) else F.linear(hidden, table.weight)


class ScalarModel(nn.Module):
    """A trunk with one number per token: a reward model (read at the last token) or a value function.

    score = score.weight . hidden + shift. transformers' sequence-classification head has no bias, so the
    shift is kept in config.json as `bloomery_score_shift`: scores read through transformers differ from
    these by exactly that constant, and differences between two answers do not differ at all.
    """

    shift: Tensor

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)
        self.register_buffer("shift", torch.zeros(()))

    @classmethod
    def from_causal(cls, model: Llama, seed: int) -> Self:
        """A scalar model on a copy of `model`'s trunk; score.weight ~ normal(0, 1 / sqrt(D + 1))
        (Stiennon et al. 2020), drawn from the stream (seed, "score")."""
        config = model.config
        parameter = next(model.parameters())
        scalar = cls(config).to(device=parameter.device, dtype=parameter.dtype)
        scalar.model.load_state_dict(model.model.state_dict())
        _normal(scalar.score.weight, (config.hidden_size + 1) ** -0.5, _generator(seed, "score"))
        return scalar

    def forward(
        self,
        tokens: Tensor,
        *,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
        cache: KVCache | None = None,
        positions: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Scores [B, T], one at every token, given what came up to and including it; or [N], with `at` [N],
        only at these among the B * T positions."""
        hidden = self.model(tokens, segments=segments, prefix=prefix, cache=cache, positions=positions, at=at)
        return self.scores(hidden)

    def scores(self, hidden: Tensor) -> Tensor:
        """Scores [...] for hidden states [..., D]."""
        score: Tensor = self.score(hidden).squeeze(-1) + self.shift
        return score


def init(model: Llama | ScalarModel, seed: int) -> None:
    """Fresh weights from the stream (seed, "init"): matrices ~ normal(0, initializer_range), the two that
    write to the residual stream divided by sqrt(2 * layers) (Radford et al. 2019), norms 1, biases 0."""
    generator = _generator(seed, "init")
    std = model.config.initializer_range
    residual = std / (2 * model.config.num_hidden_layers) ** 0.5
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            nn.init.ones_(parameter)
        elif name.endswith(".bias"):
            nn.init.zeros_(parameter)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            _normal(parameter, residual, generator)
        elif name == "score.weight":
            _normal(parameter, (model.config.hidden_size + 1) ** -0.5, generator)
        else:
            _normal(parameter, std, generator)


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(seeds.derive(seed, name))


@torch.no_grad()
def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Drawn in float32 on the CPU: a seed gives the same weights on every device and in every dtype."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float32) * std)
