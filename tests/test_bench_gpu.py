"""The benchmark for a GPU, without one: the CPU agrees with itself, rounding passes, a planted fault does
not; and what becomes of a figure that fails."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from bloomery.models import Llama, LlamaConfig, layers, llama
from bloomery.types import Completion


@pytest.fixture
def agreement(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("gpu.agreement")


@pytest.fixture
def run(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("gpu.run")


@pytest.mark.parametrize("kind", ["fp32", "tf32", "bf16"])
def test_the_cpu_agrees_with_itself(agreement: ModuleType, kind: str) -> None:
    cpu = agreement.small_model()
    found = agreement.differences(kind, cpu, deepcopy(cpu))
    assert set(found) == set(agreement.LIMITS[kind])
    assert agreement.complaint(kind, found) == ""
    assert found["gradients"] == found["update"] == 0


def test_rounding_passes(agreement: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same attention by torch's fused kernel, as a GPU computes it: other sums, the same numbers."""
    cpu, batch = agreement.small_model(), agreement.some_text()
    whole = agreement.learned("fp32", cpu, batch)
    for module in (layers, llama):
        monkeypatch.setattr(module, "by_products", lambda queries, keys, device: queries == 1)
    fused = agreement.learned("fp32", cpu, batch)
    apart = {name: float((fused[name] - whole[name]).norm() / whole[name].norm()) for name in whole}
    assert apart["gradients"] > 0
    assert agreement.complaint("fp32", apart | {"greedy": 0.0, "drawn": 0.0, "recorded": 0.0}) == ""


@pytest.mark.parametrize(
    ("kind", "factor", "names"),
    [("fp32", 1.001, ("logits", "gradients", "drawn")), ("bf16", 1.1, ("logits", "gradients", "loss after"))],
)
def test_a_weight_that_is_off_is_noticed(
    agreement: ModuleType, kind: str, factor: float, names: tuple[str, ...]
) -> None:
    cpu = agreement.small_model()
    off = deepcopy(cpu)
    with torch.no_grad():
        off.model.layers[1].self_attn.o_proj.weight.mul_(factor)
    said = agreement.complaint(kind, agreement.differences(kind, cpu, off))
    assert all(f"{name} differ" in said for name in names), said


def test_what_the_engine_says_is_read_by_the_other_model(
    agreement: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu, answers = agreement.small_model(), agreement.answers

    def wrong(*asked: Any) -> list[Completion]:
        return [Completion((*one.tokens[:-1], 7), one.logprobs, one.finish_reason) for one in answers(*asked)]

    monkeypatch.setattr(agreement, "answers", wrong)
    found = agreement.surprise(cpu, cpu)
    assert min(found.values()) > 0.1, found


def test_nan_is_beyond_every_limit(agreement: ModuleType) -> None:
    for kind, limits in agreement.LIMITS.items():
        said = agreement.complaint(kind, dict.fromkeys(limits, float("nan")))
        assert said.count("differ") == len(limits)


def test_bytes_that_decoding_must_read(run: ModuleType) -> None:
    decode = importlib.import_module("gpu.decode")
    config = LlamaConfig.shape(64, 3, 2, 300, kv_heads=1, context=64)
    made = Llama(config).bfloat16()
    # A token's keys and values: 2 x 3 layers x 1 head x 32 numbers of 2 bytes.
    assert decode.read(made, 5, 10) == 2 * sum(p.numel() for p in made.parameters()) + 5 * 10 * 384
    steps = [decode.read(made, 4, decode.PROMPT + drawn) for drawn in range(decode.DRAWN)]
    assert decode.mean_bytes(made, 4) == pytest.approx(sum(steps) / len(steps))


def test_shares_of_the_device(run: ModuleType) -> None:
    limits = {"bf16 GFLOP/s": 800_000.0, "memory GB/s": 3000.0, "gpu": "NVIDIA H100 80GB HBM3"}
    found = run.shares({"rounds": [1e5, 2e5, 9e5], "flops": 2e9, "settings": {}}, limits)
    assert found == {"of measured": pytest.approx(0.5), "of data sheet": pytest.approx(400 / 989.4)}
    row = {"rounds": [64e3], "bytes": 1.5e9, "settings": {"rows": 64}}
    assert run.shares(row, limits) == {"of measured": 0.5, "of data sheet": pytest.approx(1500 / 3350)}
    assert run.shares(row, {}) == {}
    assert run.shares({"rounds": [1.0], "settings": {}}, limits) == {}


@pytest.mark.parametrize("size", ["full", "tiny"])
def test_every_job_names_a_side_that_exists(run: ModuleType, size: str) -> None:
    found = [job for part in run.PARTS for job in run.jobs(part, run.PLANS[size], Path("m"))]
    assert len({job.name for job in found}) == len(found)
    for job in found:
        assert callable(getattr(importlib.import_module(job.module), job.function)), job
        assert set(job.halved) <= set(job.settings)


def options(tmp_path: Path, part: str) -> list[str]:
    tiny = ["--size", "tiny", "--device", "cpu", "--threads", "1"]
    return ["run.py", *tiny, "--out", str(tmp_path), "--part", part]


def test_a_figure_that_fails_does_not_lose_the_others(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"peaks": {"bf16 GFLOP/s": 1.0}}))

    def measure(job: Any, arguments: argparse.Namespace) -> dict[str, Any]:
        if job.settings["kind"] == "tf32":
            raise run.Broken("the log:\nit died")
        return {"why": "logits differ" if job.settings["kind"] == "bf16" else ""}

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(sys, "argv", options(tmp_path, "agreement"))
    assert run.main() == 1
    kept = json.loads((tmp_path / "results.json").read_text())
    assert list(kept) == ["peaks", "agreement fp32", "agreement tf32", "agreement bf16"]
    assert "FAILED: it died" in (said := capsys.readouterr().out)
    assert "fp32: equal" in said
    assert "bf16: NOT EQUAL: logits differ" in said


def test_half_the_batch_where_memory_is_short(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def measure(job: Any, arguments: Any) -> dict[str, Any]:
        asked.append(job.settings["batch"])
        if job.settings["batch"] > 16:
            raise run.Broken("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB")
        return {"settings": job.settings}

    monkeypatch.setattr(run, "measure", measure)
    job = run.Job(
        "pretrain", "p", "pretrain", "ours", settings={"batch": 64, "size": "XS"}, halved=("batch",)
    )
    assert run.with_less(job, argparse.Namespace())["settings"] == {"batch": 16, "size": "XS"}
    assert asked == [64, 32, 16]
    with pytest.raises(run.Broken):
        run.with_less(run.Job("a", "b", "c", "d", settings={"batch": 64}), argparse.Namespace())


def test_a_figure_from_a_process_of_its_own(
    run: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [*options(tmp_path, "decode"), "--only", "engine", "--rounds", "2"])
    assert run.main() == 0
    rows = json.loads((tmp_path / "results.json").read_text())
    assert list(rows) == ["engine XS rows 4", "engine XS rows 4 recorded"]
    for row in rows.values():
        assert len(row["rounds"]) == 2
        assert row["rounds"][0] > 0
        assert row["peak_mb"] > 1
