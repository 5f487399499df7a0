"""Process rewards where it is known which step is right: sums of several numbers, added one after another.

    python benchmarks/process.py [--seeds 0 1 2] [--out runs/process] [--table]

The prompt "Add 7 4 9." is answered "7+4=11", "11+9=20", a line each. For every seed a small model learns such
answers, all of them right. Then somebody answers new sums who slips in one step of five, and arithmetic says
where. Two judges are trained by the stage `process-reward` from the same model and answers with the same
settings: one is told of every step, the other only of the whole answer, which is its one step, whether the
result is right. Each then chooses among n of 64 answers to further sums. Finished seeds are not repeated;
--table prints what is there. Writes process.md, the section of docs/algorithms/process.md, and
curve-process.svg.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from curves import logged, over_seeds
from methods import spread
from numpy.random import Generator
from pictures import Panel, picture
from three_seeds import where
from torch import Tensor

from bloomery.models import LlamaConfig, build, hub
from bloomery.models.llama import init
from bloomery.objectives.process import step_rewards
from bloomery.objectives.search import expected_best
from bloomery.report.plots import Series
from bloomery.rewards.process import ProcessReward
from bloomery.seeds import stream
from bloomery.stages import process as stage
from bloomery.stages import sft
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Completion, Message, Prompt, Rollout

Sum = tuple[int, ...]
NUMBERS, MOST = 4, 9
"""How many numbers a sum has, and the largest of them."""
SHOWN, TRIED, ASKED = 3000, 3300, 100
"""Sums that the model learns from, that the judges learn from, that judges choose answers to."""
TRIES, N = 8, 64
"""Answers to each sum that the judges learn from, and to each that they choose from."""
WRONG, OTHER = 0.15, 0.05
"""How often a step's result is wrong, and how often it adds another number than the one whose turn it is."""
AT = tuple(2**p for p in range(N.bit_length()))
WIDTH, DEPTH, HEADS, CONTEXT, VOCAB = 128, 3, 4, 96, 270
COMPUTE = {"precision": "fp32", "threads": 1, "checkpoint_every": 0}
LEARNING = {"kind": "muon", "weight_decay": 0.0, "floor": 0.0}
EPOCHS, RATE, JUDGE_EPOCHS, JUDGE_RATE = 8.0, 8e-3, 2.0, 2e-3
SEPARATORS = {"process": "\n", "outcome": "\n\n"}
"""The judges, and what divides the steps of an answer: of the second kind there is none in any."""
POOLS = ("product", "minimum", "last")
WAYS = (*POOLS, "outcome", "majority", "any right")
Found = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/process"))
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    places = [arguments.out / f"seed-{seed}" for seed in arguments.seeds]
    for seed, out in zip(arguments.seeds, places, strict=True):
        if not arguments.table and not (out / "found.json").exists():
            (out / "found.json").write_text(json.dumps(measured(seed, out) | {"where": where()}, indent=1))
    runs = [out for out in places if (out / "found.json").exists()]
    found = [json.loads((out / "found.json").read_text()) for out in runs]
    (arguments.out / "process.md").write_text(section(found), encoding="utf-8")
    (arguments.out / "curve-process.svg").write_text(drawn(runs, found), encoding="utf-8")
    print(section(found))


# ---------------------------------------------------------------------------------------- the task


def sums(num: int, seed: int) -> list[Sum]:
    """Distinct ones."""
    draw, found = stream(seed, "sums"), dict[Sum, None]()
    while len(found) < num:
        found[tuple(draw.integers(1, MOST + 1, NUMBERS).tolist())] = None
    return list(found)


def question(one: Sum) -> str:
    return f"Add {' '.join(map(str, one))}."


def answer(one: Sum) -> list[str]:
    """The right one, step by step."""
    totals = [sum(one[:k]) for k in range(1, len(one) + 1)]
    return [f"{a}+{b - a}={b}" for a, b in pairwise(totals)]


def attempt(one: Sum, draw: Generator) -> list[str]:
    """An answer by somebody who slips, and goes on from what was written."""
    steps, total = [], one[0]
    for number in one[1:]:
        chance = float(draw.random())
        if WRONG <= chance < WRONG + OTHER:
            number = int(draw.choice([n for n in range(1, MOST + 1) if n != number]))
        written = total + number
        if chance < WRONG:
            written = max(1, written + int(draw.choice((-10, -2, -1, 1, 2, 10))))
        steps.append(f"{total}+{number}={written}")
        total = written
    return steps


