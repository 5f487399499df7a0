"""Where the time of a step goes: another benchmark's side, with torch's profiler on for a few steps."""

from __future__ import annotations

import importlib
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

WARM, SEEN, SHOWN = 3, 2, 25


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """Tell milliseconds a step, those in kernels, and which took most: their names, calls and ms a step."""
    importlib.import_module(settings["of"]).ours(Watched(pace), settings)


class Watched:
    """Stands where `worker.Pace` stands, and ends the side when it has seen enough."""

    def __init__(self, pace: Any) -> None:
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.pace, self.profiler, self.steps, self.began = pace, profile(activities=kinds), 0, 0.0

    def tell(self, **_: Any) -> None:
        pass

    def start(self) -> None:
        if self.steps == WARM:
            self.pace.sync()
            self.profiler.start()
            self.began = time.perf_counter()
        elif self.steps == WARM + SEEN:
            self.pace.sync()
            wall = time.perf_counter() - self.began
            self.profiler.stop()
            self.pace.tell(**{"wall ms": 1e3 * wall / SEEN, **told(self.profiler)})
            self.pace.start()

    def end(self, units: float, **_: Any) -> None:
        self.steps += 1


def told(profiler: profile) -> dict[str, Any]:
    """Without a GPU, the operators of the CPU stand for kernels."""
    device = torch.cuda.is_available()
    took = [
        (one.key[:100], one.count, one.self_device_time_total if device else one.self_cpu_time_total)
        for one in profiler.key_averages()
    ]
    took.sort(key=lambda one: -one[2])
    rows = [[name, calls / SEEN, us / 1e3 / SEEN] for name, calls, us in took[:SHOWN]]
    return {"kernel ms": sum(us for _, _, us in took) / 1e3 / SEEN, "kernels": rows}
