"""Evaluation of one model: the oracle's table, held-out text, divergence from a reference, sample answers.

Writes evaluation.json (see `summary`) and answers.jsonl (every answer with its verdict, both decodings), from
which two evaluations of the same questions are compared pair by pair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bloomery.train.run import Run
from pydantic import Field

from bloomery.data.shards import Corpus
from bloomery.errors import ArtifactError, DataError
from bloomery.evals import honesty
from bloomery.evals.bootstrap import Estimate, estimate
from bloomery.evals.divergence import kl_per_answer
from bloomery.evals.honesty import Judged, Reply
from bloomery.evals.language import held_out_bits
from bloomery.infer.engine import Engine
from bloomery.lineage import digest_path
from bloomery.models import hub
from bloomery.recipe import InputPath, Section
from bloomery.rewards.model import score_sequences
from bloomery.seeds import stream
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import precision
from bloomery.world import Oracle, Question, World

FORMAT = "bloomery-evaluation-1"


class Evaluate(Section):
    """Measure a model on questions with known answers, on held-out text, and against a reference."""

    model: InputPath
    world: InputPath
    """The directory of a world stage: its world.json, and its questions unless given apart."""
    questions: InputPath | None = None
    """Questions to ask, JSON Lines; those of the "eval" split are taken."""
    reference: InputPath | None = None
    """What `kl` is measured against: the SFT model."""
    corpus: InputPath | None = None
    """Tokenised text whose validation split gives bits per byte."""
    reward: InputPath | None = None
    """A reward model whose score of each answer is written beside the oracle's."""
    chat: bool = True
    """False for a base model, which is asked by continuation (see bloomery.evals.honesty)."""
    seed: int = 0
    max_tokens: int = Field(40, ge=1)
    """An answer longer than this is cut, and counts as unfinished."""
    limit: int | None = Field(None, ge=1)
    """Ask only so many questions, drawn by the seed."""
    samples: int = Field(24, ge=0)
    """Conversations written into evaluation.json, drawn from every kind of question."""
    batch_tokens: int = Field(8192, ge=1)
    """Padded positions of one forward pass when answers are scored."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; all cores when not given."""


def run(recipe: Evaluate, out: Path) -> None:
    precision.setup("fp32", recipe.threads)
    with Run(out, stage="evaluate", recipe=recipe) as run:
        world = World.from_json((recipe.world / "world.json").read_text(encoding="utf-8"))
        questions = read_questions(recipe.questions or recipe.world / "questions.jsonl", recipe)
        chat, device = Chat(Tokenizer.load(recipe.model)), precision.device()
        model = hub.load(recipe.model).to(device).train(False)
        tokenizer, oracle = chat.tokenizer, Oracle(world)
        stop = tokenizer.end_id if recipe.chat else tokenizer.doc_id
        engine = Engine(model, stop_id=stop, pad_id=tokenizer.pad_id)
        replies: dict[str, list[Reply]] = {}
        answers: dict[str, list[Judged]] = {}
        for decoding, temperature in (("sampled", 1.0), ("greedy", 0.0)):
            replies[decoding] = honesty.ask(
                engine,
                chat,
                questions,
                base=not recipe.chat,
                temperature=temperature,
                max_tokens=recipe.max_tokens,
                seed=recipe.seed,
            )
            proxies = reward_scores(recipe, chat, questions, replies[decoding])
            answers[decoding] = honesty.judge(oracle, questions, replies[decoding], proxies)
        kl = divergence(recipe, model, replies["sampled"], tokenizer.pad_id)
        bits = (
            held_out_bits(model, Corpus.open(recipe.corpus), length=model.config.max_position_embeddings)
            if recipe.corpus
            else {}
        )
        tree = summary(recipe, questions, answers, kl, bits)
        (out / "evaluation.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", "utf-8")
        (out / "answers.jsonl").write_text(
            "".join(honesty.write_answers(d, a) for d, a in answers.items()), "utf-8"
        )
        found = tree["sampled"]
        run.line(
            f"{len(questions)} questions: graded reward {found['graded_reward']['mean']:.3f} sampled, "
            f"{tree['greedy']['graded_reward']['mean']:.3f} greedy"
        )
        run.finish(data=[{"source": "questions of the embedded world", "questions": len(questions)}])


