"""What the benchmarks train on: seeded text, weights whose end token comes at random, and the same data as
plain JSON of token ids for peers that cannot read ours. Written once for each size.

The words are made up. How long prompts and answers are is taken from people: deciles of the 252 user-oriented
tasks of Self-Instruct (Wang et al. 2023, Apache-2.0), counted in words and marks.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from case import SIZES, Shape

from bloomery.data.batches import pack_documents
from bloomery.data.loader import batch_indices
from bloomery.data.shards import write_shards
from bloomery.models import hub
from bloomery.models.config import LlamaConfig
from bloomery.models.llama import Llama, ScalarModel, init
from bloomery.seeds import derive, stream
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.types import Annotator, Candidate, Conversation, Document, Message, Policy, Prompt, Ranking

PROMPT_DECILES = (7, 13, 16, 19, 24, 29, 37, 45, 74, 126, 378)
ANSWER_DECILES = (1, 2, 9, 14, 28, 36, 49, 72, 105, 172, 630)
WORDS = 6000  # made-up words; more where the vocabulary would not be filled by as many
LONGEST_QUESTION = 40  # words of a prompt that is answered by sampling

CONVERSATIONS, PAIRS, SLATES, PROMPTS, K = 256, 256, 64, 256, 6
# Rows, conversations, pairs or slates of a step, the same on both sides.
BATCH = {"pretrain": 16, "sft": 16, "reward": 16, "reward_k6": 4, "dpo": 16}
PRETRAIN_STEPS = 64

MEAN_ANSWER = 32  # tokens: the end token has probability 1 / MEAN_ANSWER
LOGIT_STD = 2.5  # of the other tokens: neither flat nor certain
WHEN = "2026-01-01T00:00:00Z"


def ours(pace: Any, settings: dict[str, Any]) -> None:
    """Write the material unless it is there; tells where."""
    out = Path(settings["material"])
    made = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    stamp = out / "made"
    if not stamp.exists() or stamp.read_text() != made:
        shutil.rmtree(out, ignore_errors=True)
        write(out, SIZES[settings["size"]])
        stamp.write_text(made)
    pace.tell(material=str(out))
    pace.start()


def write(out: Path, shape: Shape) -> None:
    out.mkdir(parents=True)
    text = Text(max(WORDS, shape.vocab * 6 // 5))
    tokenizer = Tokenizer.train([text.words(400) for _ in range(1000)], shape.vocab)
    tokenizer.save(out / "tokenizer")
    chat = Chat(tokenizer)
    write_models(out, shape, tokenizer)
    write_corpus(out, shape, tokenizer, text)
    write_conversations(out, shape, chat, text)
    write_rankings(out, "pairs", 2, PAIRS, "reward", shape, chat, text)
    write_rankings(out, "rankings", K, SLATES, "reward_k6", shape, chat, text)
    questions = [text.words(min(text.length(PROMPT_DECILES), LONGEST_QUESTION)) for _ in range(PROMPTS)]
    prompts = [Prompt(id=f"p{i}", messages=(said("user", q),)) for i, q in enumerate(questions)]
    lines(out / "prompts.jsonl", [p.model_dump(exclude_none=True) for p in prompts])
    dump(out / "prompts.json", [chat.prompt(p.messages) for p in prompts])


class Text:
    """Made-up words, few of them often, and lengths as people's texts have them."""

    def __init__(self, num: int = WORDS) -> None:
        self.draws = stream(0, "benchmark text")
        syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
        spelled = {"".join(self.draws.choice(syllables, size=1 + i % 3)) for i in range(num * 10 // 3)}
        self.vocabulary = np.array(sorted(spelled, key=lambda w: derive(0, w))[:num])
        share = 1 / np.arange(10, 10 + len(self.vocabulary))
        self.share = share / share.sum()

    def words(self, num: int) -> str:
        return " ".join(self.draws.choice(self.vocabulary, size=max(1, num), p=self.share))

    def length(self, deciles: Sequence[int]) -> int:
        return round(float(np.interp(self.draws.random() * 10, range(11), deciles)))


# ---------------------------------------------------------------------------------------------- weights


def write_models(out: Path, shape: Shape, tokenizer: Tokenizer) -> None:
    """`base`, what the pretraining stage starts from; `policy`, which ends its answers; `reward`."""

    def config(tied: bool) -> LlamaConfig:
        return LlamaConfig.shape(
            shape.width, shape.depth, shape.heads, tokenizer.vocab_size, context=shape.context, tied=tied
        )

    base, policy = Llama(config(True)), Llama(config(False))
    init(base, 0)
    init(policy, 1)
    make_it_end(policy, tokenizer.end_id)
    hub.save(base, out / "base", tokenizer_dir=out / "tokenizer")
    hub.save(policy, out / "policy", tokenizer_dir=out / "tokenizer")
    reward = ScalarModel.from_causal(policy, 2)
    spread_out(reward)
    hub.save(reward, out / "reward", tokenizer_dir=out / "tokenizer")


@torch.no_grad()
def make_it_end(model: Llama, end: int) -> None:
    """Give the end token probability 1 / MEAN_ANSWER everywhere, by the weights alone.

    One coordinate of the residual stream is the same number at every token and no block writes to it; only
    the end token's logit reads it. The other logits are spread to LOGIT_STD.
    """
    embed, head = model.model.embed_tokens.weight, model.lm_head.weight
    embed[:, 0] = embed[:, 1:].norm(dim=1).mean()
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0
    head[:, 0] = 0
    head[end] = 0
    hidden = model(some_tokens(model.config))
    head *= LOGIT_STD / float(model.logits(hidden).std())
    others = model.logits(hidden).index_fill(-1, torch.tensor([end]), float("-inf")).logsumexp(-1)
    wanted = float(others.mean()) - float(np.log(MEAN_ANSWER - 1))
    head[end, 0] = wanted / float(hidden[..., 0].mean())


@torch.no_grad()
def spread_out(model: ScalarModel) -> None:
    """Scores with standard deviation 1, blind to the coordinate that is the same everywhere: pairs differ."""
    model.score.weight[:, 0] = 0
    model.score.weight /= model(some_tokens(model.config)).std()


def some_tokens(config: LlamaConfig) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive(0, "some text"))
    return torch.randint(0, config.vocab_size, (16, 64), generator=generator)


# ------------------------------------------------------------------------------------------------- data


def write_corpus(out: Path, shape: Shape, tokenizer: Tokenizer, text: Text) -> None:
    """One long document, so that every row is one whole segment, as the peers read it."""
    wanted = PRETRAIN_STEPS * BATCH["pretrain"] * shape.context
    document = Document(id="d", text=text.words(wanted))
    corpus = write_shards([document], tokenizer, out / "corpus", val_fraction=0.0)
    rows = [
        pack_documents(
            corpus, "train", batch_size=BATCH["pretrain"], length=shape.context, seed=0, step=step
        ).tokens
        for step in range(PRETRAIN_STEPS)
    ]
    np.save(out / "rows.npy", torch.stack(rows).to(torch.int32).numpy())


def write_conversations(out: Path, shape: Shape, chat: Chat, text: Text) -> None:
    shown = list[Conversation]()
    while len(shown) < CONVERSATIONS:
        question, answer = text.words(text.length(PROMPT_DECILES)), text.words(text.length(ANSWER_DECILES))
        messages = (said("user", question), said("assistant", answer))
        if len(chat.render(messages).tokens) <= shape.context:
            shown.append(Conversation(id=f"c{len(shown)}", messages=messages))
    lines(out / "demonstrations.jsonl", [c.model_dump(exclude_none=True) for c in shown])
    rendered = [chat.render(c.messages) for c in shown]
    rows = [{"input_ids": r.tokens, "completion_mask": [int(m) for m in r.mask]} for r in rendered]
    dump(out / "sft.json", [rows[i] for i in in_order(CONVERSATIONS, BATCH["sft"])])


def write_rankings(
    out: Path, name: str, k: int, num: int, work: str, shape: Shape, chat: Chat, text: Text
) -> None:
    """Rankings of `k` answers for us, and every pair of each for peers that know only pairs."""
    made = list[Ranking]()
    while len(made) < num:
        question = (said("user", text.words(text.length(PROMPT_DECILES))),)
        answers = [(said("assistant", text.words(text.length(ANSWER_DECILES))),) for _ in range(k)]
        if max(len(chat.render((*question, *a)).tokens) for a in answers) <= shape.context:
            made.append(ranking(f"{name}{len(made)}", question, answers, text))
    lines(out / f"{name}.jsonl", [r.model_dump(exclude_none=True) for r in made])
    ids = [[chat.render((*r.prompt, *c.messages)).tokens for c in r.completions] for r in made]
    pairs = [
        {"chosen_ids": ids[i][a], "rejected_ids": ids[i][b]}
        for i in in_order(num, BATCH[work])
        for a, b in better(made[i].ranking or ())
    ]
    dump(out / f"{name}.json", pairs)
    if k == 2:
        dump(out / "dpo.json", [turn(made[i]) for i in in_order(num, BATCH["dpo"])])


def ranking(
    name: str, question: tuple[Message, ...], answers: Sequence[tuple[Message, ...]], text: Text
) -> Ranking:
    return Ranking(
        id=name,
        prompt=question,
        completions=tuple(Candidate(messages=a, policy=Policy(id="bench")) for a in answers),
        ranking=tuple(int(r) + 1 for r in text.draws.permutation(len(answers))),
        annotator=Annotator(id="bench", kind="simulated"),
        created_at=WHEN,
    )


def better(ranks: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Each pair of a ranking without ties, the better one first."""
    for a in range(len(ranks)):
        for b in range(len(ranks)):
            if ranks[a] < ranks[b]:
                yield a, b


def turn(r: Ranking) -> dict[str, Any]:
    """A pair as TRL's conversational preference format."""
    (chosen, rejected), ((a, b),) = r.completions, better(r.ranking or ())
    answers = (chosen, rejected) if (a, b) == (0, 1) else (rejected, chosen)
    parts = zip(("prompt", "chosen", "rejected"), (r.prompt, *(c.messages for c in answers)), strict=True)
    return {name: [{"role": m.role, "content": m.content} for m in messages] for name, messages in parts}


def in_order(num: int, batch: int) -> list[int]:
    """Which example comes when in the first pass of our stages; the peers go through it again and again."""
    return [i for step in range(num // batch) for i in batch_indices(num, batch, seed=0, step=step)]


def said(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


def lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def dump(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
