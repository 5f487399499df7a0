"""Rollouts that answer the same prompts, read with one copy of each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from bloomery.models.llama import Llama
from bloomery.models.lora import Bare
from bloomery.models.slates import Batch, Example, Row, in_batches, lay_out, read_answers, rows_of
from bloomery.rollout.batch import positions


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a batch `[B, T]` laid out behind their prompts: `rows` [n] says which; `read` gives the
    log-probs and entropies of their counted tokens under a model, `[n, T]` each and aligned as they were."""

    rows: Tensor
    batch: Batch
    examples: Sequence[Example]
    width: int

    def read(self, model: Llama | Bare, temperature: float, *, entropy: bool = True) -> tuple[Tensor, Tensor]:
        found = read_answers(model, self.batch, self.examples, temperature, entropy=entropy)
        row = torch.tensor([row for row, _, _ in self.batch.at], device=self.batch.prefix.device)
        reach = found[0].shape[1]
        # One column to the right, so that the state before a prompt's first token has somewhere to go.
        column = self.batch.prefix[row, None] + torch.arange(reach, device=row.device)
        wide = found[0].new_zeros(len(row), self.width + reach + 1)
        logprobs, entropies = (wide.scatter(1, column, x)[:, 1 : self.width + 1] for x in found[:2])
        return logprobs, entropies


def shared_pieces(
    tokens: Tensor, mask: Tensor, prompts: Sequence[int], *, context: int, batch_tokens: int | None = None
) -> Iterator[Piece]:
    """Rows `[B, T]` in pieces of at most `batch_tokens` positions (as suits the device, if not given), in
    which a prompt stands once.

    Args:
        tokens: prompt + answer, right padded.
        mask: True where a token counts; a row's prompt is what comes before the first of them.
        prompts: a number for each row, equal where rows answer the same prompt.
    """
    examples: list[Example] = []
    for ids, counts in zip(tokens.tolist(), mask.tolist(), strict=True):
        end = len(counts) - counts[::-1].index(True) if any(counts) else 1
        examples.append((ids[:end], counts[:end]))
    order, rows, start = sorted(range(len(prompts)), key=prompts.__getitem__), list[Row](), 0
    for _, same in groupby(order, key=prompts.__getitem__):
        several = [examples[row] for row in same]
        limit = min(counts.index(True) if any(counts) else 0 for _, counts in several)
        rows += rows_of([ids for ids, _ in several], start, limit, context)
        start += len(several)
    rows.sort(key=lambda row: row.length)
    for part in in_batches(rows, batch_tokens or 2 * positions(tokens.device)):
        batch = lay_out(part, 0, tokens.device)
        chosen = [order[place] for place in batch.places]
        where = torch.tensor(chosen, device=tokens.device)
        yield Piece(where, batch, [examples[r] for r in chosen], tokens.shape[1])
