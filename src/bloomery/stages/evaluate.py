"""Evaluation of one model: the oracle's table, held-out text, divergence from a reference, sample answers.

Writes evaluation.json and, where an oracle knows the answers, answers.jsonl: every answer with its verdict,
from which two evaluations of the same questions are compared pair by pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import Field

from bloomery.data.shards import Corpus
from bloomery.data.sources import OnBadRow, read_prompts
from bloomery.errors import ArtifactError, UsageError
from bloomery.evals import honesty
from bloomery.evals.ask import Asked, Reply, ask
from bloomery.evals.bootstrap import Estimate, estimate
from bloomery.evals.divergence import kl_per_answer
from bloomery.evals.language import held_out_bits
from bloomery.infer.engine import Engine
from bloomery.lineage import digest_path, write_json
from bloomery.models import hub
from bloomery.models.llama import Llama
from bloomery.recipe import InputPath, Section
from bloomery.rewards.model import score_sequences
from bloomery.seeds import derive, stream
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import precision
from bloomery.train.run import Run
from bloomery.world import Oracle, Question, read_questions, read_world

FORMAT = "bloomery-evaluation-1"
DECODINGS = {"sampled": 1.0, "greedy": 0.0}


class Evaluate(Section):
    """Measure a model: on questions with known answers, on held-out text, and against a reference."""

    model: InputPath
    world: InputPath | None = None
    """The directory of a world stage, whose oracle judges the answers to its held-out questions."""
    questions: InputPath | None = None
    """Without a world: prompts to answer. With one: questions to ask instead of the world's own."""
    reference: InputPath | None = None
    """What `kl` is measured against: the SFT model."""
    corpus: InputPath | None = None
    """Tokenised text whose validation split gives bits per byte."""
    reward: InputPath | None = None
    """A reward model whose score of each answer is written beside the oracle's."""
    chat: bool = True
    """False for a base model, which is asked by continuation (see bloomery.evals.ask)."""
    on_bad_row: OnBadRow = "error"
    """Stop at a row that cannot be read, or skip and count it."""
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
        asked = questions(recipe)
        chat = Chat(Tokenizer.load(recipe.model))
        model = hub.load(recipe.model).to(precision.device()).train(False)
        replies = {decoding: answer(recipe, model, chat, asked, decoding) for decoding in DECODINGS}
        proxies = {decoding: reward_scores(recipe, chat, asked, found) for decoding, found in replies.items()}
        tree: dict[str, Any] = {
            "format": FORMAT,
            "model": digest_path(recipe.model),
            "chat": recipe.chat,
            "seed": recipe.seed,
            "num_questions": len(asked),
        }
        judged = judge(recipe, asked, replies, proxies)
        if judged:
            rows = {decoding: [asdict(a) for a in found] for decoding, found in judged.items()}
            tree |= {d: _json(honesty.measure(found, recipe.seed)) for d, found in judged.items()}
            tree["by_kind"] = {
                d: {kind: _json(row) for kind, row in honesty.by_kind(found, recipe.seed).items()}
                for d, found in judged.items()
            }
            lines = "".join(honesty.write_answers(d, a) for d, a in judged.items())
            (out / "answers.jsonl").write_text(lines, encoding="utf-8")
        else:
            rows = {d: plain_rows(asked, found, proxies[d]) for d, found in replies.items()}
            tree |= {d: _json(plain_metrics(found, recipe.seed)) for d, found in rows.items()}
        tree["bpb"] = bits(recipe, model)
        kl = divergence(recipe, model, replies["sampled"], chat.tokenizer.pad_id)
        tree["kl"] = kl.to_json() if kl else None
        tree["conversations"] = conversations(asked, rows, recipe.samples)
        write_json(out / "evaluation.json", tree)
        run.line(headline(tree))
        run.finish(data=[{"source": "questions", "questions": len(asked)}])


def questions(recipe: Evaluate) -> list[Asked]:
    """The questions to ask, in order: a world's held-out ones, or plain prompts.

    Raises `DataError` naming the line of a bad question, `UsageError` when there is nothing to ask.
    """
    asked: list[Asked] = []
    if recipe.world is not None:
        found = read_questions(recipe.questions or recipe.world)
        asked.extend(q for q in found if q.split == "eval")
    elif recipe.questions is not None:
        asked.extend(read_prompts(recipe.questions, on_bad_row=recipe.on_bad_row))
    if not asked:
        raise UsageError(
            "there is nothing to ask", do="give `world`, or `questions` with at least one prompt"
        )
    if recipe.limit is not None and recipe.limit < len(asked):
        kept = stream(recipe.seed, "evaluate", "limit").choice(len(asked), recipe.limit, replace=False)
        asked = [asked[i] for i in sorted(kept)]
    return asked


def answer(recipe: Evaluate, model: Llama, chat: Chat, asked: Sequence[Asked], decoding: str) -> list[Reply]:
    stop = chat.tokenizer.end_id if recipe.chat else chat.tokenizer.doc_id
    return ask(
        Engine(model, stop_id=stop, pad_id=chat.tokenizer.pad_id),
        chat,
        asked,
        base=not recipe.chat,
        temperature=DECODINGS[decoding],
        max_tokens=recipe.max_tokens,
        seed=recipe.seed,
    )


