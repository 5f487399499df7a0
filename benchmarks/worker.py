"""One side of a benchmark, in a process of its own, so that its memory peak is true.

    python benchmarks/worker.py WORK FUNCTION SETTINGS

It prepares, then runs rounds when told to, speaking JSON lines:

    out  {"ready": true, ...facts}                     prepared; waiting
    in   {"steps": 8}                                  run a round
    out  {"seconds": 1.2, "units": 4096, "facts": {"loss": [...]}}
    in   nothing more                                  (closed)
    out  {"peak_mb": 812.0}

Whatever the libraries print goes to stderr. Only the standard library here: it runs in every environment.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, TextIO


class Finished(SystemExit):
    """Nobody asks for another round."""


class Pace:
    """Lets a training loop run as it is and holds it between rounds.

    The loop calls `start` before each step and `end` after it; `start` blocks where no round is under way.
    `sync` waits for a device that works on while the loop goes on; a round begins and ends with it.
    """

    def __init__(self, requests: TextIO, answers: TextIO) -> None:
        self.requests, self.answers = requests, answers
        self.told: dict[str, Any] = {}
        self.left, self.units = 0, 0.0
        self.seconds, self.began = 0.0, 0.0
        self.facts: dict[str, list[Any]] = {}
        self.said_ready = False
        self.sync: Callable[[], object] = lambda: None

    def tell(self, **facts: Any) -> None:
        """Facts for the comparison, to be told once before the first round."""
        self.told.update(facts)

    def start(self) -> None:
        """Go on within a round, or wait for the next one; raises `Finished` when there is none."""
        if self.left:
            return
        if not self.said_ready:
            self._say({"ready": True, "versions": versions(), **self.told})
            self.said_ready = True
        line = self.requests.readline()
        if not line:
            raise Finished(0)
        self.left, self.units, self.facts = int(json.loads(line)["steps"]), 0.0, {}
        self.sync()
        self.seconds, self.began = 0.0, time.perf_counter()

    def end(self, units: float, **facts: Any) -> None:
        """A step is done, with so many units of work."""
        self.units += units
        for name, value in facts.items():
            self.facts.setdefault(name, []).append(value)
        self.left -= 1
        if not self.left:
            self.sync()
        self.stop_clock()
        if self.left:
            self.began = time.perf_counter()
        else:
            self._say({"seconds": self.seconds, "units": self.units, "facts": self.facts})

    def stop_clock(self) -> None:
        """What comes between here and the step's `end` is only for the comparison and is not timed."""
        if self.began:
            self.seconds += time.perf_counter() - self.began
            self.began = 0.0

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)


def versions() -> dict[str, str]:
    """Of Python and of what the peers are made of, as far as it is installed here."""
    found = {"python": platform.python_version()}
    for name in ("torch", "transformers", "trl", "bloomery"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_mb() -> float:
    """The largest resident size this process or a child of it has had."""
    kilobytes = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def gpu_peak() -> dict[str, float]:
    """The most memory that tensors of this process have had on a GPU, if it used one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"gpu_peak_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1)}


def main() -> None:
    work, function, settings = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    pace = Pace(sys.stdin, answers)
    if settings.get("device") == "cuda":
        import torch

        pace.sync = torch.cuda.synchronize
    try:
        getattr(importlib.import_module(work), function)(pace, settings)
    except Finished:
        print(json.dumps({"peak_mb": round(peak_mb(), 1), **gpu_peak()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
