"""What the benchmarks against TRL share; runs in TRL's own environment, so nothing of ours is imported.

TRL's trainers run unmodified. Where an option is only about speed we take the faster setting for them:
no gradient checkpointing, fused AdamW, no reports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def arguments(settings: Mapping[str, Any], batch: int, learning_rate: float) -> dict[str, Any]:
    """Of `transformers.TrainingArguments`: the data in the order given, a constant learning rate."""
    return {
        "output_dir": str(Path(settings["scratch"]) / "trl"),
        "use_cpu": settings.get("device", "cpu") == "cpu",
        "bf16": settings["precision"] == "bf16",
        "per_device_train_batch_size": batch,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 1000,
        "seed": 0,
    }


def held(pace: Any, units: float, facts: Mapping[str, str]) -> Any:
    """A callback that ends a step when it is logged and holds the trainer between rounds.

    `facts` maps our name of a metric to TRL's.
    """
    import torch
    from transformers import TrainerCallback

    class Held(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            pace.start()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            pace.end(units, **{ours: float(logs[theirs]) for ours, theirs in facts.items()})
            pace.start()

    torch.manual_seed(0)
    return Held()


def read(settings: Mapping[str, Any], name: str) -> Any:
    """A file of the material."""
    return json.loads((Path(settings["material"]) / name).read_text(encoding="utf-8"))


def read_lines(settings: Mapping[str, Any], name: str) -> list[Any]:
    """A JSON Lines file of the material."""
    text = (Path(settings["material"]) / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def tokenizer(settings: Mapping[str, Any]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(Path(settings["material"]) / "policy"))


def model(settings: Mapping[str, Any], name: str) -> Any:
    """`policy` or `reward` of the material, float32, as transformers reads it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    torch.set_num_threads(settings["threads"])
    kind = AutoModelForSequenceClassification if name == "reward" else AutoModelForCausalLM
    extra = {"num_labels": 1} if name == "reward" else {}
    return kind.from_pretrained(str(Path(settings["material"]) / name), dtype=torch.float32, **extra)
