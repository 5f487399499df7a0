"""Divergence of answers, against hand-worked KLs and against the model run on each answer alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bloomery.evals.divergence import kl_per_answer, token_kl


def test_golden() -> None:
    """KL((3/4, 1/4) || (1/2, 1/2)) = 3/4 log(3/2) + 1/4 log(1/2); the reverse differs."""
    p = torch.log(torch.tensor([[0.75, 0.25]]))
    q = torch.log(torch.tensor([[0.5, 0.5]]))
    assert token_kl(p, q).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)
    assert token_kl(q, p).item() == pytest.approx(0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(2.0), abs=1e-6)


def test_unnormalised_logits_do_not_matter() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0]])
    assert token_kl(logits, logits + 7.0).item() == pytest.approx(0.0, abs=1e-6)


class Toy:
    """A causal 'model': the hidden state is a running mean of embeddings, so padding
    on the right could leak only if it were used."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.embedding = torch.randn(11, 6, generator=generator)
        self.head = torch.randn(6, 11, generator=generator)

    def trunk(self, tokens: Tensor) -> Tensor:
        x = self.embedding[tokens]
        return x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[:, None]

    def unembed(self, hidden: Tensor) -> Tensor:
        return hidden @ self.head


def test_sum_over_the_tokens_of_each_answer_alone() -> None:
    """Batched and padded equals one by one; only positions that predict completion tokens count."""
    a, b = Toy(1), Toy(2)
    answers = [([1, 2, 3], [4, 5]), ([6], [7, 8, 9, 2]), ([1, 2, 3, 4, 5], [6])]
    expected = []
    for prompt, completion in answers:
        tokens = torch.tensor([[*prompt, *completion]])
        rows = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        p, q = (torch.log_softmax(m.unembed(m.trunk(tokens))[0, rows], -1) for m in (a, b))
        expected.append(float((p.exp() * (p - q)).sum()))
    for batch_tokens in (1, 12, 1000):
        got = kl_per_answer(
            (a.trunk, a.unembed), (b.trunk, b.unembed), answers, pad_id=0, batch_tokens=batch_tokens
        )
        assert got == pytest.approx(expected, rel=1e-5)


def test_a_model_does_not_diverge_from_itself() -> None:
    a = Toy(1)
    got = kl_per_answer((a.trunk, a.unembed), (a.trunk, a.unembed), [([1], [2, 3])], pad_id=0)
    assert got == pytest.approx([0.0], abs=1e-7)
