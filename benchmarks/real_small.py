"""Run recipes/real_small.yaml on real text and print its numbers as the tables of docs/results.md.

    python benchmarks/real_small.py --data DIR [--out runs/real_small] [--set key=value ...]

DIR holds pretrain/, sft/ and preference/ with the files that the recipe names. Finished stages are not
repeated.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from three_seeds import where

RECIPE = Path(__file__).parents[1] / "recipes" / "real_small.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/real_small"))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "bloomery.cli", "run", str(RECIPE), "--out", str(arguments.out)]
    for override in (f"data.root={arguments.data}", *arguments.overrides):
        command += ["--set", override]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(where())
    report(json.loads((arguments.out / "results.json").read_text()))
    samples(arguments.out / "evaluate-rl-1" / "evaluation.json", arguments.out / "evaluate-sft")


def report(results: dict[str, Any]) -> None:
    minutes = {name: seconds / 60 for name, seconds in results["seconds"].items()}
    print(f"\n{sum(minutes.values()):.1f} minutes: " + ", ".join(f"{n} {m:.1f}" for n, m in minutes.items()))
    sources = list(results["bpb_by_source"]["base"])
    print("\n| bits per byte | " + " | ".join(sources) + " |")
    print("|---|" + "---:|" * len(sources))
    for name, row in results["bpb_by_source"].items():
        print(f"| {name} | " + " | ".join(interval(row[source]) for source in sources) + " |")
    print("\n| | KL to SFT | score, sampled | score, greedy | tokens | cut off |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in ("sft", "rl"):
        sampled, greedy = results["sampled"][name], results["greedy"][name]
        kl = results["table"][name]["kl"]
        shown = (sampled["proxy_reward"], greedy["proxy_reward"], sampled["length"])
        cells = [interval(kl), *map(interval, shown), f"{sampled['unfinished_rate']['mean']:.0%}"]
        print(f"| {name} | " + " | ".join(cells) + " |")
    reward = results["reward_model"]
    print(
        f"\nreward model: {interval(reward | {'mean': reward['accuracy']})} of held-out pairs, "
        f"chance .5, length only {reward['length_baseline']:.3f}"
    )


def samples(rl: Path, sft: Path, count: int = 3) -> None:
    """The first conversations with both models' greedy answers."""
    before = json.loads((sft / "evaluation.json").read_text())["conversations"]
    after = json.loads(rl.read_text())["conversations"]
    for old, new in list(zip(before, after, strict=True))[:count]:
        print(f"\n> {old['messages'][-1]['content']}\n")
        print(f"SFT: {old['greedy']['text']}\n\nRL: {new['greedy']['text']}")


def interval(found: dict[str, float]) -> str:
    return f"{found['mean']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


if __name__ == "__main__":
    main()
