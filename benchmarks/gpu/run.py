"""What the GPU of this machine does with our code, written down figure by figure.

    python benchmarks/gpu/run.py [--part agreement,pretrain,decode,rl,kernels] [--only 124M] [--out runs/gpu]
    python benchmarks/gpu/run.py --size tiny --device cpu

Every figure comes from a process of its own, with a limit of time; it is in OUT/results.json as soon as it is
there, and one that fails is a line there. Figures of parts that are not run again stay. See README.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from bench import Broken, Missing, Worker, interpreter, machine, value  # noqa: E402
from tables import number, spread  # noqa: E402

PARTS = ("peaks", "agreement", "pretrain", "decode", "rl", "kernels")
# Dense bf16 TFLOP/s and memory GB/s of the vendor's data sheets, by what the driver calls the card.
SHEETS = {"H100 80GB HBM3": (989.4, 3350.0), "H200": (989.4, 4800.0), "A100-SXM4-80GB": (312.0, 2039.0)}


@dataclass(frozen=True)
class Plan:
    """What is measured at a size. `train` maps a model to the rows of a step, which are halved where memory
    is short; `kinds` are the bare forward's ways."""

    train: Mapping[str, int]
    compiled: tuple[bool, ...]
    decode: tuple[str, ...]
    rows: tuple[int, ...]
    ways: tuple[str, ...]
    rl: str
    prompts: int
    longest: int
    steps: Mapping[str, int]


PLANS = {
    "full": Plan(
        train={"124M": 64, "350M": 32, "30M": 128},
        compiled=(False, True),
        decode=("124M", "350M"),
        rows=(1, 64, 512),
        ways=("plain", "captured", "compiled and captured"),
        rl="124M",
        prompts=32,
        longest=128,
        steps={"pretrain": 8, "engine": 1, "generate": 1, "forward": 50, "rl": 2},
    ),
    "tiny": Plan(
        train={"XS": 4},
        compiled=(False,),
        decode=("XS",),
        rows=(4,),
        ways=("captured",),
        rl="XS",
        prompts=2,
        longest=8,
        steps={"pretrain": 2, "engine": 1, "generate": 1, "forward": 5, "rl": 1},
    ),
}


@dataclass(frozen=True)
class Job:
    """One figure: a side of a benchmark, `function(pace, settings)` of a module beside or below bench.py.
    `python` is whose environment it needs, as `bench.interpreter` knows them; None is ours."""

    part: str
    name: str
    module: str
    function: str
    unit: str = ""
    steps: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    halved: tuple[str, ...] = ()
    python: str | None = None