def labels(one: Sum, steps: Sequence[str]) -> list[bool]:
    """Whether each step adds the number whose turn it is, and rightly. After a wrong result a step can be
    right again, though the sum cannot but by luck."""
    read = [[int(x) for x in re.split(r"[+=]", step)] for step in steps]
    return [b == number and a + b == c for (a, b, c), number in zip(read, one[1:], strict=True)]


def row(one: Sum, steps: list[str]) -> dict[str, Any]:
    """One of the format `stepwise`, with whether the `result` is right beside it."""
    right = result("\n".join(steps)) == sum(one)
    return {"prompt": question(one), "completions": steps, "labels": labels(one, steps), "result": right}


def said(chat: Chat, one: Sum, text: str) -> Rollout:
    """An answer as if the model had drawn it."""
    prompt = Prompt(id=question(one), messages=(Message(role="user", content=question(one)),))
    tokens = (*chat.tokenizer.encode(text), chat.tokenizer.end_id)
    drawn = Completion(tokens, (0.0,) * len(tokens), "stop")
    return Rollout(prompt, tuple(chat.prompt(prompt.messages)), drawn, text)


def result(text: str) -> int:
    """What the last line says comes out."""
    return int(text.rpartition("=")[2])


# ----------------------------------------------------------------------------------------- a seed


def measured(seed: int, out: Path) -> dict[str, Any]:
    """Train the model and the judges of a seed, and let these choose."""
    out.mkdir(parents=True, exist_ok=True)
    every = sums(SHOWN + TRIED + ASKED, seed)
    start = taught(every[:SHOWN], seed, out)
    draw = stream(seed, "attempts")
    rows = [row(one, attempt(one, draw)) for one in every[SHOWN : SHOWN + TRIED] for _ in range(TRIES)]
    for judge in SEPARATORS:
        train(judge, rows, seed, out)
    asked = [one for one in every[SHOWN + TRIED :] for _ in range(N)]
    chat = Chat(Tokenizer.load(start))
    rollouts = [said(chat, one, "\n".join(attempt(one, draw))) for one in asked]
    return {
        "answers": facts(rows),
        "cards": {judge: json.loads((out / judge / "evaluation.json").read_text()) for judge in SEPARATORS},
        "best": best(scores(out, rollouts), asked, rollouts),
    }


def taught(shown: Sequence[Sum], seed: int, out: Path) -> Path:
    """A model that has learned from right answers, by `sft` from fresh weights: where the judges start."""
    demonstrations = [
        {"messages": [message("user", question(one)), message("assistant", "\n".join(answer(one)))]}
        for one in shown
    ]
    tokenizer = Tokenizer.train([m["content"] for row in demonstrations for m in row["messages"]], VOCAB)
    tokenizer.save(out / "fresh")
    shape = LlamaConfig.shape(WIDTH, DEPTH, HEADS, tokenizer.vocab_size, context=CONTEXT)
    model = build(shape)
    init(model, seed)
    hub.save(model, out / "fresh", tokenizer_dir=out / "fresh")
    recipe = {"model": out / "fresh", "demonstrations": [write(out / "shown.jsonl", demonstrations)]}
    recipe |= {"seed": seed, "epochs": EPOCHS, "batch": 32, "compute": COMPUTE}
    recipe["optimiser"] = LEARNING | {"learning_rate": RATE}
    sft.run(sft.Sft.model_validate(recipe), out / "start")
    return out / "start"


def train(judge: str, rows: Sequence[Mapping[str, Any]], seed: int, out: Path) -> None:
    """A judge of steps, or one of the whole answer."""
    told = []
    for one in rows:
        steps, right = one["completions"], one["labels"]
        if judge == "outcome":
            steps, right = ["\n".join(steps)], [one["result"]]
        told.append({"prompt": one["prompt"], "completions": steps, "labels": right})
    recipe = {"model": out / "start", "solutions": [write(out / f"{judge}.jsonl", told)], "seed": seed}
    recipe |= {"separator": SEPARATORS[judge], "evaluate_every": 50, "held_out": 0.1, "batch": 32}
    recipe |= {"epochs": JUDGE_EPOCHS, "compute": COMPUTE}
    recipe["optimiser"] = LEARNING | {"learning_rate": JUDGE_RATE}
    stage.run(stage.ProcessRecipe.model_validate(recipe), out / judge)


