"""Best-of-n: several answers to each prompt, of which a reward chooses one. No gradient.

Writes best_of_n.json, a row for every n: how far the choice is from the policy that was asked, and what it is
worth to the reward that made it and, in a world, to the oracle. Beside it answers.jsonl, every answer with
its score, and for every n the chosen answers as demonstrations, best-of-<n>.jsonl.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bloomery.data.convert import write
from bloomery.data.sources import read_prompts
from bloomery.errors import DataError, UsageError
from bloomery.evals import honesty
from bloomery.evals.ask import Reply
from bloomery.evals.bootstrap import estimate
from bloomery.lineage import digest_path, write_json, write_text
from bloomery.models import hub
from bloomery.objectives.search import best_of_n_kl, chances
from bloomery.recipe import InputPath
from bloomery.seeds import derive, stream
from bloomery.stages.common import read_all
from bloomery.stages.online import Asking, Laps, Sampler
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import precision
from bloomery.train.run import Run
from bloomery.types import Conversation, Message, Policy, Prompt, Rollout
from bloomery.world import Oracle, read_questions, read_world

FORMAT = "bloomery-best-of-n-1"
Row = dict[str, list[Any]]
"""A prompt's answers in the order in which they were drawn: `texts`, `scores`, `finished`."""


class BestOfN(Asking):
    """Answer every prompt several times and keep what a reward likes best, measured for every n."""

    prompts: tuple[InputPath, ...] = ()
    """What to ask. When not given: the world's held-out questions, whose answers are measured but not written
    as demonstrations, because nothing may learn from them."""
    limit: int | None = Field(None, ge=1)
    """Ask only so many prompts, drawn by the seed."""
    samples: int = Field(16, ge=1)
    """N: answers to each prompt."""
    at: tuple[int, ...] = ()
    """The n of the table, rising, up to `samples`; when not given the powers of two, and `samples`."""
    threads: int | None = Field(None, ge=1)
    """CPU threads; all cores when not given."""
    checkpoint_every: int = Field(5, ge=0)
    """Steps between checkpoints; 0 writes one only when asked to stop."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Every n of the table."""
        powers = {2**p for p in range(self.samples.bit_length())}
        return self.at or tuple(sorted({*powers, self.samples}))

    @model_validator(mode="after")
    def _askable(self) -> BestOfN:
        if not self.prompts and self.world is None:
            raise UsageError("there is nothing to ask", do="give `prompts`, or a `world` with its questions")
        if list(self.at) != sorted({n for n in self.at if 1 <= n <= self.samples}):
            raise UsageError(
                "`at` cannot be measured", got=list(self.at), expected=f"rising numbers, 1 to {self.samples}"
            )
        return self


def run(recipe: BestOfN, out: Path) -> None:
    precision.setup("fp32", recipe.threads)
    with Run(out, stage="best_of_n", recipe=recipe, checkpoint_every=recipe.checkpoint_every) as run:
        chat = Chat(Tokenizer.load(recipe.policy))
        policy = hub.load(recipe.policy).to(precision.device()).train(False).requires_grad_(False)
        sampler = Sampler(recipe, policy, chat, run.line, to_ask(recipe, run.line))
        prompts, size = sampler.prompts, recipe.prompts_per_step
        run.track()
        rows: list[Row] = run.state.setdefault("rows", [])
        for step in run.steps(math.ceil(len(prompts) / size)):
            laps = Laps()
            rollouts = sampler.answers(prompts[step * size : (step + 1) * size], recipe.samples, step)
            laps.end("generation")
            scores, metrics = sampler.score(rollouts)
            laps.end("scoring")
            rows += to_rows(rollouts, scores, recipe.samples)
            metrics |= {"reward": sum(scores) / len(scores)}
            run.log(step, metrics | laps.rates(rollouts))
        tree: dict[str, Any] = {
            "format": FORMAT,
            "policy": digest_path(recipe.policy),
            "seed": recipe.seed,
            "samples": recipe.samples,
            "num_prompts": len(prompts),
        }
        judged = judge(recipe.world, prompts, rows)
        tree["table"] = table(recipe.numbers, rows, judged, recipe.seed)
        write_json(out / "best_of_n.json", tree)
        lines = (answer_lines(*one) for one in zip(prompts, rows, judged, strict=True))
        write_text(out / "answers.jsonl", "".join(lines))
        if recipe.prompts:
            for n in recipe.numbers:
                write_demonstrations(out / f"best-of-{n}.jsonl", prompts, rows, n, run.line)
        for row in tree["table"]:
            run.line(headline(row))
        run.finish(
            data=[{"source": str(path)} for path in recipe.prompts or (recipe.world,)],
            teachers=[Policy(id=recipe.policy.name, digest=tree["policy"])],
        )


def to_ask(recipe: BestOfN, say: Callable[[str], None]) -> list[Prompt]:
    """The prompts of the recipe's files, or the world's held-out questions; as many as wanted, in order.

    Raises `DataError` where two prompts have one id: their demonstrations could not be told apart.
    """
    if recipe.prompts:
        found = read_all(read_prompts, recipe.prompts, recipe.on_bad_row, say)
    else:
        assert recipe.world is not None
        asked = (q for q in read_questions(recipe.world) if q.split == "eval")
        found = [Prompt(id=q.id, messages=q.messages, kind=q.kind) for q in asked]
    twice = next((name for name, n in Counter(p.id for p in found).items() if n > 1), None)
    if twice is not None:
        raise DataError("two prompts have the same id", got=twice, do="give every prompt an id of its own")
    order = stream(recipe.seed, "limit").permutation(len(found))[: recipe.limit]
    return [found[i] for i in sorted(order)]