def jobs(part: str, plan: Plan, material: Path) -> Iterator[Job]:
    """What a part measures, what matters most first."""
    steps = plan.steps
    if part == "peaks":
        yield Job(part, "peaks", "peaks", "ours")
    if part == "agreement":
        for kind in ("fp32", "tf32", "bf16"):
            yield Job(part, f"agreement {kind}", "gpu.agreement", "ours", settings={"kind": kind})
    if part == "pretrain":
        for compiled in plan.compiled:
            for size, batch in plan.train.items():
                how = {"size": size, "batch": batch, "compile": compiled, "material": str(material)}
                name = f"pretrain {size}{' compiled' if compiled else ''}"
                yield Job(part, name, "pretrain", "ours", "tok/s", steps[part], how, ("batch",))
    if part == "decode":
        for size in plan.decode:
            for rows in plan.rows:
                how, name = {"size": size, "rows": rows, "recorded": False}, f"{size} rows {rows}"
                yield Job(part, f"engine {name}", "gpu.decode", "ours", "tok/s", steps["engine"], how)
                again = {**how, "recorded": True}
                yield Job(
                    part, f"engine {name} recorded", "gpu.decode", "ours", "tok/s", steps["engine"], again
                )
                peer = Job(part, f"generate {name}", "gpu.decode", "theirs", "tok/s", steps["generate"], how)
                yield replace(peer, python="")
                for way in plan.ways:
                    told, how = f"forward {name} {way}", {**how, "way": way}
                    yield Job(part, told, "gpu.decode", "forward", "tok/s", steps["forward"], how)
    if part == "rl":
        how = {"size": plan.rl, "material": str(material), "longest": plan.longest}
        how |= {"prompts": plan.prompts, "episodes": plan.prompts * 8}
        for name, module, function, python in (
            ("ppo", "ppo", "ours", None),
            ("grpo", "grpo", "ours", None),
            ("TRL grpo", "grpo", "theirs", "trl"),
        ):
            shrunk = ("prompts", "episodes")
            told = f"{name} {plan.rl}"
            yield Job(part, told, module, function, "episodes/s", steps[part], how, shrunk, python)
    if part == "kernels":
        read = {"size": plan.rl, "material": str(material)}
        asked = {"longest": plan.longest, "episodes": plan.prompts * 8}
        for name, how in (
            ("pretrain", {**read, "batch": plan.train[plan.rl]}),
            ("gpu.decode", {"size": plan.decode[0], "rows": plan.rows[len(plan.rows) // 2]}),
            ("ppo", {**read, **asked}),
        ):
            yield Job(part, f"kernels of {name}", "gpu.kernels", "ours", settings={**how, "of": name})


def measure(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a job: what it told, and its rate in every round. Raises `Broken` and `Missing`."""
    settings = {
        "precision": "bf16",
        "compile": False,
        "threads": arguments.threads,
        "device": arguments.device,
        "scratch": str((arguments.out / "scratch").absolute()),
        **job.settings,
    }
    python = sys.executable if job.python is None else interpreter(job.python)
    command = [python, str(HERE.parent / "worker.py"), job.module, job.function]
    log = arguments.out / "logs" / f"{job.name.replace(' ', '-')}.log"
    worker = Worker([*command, json.dumps(settings)], arguments.threads, log, arguments.device)
    alarm = threading.Timer(arguments.limit, worker.process.kill)
    alarm.start()
    try:
        found, began = worker.answer(), time.monotonic()
        if job.steps:
            done = [worker.round(job.steps) for _ in range(arguments.rounds + 1)]
            found["first_round_s"] = done[0]["seconds"]
            found["rounds"] = [value(one, job.unit) for one in done[1:]]
            found["facts"] = {name: values[-1] for name, values in done[-1]["facts"].items()}
        found |= worker.finish()
        found["seconds"] = time.monotonic() - began
    except Broken as broken:
        if alarm.finished.is_set():
            raise Broken(f"{broken}\ntook more than {arguments.limit:.0f} s") from None
        raise
    finally:
        alarm.cancel()
        worker.stop()
    return found | {"unit": job.unit, "settings": dict(job.settings)}


def with_less(job: Job, arguments: argparse.Namespace) -> dict[str, Any]:
    """`measure`, with half the batch where the device's memory is too small, and half of that."""
    while True:
        try:
            return measure(job, arguments)
        except Broken as broken:
            smallest = min((job.settings[name] for name in job.halved), default=1)
            if "out of memory" not in str(broken).lower() or smallest < 2:
                raise
        smaller = {name: job.settings[name] // 2 for name in job.halved}
        print(f"{job.name}: not enough memory; again with {smaller}", flush=True)
        job = replace(job, settings={**job.settings, **smaller})


def shares(found: Mapping[str, Any], limits: Mapping[str, Any]) -> dict[str, float]:
    """A rate as a share of what the device can do: model FLOPs (without recomputation) of its bf16 products,
    or bytes that must be read of its memory's speed; measured, and by the data sheet."""
    rate = median(found["rounds"])
    if "flops" in found:
        did, measured, sheet, scale = found["flops"] * rate, limits.get("bf16 GFLOP/s"), 0, 1e12
    elif "bytes" in found:
        did, measured, sheet, scale = (
            found["bytes"] * rate / found["settings"]["rows"],
            limits.get("memory GB/s"),
            1,
            1e9,
        )
    else:
        return {}
    shared = {"of measured": did / (measured * 1e9)} if measured else {}
    known = [numbers for name, numbers in SHEETS.items() if name in limits.get("gpu", "")]
    return shared | ({"of data sheet": did / (known[0][sheet] * scale)} if known else {})


def line(name: str, row: Mapping[str, Any]) -> str:
    """A figure for people."""
    if "failed" in row:
        return f"{name}: FAILED: {str(row['failed']).splitlines()[-1]}"
    if "skipped" in row:
        return f"{name}: skipped: {row['skipped']}"
    if "why" in row:
        return f"{name}: {'NOT EQUAL: ' + row['why'] if row['why'] else 'equal'}"
    if "rounds" not in row:
        return f"{name}: " + ", ".join(
            f"{number(x)} {key}" for key, x in row.items() if key.endswith(("/s", " ms"))
        )
    parts = [f"{spread(median(row['rounds']), row['rounds'])} {row['unit']}"]
    parts += [f"{share:.1%} {of}" for of, share in row["shares"].items()]
    parts += [f"{row['gpu_peak_mb']:,.0f} MB"] if "gpu_peak_mb" in row else []
    return f"{name}: {', '.join(parts)}"


def prepare(arguments: argparse.Namespace, size: str) -> Path:
    """The data and the weights that the training parts read."""
    material = Path(arguments.out / "material" / size).absolute()
    job = Job("material", f"material {size}", "material", "ours")
    measure(replace(job, settings={"size": size, "material": str(material)}), arguments)
    return material


def main() -> int:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    file, plan, failed = arguments.out / "results.json", PLANS[arguments.size], False
    results = json.loads(file.read_text()) if file.exists() else {}
    material = Path()
    if {"pretrain", "rl", "kernels"} & set(arguments.part):
        material = prepare(arguments, plan.rl)
    for job in (job for part in arguments.part for job in jobs(part, plan, material)):
        if arguments.only not in job.name:
            continue
        try:
            row = with_less(job, arguments)
            if "rounds" in row:
                row["shares"] = shares(row, results.get("peaks", {}))
            failed |= bool(row.get("why"))
        except Missing as missing:
            row = {"skipped": str(missing)}
        except Broken as broken:
            row, failed = {"failed": str(broken)}, True
        results[job.name] = {"part": job.part, **row, "machine": machine(arguments.threads)}
        file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(line(job.name, results[job.name]), flush=True)
    return int(failed)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--part", default=",".join(PARTS), help="which, by comma")
    add("--only", default="", help="only figures whose name holds this")
    add("--size", choices=list(PLANS), default="full")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--rounds", type=int, default=3, help="timed rounds of each figure, after one that is not")
    add("--threads", type=int, default=4, help="CPU threads of each process")
    add("--limit", type=float, default=180, help="seconds that one figure may take")
    add("--out", type=Path, default=Path("runs/gpu"))
    arguments = parser.parse_args()
    arguments.part = arguments.part.split(",")
    if unknown := [part for part in arguments.part if part not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
