"""Model families by Hugging Face `model_type`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel
from bloomery.registry import Registry

Kind = Literal["causal", "scalar"]


@dataclass(frozen=True, slots=True)
class Family:
    """What a family is made of; `architectures` are the class names written into config.json."""

    config: type[LlamaConfig]
    causal: type[Llama]
    scalar: type[ScalarModel]
    architectures: dict[Kind, str]


families: Registry[Family] = Registry("model family")
families.register("llama")(
    Family(
        LlamaConfig,
        Llama,
        ScalarModel,
        {"causal": "LlamaForCausalLM", "scalar": "LlamaForSequenceClassification"},
    )
)


def build(config: LlamaConfig) -> Llama:
    """A causal model of these sizes; its weights are not meaningful before `init` or `hub.load`."""
    return Llama(config)