def to_rows(rollouts: Sequence[Rollout], scores: Sequence[float], samples: int) -> list[Row]:
    """The answers to each prompt, which lie next to each other, as one row."""
    groups = (slice(start, start + samples) for start in range(0, len(rollouts), samples))
    return [
        {
            "texts": [r.text for r in rollouts[here]],
            "scores": list(scores[here]),
            "finished": [r.completion.finish_reason == "stop" for r in rollouts[here]],
        }
        for here in groups
    ]


def usable(text: str, finished: bool) -> bool:
    """Whether somebody may learn from an answer: it ended, it says something, and it holds no NUL, which no
    file of text may hold."""
    return finished and bool(text.strip()) and "\0" not in text


def judge(world: Path | None, prompts: Sequence[Prompt], rows: Sequence[Row]) -> list[list[honesty.Judged]]:
    """The oracle's verdict on every answer to a question of the world; nothing for other prompts."""
    if world is None:
        return [[] for _ in prompts]
    oracle, known = Oracle(read_world(world)), {q.id: q for q in read_questions(world)}
    return [
        honesty.judge(
            oracle,
            [known[prompt.id]] * len(row["texts"]),
            [Reply((), (), *said) for said in zip(row["texts"], row["finished"], strict=True)],
            row["scores"],
        )
        if prompt.id in known
        else []
        for prompt, row in zip(prompts, rows, strict=True)
    ]


def table(
    numbers: Sequence[int], rows: Sequence[Row], judged: Sequence[Sequence[honesty.Judged]], seed: int
) -> list[dict[str, Any]]:
    """For every n its divergence and the means over prompts of what the chosen answer is worth, each the mean
    over all subsets of n answers, with an interval over prompts. The same prompts are drawn for every n."""
    scores = torch.tensor([row["scores"] for row in rows], dtype=torch.float64)
    everywhere = torch.arange(len(rows))
    measured: dict[str, tuple[Tensor, Tensor]] = {"proxy_reward": (everywhere, scores)}
    if any(judged):
        for name, metric in honesty.METRICS.items():
            counts = [i for i, said in enumerate(judged) if said and metric.counts(said[0])]
            values = [[float(metric.value(a)) for a in judged[i]] for i in counts]
            shaped = torch.tensor(values, dtype=torch.float64).view(-1, scores.shape[1])
            measured[name] = torch.tensor(counts, dtype=torch.long), shaped
    found = []
    for n in numbers:
        weights, kl = chances(scores, n), best_of_n_kl(n)
        row: dict[str, Any] = {"n": n, "kl": kl, "sqrt_kl": math.sqrt(kl)}
        for name, (where, worth) in measured.items():
            chosen = (weights[where] * worth).sum(dim=1)
            row[name] = estimate(chosen.tolist(), seed=derive(seed, name)).to_json()
        found.append(row)
    return found


def demonstrations(prompts: Sequence[Prompt], rows: Sequence[Row], n: int) -> list[Conversation]:
    """The best usable answer of each prompt's first n, as a conversation of which only it is learned."""
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        may = [k for k in range(n) if usable(row["texts"][k], row["finished"][k])]
        if may:
            best = max(may, key=lambda k: row["scores"][k])
            asked = [m.model_copy(update={"weight": 0}) if m.trained else m for m in prompt.messages]
            said = Message(role="assistant", content=row["texts"][best])
            found.append(Conversation(id=prompt.id, messages=(*asked, said), source=f"best-of-{n}"))
    return found


def write_demonstrations(
    path: Path, prompts: Sequence[Prompt], rows: Sequence[Row], n: int, say: Callable[[str], None]
) -> None:
    """Writes them, unless there are none; says how many prompts got no answer that can be learned from."""
    shown = demonstrations(prompts, rows, n)
    if len(shown) < len(prompts):
        say(f"{path.name}: {len(prompts) - len(shown)} prompts left out: every answer empty or cut off")
    if shown:
        write(shown, path, "messages")


def answer_lines(prompt: Prompt, row: Row, judged: Sequence[honesty.Judged]) -> str:
    """A prompt with all its answers, as a line of JSON."""
    answers = [
        {"text": text, "score": score, "finished": finished}
        for text, score, finished in zip(row["texts"], row["scores"], row["finished"], strict=True)
    ]
    for answer, one in zip(answers, judged, strict=False):
        answer |= {"grade": one.grade, "graded_reward": one.reward}
    given = prompt.model_dump(mode="json", exclude_none=True)
    return json.dumps({**given, "answers": answers}, ensure_ascii=False) + "\n"


def headline(row: dict[str, Any]) -> str:
    """One row of the table for people."""
    parts = [f"best of {row['n']}: KL {row['kl']:.2f}", f"proxy {row['proxy_reward']['mean']:.3f}"]
    gold = row.get("graded_reward", {}).get("mean")
    return ", ".join([*parts, f"graded reward {gold:.3f}"] if gold is not None else parts)
