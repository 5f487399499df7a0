"""Whether a device computes what the CPU computes: a small model's logits, loss, gradients and first update
on a packed batch, and what the engine answers with.

Three kinds of arithmetic, the same on both sides: `fp32` in full, `tf32` as the stages run fp32 on a GPU, and
`bf16` (autocast in training, bf16 weights in the engine).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bloomery.data.batches import TokenBatch, pack
from bloomery.infer.capture import cuda_graph
from bloomery.infer.engine import Engine
from bloomery.models import Llama, LlamaConfig, init
from bloomery.objectives.token import aggregate, token_logprobs
from bloomery.seeds import derive
from bloomery.stages.common import text_losses
from bloomery.train import optim
from bloomery.train import step as update
from bloomery.types import Completion, SamplingParams

MATRIX_PRODUCTS = {"fp32": "highest", "tf32": "medium", "bf16": "medium"}
# How far apart both may be: |a - b| / |b| of what is learned. What is said, in nats at the worst token: how
# much likelier the CPU finds another token than a greedy one, and how far the log-probs of drawn ones differ,
# drawn as usual and by recorded steps.
# AdamW's first step is nearly the gradient's sign, and rounding turns its smallest entries: a wide limit.
LIMITS: Mapping[str, Mapping[str, float]] = {
    "fp32": {"logits": 1e-5, "loss": 3e-6, "gradients": 1e-4, "update": 0.02, "loss after": 5e-5}
    | {"greedy": 1e-3, "drawn": 1e-3, "recorded": 1e-3},
    "tf32": {"logits": 3e-3, "loss": 1e-3, "gradients": 1e-2, "update": 0.2, "loss after": 2e-3}
    | {"greedy": 0.05, "drawn": 0.05, "recorded": 0.05},
    "bf16": {"logits": 2e-2, "loss": 3e-3, "gradients": 5e-2, "update": 0.4, "loss after": 1e-2}
    | {"greedy": 0.2, "drawn": 0.2, "recorded": 0.2},
}
VOCABULARY, LONGEST, ANSWER, RATE = 1000, 96, 24, 1e-2


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """Tell the differences of one kind, and which are beyond their limits."""
    kind, device = settings["kind"], settings["device"]
    torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision(MATRIX_PRODUCTS[kind])
    cpu = small_model()
    found = differences(kind, cpu, deepcopy(cpu).to(device))
    pace.tell(**found, why=complaint(kind, found))
    pace.start()


def small_model() -> Llama:
    """Two layers whose queries share key-value heads, with logits that are not all alike."""
    config = LlamaConfig.shape(128, 2, 4, VOCABULARY, kv_heads=2, context=256, tied=False)
    model = Llama(replace(config, initializer_range=0.1))
    init(model, 0)
    return model


def differences(kind: str, cpu: Llama, other: Llama) -> dict[str, float]:
    """How far two models that should be the same are apart in each thing that `LIMITS` names."""
    batch = some_text()
    a, b = learned(kind, other, batch), learned(kind, cpu, batch)
    found = {name: float((a[name] - b[name]).norm() / b[name].norm()) for name in b}
    if kind == "bf16":
        cpu, other = deepcopy(cpu).bfloat16(), deepcopy(other).bfloat16()
    return found | surprise(cpu, other)


def complaint(kind: str, found: Mapping[str, float]) -> str:
    """What is beyond its limit, or nothing. NaN is beyond any."""
    limits = LIMITS[kind]
    beyond = [name for name, limit in limits.items() if not found[name] <= limit]
    return ", ".join(f"{name} differ by {found[name]:.2g}, more than {limits[name]:g}" for name in beyond)


def some_text() -> TokenBatch:
    """Random tokens in documents of several lengths, packed."""
    generator = torch.Generator().manual_seed(derive(0, "agreement"))
    sizes = torch.randint(8, LONGEST, (24,), generator=generator).tolist()
    texts = [torch.randint(0, VOCABULARY, (size,), generator=generator).tolist() for size in sizes]
    return pack([(text, [True] * len(text)) for text in texts], pad_id=0)


def learned(kind: str, model: Llama, batch: TokenBatch) -> dict[str, Tensor]:
    """One update of a copy of the model, as the pretraining stage makes it; float64, on the CPU."""
    model = deepcopy(model)
    batch = batch.to(model.model.norm.weight.device)

    def loss() -> Tensor:
        with arithmetic(kind, batch.tokens.device):
            return aggregate(text_losses(model, batch), batch.mask, batch.num_tokens)

    with torch.no_grad(), arithmetic(kind, batch.tokens.device):
        logits = model.logits(model(batch.tokens, segments=batch.segments))[batch.segments > 0]
    before, first = flat(model.parameters()), loss()
    first.backward()  # type: ignore[no-untyped-call]
    gradients = flat(p.grad for p in model.parameters() if p.grad is not None)
    optimizer = optim.adamw(model, lr=RATE)
    update.apply(optimizer, 1.0, guard=update.Guard(), loss=first)
    step = flat(model.parameters()) - before
    found = {"logits": logits, "loss": first, "gradients": gradients, "update": step, "loss after": loss()}
    return {name: tensor.detach().double().cpu() for name, tensor in found.items()}


def arithmetic(kind: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if kind == "bf16" else nullcontext()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in tensors])


def surprise(cpu: Llama, other: Llama) -> dict[str, float]:
    """How the CPU's model reads what the engine says with the other: see `LIMITS`."""
    prompts = [[(7 * row + i) % VOCABULARY for i in range(3 + row)] for row in range(12)]
    found = {"greedy": 0.0, "drawn": 0.0, "recorded": 0.0}
    for name, temperature in (("greedy", 0.0), ("drawn", 1.0), ("recorded", 1.0)):
        made = answers(other, prompts, temperature, name == "recorded")
        for prompt, said in zip(prompts, made, strict=True):
            tokens = torch.tensor([[*prompt, *said.tokens]])
            with torch.inference_mode():
                logits = cpu.logits(cpu(tokens)).float()
            read = token_logprobs(logits, tokens)[0, len(prompt) :]
            best = logits.log_softmax(-1).amax(-1)[0, len(prompt) - 1 : -1]
            gaps = best - read if name == "greedy" else (read - torch.tensor(said.logprobs)).abs()
            found[name] = max(found[name], float(gaps.max()))
    return found


def answers(
    model: Llama, prompts: Sequence[Sequence[int]], temperature: float, recorded: bool
) -> list[Completion]:
    """`recorded`: by CUDA graphs, on a device that has them."""
    device = model.model.norm.weight.device
    record = cuda_graph(device) if recorded and device.type == "cuda" else None
    engine = Engine(model, stop_id=0, pad_id=0, record=record)
    params = [
        SamplingParams(max_tokens=ANSWER, temperature=temperature, seed=derive(0, "agreement", row))
        for row in range(len(prompts))
    ]
    return engine(prompts, params)
