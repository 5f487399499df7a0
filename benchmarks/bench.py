"""Ours against each peer: the same weights, data and arithmetic, round by round in turn, and one table.

    python benchmarks/bench.py [--work rollout,sft] [--size S,M] [--rounds 5] [--steps N] [--precision bf16]

Each side is a process of its own (`worker.py`). After a warm-up round they take turns, A B A B; the table
shows medians. Both sides must also have computed the same (losses, tokens, distributions): a row that
does not is marked and the exit code is 1. Peers that are not there are skipped with a line that says how
to get them. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

from case import COMPILED, SIZES, WORKS, Case, Side
from tables import merged, number, shares, table

HERE = Path(__file__).parent
OUT = Path("runs/bench")
# Where a peer is looked for, and what brings it there.
ENVIRONMENTS = {"trl": ("BLOOMERY_TRL", "trl==1.16.0"), "trl-ppo": ("BLOOMERY_TRL_PPO", "trl==1.12.0")}
CHECKOUTS = {
    "nanoGPT": ("BLOOMERY_NANOGPT", "https://github.com/karpathy/nanoGPT"),
    "nanochat": ("BLOOMERY_NANOCHAT", "https://github.com/karpathy/nanochat"),
}


class Missing(Exception):
    """A peer is not on this machine; the text says how to get it."""


class Broken(Exception):
    """A side ended without an answer."""


# ------------------------------------------------------------------------------------------ the peers


def interpreter(name: str) -> str:
    """The Python that a peer runs in. Raises `Missing`."""
    if not name:
        if importlib.util.find_spec("transformers") is None:
            raise Missing('transformers is not installed: pip install "bloomery[bench]"')
        return sys.executable
    variable, package = ENVIRONMENTS[name]
    if variable not in os.environ and _installed() == package.partition("==")[2]:
        return sys.executable
    home = Path(os.environ.get(variable, OUT / "peers" / name))
    if not (home / "bin" / "python").exists():
        raise Missing(
            f"{home} has no bin/python: `make peers`, or {variable}=a virtual environment of {package}"
        )
    return str(home.absolute() / "bin" / "python")


def checkout(name: str) -> str:
    """The work tree that a peer is read from, unmodified. Raises `Missing`."""
    variable, url = CHECKOUTS[name]
    home = Path(os.environ.get(variable, OUT / "peers" / name))
    if not home.is_dir():
        raise Missing(f"{home} is not there: git clone {url}, and {variable}=the directory")
    return str(home.absolute())


def _installed() -> str | None:
    try:
        return importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        return None


# ----------------------------------------------------------------------------------------- the rounds


class Worker:
    """A side of a benchmark: see worker.py for what is said. It sees a GPU only if `device` is "cuda"."""

    def __init__(self, command: Sequence[str], threads: int, log: Path, device: str = "cpu") -> None:
        self.command, self.log = command, log
        log.parent.mkdir(parents=True, exist_ok=True)
        counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        quiet = {"TOKENIZERS_PARALLELISM": "0", "HF_HUB_OFFLINE": "1"}
        hidden = {} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **counts, **quiet, **hidden},
            )

    def answer(self) -> dict[str, Any]:
        """What it says next. Raises `Broken` with the end of its log when it says nothing."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-12:])
            raise Broken(f"{' '.join(self.command[2:4])} ended; {self.log}:\n{tail}")
        found: dict[str, Any] = json.loads(line)
        return found

    def round(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then it has no answer either
            print(json.dumps({"steps": steps}), file=self.process.stdin, flush=True)
        return self.answer()

    def finish(self) -> dict[str, float]:
        """No more rounds; its peaks of memory in MB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        peaks = self.answer()
        self.process.wait()
        return peaks

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with self.process:  # waits, and closes the pipes
            pass


def race(
    commands: Sequence[Sequence[str]], case: Case, *, rounds: int, steps: int, threads: int, logs: Path
) -> tuple[Side, Side]:
    """A warm-up each, then `rounds` rounds in turn: A B A B. The sides with their rates (or seconds)."""
    sides = (Side(), Side())
    workers = list[Worker]()
    try:
        for command, who, side in zip(commands, ("ours", "theirs"), sides, strict=True):
            name = f"{case.work}-{case.precision}-{case.peer}-{who}".replace(" ", "-").replace("/", "-")
            workers.append(Worker(command, threads, logs / f"{name}.log"))
            side.told = workers[-1].answer()
        for number in range(rounds + 1):
            for worker, side in zip(workers, sides, strict=True):
                done = worker.round(steps)
                for name, values in done["facts"].items():
                    side.facts.setdefault(name, []).extend(values)
                if number:
                    side.rounds.append(value(done, case.unit))
        for worker, side in zip(workers, sides, strict=True):
            side.peak_mb = worker.finish()["peak_mb"]
    finally:
        for worker in workers:
            worker.stop()
    return sides


def value(done: Mapping[str, Any], unit: str) -> float:
    """Units a second; for the unit "s", seconds a unit."""
    seconds, units = float(done["seconds"]), float(done["units"])
    return seconds / units if unit == "s" else units / seconds


def row_of(case: Case, size: str, ours: Side, theirs: Side) -> dict[str, Any]:
    """A line of results.json. `ratio` is how many times faster ours is, from the medians."""
    a, b = median(ours.rounds), median(theirs.rounds)
    why = case.equal(ours, theirs)
    return {
        "work": case.work,
        "size": size,
        "peer": case.peer,
        "ours": a,
        "theirs": b,
        "ratio": b / a if case.unit == "s" else a / b,
        "equal": not why,
        "unit": case.unit,
        "why": why,
        "precision": case.precision,
        "ours_rounds": ours.rounds,
        "theirs_rounds": theirs.rounds,
        "ours_peak_mb": ours.peak_mb,
        "theirs_peak_mb": theirs.peak_mb,
        "versions": {"ours": ours.told.get("versions"), "theirs": theirs.told.get("versions")},
        **({"flops": ours.told["flops"] * a} if "flops" in ours.told else {}),
    }


# -------------------------------------------------------------------------------------------- running


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        cpu = next((x.split(":")[1].strip() for x in info.read_text().split("\n") if "model name" in x), cpu)
    commit = ""
    with suppress(FileNotFoundError):  # without git
        told = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        commit = told.stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": importlib.metadata.version("torch"),
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def cases(works: Sequence[str], size: str, precision: str | None) -> list[Case]:
    """The rows of some works: each is declared in the file that is named after it."""
    found = list[Case]()
    for work in works:
        module = importlib.import_module(work.removesuffix("_fp32").removesuffix("_k6"))
        found += [case for case in module.cases(SIZES[size], precision) if case.work == work]
    return found


def commands(case: Case, size: str, threads: int, compiled: bool) -> list[list[str]]:
    """How both sides are started. Raises `Missing`."""
    python = interpreter(case.python)
    settings: dict[str, Any] = {
        **case.settings,
        "size": size,
        "precision": case.precision,
        "compile": compiled,
        "peer_compiled": case.compiled,
        "threads": threads,
        "material": str((OUT / "material" / size).absolute()),
        "scratch": str((OUT / "scratch").absolute()),
    }
    if case.checkout:
        settings["checkout"] = checkout(case.checkout)
    file = case.work.removesuffix("_fp32").removesuffix("_k6")
    both = ((sys.executable, case.ours), (python, case.theirs))
    return [[p, str(HERE / "worker.py"), file, function, json.dumps(settings)] for p, function in both]


def run(case: Case, size: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row, measured now."""
    compiled, before = arguments.compile and case.work in COMPILED, os.getloadavg()[0]
    ours, theirs = race(
        commands(case, size, arguments.threads, compiled),
        case,
        rounds=arguments.rounds,
        steps=arguments.steps or case.steps,
        threads=arguments.threads,
        logs=OUT / "logs",
    )
    return row_of(case, size, ours, theirs) | {
        "compiled": compiled,
        "load_before": before,
        "load_after": os.getloadavg()[0],
        **machine(arguments.threads),
    }


def helper(name: str, size: str, threads: int) -> dict[str, Any]:
    """What a helper of ours (`material`, `peaks`) tells, from a process of its own."""
    settings = {"size": size, "threads": threads, "material": str((OUT / "material" / size).absolute())}
    command = [sys.executable, str(HERE / "worker.py"), name, "ours", json.dumps(settings)]
    worker = Worker(command, threads, OUT / "logs" / f"{name}.log")
    try:
        told = worker.answer()
        worker.finish()
    finally:
        worker.stop()
    return told


def measure(works: Sequence[str], sizes: Sequence[str], arguments: argparse.Namespace) -> int:
    """Every row that was asked for; results are written after each. Returns the exit code."""
    file, rows, failed = OUT / "results.json", list[dict[str, Any]](), 0
    old = json.loads(file.read_text()) if file.exists() else []
    for size in sizes:
        helper("material", size, arguments.threads)
        for case in cases(works, size, arguments.precision):
            if case.compiled and not arguments.compile:
                continue
            name = f"{case.work} {size} {case.precision} against {case.peer}"
            try:
                row = run(case, size, arguments)
            except Missing as missing:
                print(f"skipped {name}: {missing}", flush=True)
                continue
            except Broken as broken:
                print(f"FAILED {name}: {broken}", flush=True)
                failed = 1
                continue
            rows.append(row)
            verdict = "" if row["equal"] else f"; NOT EQUAL: {row['why']}"
            print(
                f"{name}: {number(row['ours'])} and {number(row['theirs'])} {case.unit}, "
                f"{row['ratio']:.2f}x, load {row['load_before']:.1f}{verdict}",
                flush=True,
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(merged(old, rows), indent=1) + "\n")
    show(rows)
    return int(failed or any(not row["equal"] for row in rows))


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The table, and the shares of the limits that machine.json holds."""
    limits = json.loads(file.read_text()) if (file := OUT / "machine.json").exists() else {}
    print("\n".join(["", table(rows), "", *shares(rows, limits)]))


def main() -> int:
    arguments = parse()
    if arguments.table:
        show(json.loads((OUT / "results.json").read_text()))
        return 0
    now = machine(arguments.threads)
    print(", ".join(f"{name} {found}" for name, found in now.items()))
    print(f"load {os.getloadavg()[0]:.2f} before anything ran")
    if arguments.peaks:
        found = {
            name: x for name, x in helper("peaks", "S", arguments.threads).items() if name.endswith("/s")
        }
        OUT.mkdir(parents=True, exist_ok=True)
        (OUT / "machine.json").write_text(json.dumps(now | found, indent=1) + "\n")
        print(", ".join(f"{number(x)} {name}" for name, x in found.items()))
    return measure(arguments.work, arguments.size, arguments)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add: Callable[..., Any] = parser.add_argument
    add("--work", default=",".join(WORKS), help="which rows, by comma")
    add("--size", default="S", help=f"of {', '.join(SIZES)}, by comma")
    add("--rounds", type=int, default=5, help="timed rounds of each side")
    add("--steps", type=int, help="steps of a round, instead of each benchmark's own")
    add("--threads", type=int, default=os.cpu_count() or 1)
    add("--precision", choices=["fp32", "bf16"], help="of both sides, for sft, reward, dpo, grpo and ppo")
    add(
        "--compile",
        action="store_true",
        help=f"compile our layers, for {', '.join(COMPILED)}; the warm-up pays",
    )
    add("--no-peaks", dest="peaks", action="store_false", help="do not measure the machine's limits first")
    add("--table", action="store_true", help="only show what was measured before")
    arguments = parser.parse_args()
    arguments.work, arguments.size = arguments.work.split(","), arguments.size.split(",")
    for chosen, known in ((arguments.work, WORKS), (arguments.size, SIZES)):
        if unknown := [one for one in chosen if one not in known]:
            parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
