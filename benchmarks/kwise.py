"""The reward model trained K-wise against pairwise, on the very same rankings.

    python benchmarks/kwise.py runs/seeds/seed-0 runs/seeds/seed-1 runs/seeds/seed-2 [--out runs/kwise]
        [--epochs 2.0] [--table]

Each directory is a finished default journey (benchmarks/three_seeds.py makes them). Both sides are the reward
stage, started from its SFT model and trained on its first rankings. K-wise, all pairs of a ranking are one
element and each answer is forwarded once. Pairwise, the rankings of the training prompts are rewritten as
rankings of two, each an example of its own that is shuffled among the others; an answer is forwarded with
every rival. Both see every pair equally often, in equally many steps of the same learning rates, and are held
out the same rankings. Finished parts are not repeated; --table prints what is there. Writes kwise.json and
kwise.md, the section of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from methods import inputs, make
from three_seeds import where

from bloomery.data.sources import read_rankings
from bloomery.evals.bootstrap import interval
from bloomery.evals.reward import verdicts
from bloomery.feedback.exchange import write_rankings
from bloomery.models import hub
from bloomery.models.slates import shared_length
from bloomery.stages.common import is_held_out
from bloomery.stages.reward import scored
from bloomery.stages.slates import Slate, make_slates, prompt_id, split
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Candidate, Message, Policy, Ranking

BATCH, EPOCHS, HELD_OUT = 8, 2.0, 0.1
"""The first reward model of the default journey."""
LEAST = 1e-6
"""Epochs of a run that ends after its first step: what reading the rankings and the last evaluation take."""
LAST = 50
"""Steps of a run's end over which its accuracy on what it trains on is averaged."""
ABOUT = """Rates are of pairs, in brackets 95 % bootstrap intervals over prompts. Both sides start from the
same model and see every pair of the same rankings equally often in equally many steps; K-wise, a ranking is
one element and an answer is forwarded once; pairwise, each pair is an element of its own, shuffled among
the others. Both read a prompt once for all answers of an element. Seconds are those of the stage beyond
what it takes to read, make one step and evaluate."""
COLUMNS = ("held out", "where annotators agree", "in training", "answers forwarded", "tokens", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("journeys", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("runs/kwise"))
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    arguments = parser.parse_args()
    found = [
        row
        for journey in arguments.journeys
        if (row := compared(journey, arguments.out / journey.name, arguments.epochs, arguments.table))
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "kwise.json").write_text(json.dumps(found, indent=1) + "\n")
    text = section(found, where())
    (arguments.out / "kwise.md").write_text(text)
    print(text)


def compared(journey: Path, out: Path, epochs: float, table: bool) -> dict[str, Any] | None:
    """A journey's row: both sides trained and measured, and the lead of the first; None if one is missing."""
    given = inputs(journey)
    out.mkdir(parents=True, exist_ok=True)
    reader = hub.load(given["model"])
    chat, limit = Chat(Tokenizer.load(given["model"])), reader.config.max_position_embeddings
    rankings = list(read_rankings(given["rankings"]))
    rewritten = list(as_pairs(rankings))
    pairs = out / "pairs.jsonl"
    if not pairs.exists():
        write_rankings(rewritten, pairs)
    taught, held_out = split(make_slates(rankings, chat, True), limit, HELD_OUT, print)
    apart, _ = split(make_slates(rewritten, chat, True), limit, HELD_OUT, print)
    sides, right = dict[str, dict[str, Any]](), dict[str, list[list[float]]]()
    for name, files, slates in (("K-wise", given["rankings"], taught), ("pairwise", [str(pairs)], apart)):
        recipe = {"model": given["model"], "rankings": files, "seed": given["seed"], "held_out": HELD_OUT}
        recipe |= {"batch": same_steps(len(slates), len(taught))}
        for directory, much in ((out / name, epochs), (out / f"{name}-start", LEAST)):
            if make("reward", recipe | {"epochs": much}, directory, table) is None:
                return None
        sides[name] = measured(out / name) | {k: round(epochs * n) for k, n in work(slates).items()}
        sides[name]["seconds"] -= measured(out / f"{name}-start")["seconds"]
        model = hub.load(out / name, "scalar").train(False)
        right[name] = [list(verdicts(one)) for one in scored(model, held_out, chat.tokenizer.pad_id)]
    return {"seed": given["seed"], "sides": sides, "lead": lead(right["K-wise"], right["pairwise"])}


def as_pairs(rankings: Iterable[Ranking]) -> Iterator[Ranking]:
    """The rankings with those of training prompts taken apart: each pair of answers a ranking of two.

    A correction, which stands above every answer, becomes one of the two. Held-out rankings stay whole, so
    that both sides are measured on the same slates; so do records without a ranking.
    """
    for r in rankings:
        if r.ranking is None or is_held_out(prompt_id(r.prompt), HELD_OUT):
            yield r
            continue
        answers = [(c.messages, c.policy, rank) for c, rank in zip(r.completions, r.ranking, strict=True)]
        if r.correction:
            written = (Message(role="assistant", content=r.correction),)
            answers.append((written, Policy(id="correction"), 0))
        for (i, a), (j, b) in combinations(enumerate(answers), 2):
            yield Ranking(
                id=f"{r.id}/{i}-{j}",
                prompt=r.prompt,
                completions=tuple(Candidate(messages=one[0], policy=one[1]) for one in (a, b)),
                ranking=(1 + (a[2] > b[2]), 1 + (b[2] > a[2])),
                annotator=r.annotator,
                status=r.status,
                created_at=r.created_at,
            )


def same_steps(num: int, num_whole: int) -> int:
    """Slates of a step, with which `num` last as many steps as `num_whole` do by `BATCH`."""
    return max(1, round(BATCH * num / num_whole))


def work(slates: Sequence[Slate]) -> dict[str, int]:
    """What goes through the model in an epoch: answers, and tokens, of which a slate's prompt goes once."""
    tokens = 0
    for s in slates:
        shared = shared_length(s.sequences, min(map(len, s.sequences)) - 1)
        tokens += shared + sum(len(sequence) - shared for sequence in s.sequences)
    return {"answers forwarded": sum(len(s.sequences) for s in slates), "tokens": tokens}


def measured(directory: Path) -> dict[str, Any]:
    """What a finished reward stage says of itself; `seconds` are the whole stage's, all sittings together."""
    card = json.loads((directory / "evaluation.json").read_text())
    state = json.loads((directory / "trainer_state.json").read_text())
    lines = (directory / "metrics.jsonl").read_text().splitlines()[-LAST:]
    return {
        "held out": {"mean": card["accuracy"], "low": card["low"], "high": card["high"]},
        "where annotators agree": card["agreed"] | {"mean": card["agreed"]["accuracy"]},
        "in training": mean(json.loads(line)["accuracy"] for line in lines),
        "steps": state["global_step"],
        "seconds": state["seconds"],
    }


def lead(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> dict[str, float]:
    """How much more often the first is right than the second on the same pairs, with its 95 % interval.

    Args:
        first, second: for each held-out slate, 1, 0 or 0.5 for each of its pairs; whole slates are drawn.
    """
    groups = [(sum(a) - sum(b), len(a)) for a, b in zip(first, second, strict=True) if a]
    low, high = interval(groups)
    return {"mean": sum(x for x, _ in groups) / sum(n for _, n in groups), "low": low, "high": high}


def section(found: Sequence[Mapping[str, Any]], place: str) -> str:
    """Markdown: a row for each seed and side, then how the sides compare."""
    lines = [
        "## K-wise against pairwise reward models",
        "",
        f"`python benchmarks/kwise.py runs/seeds/seed-*`, {place}.",
    ]
    lines += [ABOUT, ""]
    lines += ["| seed | trained | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * len(COLUMNS)]
    for row in found:
        for name, side in row["sides"].items():
            cells = [shown(side[column]) for column in COLUMNS]
            lines.append(f"| {row['seed']} | {name} | " + " | ".join(cells) + " |")
    lines += ["", "| seed | K-wise - pairwise, held out | " + " | ".join(COLUMNS[3:]) + " |"]
    lines.append("|---|---:|" + "---:|" * len(COLUMNS[3:]))
    for row in found:
        whole, apart = row["sides"]["K-wise"], row["sides"]["pairwise"]
        cells = [f"1 : {apart[column] / whole[column]:.1f}" for column in COLUMNS[3:]]
        d = row["lead"]
        gap = f"{d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]"
        lines.append(f"| {row['seed']} | {gap} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def shown(value: Any) -> str:
    """A rate with its interval, a share, a count."""
    if isinstance(value, Mapping):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:.3f}" if value <= 1 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
