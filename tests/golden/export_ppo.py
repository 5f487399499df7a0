"""Writes ppo.json: what TRL's own PPO makes of a few answers. Run once, where the last TRL with PPO is:

    pip install trl==1.12.0 && python tests/golden/export_ppo.py

Rewards, advantages and losses stand in the middle of `PPOTrainer.train`. So the method itself is run, on a
stand-in that has what it reads: the models answer with numbers we chose, and what it has made of them by the
time of its first backward is read from its frame. Without padding, where TRL and we put the score on the same
token; with it, the advantages of the rewards that TRL has put where it puts them.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.experimental.ppo import ppo_trainer

ROWS, PROMPT, WIDTH, WORDS, PAD, EOS = 4, 2, 6, 9, 0, 1
SETTINGS = {"gamma": 0.9, "lam": 0.8, "kl_coef": 0.3, "cliprange": 0.2, "cliprange_value": 0.2}


class Reached(Exception):
    """The first backward: `found` is what was there by then."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found


def numbers(lengths: list[int]) -> dict[str, Tensor]:
    """What the models say: answers end with EOS and are padded behind it."""
    draw = torch.Generator().manual_seed(len(set(lengths)))
    place = torch.arange(WIDTH)
    responses = torch.randint(2, WORDS, (ROWS, WIDTH), generator=draw)
    ends = torch.tensor(lengths)[:, None]
    responses = responses.where(place < ends - 1, EOS).where(place < ends, PAD)
    sizes = (ROWS, PROMPT + WIDTH)
    values = torch.randn(*sizes, 1, generator=draw)
    return {
        "queries": torch.randint(2, WORDS, (ROWS, PROMPT), generator=draw),
        "responses": responses,
        "logits": torch.randn(ROWS, WIDTH, WORDS, generator=draw),
        "reference": torch.randn(*sizes, WORDS, generator=draw),
        "new": torch.randn(*sizes, WORDS, generator=draw),
        "values": values,
        "new_values": values + 0.3 * torch.randn(*sizes, 1, generator=draw),
        "scores": torch.randn(ROWS, generator=draw),
    }


def stand_in(given: dict[str, Tensor], model: SimpleNamespace, **settings: Any) -> SimpleNamespace:
    """As much of a trainer as `train` reads before its first backward."""

    def backward(loss: Tensor) -> None:
        there = sys._getframe(1).f_locals
        by_value = torch.autograd.grad(there["vf_loss"], there["vpred_temp"], retain_graph=True)[0]
        raise Reached({**there, "by_value": by_value[:, PROMPT - 1 : -1, 0]})

    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        print=lambda *_: None,
        unwrap_model=lambda x: x,
        accumulate=lambda _: nullcontext(),
        backward=backward,
    )
    args = SimpleNamespace(
        **{"response_length": WIDTH, "temperature": 1.0, "num_ppo_epochs": 1, "num_mini_batches": 1},
        **{"gradient_accumulation_steps": 1, "num_total_batches": 1, "total_episodes": ROWS},
        **{"logging_steps": None, "eval_steps": None, "save_steps": None, "batch_size": ROWS},
        **{"local_rollout_forward_batch_size": ROWS, "local_batch_size": ROWS, "local_mini_batch_size": ROWS},
        **{"per_device_train_batch_size": ROWS, "ds3_gather_for_generation": False, "vf_coef": 0.1},
        **{
            "missing_eos_penalty": None,
            "kl_estimator": "k1",
            "whiten_rewards": False,
            **SETTINGS,
            **settings,
        },
    )
    return SimpleNamespace(
        **{
            "args": args,
            "accelerator": accelerator,
            "optimizer": None,
            "model": model,
            "stop_token_id": None,
        },
        **{"ref_model": "reference", "reward_model": "reward", "state": SimpleNamespace(), "control": None},
        processing_class=SimpleNamespace(pad_token_id=PAD, eos_token_id=EOS),
        dataloader=[{"input_ids": given["queries"]}],
        train_dataset_len=ROWS,
        callback_handler=SimpleNamespace(on_train_begin=lambda *_: None),
        is_deepspeed_enabled=False,
    )


def reached(lengths: list[int], **settings: Any) -> dict[str, Any]:
    """What `train` has by its first backward, and every masked_whiten on the way."""
    given, whitened = numbers(lengths), list[dict[str, Any]]()
    model = SimpleNamespace(policy="policy", value_model="value", train=lambda: None)
    whiten = ppo_trainer.masked_whiten

    def forward(who: Any, *_: Any) -> Any:
        if who is model:
            return SimpleNamespace(logits=given["new"].clone()), given["new_values"].clone().requires_grad_()
        return SimpleNamespace(logits=given["reference"].clone())

    def watched(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        result = whiten(values, mask, shift_mean)
        whitened.append({"from": values, "mask": mask, "shift_mean": shift_mean, "to": result.clone()})
        return result

    generated = torch.cat((given["queries"], given["responses"]), 1), given["logits"]
    ppo_trainer.forward, ppo_trainer.masked_whiten = forward, watched
    ppo_trainer.batch_generation = lambda *_: generated
    ppo_trainer.unwrap_model_for_generation = lambda *_, **__: nullcontext(model)
    ppo_trainer.get_reward = lambda who, *_: (given["values"].clone(), given["scores"].clone(), None)
    try:
        ppo_trainer.PPOTrainer.train(stand_in(given, model, **settings))
    except Reached as end:
        return {**end.found, "whitened": whitened}
    finally:
        ppo_trainer.masked_whiten = whiten
    raise AssertionError("train never went backward")


def case(name: str, lengths: list[int], **settings: Any) -> dict[str, Any]:
    there = reached(lengths, **settings)
    rows = torch.as_tensor(there["mb_values"]), there["micro_batch_inds"]
    back = torch.argsort(torch.as_tensor(rows[1]))
    last = there["whitened"][-1]
    return {
        "name": name,
        "settings": {**SETTINGS, **settings},
        "mask": (~there["padding_mask"]).tolist(),
        "value_mask": (~there["padding_mask_p1"]).tolist(),
        **{key: there[key].tolist() for key in ("logprobs", "ref_logprobs", "scores", "values", "rewards")},
        **{"advantages": last["from"].tolist(), "returns": there["returns"].tolist()},
        "whitened": [{key: plain(value) for key, value in one.items()} for one in there["whitened"]],
        "new_values": there["vpred"][back].tolist(),
        "value_loss": there["vf_loss"].item(),
        "value_clipped": there["vf_clipfrac"].item(),
        "value_gradient": there["by_value"][back].tolist(),
        "new_logprobs": there["new_logprobs"][back].tolist(),
        "policy_loss": there["pg_loss"].item(),
    }


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else value


if __name__ == "__main__":
    cases = [
        case("whole", [WIDTH] * ROWS),
        case("whole, rewards whitened", [WIDTH] * ROWS, whiten_rewards=True),
        case("padded", [WIDTH, 2, 4, 1]),
    ]
    made_by = {"trl": trl.__version__, "torch": torch.__version__}
    text = json.dumps({"made_by": made_by, "cases": cases}, indent=1)
    Path(__file__).with_name("ppo.json").write_text(text + "\n")
