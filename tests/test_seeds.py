"""Named streams against sha256 as another program computes it: no draw depends on process or machine."""

from __future__ import annotations

from bloomery.seeds import derive, stream


def test_a_seed_is_the_start_of_the_sha256_of_its_names() -> None:
    # `printf 3/shuffle/1 | sha256sum` begins with 950381c378d2c13f: these bytes, least first, without a bit.
    assert derive(3, "shuffle", 1) == 0x3FC1D278C3810395 >> 1
    assert derive(0) == 0x386FC8FF66EBEC5F >> 1  # printf 0 | sha256sum


def test_names_do_not_run_together() -> None:
    assert len({derive(1, "a", 12), derive(1, "a1", 2), derive(1, "a", 1, 2), derive(11, "a", 2)}) == 4


def test_a_stream_is_a_function_of_its_names() -> None:
    drawn = [stream(7, *names).random(4).tolist() for names in (("a", 1), ("a", 1), ("a", 2), ("b", 1))]
    assert drawn[0] == drawn[1]
    assert len({tuple(one) for one in drawn}) == 3
