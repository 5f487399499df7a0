"""The plan of a journey: its steps in the order they run, each stage's inputs filled in.

    world -> data -> tokenizer -> corpus -> base -> sft -> (label -> reward -> ppo) per round; evaluations

With files of your own (`data.documents`) the rankings come from files too, so there is one round at most.
With a `lab` the embedded world goes from sft into the over-optimisation laboratory.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from bloomery.errors import RecipeError, UsageError, nearest
from bloomery.journey.run import Run
from bloomery.journey.settings import BASELINE, ENSEMBLE, HELD_OUT, Answers, Journey, Opponent, _Journey
from bloomery.journey.steps import Plan, Step
from bloomery.recipe import Section
from bloomery.stages import STAGES

__all__ = ["Journey", "make_plan", "runs"]

ROUND_SEEDS = 1000
"""Distance between the seeds of two rounds, so that they ask different prompts."""


def runs() -> dict[str, Run]:
    """What carries out each stage."""
    return {name: STAGES[name].run for name in STAGES}


def make_plan(journey: _Journey, out: Path) -> Plan:
    """The steps of a journey into `out`. Raises `RecipeError` for settings that a stage refuses together."""
    if journey.lab is not None:
        return lab_plan(journey, out)
    return files_plan(journey, out) if journey.data.documents else world_plan(journey, out)


class Steps:
    """Collects steps. `add` returns the path that later steps give as their input."""

    def __init__(self, journey: _Journey, out: Path) -> None:
        self.seed, self.out, self.steps = journey.seed, out, list[Step]()

    def add(
        self, name: str, stage: str, settings: Section, *, seed: int | None = None, **inputs: Any
    ) -> Path:
        schema = STAGES[stage].recipe
        tree = settings.model_dump() | inputs
        if "seed" in schema.model_fields:
            tree["seed"] = self.seed if seed is None else seed
        coefs = [tree.get("ptx_coef"), tree.get("replay", {}).get("coef")]
        if 0 in coefs and "corpus" in tree:
            tree["corpus"] = None  # what is not read is no part of the lineage
        try:
            self.steps.append(Step(name, stage, schema.model_validate(tree)))
        except ValidationError as error:
            raise RecipeError([f"{stage}: {one['msg']}" for one in error.errors()]) from None
        return self.out / name

    def plan(self, rounds: int) -> Plan:
        last = {"reward": f"reward-{rounds}", "rl": f"ppo-{rounds}"} if rounds else {}
        return Plan(tuple(self.steps), last)


class Begun(NamedTuple):
    """What the embedded world's plans have in common: where its steps up to sft leave what."""

    world: Path
    shown: Path
    """The demonstrations."""
    tokenizer: Path
    corpus: Path
    base: Path
    sft: Path
    measured: dict[str, Any]
    """Inputs of every evaluation."""


def begin(j: _Journey, steps: Steps) -> Begun:
    """The embedded world, a base model and an SFT model, both evaluated."""
    add = steps.add
    world = add("world", "world", j.world)
    shown = world / "demonstrations.jsonl"
    data = add("data", "clean", j.clean, documents=[world / "documents.jsonl"])
    text = [data / "documents.jsonl"]
    tokenizer = add("tokenizer", "tokenizer", j.tokenizer, documents=text, conversations=[shown])
    corpus = add("corpus", "encode", j.encode, documents=text, tokenizer=tokenizer)
    base = add("base", "pretrain", j.pretrain, corpus=corpus, tokenizer=tokenizer)
    measured: dict[str, Any] = {"world": world, "corpus": corpus}
    add("evaluate-base", "evaluate", j.evaluate, model=base, chat=False, **measured)
    sft = add("sft", "sft", j.sft, model=base, demonstrations=[shown], corpus=corpus)
    measured["reference"] = sft
    add("evaluate-sft", "evaluate", j.evaluate, model=sft, **measured)
    return Begun(world, shown, tokenizer, corpus, base, sft, measured)


