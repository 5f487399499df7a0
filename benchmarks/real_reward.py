"""Reward models on people's preferences: HH harmless, FineGrained QA (K = 4), PandaLM (three annotators), and
oasst in Chinese. Prints the tables of docs/results.md, writes results.json and results.md.

    python benchmarks/real_reward.py [--data DIR] [--from RUN] [--out runs/real_reward] [--only hh ...]
        [--set key=value ...] [--model-set key=value ...]

DIR (../shared/data unless given) holds preference/, and pretrain/ and sft/ where a model is to be trained; a
set whose file is not there is skipped. RUN is a finished run of recipes/real_small.yaml, whose SFT model the
reward models start from; without it recipes/two_languages.yaml is run first (--model-set: its settings).
Each set gets a reward model of its own, and one more is trained on all of them. --set changes the reward
stage. Finished stages are not repeated, and an interrupted one goes on.

The interval of a share draws whole prompts. Beside the reward model stand chance, which is 1/2; length, which
prefers the longer or the shorter answer, whichever won more often in training; and the prior, which knows
only where an answer comes from and prefers what won more of its comparisons in training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import preferences
import yaml
from three_seeds import where

from bloomery.data.convert import write
from bloomery.data.sources import read_rankings
from bloomery.errors import ArtifactError, BloomeryError
from bloomery.evals.comparisons import Scored, judged_by_length
from bloomery.evals.reward import verdicts
from bloomery.feedback.agreement import agreement
from bloomery.feedback.verdicts import bootstrap
from bloomery.journey.plan import Journey, make_plan, runs
from bloomery.journey.run import carry_out
from bloomery.journey.steps import Plan, Step
from bloomery.lineage import write_json
from bloomery.models import hub
from bloomery.recipe import load
from bloomery.stages.reward import RewardRecipe, scored
from bloomery.stages.slates import Slate, make_slates, prompt_id, split
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import precision
from bloomery.types import Ranking, ranked_pairs

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "two_languages.yaml"
ALL = "all"
TITLES = {"hh": "HH harmless", "finegrained": "FineGrained QA", "pandalm": "PandaLM", "oasst": "oasst, zh"}
UNREAD = {"finegrained": ["the passages that the answers were written from"]}
"""What every row of a set has and nothing is made of."""
REWARD = {
    "epochs": 1,
    "batch": 8,
    "held_out": 0.25,
    "combine": "reliability",
    "evaluate_every": 1000,
    "optimiser": {"kind": "adamw", "learning_rate": 2e-4},
}
"""The reward stage's settings, the same for every set. Annotators called "unknown" weigh 1."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--from", type=Path, dest="start", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("runs/real_reward"))
    parser.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--model-set", action="append", default=[])
    arguments = parser.parse_args()
    sets = present(arguments.data, arguments.only)
    if not sets:
        print(f"nothing to do: no set of preferences in {arguments.data}; name a directory with --data")
        return 0
    made = {name: prepared(name, arguments) for name in sets}
    recipes = {name: one.recipe for name, one in made.items()}
    if len(recipes) > 1:
        together = tuple(path for recipe in recipes.values() for path in recipe.rankings)
        recipes[ALL] = recipes[sets[0]].model_copy(update={"rankings": together})
    seconds = train(arguments, recipes)
    trained = {name: journey_of(arguments) / f"reward-{name}" for name in recipes}
    rows = {name: measure(one, trained[name], trained.get(ALL)) for name, one in made.items()}
    write_json(arguments.out / "results.json", {"where": where(), "seconds": seconds, "sets": rows})
    page = "\n".join([where(), "", minutes(seconds), "", *tables(rows)]) + "\n"
    (arguments.out / "results.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


@dataclass(frozen=True)
class Prepared:
    """A set as rankings in a file, what was left out on the way, and how a reward model learns from it."""

    recipe: RewardRecipe
    left_out: Counter[str]


def journey_of(arguments: argparse.Namespace) -> Path:
    """Where what is trained lies, stage by stage."""
    return Path(arguments.out) / "journey"


def present(data: Path, names: Sequence[str]) -> list[str]:
    """The sets whose files are there; says which are not."""
    found = []
    for name in names:
        path = data / "preference" / preferences.READERS[name][0]
        if path.is_file():
            found.append(name)
        else:
            print(f"{TITLES[name]}: skipped, {path} is not there")
    return found


def prepared(name: str, arguments: argparse.Namespace) -> Prepared:
    """Write OUT/sets/<set>.jsonl, the rankings, and read the recipe from OUT/sets/<set>.yaml and --set."""
    out: Path = arguments.out / "sets"
    out.mkdir(parents=True, exist_ok=True)
    rankings, config = out / f"{name}.jsonl", out / f"{name}.yaml"
    model = (arguments.start or journey_of(arguments)) / "sft"
    given = {"model": str(model), "rankings": [str(rankings)], **REWARD}
    config.write_text(yaml.safe_dump(given), encoding="utf-8")
    recipe = load(RewardRecipe, config, arguments.overrides)
    raw = arguments.data / "preference" / preferences.READERS[name][0]
    found = preferences.without_overlap(preferences.convert(name, raw), recipe.held_out)
    rankings.unlink(missing_ok=True)
    write(found.rankings, rankings, "ranking")
    return Prepared(recipe, found.left_out)


def train(arguments: argparse.Namespace, recipes: Mapping[str, RewardRecipe]) -> dict[str, float]:
    """The small model, unless there is one to start from, and a reward model for each set, as one journey:
    what is finished is not repeated. Returns the seconds that each step took."""
    out = journey_of(arguments)
    steps: tuple[Step, ...] = ()
    if arguments.start is None:
        journey = load(Journey, RECIPE, [f"data.root={arguments.data}", *arguments.model_set])
        steps = make_plan(journey, out).steps
    steps += tuple(Step(f"reward-{name}", "reward", recipe) for name, recipe in recipes.items())
    settings = {step.name: step.recipe.model_dump(mode="json") for step in steps}
    done = carry_out(
        Plan(steps, {}),
        out,
        runs=runs(),
        recipe_text=yaml.safe_dump(settings, sort_keys=False),
        store=out / "stages",
    )
    return {record.name: record.seconds for record in done}


def measure(one: Prepared, directory: Path, together: Path | None) -> dict[str, Any]:
    """A set's reward model, and the one that was trained on all sets together, on the prompts that neither
    was trained on, beside what knows less."""
    recipe = one.recipe
    recipe.compute.setup()
    rankings = list(read_rankings(recipe.rankings))
    slates = make_slates(rankings, Chat(Tokenizer.load(directory)), recipe.use_corrections)
    context = hub.load(directory, "scalar").config.max_position_embeddings
    training, held_out = split(slates, context, recipe.held_out, lambda line: None)
    found = score(directory, held_out)
    card = json.loads((directory / "evaluation.json").read_text())
    learnt = right(found)
    check(learnt, card, directory)
    of_all = right(score(together, held_out)) if together else None
    length, prior = right(by_length(found, training)), right(by_source(found, training, rankings))
    return {
        "rankings": len(rankings),
        "answers": dict(sorted(Counter(str(len(s.texts)) for s in slates).items())),
        "trained": sum(len(s.ranks) for s in training),
        "held_out": sum(len(s.ranks) for s in held_out),
        "held_out_prompts": len(learnt),
        "left_out": dict(one.left_out),
        "beyond_context": sum(len(s.ranks) for s in slates if s.longest > context),
        "context": context,
        "accuracy": share(learnt),
        "agreed": share(right(found, unanimous=True)),
        "together": share(of_all) if of_all else None,
        "length": share(length),
        "prior": share(prior),
        "over_length": share(learnt, length),
        "over_prior": share(learnt, prior),
        "together_over_length": share(of_all, length) if of_all else None,
        "eval_ece": card["eval_ece"],
        "agreement": agreement(rankings).to_json(),
        "annotators": card.get("annotators", {}),
    }


def score(directory: Path, slates: Sequence[Slate]) -> list[Scored]:
    """The slates with a trained reward model's scores."""
    model, pad_id = hub.load(directory, "scalar").train(False), Tokenizer.load(directory).pad_id
    return scored(model.to(precision.device()), slates, pad_id)


def right(found: Sequence[Scored], unanimous: bool = False) -> dict[str, list[float]]:
    """By prompt: 1 for each pair that is scored in the order an annotator put it in, 0.5 for equal scores."""
    groups: dict[str, list[float]] = defaultdict(list)
    for slate in found:
        groups[slate.id] += verdicts(slate, unanimous)
    return groups


def by_length(found: Sequence[Scored], training: Sequence[Slate]) -> list[Scored]:
    """Scored by the number of characters, whichever way won more often in training."""
    return judged_by_length(found, [s.judged([0.0] * len(s.texts)) for s in training])


def by_source(
    found: Sequence[Scored], training: Sequence[Slate], rankings: Sequence[Ranking]
) -> list[Scored]:
    """Scored by the share of its comparisons that the answer's source won on the prompts trained on; an
    answer that several sources gave has their mean."""
    seen = {s.id for s in training}
    won, played = Counter[str](), Counter[str]()
    authors: dict[tuple[str, str], set[str]] = defaultdict(set)
    for r in rankings:
        prompt, names = prompt_id(r.prompt), [c.policy.id for c in r.completions]
        for name, answer in zip(names, r.completions, strict=True):
            authors[prompt, answer.text].add(name)
        for winner, loser, tie in ranked_pairs(r.ranking or ()):
            if prompt in seen and not tie:
                won[names[winner]] += 1
                played.update((names[winner], names[loser]))

    def worth(prompt: str, answer: str) -> float:
        return mean(won[who] / played[who] if played[who] else 0.5 for who in authors[prompt, answer])

    return [replace(s, scores=tuple(worth(s.id, answer) for answer in s.texts)) for s in found]


def share(
    groups: Mapping[str, Sequence[float]], less: Mapping[str, Sequence[float]] | None = None
) -> dict[str, Any] | None:
    """The mean over all pairs, or the mean difference to another judge of the same pairs, with the interval
    from drawing whole prompts. None where there is no pair."""
    sums = [sum(groups[name]) - (sum(less[name]) if less else 0.0) for name in groups]
    found = bootstrap(np.array(sums), np.array([float(len(groups[name])) for name in groups]))
    return asdict(found) if found else None


def check(groups: Mapping[str, Sequence[float]], card: Mapping[str, Any], directory: Path) -> None:
    """The table must speak of the pairs that the stage's own report card speaks of, and say the same."""
    values = [v for group in groups.values() for v in group]
    accuracy = mean(values) if values else 0.0
    if len(values) != card["num_pairs"] or abs(accuracy - (card["accuracy"] or 0.0)) > 0.005:
        raise ArtifactError(
            "scored anew, the held-out answers do not come out as in the report card",
            where=directory,
            got=f"{accuracy:.4f} of {len(values)} pairs",
            expected=f"{card['accuracy']} of {card['num_pairs']}",
        )


def tables(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Markdown: a row for each set, what was left out of each, and the annotators where there are several."""
    lines = [
        "| set | answers | rankings trained on / held out | pairs | reward model | unanimous pairs "
        "| one for all sets | length only | prior | less length | less prior | one for all, less length |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in rows.items():
        sizes = sorted(map(int, row["answers"]))
        cells = [
            TITLES[name],
            f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}",
            f"{row['trained']:,} / {row['held_out']:,}",
            f"{row['accuracy']['num']:,}" if row["accuracy"] else "0",
            *(shown(row[key]) for key in ("accuracy", "agreed", "together", "length", "prior")),
            *(shown(row[key], "+") for key in ("over_length", "over_prior", "together_over_length")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "Left out:",
        "",
        *(f"- {TITLES[name]}: {left_out(name, row)}" for name, row in rows.items()),
    ]
    for name, row in rows.items():
        if row["agreement"]["between"] is not None:
            lines += ["", *people(TITLES[name], row["agreement"], row["annotators"])]
    return lines


def left_out(name: str, row: Mapping[str, Any]) -> str:
    counts = dict(row["left_out"]) | {f"an answer beyond {row['context']} tokens": row["beyond_context"]}
    found = [f"{num:,} ({reason})" for reason, num in counts.items() if num]
    return "; ".join([*found, *UNREAD.get(name, ())]) or "nothing"


def people(title: str, found: Mapping[str, Any], reliability: Mapping[str, Any]) -> list[str]:
    """The annotators' agreement, and how far each is to be believed."""
    alpha = found["alpha"]["preference"]
    lines = [
        f"{title}: an annotator agrees with another on {shown(found['between'])} of the pairs that the first "
        f"puts in order, and with the majority of the others on {shown(found['majority'])}; Krippendorff's "
        f"alpha (ordinal, ties counted) is {alpha:.3f}.",
        "",
        "| two annotators | agreement |",
        "|---|---:|",
        *(f"| {pair.replace(' | ', ', ')} | {shown(value)} |" for pair, value in found["pairs"].items()),
        "",
        "| annotator | accuracy (Dawid-Skene) | weight | pairs |",
        "|---|---:|---:|---:|",
    ]
    for who, one in reliability.items():
        accuracy = "" if one["accuracy"] is None else f"{one['accuracy']:.3f}"
        lines.append(f"| {who} | {accuracy} | {one['weight']:.2f} | {one['num_pairs']:,} |")
    return lines


def shown(value: Mapping[str, float] | None, sign: str = "") -> str:
    if value is None:
        return ""
    return f"{value['value']:{sign}.3f} [{value['low']:{sign}.3f}, {value['high']:{sign}.3f}]"


def minutes(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) / 60
    return f"{total:.1f} minutes: " + ", ".join(f"{name} {s / 60:.1f}" for name, s in seconds.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BloomeryError as error:
        sys.exit(f"error: {error}")
