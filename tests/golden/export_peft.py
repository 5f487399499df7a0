"""Writes peft.json: adapter directories as PEFT writes them, and what its models compute with them. Run once,
where PEFT is installed:

    pip install peft==0.21.2 && python tests/golden/export_peft.py

The base models are those of `small` below: weights by a formula, so that nobody needs to store them.
"""

from __future__ import annotations

import base64
import json
import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bloomery.models import Llama, LlamaConfig, ScalarModel, save

CONFIG = LlamaConfig.shape(8, 1, 2, 11, context=16, tied=True)
TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [10, 2, 7, 1, 8, 2, 8, 0]]
CASES: dict[str, dict[str, Any]] = {
    "causal": {"r": 2, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"},
    "rslora": {
        "r": 4,
        "lora_alpha": 3,
        "target_modules": r".*\.(up|down)_proj",
        "use_rslora": True,
        "task_type": "CAUSAL_LM",
    },
    "tokens": {
        "r": 1,
        "lora_alpha": 2,
        "target_modules": ["o_proj"],
        "trainable_token_indices": [9, 2],
        "task_type": "CAUSAL_LM",
    },
    "scalar": {"r": 1, "lora_alpha": 2, "target_modules": "all-linear", "task_type": "SEQ_CLS"},
}


def fill(model: nn.Module) -> None:
    """Weights by a formula: the same on every machine."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(model.named_parameters()):
            values = [0.4 * math.sin(1.7 * i + 0.6 * number) for i in range(parameter.numel())]
            shift = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(torch.tensor(values).view(parameter.shape) + shift)


def small(kind: str) -> Llama | ScalarModel:
    model = ScalarModel(CONFIG) if kind == "scalar" else Llama(CONFIG)
    fill(model)
    return model


def main() -> None:
    import peft
    import transformers

    found = {}
    for name, settings in CASES.items():
        auto = (
            transformers.AutoModelForSequenceClassification
            if name == "scalar"
            else transformers.AutoModelForCausalLM
        )
        with tempfile.TemporaryDirectory() as place:
            save(small(name), Path(place) / "base", pad_id=0)
            base = auto.from_pretrained(Path(place) / "base", dtype=torch.float32)
            model = peft.get_peft_model(base, peft.LoraConfig(**settings))
            learning = nn.ParameterList(p for p in model.parameters() if p.requires_grad)
            fill(learning)
            with torch.no_grad():
                logits: Tensor = model(torch.tensor(TOKENS)).logits
            model.save_pretrained(Path(place) / "adapters")
            config = json.loads((Path(place) / "adapters" / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = "../base"
            found[name] = {
                "adapter_config.json": config,
                "adapter_model.safetensors": base64.b64encode(
                    (Path(place) / "adapters" / "adapter_model.safetensors").read_bytes()
                ).decode(),
                "logits": [[round(x, 6) for x in row] for row in logits.flatten(1).tolist()],
            }
    tree = {"peft": peft.__version__, "tokens": TOKENS, "cases": found}
    Path(__file__).with_name("peft.json").write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