def world_plan(j: _Journey, out: Path) -> Plan:
    """The embedded world: everything is made, judged and measured against its ground truth."""
    add = (steps := Steps(j, out)).add
    begun = begin(j, steps)
    world, corpus, sft = begun.world, begun.corpus, begun.sft
    models, labels, reward = {"base": begun.base, "sft": sft, "rl": sft}, list[Path](), None
    for n in range(1, j.rounds + 1):
        part, seed = j.first if n == 1 else j.later, j.seed + ROUND_SEEDS * (n - 1)
        arms = list(_arms(part.answers, models))
        labels.append(add(f"label-{n}", "label", part.label, seed=seed, world=world, arms=arms))
        reward = add(
            f"reward-{n}",
            "reward",
            part.reward,
            seed=seed,
            model=sft,
            start=reward,
            corpus=corpus,
            rankings=[label / "rankings.jsonl" for label in labels],
            gold=[label / "gold.jsonl" for label in labels],
            demonstrations=begun.shown,
        )
        models["rl"] = add(
            f"ppo-{n}",
            "ppo",
            part.ppo,
            seed=seed,
            policy=models["rl"],
            reference=sft,
            reward=reward,
            prompts=[world / "prompts.jsonl"],
            corpus=corpus,
            world=world,
        )
        add(f"evaluate-rl-{n}", "evaluate", j.evaluate, model=models["rl"], reward=reward, **begun.measured)
    return steps.plan(j.rounds)


def lab_plan(j: _Journey, out: Path) -> Plan:
    """The laboratory: for every reward model a twin taught by as many other rankings, best-of-n, and PPO on
    every leash, where the twin is watched. The gold is the oracle's grade of what is said on the way, held
    against its grade of what the SFT model says to every prompt."""
    _check_lab(j)
    add = (steps := Steps(j, out)).add
    begun = begin(j, steps)
    arms = list(_arms(j.first.answers, {"base": begun.base, "sft": begun.sft, "rl": begun.sft}))
    label = add("label-1", "label", j.first.label, world=begun.world, arms=arms)
    _baseline(j, steps, begun)
    trunks: dict[str | None, Path] = {None: begun.sft}
    for size, shape in j.lab.sizes.items():
        smaller = j.pretrain.model_copy(update={"model": shape})
        base = add(f"base-{size}", "pretrain", smaller, corpus=begun.corpus, tokenizer=begun.tokenizer)
        shown = [begun.shown]
        trunks[size] = add(f"sft-{size}", "sft", j.sft, model=base, demonstrations=shown, corpus=begun.corpus)
    for opponent in j.lab.reward_models:
        _against(j, steps, begun, label, opponent, trunks[opponent.size])
    return steps.plan(0)


def _baseline(j: _Journey, steps: Steps, begun: Begun) -> None:
    """The SFT model answers every prompt as it will when PPO asks, whatever best-of-n is told. What is wanted
    is the oracle's grade: the reward is one that costs nothing."""
    ppo, prompts = j.first.ppo, [begun.world / "prompts.jsonl"]
    alike = {"max_tokens": ppo.max_tokens, "temperature": ppo.temperature, "samples": j.lab.baseline}
    whole = j.lab.best_of_n.model_copy(update={**alike, "limit": None, "at": ()})
    free = [{"kind": "length", "settings": {"most": ppo.max_tokens}}]
    asked: dict[str, Any] = {"policy": begun.sft, "prompts": prompts, "world": begun.world}
    steps.add(BASELINE, "best_of_n", whole, rewards=free, **asked)


def _against(j: _Journey, steps: Steps, begun: Begun, label: Path, opponent: Opponent, trunk: Path) -> None:
    """One reward model of the laboratory, its twin, and everything that is tried against it."""
    add, pair = steps.add, list[Path]()
    for part, name in enumerate((opponent.name, opponent.twin)):
        spoilt = add(
            f"spoil-{name}",
            "spoil",
            Section(),
            rankings=[label / "rankings.jsonl"],
            share=opponent.share,
            part=part,
            flipped=opponent.flipped,
            held_out=j.first.reward.held_out,
        )
        rankings = spoilt / "rankings.jsonl"
        pair.append(
            add(
                f"reward-{name}",
                "reward",
                j.first.reward,
                seed=j.seed + part,
                model=trunk,
                corpus=begun.corpus,
                rankings=[rankings],
                gold=[label / "gold.jsonl"],
                demonstrations=begun.shown,
            )
        )
    asked: dict[str, Any] = {
        "policy": begun.sft,
        "reward": pair[0],
        "prompts": [begun.world / "prompts.jsonl"],
        "world": begun.world,
    }
    add(opponent.best, "best_of_n", j.lab.best_of_n, **asked)
    watch = [
        *(source.model_dump() for source in j.first.ppo.watch),
        {"kind": "model", "name": HELD_OUT, "settings": {"path": pair[1]}},
        {"kind": "ensemble", "name": ENSEMBLE, "settings": {"models": pair, "pool": "uncertainty"}},
    ]
    for kl_coef in j.lab.kl_coefs:
        leash: dict[str, Any] = {"reference": begun.sft, "corpus": begun.corpus, "kl_coef": kl_coef}
        add(opponent.ppo(kl_coef), "ppo", j.first.ppo, watch=watch, **leash, **asked)


