"""The settings that stages share, each where it belongs: rates and the optimizer by hand, what is held out
against sha256 as another program computes it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from bloomery.infer.engine import Engine
from bloomery.stages import common
from bloomery.stages.common import Compute, Optimiser, is_held_out
from bloomery.train import precision
from bloomery.train.optim import Muon


def test_every_setting_of_the_optimizer_has_its_place() -> None:
    told = Optimiser(learning_rate=0.5, beta1=0.7, beta2=0.8, weight_decay=0.25)
    matrices, vectors = told.over(nn.Linear(2, 2)).param_groups
    assert (matrices["lr"], matrices["betas"], matrices["weight_decay"]) == (0.5, (0.7, 0.8), 0.25)
    assert (vectors["lr"], vectors["betas"], vectors["weight_decay"]) == (0.5, (0.7, 0.8), 0.0)


def test_the_kind_of_optimizer() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(2, 2)])})
    kinds = {kind: type(Optimiser(kind=kind).over(model)) for kind in ("adamw", "muon")}
    assert kinds == {"adamw": torch.optim.AdamW, "muon": Muon}


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"schedule": "constant", "warmup": 2}, [4.0, 8.0, 8.0, 8.0, 8.0, 8.0]),
        ({"schedule": "linear", "warmup": 2, "floor": 0.5}, [4.0, 8.0, 7.0, 6.0, 5.0, 4.0]),
        (
            {"schedule": "linear", "warmup": 100, "floor": 0.0},
            [4.0, 8.0, 4.0, 0.0],
        ),  # half of the run at most
    ],
)
def test_the_rate_of_every_step(settings: dict[str, float], rates: list[float]) -> None:
    told = Optimiser(learning_rate=8.0, **settings)
    optimizer = told.over(nn.Linear(2, 2))
    for step, rate in enumerate(rates):
        assert told.schedule_step(optimizer, step, len(rates)) == pytest.approx(rate)
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(rate)] * 2


def test_answers_are_drawn_in_the_precision_of_training_and_by_graphs_on_a_gpu_only(monkeypatch) -> None:
    def engine(**settings: Any) -> Engine:
        graphs = settings.pop("graphs", False)
        return Compute(**settings).engine(tiny.language_model(8, 0), stop_id=0, pad_id=1, graphs=graphs)

    for kind, products in (("fp32", None), ("bf16", torch.bfloat16)):
        assert engine(precision=kind).products == products
    monkeypatch.setattr(common, "cuda_graph", lambda device: ("graphs of", device))
    for device, record in (("cpu", None), ("cuda", ("graphs of", torch.device("cuda")))):
        monkeypatch.setattr(precision, "device", lambda name=device: torch.device(name))
        assert (engine().record, engine(graphs=True).record) == (None, record)


def test_what_is_held_out_is_the_same_in_every_process() -> None:
    # The first 8 bytes of `printf "0/held out/talk-0" | sha256sum`, least first, without a bit, end in 5302.
    assert [is_held_out("talk-0", share) for share in (0.53, 0.5304)] == [False, True]
    assert not is_held_out("talk-0", 0.0)
