"""What it gains to draw the next answers while the last are learned from: PPO and GRPO with and without.

    python benchmarks/one_step_off.py [--work ppo,grpo] [--size S] [--rounds 5] [--precision fp32]

Both sides are our stage at the sizes of bench.py, each a process of its own, round by round in turn. Prints
medians, the lowest and highest round and the ratio, and writes runs/bench/one_step_off.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from statistics import median
from typing import Any

from bench import HERE, OUT, helper, machine, race
from case import Case, Side
from tables import spread


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--work", default="ppo,grpo", help="by comma")
    parser.add_argument("--size", default="S")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    helper("material", arguments.size, arguments.threads)
    now = machine(arguments.threads)
    print(", ".join(f"{name} {found}" for name, found in now.items()))
    print("\n| work | one step off | on policy | ratio |\n|---|---:|---:|---:|")
    found = {}
    for work in arguments.work.split(","):
        ahead, usual = both(work, arguments)
        a, b = median(ahead.rounds), median(usual.rounds)
        told = f"{spread(a, ahead.rounds)} | {spread(b, usual.rounds)} | {a / b:.2f}"
        print(f"| {work} {arguments.size} {arguments.precision}, episodes/s | {told} |", flush=True)
        found[work] = {**now, "ahead": ahead.rounds, "on policy": usual.rounds, "ratio": a / b}
    (OUT / "one_step_off.json").write_text(json.dumps(found, indent=1) + "\n")
    return 0


def both(work: str, arguments: argparse.Namespace) -> tuple[Side, Side]:
    """The rounds with and without."""
    case = Case(work, "on policy", "episodes/s", arguments.steps, "ours", "ours", lambda a, b: "")
    commands = []
    for ahead in (True, False):
        settings: dict[str, Any] = {
            "size": arguments.size,
            "precision": arguments.precision,
            "compile": False,
            "threads": arguments.threads,
            "material": str((OUT / "material" / arguments.size).absolute()),
            "scratch": str((OUT / "scratch" / ("ahead" if ahead else "usual")).absolute()),
            "one_step_off": ahead,
        }
        commands.append([sys.executable, str(HERE / "worker.py"), work, "ours", json.dumps(settings)])
    steps, threads = arguments.steps, arguments.threads
    return race(commands, case, rounds=arguments.rounds, steps=steps, threads=threads, logs=OUT / "logs")


if __name__ == "__main__":
    sys.exit(main())
