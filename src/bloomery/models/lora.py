"""Low-rank adapters: a frozen layer learns by the product of two thin matrices beside it,
y = W x + (alpha / r) B A x (LoRA, Hu et al. 2021, arXiv 2106.09685, equation 3 and section 4.1).

The base keeps its parameters and their names; an adapted layer has `lora_A` [r, in] and `lora_B` [out, r] as
well. Without its adapters a model computes what its base does, bit for bit: a policy that learns by adapters
is its own frozen reference (`Bare`). Beside them the vectors of some tokens can learn (`rows.TokenRows`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bloomery import seeds
from bloomery.errors import UsageError, nearest
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel
from bloomery.models.rows import TokenRows

M = TypeVar("M", bound=nn.Module)
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Adapter:
    """What the adapters of a model have in common.

    `targets` name layers by the end of their name, as PEFT's `target_modules`. The rows of `tokens` in the
    embedding, and in a language head of its own, learn as well. `base` is the directory of the model that was
    frozen, to which an adapter directory points. Raises `UsageError` for what is out of range.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...] = LAYERS
    rslora: bool = False
    base: Path | None = None
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError("the rank of adapters must be at least 1", got=self.rank)
        if not 0 < self.alpha < float("inf"):
            raise UsageError("the alpha of adapters must be positive and finite", got=self.alpha)
        if not self.targets:
            raise UsageError("adapters need at least one target", expected=", ".join(LAYERS))
        if len(set(self.tokens)) < len(self.tokens) or any(token < 0 for token in self.tokens):
            raise UsageError("tokens with rows of their own are different ids", got=self.tokens)

    @property
    def scale(self) -> float:
        """What B A x is multiplied by: alpha / r, or alpha / sqrt(r), which keeps its size as the rank grows
        (rsLoRA, Kalajdzievski 2023, arXiv 2312.03732)."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """A linear layer with an adapter: [..., in] -> [..., out]. It takes over the very parameters of `layer`.

    It is no `nn.Linear`, so that code which reads weights instead of calling layers leaves this one alone.
    """

    learns = ("lora_A", "lora_B")
    weight: Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: nn.Linear, adapter: Adapter) -> None:
        super().__init__()
        self.adapter = adapter
        self._plain = (layer,)  # in a tuple, so that it is no part of this module
        self.weight = layer.weight
        self.register_parameter("bias", layer.bias)
        self.lora_A = nn.Parameter(layer.weight.new_zeros(adapter.rank, layer.in_features))
        self.lora_B = nn.Parameter(layer.weight.new_zeros(layer.out_features, adapter.rank))

    def forward(self, x: Tensor) -> Tensor:
        thin = F.linear(x, self.lora_A) * self.adapter.scale
        return F.linear(x, self.weight, self.bias) + F.linear(thin, self.lora_B)

    def plain(self) -> nn.Linear:
        """The layer without its adapter: the same parameters."""
        layer = self._plain[0]
        layer.weight = self.weight
        layer.register_parameter("bias", self.bias)
        return layer

    def whole(self) -> Tensor:
        """W + (alpha / r) B A [out, in], added up in float32 or better."""
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        thin = self.adapter.scale * self.lora_A.detach().to(exact)
        whole = torch.addmm(self.weight.detach().to(exact), self.lora_B.detach().to(exact), thin)
        return whole.to(self.weight.dtype)


def attach(model: Llama | ScalarModel, adapter: Adapter, *, seed: int = 0) -> None:
    """Put adapters on the layers that `adapter` names. From then on only they learn, and a scalar head.

    A ~ uniform(-1, 1) / sqrt(in) from the stream (seed, "lora", the layer's name) and B = 0, as in PEFT: the
    model computes what it did. Only layers of the trunk can be named, never the embeddings or a head; of
    those, the rows of `adapter.tokens` learn, from what they are. Raises `UsageError` for a target that no
    layer fits (naming the nearest), for tokens beyond the vocabulary, and for a model that has adapters.
    """
    if adapter_of(model) is not None:
        raise UsageError("the model has adapters already", do="fold() them into its weights first")
    linear = _linear(model)
    for target in adapter.targets:
        if not any(_fits(name, target) for name in linear):
            known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            hint = nearest(target, [*known, *linear])
            raise UsageError(f"no layer is called '{target}'{hint}", expected=", ".join(known))
    if adapter.tokens and max(adapter.tokens) >= model.config.vocab_size:
        raise UsageError(
            "a token with a row of its own is not in the vocabulary",
            got=max(adapter.tokens),
            expected=f"less than {model.config.vocab_size}",
        )
    model.requires_grad_(False)
    for name, layer in linear.items():
        if any(_fits(name, target) for target in adapter.targets):
            adapted = LoraLinear(layer, adapter)
            _draw(adapted.lora_A, seed, name)
            model.set_submodule(name, adapted)
    for name, table in _tables(model).items() if adapter.tokens else ():
        model.set_submodule(name, TokenRows(table, adapter.tokens))
    if isinstance(model, ScalarModel):
        model.score.requires_grad_(True)


def fitting(model: Llama | ScalarModel, targets: Sequence[str]) -> tuple[str, ...]:
    """Those of the targets that name a layer of this model."""
    linear = _linear(model)
    return tuple(target for target in targets if any(_fits(name, target) for name in linear))


def adapted(model: nn.Module) -> dict[str, LoraLinear | TokenRows]:
    """The layers with an adapter, and the tables with rows of their own, by name."""
    return {n: layer for n, layer in model.named_modules() if isinstance(layer, LoraLinear | TokenRows)}


def adapter_of(model: nn.Module) -> Adapter | None:
    """What its adapters have in common; None for a model without."""
    return next((layer.adapter for layer in model.modules() if isinstance(layer, LoraLinear)), None)


@contextmanager
def without(model: nn.Module) -> Iterator[None]:
    """Inside, the model is its base and has no adapters. Not for two threads with one model."""
    layers = adapted(model)
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer.plain())
        yield
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer)


class Bare:
    """A causal model read without its adapters: the reference of a policy that learns by adapters, in the
    policy's own memory. Call it and its `logits` as one calls the model and its."""

    def __init__(self, model: Llama) -> None:
        self.model = model

    @property
    def config(self) -> LlamaConfig:
        return self.model.config

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the model, with its adapters."""
        return self.model.parameters()

    def __call__(self, tokens: Tensor, **how: Any) -> Tensor:
        """Hidden states of the base; see `Trunk.forward`."""
        with without(self.model):
            hidden: Tensor = self.model(tokens, **how)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., V]."""
        with without(self.model):
            return self.model.logits(hidden)


def share(model: nn.Module, other: nn.Module) -> int:
    """Let `model` use the very tensors of `other` where both have the same frozen parameter, bit for bit,
    under the same name. Returns the bytes that are no longer held twice."""
    theirs, saved = dict(other.named_parameters()), 0
    for place, module in model.named_modules():
        for leaf, mine in list(module.named_parameters(recurse=False)):
            same = theirs.get(f"{place}.{leaf}")
            if same is None or same is mine or same.requires_grad or mine.requires_grad:
                continue
            if same.device == mine.device and same.dtype == mine.dtype and torch.equal(same, mine):
                module.register_parameter(leaf, same)
                if isinstance(module, LoraLinear | TokenRows):
                    module.plain()  # which held the other tensor
                saved += mine.numel() * mine.element_size()
    return saved


@torch.no_grad()
def fold(model: M) -> M:
    """Make the adapters part of the weights for good: a plain model, all of it trainable. Returns it."""
    for name, layer in adapted(model).items():
        plain = layer.plain()
        plain.weight = nn.Parameter(layer.whole())
        model.set_submodule(name, plain)
    model.requires_grad_(True)
    return model


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state with its adapters folded in, under the base's names; the model stays as it is."""
    state = model.state_dict()
    for name, layer in adapted(model).items():
        state[f"{name}.weight"] = layer.whole()
        for part in layer.learns:
            del state[f"{name}.{part}"]
    return state


def learning(model: nn.Module) -> nn.Module:
    """What a checkpoint of a training run must hold: the model, or, where a part is frozen, a module of the
    parameters that learn (the same ones: loading it changes the model)."""
    every = list(model.named_parameters())
    if all(parameter.requires_grad for _, parameter in every):
        return model
    return nn.ParameterDict({n.replace(".", "/"): p for n, p in every if p.requires_grad})


def _linear(model: Llama | ScalarModel) -> dict[str, nn.Linear]:
    """The layers of the trunk that can have an adapter."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if name.startswith("model.") and isinstance(layer, nn.Linear)
    }


def _tables(model: Llama | ScalarModel) -> dict[str, nn.Embedding | nn.Linear]:
    """Where a token has a row: the embedding, and a language head that is not the same."""
    tables: dict[str, nn.Embedding | nn.Linear] = {"model.embed_tokens": model.model.embed_tokens}
    if isinstance(model, Llama) and not model.config.tie_word_embeddings:
        tables["lm_head"] = model.lm_head
    return tables


def _fits(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


@torch.no_grad()
def _draw(parameter: Tensor, seed: int, name: str) -> None:
    """Drawn in float32 on the CPU: a seed gives the same weights on every device and in every dtype."""
    generator = torch.Generator().manual_seed(seeds.derive(seed, "lora", name))
    uniform = torch.rand(parameter.shape, generator=generator, dtype=torch.float32)
    parameter.copy_((2 * uniform - 1) / parameter.shape[1] ** 0.5)