def judge(
    recipe: Evaluate,
    asked: Sequence[Asked],
    replies: Mapping[str, Sequence[Reply]],
    proxies: Mapping[str, Sequence[float] | None],
) -> dict[str, list[honesty.Judged]]:
    """The oracle's verdicts by decoding; empty where no world knows the answers."""
    if recipe.world is None:
        return {}
    oracle = Oracle(read_world(recipe.world))
    known = [q for q in asked if isinstance(q, Question)]
    return {d: honesty.judge(oracle, known, found, proxies[d]) for d, found in replies.items()}


def reward_scores(
    recipe: Evaluate, chat: Chat, asked: Sequence[Asked], replies: Sequence[Reply]
) -> list[float] | None:
    """What the reward model says of each answer: of the very tokens that were read and drawn, so one that was
    cut off has no end; a base model's are rendered as a chat."""
    if recipe.reward is None:
        return None
    model = hub.load(recipe.reward, "scalar").to(precision.device()).train(False).requires_grad_(False)
    sequences = [
        (*reply.prompt, *reply.completion) if recipe.chat else as_chat(question, reply, chat)
        for question, reply in zip(asked, replies, strict=True)
    ]
    scores: list[float] = score_sequences(
        model, sequences, chat.tokenizer.pad_id, batch_tokens=recipe.batch_tokens
    ).tolist()
    return scores


def as_chat(question: Asked, reply: Reply, chat: Chat) -> tuple[int, ...]:
    """Question and answer as the reward model knows them."""
    tokenizer = chat.tokenizer
    return (*chat.prompt(question.messages), *tokenizer.encode(reply.text), tokenizer.end_id)


def divergence(recipe: Evaluate, model: Llama, replies: Sequence[Reply], pad_id: int) -> Estimate | None:
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
    return estimate(values, seed=derive(recipe.seed, "kl"))


def bits(recipe: Evaluate, model: Llama) -> dict[str, Any] | None:
    """Held-out bits per byte, in "all" and by source."""
    if recipe.corpus is None:
        return None
    length = model.config.max_position_embeddings
    corpus = Corpus.open(recipe.corpus, Tokenizer.load(recipe.model))
    return _json(held_out_bits(model, corpus, length=length, seed=recipe.seed))


def plain_rows(
    asked: Sequence[Asked], replies: Sequence[Reply], proxies: Sequence[float] | None
) -> list[dict[str, Any]]:
    """What can be said of answers that no oracle judges."""
    return [
        {
            "id": question.id,
            "kind": question.kind,
            "text": reply.text,
            "finished": reply.finished,
            "tokens": len(reply.completion),
            "proxy": None if proxies is None else proxies[i],
        }
        for i, (question, reply) in enumerate(zip(asked, replies, strict=True))
    ]


def plain_metrics(rows: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Estimate]:
    values = {
        "unfinished_rate": [float(not row["finished"]) for row in rows],
        "length": [float(row["tokens"]) for row in rows],
        "proxy_reward": [row["proxy"] for row in rows if row["proxy"] is not None],
    }
    return {name: estimate(found, seed=derive(seed, name)) for name, found in values.items()}


def conversations(
    asked: Sequence[Asked], rows: Mapping[str, Sequence[Mapping[str, Any]]], count: int
) -> list[dict[str, Any]]:
    """Questions with both answers to each, the kinds in turn, so that every kind occurs.

    Which questions is decided by their number and kinds alone: every model answers the same ones.
    """
    groups: dict[str, list[int]] = {}
    for i in stream(0, "evaluate", "samples").permutation(len(asked)):
        groups.setdefault(_group(asked[i]), []).append(int(i))
    turns = max((len(group) for group in groups.values()), default=0)
    chosen = [groups[name][t] for t in range(turns) for name in sorted(groups) if t < len(groups[name])]
    return [
        {
            "id": asked[i].id,
            "kind": _group(asked[i]),
            "messages": [m.model_dump(exclude_none=True) for m in asked[i].messages],
            "answer": getattr(asked[i], "answer", None),
            **{decoding: dict(found[i]) for decoding, found in rows.items()},
        }
        for i in chosen[:count]
    ]


def _group(question: Asked) -> str:
    exposure = question.exposure if isinstance(question, Question) and question.kind == "fact" else None
    return f"{question.kind}/{exposure}" if exposure else question.kind or "prompt"


def headline(tree: Mapping[str, Any]) -> str:
    parts = [f"{tree['num_questions']} questions"]
    for decoding in DECODINGS:
        graded = tree[decoding].get("graded_reward")
        parts += [f"graded reward {graded['mean']:.3f} {decoding}"] if graded else []
    if tree["bpb"]:
        parts.append(f"{tree['bpb']['all']['mean']:.3f} bits per byte")
    if tree["kl"]:
        parts.append(f"KL {tree['kl']['mean']:.2f}")
    return ", ".join(parts)


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: found.to_json() for name, found in estimates.items()}
