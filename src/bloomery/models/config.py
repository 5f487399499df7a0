"""The shape of a Llama-family decoder, under the names Hugging Face's config.json uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from bloomery.errors import ArtifactError, UsageError, nearest

# Keys of a config.json that do not change what the model computes when it is run.
HARMLESS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "bloomery_score_shift",
        "chunk_size_feed_forward",
        "dtype",
        "finetuning_task",
        "id2label",
        "is_llama_config",
        "label2id",
        "model_type",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "torch_dtype",
        "transformers_version",
        "unsloth_version",
        "use_cache",
    }
)
# Keys that would change the computation, with the only value under which this code computes the same.
FIXED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_dropout": (0, 0.0, None),
    "rope_scaling": (None,),
    "partial_rotary_factor": (1, 1.0, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "sliding_window": (None,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Sizes of a decoder. `max_position_embeddings` is the context length in tokens.

    Raises `UsageError` naming the field when the sizes do not fit together.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1", got=getattr(self, name))
        if self.head_dim % 2:
            raise UsageError("head_dim must be even: rotary embeddings turn pairs", got=self.head_dim)
        if self.num_attention_heads % self.num_key_value_heads:
            raise UsageError(
                "num_attention_heads must be a multiple of num_key_value_heads",
                got=f"{self.num_attention_heads} and {self.num_key_value_heads}",
            )

    @classmethod
    def shape(
        cls,
        width: int,
        depth: int,
        heads: int,
        vocab: int,
        *,
        kv_heads: int | None = None,
        context: int = 512,
        tied: bool = True,
    ) -> Self:
        """A model from few dials: the SwiGLU inside is 8/3 of the width, rounded up to a multiple of 32
        (three matrices then hold as many parameters as two of 4 times the width).

        Raises `UsageError` when `width` is not `heads` times an even number.
        """
        if heads < 1 or width % (2 * heads):
            raise UsageError("width must be heads times an even number", got=f"{width} and {heads} heads")
        return cls(
            vocab_size=vocab,
            hidden_size=width,
            intermediate_size=-(-8 * width // 3 // 32) * 32,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads if kv_heads is not None else heads,
            head_dim=width // heads,
            max_position_embeddings=context,
            tie_word_embeddings=tied,
        )

    def num_parameters(self) -> int:
        """Weights of the causal model; tied embeddings count once."""
        d, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        attention = 2 * d * queries + 2 * d * keys
        if self.attention_bias:
            attention += queries + 2 * keys + d
        mlp = 3 * d * inner + (2 * inner + d if self.mlp_bias else 0)
        embeddings = self.vocab_size * d * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * (attention + mlp + 2 * d) + d

    def to_json(self) -> dict[str, Any]:
        """The mapping to write as config.json: the rotary base in the place where transformers 4 looks for
        it and in the one where transformers 5 does, and every special id, since a missing one would get
        transformers' default."""
        tree = asdict(self)
        if isinstance(self.eos_token_id, tuple):
            tree["eos_token_id"] = list(self.eos_token_id)
        tree["rope_parameters"] = {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_cache": True,
            **tree,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], where: object = "config.json") -> Self:
        """Read a config.json. Raises `ArtifactError` for a missing key, a value of the wrong type, and any
        key that might change the computation and is not understood here."""
        known = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for key, value in tree.items():
            if key in known:
                values[key] = _typed(key, value, known[key], where)
            elif key in FIXED:
                if value not in FIXED[key]:
                    raise ArtifactError(
                        f"{key} is not supported", got=value, expected=FIXED[key][0], where=where
                    )
            elif key not in HARMLESS and key != "rope_parameters":
                hint = nearest(key, {*known, *FIXED, *HARMLESS})
                raise ArtifactError(
                    f"unknown key '{key}'{hint}: it may change what the model computes",
                    got=value,
                    where=where,
                    do="remove it if it does not; code from a model directory is never run",
                )
        if (rope := tree.get("rope_parameters")) is not None:
            values["rope_theta"] = _rope_theta(rope, values.get("rope_theta"), where)
        _fill(values, where)
        try:
            return cls(**values)
        except UsageError as error:
            raise ArtifactError(error.what, got=error.got, where=where) from None


_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def _typed(key: str, value: Any, kind: str, where: object) -> Any:
    if value is None and key in ("num_key_value_heads", "head_dim"):
        return None
    if key == "eos_token_id" and isinstance(value, list):
        value = tuple(value)
    plain: dict[str, tuple[type, ...]] = {
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "int | None": (int, type(None)),
        "int | tuple[int, ...] | None": (int, tuple, type(None)),
    }
    inside = value if isinstance(value, tuple) else ()
    if type(value) not in plain[kind] or any(type(one) is not int for one in inside):
        raise ArtifactError(f"{key} has the wrong type", got=repr(value), expected=kind, where=where)
    return value


def _rope_theta(rope: Any, beside: float | None, where: object) -> float:
    supported = isinstance(rope, Mapping) and set(rope) <= {
        "rope_type",
        "rope_theta",
        "partial_rotary_factor",
    }
    if (
        not supported
        or rope.get("rope_type", "default") != "default"
        or rope.get("partial_rotary_factor", 1.0) != 1.0
    ):
        raise ArtifactError(
            "rope_parameters are not supported", got=rope, expected="rope_type 'default'", where=where
        )
    theta = rope.get("rope_theta", beside)
    if type(theta) not in (int, float) or (beside is not None and beside != theta):
        raise ArtifactError("rope_theta is missing or given twice", got=f"{theta} and {beside}", where=where)
    return float(theta)


def _fill(values: dict[str, Any], where: object) -> None:
    """What transformers fills in when it is absent: one key-value head per head, head_dim, and the rest of
    LlamaConfig's defaults are equal to ours."""
    missing = [n for n in _SIZES if n not in values and n not in ("num_key_value_heads", "head_dim")]
    missing = [n for n in missing if n != "max_position_embeddings"]
    if missing:
        raise ArtifactError("keys are missing", got=", ".join(missing), where=where)
    if values.get("num_key_value_heads") is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    if values.get("head_dim") is None:
        if values["hidden_size"] % max(values["num_attention_heads"], 1):
            raise ArtifactError(
                "hidden_size is not a multiple of num_attention_heads",
                got=f"{values['hidden_size']} and {values['num_attention_heads']}",
                where=where,
            )
        values["head_dim"] = values["hidden_size"] // max(values["num_attention_heads"], 1)
