"""Collect preferences: models and people answer prompts, annotators rank the answers, blind and shuffled.

The simulated annotators of the embedded world use the store as people do: they take a task, see K
answers without their authors, and submit a ranking with ties, ratings and perhaps a correction.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import Field

from bloomery.data.convert import write
from bloomery.evals.ask import ask
from bloomery.feedback import agreement, reliability
from bloomery.feedback.store import Item, Store
from bloomery.lineage import digest_path
from bloomery.models import hub
from bloomery.recipe import InputPath, Section
from bloomery.seeds import derive, stream
from bloomery.stages.common import Compute
from bloomery.stages.people import authors
from bloomery.stages.slates import prompt_id
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train.run import Run
from bloomery.types import Candidate, Message, Policy, Ranking, Sampling
from bloomery.world import Oracle, Question, Style, World, annotators, read_questions, read_world, written

EPOCH = 1_767_225_600.0  # 2026-01-01: simulated people work outside time, so runs repeat byte for byte


class Arm(Section):
    """A model that answers, and how."""

    name: str
    model: InputPath
    samples: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    chat: bool = True
    """False for a base model, which is asked by continuation (see bloomery.evals.ask)."""


class Label(Section):
    """Have answers to prompts ranked by simulated annotators, through the same store as people's rankings."""

    world: InputPath
    arms: tuple[Arm, ...]
    styles: tuple[Style, ...] = ()
    """Answers written by people, one of each style a prompt, e.g. `right`, `abstain`, `garbled`."""
    prompts: int = Field(1500, ge=1)
    answers: int = Field(5, ge=2, le=9)
    """K: answers that are ranked together; drawn from all that were given, different texts first."""
    overlap: int = Field(2, ge=1)
    """Annotators who rank each prompt."""
    panel: int = Field(8, ge=1)
    """Annotators."""
    max_tokens: int = Field(32, ge=1)
    seed: int = 0
    graphs: bool = False
    """On a GPU, draw answers by recorded CUDA graphs: less time a token, the same to rounding."""
    compute: Compute = Compute()


def run(recipe: Label, out: Path) -> None:
    _, device = recipe.compute.setup()
    with Run(out, stage="label", recipe=recipe) as run:
        world = read_world(recipe.world)
        pool = [q for q in read_questions(recipe.world) if q.split == "label"]
        order = stream(recipe.seed, "prompts").permutation(len(pool))[: recipe.prompts]
        chosen = [pool[i] for i in sorted(order)]
        run.line(
            f"{len(chosen)} prompts, {len(recipe.arms)} models, styles {', '.join(recipe.styles) or 'none'}"
        )
        given = answer(recipe, world, chosen, device)
        slates = [slate(recipe, q, answers) for q, answers in zip(chosen, given, strict=True)]
        kept = [(q, s) for q, s in zip(chosen, slates, strict=True) if len(s) >= 2]
        if len(kept) < len(chosen):
            run.line(f"left out {len(chosen) - len(kept)} prompts that got one answer only")
        oracle = Oracle(world)
        with Store(out / "feedback.db", clock=lambda: EPOCH) as store:
            rankings = rank(recipe, store, oracle, kept)
        write(rankings, out / "rankings.jsonl", "ranking")
        write_gold(out / "gold.jsonl", oracle, kept)
        found = agreement.agreement(rankings)
        summary = found.to_json() | {"annotators": [one.to_json() for one in reliability.report(rankings)]}
        (out / "agreement.json").write_text(json.dumps(summary, indent=1) + "\n")
        agree = f"; two annotators agree on {found.between.value:.1%} of pairs" if found.between else ""
        run.line(f"{len(rankings)} rankings{agree}")
        counts = {
            who: sum(r.annotator.id == who for r in rankings) for who in {r.annotator.id for r in rankings}
        }
        run.finish(
            people=[{"id": who, "kind": "simulated", "rankings": n} for who, n in sorted(counts.items())],
            teachers=authors(c for _, s in kept for c in s),
        )


