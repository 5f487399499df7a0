"""Two pieces of work at once: both results, the caller's settings inside, and nothing left changed."""

from __future__ import annotations

import threading

import pytest
import torch

from bloomery.train.together import together

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> int:
    torch.set_num_threads(request.param)
    return int(request.param)


def test_both_results_from_threads_of_their_own(threads: int) -> None:
    def seen() -> tuple[int, int]:
        return threading.get_ident(), torch.get_num_threads()

    one, other = together(seen, seen, CPU)
    if threads == 1:
        assert one == other == (threading.get_ident(), 1)
    else:
        assert one[0] == threading.get_ident() != other[0]
        assert one[1] + other[1] == threads
    assert torch.get_num_threads() == threads


def test_they_run_at_the_same_time() -> None:
    torch.set_num_threads(2)
    meet = threading.Barrier(2)
    assert sorted(together(lambda: meet.wait(20), lambda: meet.wait(20), CPU)) == [0, 1]


@pytest.mark.parametrize("grad", [True, False])
def test_gradients_are_on_in_both_or_in_none(threads: int, grad: bool) -> None:
    with torch.set_grad_enabled(grad):
        assert together(torch.is_grad_enabled, torch.is_grad_enabled, CPU) == (grad, grad)


@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_comes_out_when_both_have_ended(threads: int, broken: int) -> None:
    ended = list[int]()

    def work(number: int) -> int:
        if number == broken:
            raise ZeroDivisionError
        ended.append(number)
        return number

    with pytest.raises(ZeroDivisionError):
        together(lambda: work(0), lambda: work(1), CPU)
    assert ended == ([] if threads == 1 and broken == 0 else [1 - broken])
    assert torch.get_num_threads() == threads


def test_gradients_of_two_models_are_those_of_one_after_the_other(threads: int) -> None:
    def models() -> list[torch.nn.Linear]:
        torch.manual_seed(3)
        return [torch.nn.Linear(6, 6) for _ in range(2)]

    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    apart, both = models(), models()
    for model in apart:
        model(x).square().sum().backward()
    losses = together(lambda: both[0](x).square().sum(), lambda: both[1](x).square().sum(), CPU)
    together(losses[0].backward, losses[1].backward, CPU)
    for mine, plain in zip(both, apart, strict=True):
        torch.testing.assert_close(mine.weight.grad, plain.weight.grad)