def scores(out: Path, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """What each way of choosing by a judge thinks of the answers, `[P, N]`."""
    tokenizer, found = Tokenizer.load(out / "start"), dict[str, Tensor]()
    for judge, names in (("process", POOLS), ("outcome", ("outcome",))):
        pools = [step_rewards[name] for name in (POOLS if judge == "process" else ("last",))]

        def pool(read: Tensor, mask: Tensor, pools: Any = pools) -> Tensor:
            return torch.stack([one(read, mask) for one in pools], dim=1)  # one pass of the judge for all

        reward = ProcessReward(hub.load(out / judge, "scalar"), tokenizer, pool, SEPARATORS[judge])
        rows = torch.tensor(reward(rollouts))
        found |= {name: rows[:, i].view(-1, N) for i, name in enumerate(names)}
    return found


def best(
    scored: Mapping[str, Tensor], asked: Sequence[Sum], rollouts: Sequence[Rollout]
) -> dict[str, list[float]]:
    """For each way of choosing the share of right results among the best of n, a number for each n."""
    results = [result(rollout.text) for rollout in rollouts]
    right = torch.tensor([r == sum(one) for r, one in zip(results, asked, strict=True)]).view(-1, N)
    told = {**scored, "any right": right.double()}
    found = {name: [float(expected_best(s, right, n).mean()) for n in AT] for name, s in told.items()}
    rows = [results[start : start + N] for start in range(0, len(results), N)]
    wanted = [sum(one) for one in asked[::N]]
    return found | {"majority": [mean(map(lambda r, w, n=n: vote(r, w, n), rows, wanted)) for n in AT]}


def vote(results: Sequence[int], wanted: int, n: int) -> float:
    """How often the commonest result of n is the one that is wanted; of equally common ones each is taken
    equally often. The mean over the answers cut into groups of n."""
    found = []
    for start in range(0, len(results), n):
        counts = Counter(results[start : start + n])
        most = max(counts.values())
        common = [r for r, count in counts.items() if count == most]
        found.append((wanted in common) / len(common))
    return mean(found)


def facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of the answers that the judges learn from: how steps and results go together."""
    lucky = [one["result"] and not all(one["labels"]) for one in rows]
    return {
        "right": mean(one["result"] for one in rows),
        "right_steps": mean(label for one in rows for label in one["labels"]),
        "right_by_luck": sum(lucky) / max(1, sum(one["result"] for one in rows)),
    }


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------- what is shown


def section(found: Sequence[Found]) -> str:
    """Markdown: the share of right results by every way of choosing, and what the judges say of steps."""
    origin = "; ".join(dict.fromkeys(one["where"] for one in found))
    lines = [f"`python benchmarks/process.py`, {len(found)} seeds, {origin}.", ""]
    shown = (0, *range(2, len(AT), 2))
    lines.append("| chosen by | " + " | ".join(f"best of {AT[i]}" for i in shown) + " |")
    lines.append("|---|" + "---:|" * len(shown))
    for way in WAYS:
        cells = [spread([100 * one["best"][way][i] for one in found], ".1f") for i in shown]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines.append("")
    for key in ("right", "right_steps", "right_by_luck"):
        lines.append(f"- answers, {key}: {spread([one['answers'][key] for one in found], '.1%')}")
    for judge in SEPARATORS:
        for key in ("step_accuracy", "baseline", "lead", "first_wrong", "none_wrong"):
            values = [one["cards"][judge][key]["mean"] for one in found]
            told = spread([v for v in values if v is not None], ".1%")
            lines.append(f"- {judge}, {key}: {told}")
    return "\n".join([*lines, ""])


def drawn(runs: Sequence[Path], found: Sequence[Found]) -> str:
    """Steps judged as they are labelled over training, and right results over n."""
    seen, held = (
        over_seeds(name, [logged(run / "process", key) for run in runs], colour, look)
        for name, key, colour, look in (
            ("in training", "accuracy", "s2", "line"),
            ("held out", "eval_accuracy", "s1", "points"),
        )
    )
    usual = mean(one["cards"]["process"]["baseline"]["mean"] for one in found)
    blind = Series("always the commoner", [seen.x[0], seen.x[-1]], [usual, usual], "s5", "dashed")
    chosen = [
        over_seeds(
            way,
            [[(math.log2(n), y) for n, y in zip(AT, one["best"][way], strict=True)] for one in found],
            colour,
        )
        for way, colour in zip(WAYS, ("s1", "s3", "s4", "s2", "s5"), strict=False)
    ]
    return picture(
        Panel("Steps judged rightly", "step", [seen, held, blind], as_percent=True),
        Panel("Right results", "log2 n, of the best of n answers", chosen, as_percent=True),
    )


if __name__ == "__main__":
    main()