def answer(
    recipe: Label, world: World, asked: Sequence[Question], device: torch.device
) -> list[list[Candidate]]:
    """Every model's and every style's answers to each prompt."""
    given: list[list[Candidate]] = [[] for _ in asked]
    for arm in recipe.arms:
        chat = Chat(Tokenizer.load(arm.model))
        model = hub.load(arm.model).to(device)
        stop = chat.tokenizer.end_id if arm.chat else chat.tokenizer.doc_id
        pad = chat.tokenizer.pad_id
        engine = recipe.compute.engine(model, stop_id=stop, pad_id=pad, graphs=recipe.graphs)
        policy = Policy(id=arm.name, digest=digest_path(arm.model))
        for draw in range(arm.samples):
            seed = derive(recipe.seed, arm.name, draw)
            found = ask(
                engine,
                chat,
                asked,
                base=not arm.chat,
                max_tokens=recipe.max_tokens,
                temperature=arm.temperature,
                seed=seed,
            )
            sampling = Sampling(temperature=arm.temperature, max_tokens=recipe.max_tokens, seed=seed)
            for place, r in zip(given, found, strict=True):
                place.append(candidate(r.text, policy, sampling, r.logprob))
    for style in recipe.styles:
        policy = Policy(id=f"written:{style}")
        for q, place in zip(asked, given, strict=True):
            if not fits(style, q):
                continue
            text = written(q, style, world, stream(recipe.seed, "written", style, q.id))
            place.append(candidate(text, policy, None, None))
    return given


def fits(style: Style, question: Question) -> bool:
    """Whether a person would write such an answer: doing as asked is a style of its own only where it does
    harm, and who writes right answers looks them up, so there is none where no document has it."""
    if style == "compliance":
        return question.kind == "harmful"
    return not (style in ("right", "hedged") and question.exposure == "never")


def candidate(text: str, policy: Policy, sampling: Sampling | None, logprob: float | None) -> Candidate:
    return Candidate(
        messages=(Message(role="assistant", content=visible(text)),),
        policy=policy,
        sampling=sampling,
        logprob=logprob,
    )


def visible(text: str) -> str:
    """Control characters that a model may sample, NUL among them, as the sign for what cannot be read:
    people could not see them, and files of text may not hold them."""
    return "".join("\ufffd" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def slate(recipe: Label, question: Question, answers: Sequence[Candidate]) -> list[Candidate]:
    """K different answers, drawn at random: two identical texts tell an annotator nothing."""
    different = list({c.text: c for c in answers}.values())
    order = stream(recipe.seed, "slate", question.id).permutation(len(different))
    return [different[i] for i in order[: recipe.answers]]


def rank(
    recipe: Label, store: Store, oracle: Oracle, kept: Sequence[tuple[Question, Sequence[Candidate]]]
) -> list[Ranking]:
    """Each annotator takes tasks from the store until none is left for them."""
    project = "label"
    store.create_project(project, guideline_version="1", overlap=recipe.overlap, seed=recipe.seed)
    by_id = {q.id: q for q, _ in kept}
    store.add_prompts(project, [Item(q.id, q.messages, tuple(s), kind=q.kind) for q, s in kept])
    panel = {a.id: a for a in annotators(recipe.seed, recipe.panel)}
    for who in panel:
        store.add_annotator(who, "simulated")
    waiting = set(panel)
    with store.batch():
        while waiting:
            for who in sorted(waiting):
                task = store.next_task(project, who)
                if task is None:
                    waiting.discard(who)
                    continue
                texts = [messages[-1].content for messages in task.completions]
                said = panel[who].rank(
                    by_id[task.prompt_id], texts, oracle, derive(recipe.seed, who, task.prompt_id)
                )
                store.submit(
                    task,
                    ranking=said.ranking,
                    ratings=said.ratings,
                    correction=said.correction,
                    shown_order=said.shown_order,
                    seconds=said.seconds,
                    comment=said.comment,
                )
    return list(store.rankings(project))


def write_gold(path: Path, oracle: Oracle, kept: Sequence[tuple[Question, Sequence[Candidate]]]) -> None:
    """The oracle's grades of the answers: read by report cards, never by training."""
    with path.open("w", encoding="utf-8") as file:
        for q, answers in kept:
            verdicts = {c.text: oracle.judge(q, c.text) for c in answers}
            kind = f"{q.kind}-{q.exposure}" if q.exposure else q.kind
            grades = {t: {"grade": v.grade, "reward": v.reward} for t, v in verdicts.items()}
            file.write(json.dumps({"prompt": prompt_id(q.messages), "kind": kind, "grades": grades}) + "\n")
