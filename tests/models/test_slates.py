"""Log-probs of answers that share one copy of their prompt equal those of each answer read alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bloomery.models.llama import Llama
from bloomery.models.slates import (
    SPARE,
    Batch,
    Example,
    answer_groups,
    answer_logprobs,
    batch_logprobs,
    batched,
    in_batches,
    read_batches,
    shared_length,
)

# prompt, then answers; the prompt of the third slate is one token, and the fourth needs more than one row
PROMPTS = [[7, 8, 9], [5, 6, 5, 6, 5], [3], [7, 11]]
ANSWERS = [
    [[10, 11], [20], [10, 30, 31, 32]],  # two of them begin alike: that is no part of the prompt
    [[7], [7, 7]],  # one is the beginning of the other
    [[40, 41, 42]],
    [[*range(10, 30)], [*range(20, 44)], [8]],
]


def slates() -> list[list[Example]]:
    made: list[list[Example]] = [
        [([*prompt, *answer], [False] * len(prompt) + [True] * len(answer)) for answer in answers]
        for prompt, answers in zip(PROMPTS, ANSWERS, strict=True)
    ]
    tokens, mask = made[0][2]
    made[0][2] = (tokens, [*mask[:4], False, *mask[5:]])  # a token of the answer that does not count
    return made


def alone(model: Llama, example: Example) -> Tensor:
    tokens, mask = torch.tensor([example[0]]), torch.tensor(example[1])
    rows = torch.log_softmax(model.logits(model(tokens))[0], dim=-1)
    return torch.stack([rows[t - 1, tokens[0, t]] for t in range(1, len(mask)) if mask[t]]).sum()


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_shared_prompts_change_no_logprob(loud_llama: Llama, batch_tokens: int) -> None:
    with torch.no_grad():
        got, counts = answer_logprobs(loud_llama, slates(), 0, batch_tokens)
        want = [float(alone(loud_llama, example)) for slate in slates() for example in slate]
    assert got.tolist() == pytest.approx(want, abs=1e-4)
    assert counts.tolist() == [2, 1, 3, 1, 2, 3, 20, 24, 1]


def test_shared_prompts_change_no_gradient(loud_llama: Llama) -> None:
    def gradient(logprobs: Tensor) -> Tensor:
        weights = torch.arange(1.0, len(logprobs) + 1)
        grads = torch.autograd.grad((logprobs * weights).sum(), list(loud_llama.parameters()))
        return torch.cat([g.flatten() for g in grads])

    apart = torch.stack([alone(loud_llama, example) for slate in slates() for example in slate])
    together = answer_logprobs(loud_llama, slates(), 0)[0]
    torch.testing.assert_close(gradient(together), gradient(apart), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_groups_hold_whole_slates_and_change_no_logprob(loud_llama: Llama, batch_tokens: int) -> None:
    context = loud_llama.config.max_position_embeddings
    groups = answer_groups(slates(), context=context, pad_id=0, batch_tokens=batch_tokens)
    assert sorted(i for group in groups for i in group.slates) == [0, 1, 2, 3]
    assert {len(group.batches) for group in groups if 3 in group.slates} == {2 if batch_tokens < 8192 else 1}
    assert [group.slates for group in groups if 3 in group.slates] == [(3,)]  # it needs more than one row
    assert len(groups) == {1: 4, 30: 2, 8192: 2}[batch_tokens]
    whole = answer_logprobs(loud_llama, slates(), 0)[0].split([len(slate) for slate in slates()])
    for group in groups:
        answers = [example for i in group.slates for example in slates()[i]]
        found = batch_logprobs(loud_llama, group.batches, answers)[0]
        torch.testing.assert_close(found, torch.cat([whole[i] for i in group.slates]))


def test_the_pad_id_makes_no_difference(loud_llama: Llama) -> None:
    with torch.no_grad():
        first, other = (answer_logprobs(loud_llama, slates(), pad)[0] for pad in (0, 49))
    torch.testing.assert_close(first, other)


def test_a_prompt_is_read_once_however_many_answers_it_has(loud_llama: Llama) -> None:
    read = list[int]()
    handle = loud_llama.register_forward_pre_hook(lambda module, args: read.append(int((args[0] != 0).sum())))
    with torch.no_grad():
        answer_logprobs(loud_llama, slates()[:2], 0)
    handle.remove()
    assert sum(read) == 3 + 7 + 5 + 3


def test_no_rows_are_no_batches() -> None:
    assert list(in_batches([], 8192)) == []


def test_what_sequences_share_ends_where_they_differ_or_at_the_limit() -> None:
    assert shared_length([[1, 2, 3], [1, 2, 4]], 5) == 2
    assert shared_length([[1, 2, 3], [1, 2]], 1) == 1
    assert shared_length([[1], [2]], 1) == 0


@pytest.mark.parametrize("most", [100, 1000, 4000])
def test_no_batch_is_large_or_mostly_padding(most: int) -> None:
    """And none is small without a need: what follows did not fit, or would have been padded too much."""
    lengths = [*range(1, 60), 90, 200, 300, 300]
    shapes: list[tuple[int, int, int]] = []

    def read(batch: Batch) -> torch.Tensor:
        shapes.append((*batch.tokens.shape, int((batch.segments > 0).sum())))
        return torch.tensor([end for _, _, end in batch.at])

    batches = batched(
        [[[7] * n] for n in reversed(lengths)], [0] * len(lengths), context=300, pad_id=0, batch_tokens=most
    )
    found = read_batches(read, batches, torch.device("cpu"))
    assert found.tolist() == lengths[::-1]
    assert sum(used for _, _, used in shapes) == sum(lengths)
    for rows, width, used in shapes:
        assert rows == 1 or (rows * width <= most and rows * width - used <= SPARE)
    done = 0
    for rows, _, used in shapes[:-1]:
        done += rows
        wider = (rows + 1) * lengths[done]
        assert wider > most or wider - used - lengths[done] > SPARE