def read_questions(path: Path, recipe: Evaluate) -> list[Question]:
    """The held-out questions in their order. Raises `DataError` naming the line of a bad one."""
    found: list[Question] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            question = Question.from_json(line)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("this line is no question", where=f"{path}:{number}", got=error) from None
        if question.split == "eval":
            found.append(question)
    if not found:
        raise DataError("there are no evaluation questions", where=path, expected='lines of the split "eval"')
    if recipe.limit is not None and recipe.limit < len(found):
        kept = stream(recipe.seed, "evaluate", "limit").choice(len(found), recipe.limit, replace=False)
        found = [found[i] for i in sorted(kept)]
    return found


def reward_scores(
    recipe: Evaluate, chat: Chat, questions: Sequence[Question], replies: Sequence[Reply]
) -> list[float] | None:
    """What the reward model says of each answer, rendered as a chat whoever wrote it."""
    if recipe.reward is None:
        return None
    model = hub.load(recipe.reward, "scalar").to(precision.device()).train(False).requires_grad_(False)
    end = chat.tokenizer.end_id
    sequences = [
        (*chat.prompt(question.messages), *chat.tokenizer.encode(reply.text), end)
        for question, reply in zip(questions, replies, strict=True)
    ]
    scores: list[float] = score_sequences(
        model, sequences, chat.tokenizer.pad_id, batch_tokens=recipe.batch_tokens
    ).tolist()
    return scores


def divergence(recipe: Evaluate, model: Any, replies: Sequence[Reply], pad_id: int) -> Estimate | None:
    """Mean KL(model || reference) of a sampled answer, in nats; 0 for the reference itself."""
    if recipe.reference is None:
        return None
    reference = hub.load(recipe.reference).to(precision.device()).train(False)
    if reference.config.vocab_size != model.config.vocab_size:
        raise ArtifactError(
            "the reference has another vocabulary",
            where=recipe.reference,
            got=reference.config.vocab_size,
            expected=model.config.vocab_size,
        )
    values = kl_per_answer(
        (model, model.logits),
        (reference, reference.logits),
        [(reply.prompt, reply.completion) for reply in replies],
        pad_id=pad_id,
        device=precision.device(),
        batch_tokens=recipe.batch_tokens,
    )
    return estimate(values, seed=recipe.seed)


def summary(
    recipe: Evaluate,
    questions: Sequence[Question],
    answers: Mapping[str, list[Judged]],
    kl: Estimate | None,
    bits: Mapping[str, Estimate],
) -> dict[str, Any]:
    """evaluation.json: every number as {"mean", "low", "high", "n"}.

    `sampled` and `greedy` hold the metrics of `bloomery.evals.honesty`, `by_kind` the same apart for each
    kind of question, `bpb` bits per byte by source, `kl` nats per sampled answer, `conversations` samples.
    """
    return {
        "format": FORMAT,
        "model": digest_path(recipe.model),
        "chat": recipe.chat,
        "seed": recipe.seed,
        "num_questions": len(questions),
        **{d: _json(honesty.measure(found, recipe.seed)) for d, found in answers.items()},
        "by_kind": {
            d: {kind: _json(row) for kind, row in honesty.by_kind(found, recipe.seed).items()}
            for d, found in answers.items()
        },
        "bpb": _json(bits) or None,
        "kl": asdict(kl) if kl else None,
        "conversations": conversations(questions, answers, recipe.samples),
    }


def conversations(
    questions: Sequence[Question], answers: Mapping[str, list[Judged]], count: int
) -> list[dict[str, Any]]:
    """Questions with both answers to each, the kinds in turn, so that every kind occurs.

    Which questions is decided by the questions alone: every model shows its answers to the same ones.
    """
    groups: dict[str, list[int]] = {}
    order = stream(0, "evaluate", "samples").permutation(len(questions))
    for i in order:
        groups.setdefault(answers["sampled"][i].group, []).append(int(i))
    rounds = max((len(g) for g in groups.values()), default=0)
    chosen = [
        groups[name][turn] for turn in range(rounds) for name in sorted(groups) if turn < len(groups[name])
    ]
    return [
        {
            "id": questions[i].id,
            "kind": answers["sampled"][i].group,
            "stranger": questions[i].unlabelled_person,
            "messages": [m.model_dump(exclude_none=True) for m in questions[i].messages],
            "answer": questions[i].answer,
            **{d: asdict(found[i]) for d, found in answers.items()},
        }
        for i in chosen[:count]
    ]


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: found.to_json() for name, found in estimates.items()}