def files_plan(j: _Journey, out: Path) -> Plan:
    """Your own files: text, demonstrations, and rankings if there is to be a reward model."""
    _check_files(j)
    add, root = (steps := Steps(j, out)).add, j.data.root
    shown = [root / path for path in j.data.demonstrations]
    rankings = [root / path for path in j.data.rankings]
    data = add("data", "clean", j.clean, documents=[root / path for path in j.data.documents])
    text = [data / "documents.jsonl"]
    tokenizer = add("tokenizer", "tokenizer", j.tokenizer, documents=text, conversations=shown)
    corpus = add("corpus", "encode", j.encode, documents=text, tokenizer=tokenizer)
    base = add("base", "pretrain", j.pretrain, corpus=corpus, tokenizer=tokenizer)
    prompts = [root / j.data.prompts] if j.data.prompts else rankings or shown
    questions = root / j.data.questions if j.data.questions else prompts[0]
    measured: dict[str, Any] = {"questions": questions, "corpus": corpus}
    add("evaluate-base", "evaluate", j.evaluate, model=base, chat=False, **measured)
    sft = add("sft", "sft", j.sft, model=base, demonstrations=shown, corpus=corpus)
    measured["reference"] = sft
    if not j.rounds:
        add("evaluate-sft", "evaluate", j.evaluate, model=sft, **measured)
        return steps.plan(0)
    reward = add(
        "reward-1",
        "reward",
        j.first.reward,
        model=sft,
        rankings=rankings,
        demonstrations=shown[0],
        corpus=corpus,
    )
    measured["reward"] = reward
    add("evaluate-sft", "evaluate", j.evaluate, model=sft, **measured)
    rl = add(
        "ppo-1", "ppo", j.first.ppo, policy=sft, reference=sft, reward=reward, prompts=prompts, corpus=corpus
    )
    add("evaluate-rl-1", "evaluate", j.evaluate, model=rl, **measured)
    return steps.plan(1)


def _check_lab(j: _Journey) -> None:
    if j.rounds:
        raise UsageError("a lab takes the place of rounds", got=f"rounds = {j.rounds}", do="--set rounds=0")
    if j.data.documents:
        raise UsageError("a lab needs the oracle of the embedded world", got="data.documents")
    names = [one.name for one in j.lab.reward_models]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two reward models of the lab are called '{twice}'")
    if len(set(j.lab.kl_coefs)) < len(j.lab.kl_coefs):
        raise UsageError("a leash of the lab is there twice", got=list(j.lab.kl_coefs))
    for one in j.lab.reward_models:
        if one.size is not None and one.size not in j.lab.sizes:
            hint = nearest(one.size, j.lab.sizes)
            raise UsageError(f"no size of the lab is called '{one.size}'{hint}", where=f"lab: {one.name}")
    idle = sorted(set(j.lab.sizes) - {one.size for one in j.lab.reward_models})
    if idle:
        raise UsageError("a size that no reward model of the lab has", got=", ".join(idle))


def _check_files(j: _Journey) -> None:
    if not j.data.demonstrations:
        raise UsageError("data.demonstrations is empty: sft needs conversations to imitate")
    if j.rounds > 1:
        raise UsageError(
            "rankings from files are made once, so there is one round at most",
            got=f"rounds = {j.rounds}",
            do="--set rounds=1, or rounds=0 to stop after sft",
        )
    if j.rounds and not j.data.rankings:
        raise UsageError("data.rankings is empty: the reward model needs rankings", do="or --set rounds=0")


def _arms(answers: Iterable[Answers], models: dict[str, Path]) -> Iterable[dict[str, Any]]:
    """The models that answer, each under a name that says how: `sft`, `sft-t1.3`, `rl-greedy`."""
    for one in answers:
        how = "" if one.temperature == 1 else "-greedy" if one.temperature == 0 else f"-t{one.temperature:g}"
        yield {
            "name": one.of + how,
            "model": models[one.of],
            "samples": one.samples,
            "temperature": one.temperature,
            "chat": one.of != "base",
        }
