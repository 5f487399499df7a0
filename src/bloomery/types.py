"""The nouns every floor shares. No torch here.

Two kinds of type live side by side. *Records* (`Message`, `Conversation`, `Ranking`) cross a file or a
database, so they are validated pydantic models that forbid unknown keys. *Values* (`SamplingParams`,
`Completion`) live inside one process, so they are plain frozen dataclasses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["system", "user", "assistant", "tool"]
AnnotatorKind = Literal["human", "simulated", "ai"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


class Record(BaseModel):
    """A line of a JSONL file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Message(Record):
    """One turn. `weight=0` keeps an assistant turn as context but does not train on it."""

    role: Role
    content: str
    weight: Literal[0, 1] | None = None

    @property
    def trained(self) -> bool:
        return self.role == "assistant" and self.weight != 0


class Document(Record):
    """A piece of pretraining text. `quality` is known only in the embedded world."""

    id: str
    text: str
    source: str = "text"
    quality: str | None = None


class Conversation(Record):
    """Messages in order. As a demonstration, its assistant turns are what is trained on."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    source: str | None = None
    author: str | None = None


class Prompt(Record):
    """Messages that end with somebody to answer. `kind` is the sort of question, where known."""

    id: str
    messages: tuple[Message, ...] = Field(min_length=1)
    kind: str | None = None


class Policy(Record):
    """Who wrote a completion: a model (with the digest of its weights), a person, a rule."""

    id: str
    digest: str | None = None


class Sampling(Record):
    """The settings a completion was sampled with, as they are stored."""

    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int
    seed: int | None = None


class Candidate(Record):
    """One of the K answers of a ranking."""

    messages: tuple[Message, ...] = Field(min_length=1)
    policy: Policy
    sampling: Sampling | None = None
    logprob: float | None = None

    @property
    def text(self) -> str:
        return self.messages[-1].content


class Rating(Record):
    """The three H, each 1 (worst) to 7 (best)."""

    helpful: int = Field(ge=1, le=7)
    honest: int = Field(ge=1, le=7)
    harmless: int = Field(ge=1, le=7)


class Annotator(Record):
    id: str
    kind: AnnotatorKind


class Ranking(Record):
    """What one annotator said of K answers to one prompt; the canonical preference record.

    `ranking[k]` is the rank of `completions[k]`: 1 is best and equal ranks are ties, so
    `[1, 3, 1]` says that the first and the last are equally good and both beat the second.
    Ranks are compared, never subtracted. `margin` says by how much the better of two is better, on whatever
    scale its annotator was given. `correction`, if given, ranks above every completion.
    A record that is not `submitted` may lack a ranking.
    """

    id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    completions: tuple[Candidate, ...] = Field(min_length=2)
    ranking: tuple[int, ...] | None
    ratings: tuple[Rating | None, ...] | None = None
    margin: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    correction: str | None = None
    annotator: Annotator
    seconds: float | None = Field(default=None, ge=0)
    shown_order: tuple[int, ...] | None = None
    prelabel_shown: bool = False
    guideline_version: str | None = None
    comment: str | None = None
    status: Literal["submitted", "skipped", "flagged"] = "submitted"
    created_at: str

    @model_validator(mode="after")
    def _consistent(self) -> Ranking:
        k = len(self.completions)
        if self.ranking is None and self.status == "submitted":
            raise ValueError("a submitted record needs a ranking")
        if self.ranking is not None:
            if len(self.ranking) != k:
                raise ValueError(
                    f"ranking has {len(self.ranking)} ranks for {k} completions; each has one, equal for ties"
                )
            if min(self.ranking) < 1:
                raise ValueError(f"ranks start at 1, got {min(self.ranking)}")
        if self.margin and (k > 2 or self.ranking is None or len({*self.ranking}) == 1):
            raise ValueError("a margin is that of one of two completions over the other")
        if self.ratings is not None and len(self.ratings) != k:
            raise ValueError(f"ratings has {len(self.ratings)} entries for {k} completions")
        if self.shown_order is not None and sorted(self.shown_order) != list(range(k)):
            raise ValueError(f"shown_order must be a permutation of 0..{k - 1}, got {list(self.shown_order)}")
        return self


class Judgement(Record):
    """One answer to a prompt that was called desirable (`label` True) or undesirable by itself: nobody
    compared it with another."""

    id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    completion: tuple[Message, ...] = Field(min_length=1)
    label: bool

    @property
    def verdict(self) -> Literal["desirable", "undesirable"]:
        return "desirable" if self.label else "undesirable"


class Solution(Record):
    """An answer in steps: `labels[k]` says whether step `completions[k]` is right. One label a step."""

    id: str
    prompt: tuple[Message, ...] = Field(min_length=1)
    completions: tuple[str, ...] = Field(min_length=1)
    labels: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to draw one completion. `temperature=0` is greedy. The seed belongs to the request, so the
    same request gives the same tokens whatever else is in the batch.

    `logit_bias`, pairs of id and number, is added to the logits before anything else; -inf bans a token.
    Then come the temperature, `top_k` (0 is off), `top_p` (1 is off) and `min_p` (0 is off). A completion
    ends at an id of `stop_ids` as it does at the engine's own stop id, and with the token that completes one
    of the strings in `stop`; that token is kept.
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What a sampler returns for one request.

    `tokens` holds the sampled ids, with what ended them (the end-of-turn id, say) last when `finish_reason`
    is "stop"; "error" says that the model left nothing to draw. `logprobs[i]` is that of `tokens[i]` under
    the distribution actually sampled from (after bias, temperature, top-k, top-p and min-p; for greedy
    decoding: after the bias, at temperature 1), and `full_logprobs[i]` that under the model's own softmax, at
    temperature 1 with nothing added or left out; None where the sampler does not know it.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: FinishReason
    full_logprobs: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer to one prompt, and everything a reward may want to know of it."""

    prompt: Prompt
    prompt_tokens: tuple[int, ...]
    completion: Completion
    text: str

    @property
    def tokens(self) -> tuple[int, ...]:
        return self.prompt_tokens + self.completion.tokens


class Reward(Protocol):
    """A number for each answer: a trained reward model, a rule, a judge. Higher is better."""

    def __call__(self, rollouts: Sequence[Rollout]) -> list[float]: ...


class Generate(Protocol):
    """Prompts of token ids in, completions out: the engine in process, or a server over HTTP."""

    def __call__(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]: ...


def ranked_pairs(ranks: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """All C(K, 2) pairs of a ranking as `(winner, loser, tie)`; a tie comes once, lower index first.

    >>> list(ranked_pairs([1, 3, 1]))
    [(0, 1, False), (0, 2, True), (2, 1, False)]
    """
    for i in range(len(ranks)):
        for j in range(i + 1, len(ranks)):
            if ranks[i] <= ranks[j]:
                yield i, j, ranks[i] == ranks[j]
            else:
                yield j, i, False
