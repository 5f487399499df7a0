"""Compared: the bytes of a run killed without warning and gone on with, and those of a run left in peace."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: a killed process loses nothing either way, and it is fast."""
    home = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path))
    yield home
    shutil.rmtree(home)


def test_killed_anywhere_a_run_goes_on_to_the_same_bytes(memory: Path) -> None:
    """Ten steps: before every eighth call to the disk, then at random moments; saves at steps 4 and 8."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "killed.py"), str(memory), "8", "4"],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["calls"]["faults"] == found["moments"]["faults"] == []
    assert found["calls"]["kills"] >= 7
    assert found["calls"]["inside"] >= 2
    assert found["moments"]["kills"] >= 1
