"""`python -m mutations`: plant every fault in turn in a copy of the source, and see whether the tests notice.

A line for each; then the tests that noticed are run on the source as it is, where they must pass. Exit status
1 when a fault survives, is stale or could not be tried.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from bloomery.errors import nearest
from mutations.catalogue import MUTATIONS
from mutations.mutation import FORKS, HEAVY, Mutation, attempt, failing

ROOT = Path(__file__).parents[2]


def main(words: Sequence[str], mutations: Sequence[Mutation] = MUTATIONS, root: Path = ROOT) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="mutations", description="Plant faults that the tests must notice.")
    parser.add_argument("--only", metavar="NAME", action="append", help="a fault, or several by repetition")
    parser.add_argument("--list", action="store_true", help="name the faults and plant none")
    parser.add_argument("-j", type=int, choices=(1, 2), default=1, help="processes at a time")
    told = parser.parse_args(words)
    names = [m.name for m in mutations]
    for name in set(told.only or ()) - set(names):
        parser.error(f"no fault is called '{name}'{nearest(name, names)}")
    chosen = [m for m in mutations if told.only is None or m.name in told.only]
    if told.list:
        for m in chosen:
            print(f"{m.name:<34} {m.file}")
        return 0
    killers: dict[str, list[str]] = {}
    with ThreadPoolExecutor(told.j) as pool:
        for m, outcome in zip(chosen, pool.map(partial(attempt, root=root), chosen), strict=True):
            print(f"{outcome.what:<8} {m.name:<34} {outcome.by}", flush=True)
            if outcome.what == "killed":
                killers.setdefault(outcome.by, []).append(m.name)
    for test in failing(killers, root) if killers else ():
        print(f"{test} fails without a fault too: nothing is known of {', '.join(killers.pop(test))}")
    killed = sum(map(len, killers.values()))
    print(f"killed {killed} of {len(chosen)}")
    return int(killed < len(chosen))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKS.set_forkserver_preload(HEAVY)
    sys.exit(main(sys.argv[1:]))
