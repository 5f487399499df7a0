"""The store: what a task shows, what a submission must be, that leases and overlap hold (one thread and
several), that a judgement sent twice is stored once, and that everything read is what was written."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from judgements import WHEN, item, ranking

from bloomery.errors import ArtifactError, DataError, UsageError
from bloomery.feedback.store import Busy, Item, Store
from bloomery.feedback.tables import connect
from bloomery.types import Rating

GOOD = Rating(helpful=7, honest=6, harmless=7)


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    with Store("sqlite://", clock=clock) as store:
        store.create_project("p", "3h-1", overlap=2)
        store.add_prompts("p", [item(n) for n in range(4)])
        for name in ("ada", "bob", "cyd"):
            store.add_annotator(name, "human")
        yield store


def finish(store: Store, annotator: str) -> list[str]:
    done = []
    while task := store.next_task("p", annotator):
        store.submit(task, [1, 2, 3])
        done.append(task.prompt_id)
    return done


def test_a_task_is_blind_and_its_order_is_stable(store: Store) -> None:
    task = store.next_task("p", "ada")
    assert task is not None
    assert "policy" not in repr(task)
    assert "rare" not in repr(task)
    assert sorted(task.shown_order) == [0, 1, 2]
    assert task.texts == [f"answer {j} to {task.prompt_id[1:]}" for j in range(3)]
    assert store.next_task("p", "ada") == task == store.task("p", task.prompt_id, "ada")


def test_annotators_see_different_orders(store: Store) -> None:
    orders = {store.task("p", f"q{n}", name).shown_order for n in range(4) for name in ("ada", "bob", "cyd")}
    assert len(orders) > 3


def test_values_given_in_the_order_of_the_screen_are_put_back() -> None:
    with Store("sqlite://") as store:
        store.create_project("p")
        store.add_prompts("p", [item(0)])
        store.add_annotator("ada", "human")
        task = replace(store.task("p", "q0", "ada"), shown_order=(2, 0, 1))
        on_screen = [task.texts[i] for i in task.shown_order]
        assert task.stored_order(on_screen) == tuple(task.texts)
        assert task.stored_order(["first", "second", "third"]) == ("second", "third", "first")
        with pytest.raises(DataError, match="one value per answer"):
            task.stored_order([1, 2])


def test_what_was_submitted_is_read_back(store: Store) -> None:
    task = store.next_task("p", "ada")
    id = store.submit(
        task,
        [2, 1, 2],
        ratings=[GOOD, None, GOOD],
        correction="better",
        seconds=12.5,
        comment="hm",
        prelabel_shown=True,
    )
    (found,) = store.rankings("p")
    want = item(int(task.prompt_id[1:]))
    assert found.id == id == f"p/{task.prompt_id}/ada"
    assert found.prompt == want.messages
    assert found.completions == want.candidates
    assert found.ranking == (2, 1, 2)
    assert found.ratings == (GOOD, None, GOOD)
    assert (found.correction, found.seconds, found.comment) == ("better", 12.5, "hm")
    assert found.prelabel_shown is True
    assert found.shown_order == task.shown_order
    assert (found.guideline_version, found.status) == ("3h-1", "submitted")
    assert (found.annotator.id, found.annotator.kind) == ("ada", "human")
    assert found.created_at == "2023-11-14T22:13:20.000Z"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranking": [1, 2]}, "2 ranks for 3 completions"),
        ({"ranking": [0, 1, 2]}, "ranks start at 1"),
        ({"ranking": [1, 2, 3], "ratings": [GOOD]}, "1 entries for 3"),
        ({"ranking": [1, 2, 3], "shown_order": [0, 0, 1]}, "permutation"),
        ({"ranking": [1, 2, 3], "seconds": -1.0}, "greater than or equal to 0"),
        ({"ranking": [1, 2, 3], "seconds": float("nan")}, "finite|greater"),
        ({"ranking": [1, 2, 3], "correction": "  "}, "correction"),
        ({"ranking": ["x", 2, 3]}, "integer"),
    ],
)
def test_a_submission_that_is_no_judgement_is_refused_and_nothing_is_stored(
    store: Store, fields: dict, message: str
) -> None:
    task = store.next_task("p", "ada")
    with pytest.raises(DataError, match=message):
        store.submit(task, **fields)
    assert list(store.rankings("p")) == []
    assert store.next_task("p", "ada") == task


def test_a_double_click_is_stored_once_and_a_change_of_mind_is_refused(store: Store) -> None:
    task = store.next_task("p", "ada")
    first = store.submit(task, [1, 2, 3], seconds=3.0)
    assert store.submit(task, [1, 2, 3], seconds=3.2) == first
    assert len(list(store.rankings("p"))) == 1
    with pytest.raises(DataError, match="different ranking"):
        store.submit(task, [3, 2, 1])
    with pytest.raises(DataError, match="different status"):
        store.skip(task)


def test_a_client_token_names_one_submission(store: Store) -> None:
    task = store.next_task("p", "ada")
    first = store.submit(task, [1, 2, 3], token="click-1")
    assert store.submit(task, [1, 2, 3], token="click-1") == first
    other = store.next_task("p", "ada")
    with pytest.raises(DataError, match="different prompt"):
        store.submit(other, [1, 2, 3], token="click-1")


def test_overlap_is_reached_and_never_passed(store: Store) -> None:
    assert len(finish(store, "ada")) == 4
    assert len(finish(store, "bob")) == 4
    assert finish(store, "cyd") == []
    stats = store.stats("p")
    assert (stats.num_prompts, stats.num_complete, stats.num_submitted) == (4, 4, 8)
    assert stats.annotators == {name: {"submitted": 4, "skipped": 0, "flagged": 0} for name in ("ada", "bob")}


def test_a_gold_item_goes_to_everybody(store: Store) -> None:
    store.add_prompts("p", [item(9, gold=(1, 2, 3))])
    done = [finish(store, name) for name in ("ada", "bob", "cyd")]
    assert done[2] == ["q9"]
    assert list(store.gold("p").values()) == [(1, 2, 3)]


def test_a_skipped_prompt_goes_to_somebody_else_and_never_comes_back(store: Store) -> None:
    task = store.next_task("p", "ada")
    store.skip(task, "cannot judge")
    assert task.prompt_id not in finish(store, "ada")
    assert task.prompt_id in finish(store, "bob")
    assert task.prompt_id in finish(store, "cyd")
    (skipped,) = [r for r in store.rankings("p") if r.status == "skipped"]
    assert (skipped.ranking, skipped.comment) == (None, "cannot judge")


def test_a_flag_is_kept(store: Store) -> None:
    task = store.next_task("p", "ada")
    store.flag(task, "private data")
    assert [r.status for r in store.rankings("p")] == ["flagged"]
    assert store.stats("p").num_flagged == 1


def test_a_lease_runs_out(store: Store, clock: Clock) -> None:
    for name in ("ada", "bob"):
        for _ in range(3):
            store.submit(store.next_task("p", name), [1, 2, 3])
        assert store.next_task("p", name, lease_seconds=60) is not None
    clock.now += 59
    taken = finish(store, "cyd")
    clock.now += 2
    freed = finish(store, "cyd")
    assert set(taken).isdisjoint(freed)
    assert freed
    assert max(Counter(tuple(r.prompt) for r in store.rankings("p")).values()) <= 2


def test_a_late_submission_is_taken_if_there_is_room_and_refused_if_not(store: Store, clock: Clock) -> None:
    late = {name: store.next_task("p", name, lease_seconds=1) for name in ("ada", "bob")}
    clock.now += 2
    assert len(finish(store, "cyd")) == 4
    store.submit(late["ada"], [1, 2, 3])
    store.add_annotator("dan", "human")
    finish(store, "dan")
    with pytest.raises(DataError, match="lease ran out"):
        store.submit(late["bob"], [1, 2, 3])
    assert max(Counter(tuple(r.prompt) for r in store.rankings("p")).values()) == 2


def test_annotators_meet_in_many_combinations() -> None:
    names = [f"a{n}" for n in range(4)]
    with Store("sqlite://") as store:
        store.create_project("p", overlap=2)
        store.add_prompts("p", [item(n) for n in range(60)])
        for name in names:
            store.add_annotator(name, "simulated")
        with store.batch():
            for _ in range(30):
                for name in names:
                    if task := store.next_task("p", name):
                        store.submit(task, [1, 2, 3])
        pairs: dict[object, set[str]] = {}
        for record in store.rankings("p"):
            pairs.setdefault(record.prompt, set()).add(record.annotator.id)
        assert len({frozenset(pair) for pair in pairs.values() if len(pair) == 2}) == 6


def test_threads_lose_nothing_and_never_over_assign(tmp_path: Path) -> None:
    """Four threads on two connections to one file, each sending everything twice."""
    names, acknowledged = [f"a{n}" for n in range(4)], []

    def work(store: Store, name: str) -> None:
        while task := store.next_task("p", name):
            id = store.submit(task, [1, 2, 3])
            assert store.submit(task, [1, 2, 3]) == id
            acknowledged.append(id)

    with Store(tmp_path / "f.db") as store, Store(tmp_path / "f.db") as second:
        store.create_project("p", overlap=2)
        store.add_prompts("p", [item(n) for n in range(8)])
        for name in names:
            store.add_annotator(name, "simulated")
        threads = [
            threading.Thread(target=work, args=(one, name))
            for one, name in zip([store, second] * 2, names, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stored = list(store.rankings("p"))
    assert sorted(record.id for record in stored) == sorted(acknowledged)
    assert len(set(acknowledged)) == 16
    assert set(Counter(record.prompt for record in stored).values()) == {2}


KILLED = """
import sys
from bloomery.feedback.store import Store
store = Store(sys.argv[1])
while task := store.next_task("p", "ada"):
    print(store.submit(task, [1, 2, 3]), flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    with Store(tmp_path / "f.db") as store:
        store.create_project("p")
        store.add_prompts("p", [item(n) for n in range(2000)])
        store.add_annotator("ada", "simulated")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "f.db")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().strip() for _ in range(20)]
        process.kill()
        acknowledged += process.stdout.read().split()
    with Store(tmp_path / "f.db") as store:
        with store._reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        stored = [record.id for record in store.rankings("p")]
    assert stored[:20] == acknowledged[:20]
    assert 20 <= len(acknowledged) <= len(stored) <= len(acknowledged) + 1 < 2000


def test_a_batch_is_all_or_nothing(store: Store) -> None:
    def interrupted() -> None:
        with store.batch():
            store.submit(store.next_task("p", "ada"), [1, 2, 3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(store.rankings("p")) == []
    assert store.stats("p").num_leased == 0
    assert len(finish(store, "ada")) == 4


def test_a_simulated_run_is_the_same_to_the_byte(tmp_path: Path) -> None:
    def run(path: Path) -> bytes:
        with Store(path, clock=lambda: 0.0) as store, store.batch():
            store.create_project("p", overlap=2)
            store.add_prompts("p", [item(n) for n in range(5)])
            for name in ("ada", "bob"):
                store.add_annotator(name, "simulated")
                finish(store, name)
        return path.read_bytes()

    assert run(tmp_path / "one.db") == run(tmp_path / "two.db")


def test_adding_again_changes_nothing_and_contradictions_are_refused(store: Store) -> None:
    store.create_project("p", "3h-1", overlap=2)
    store.add_annotator("ada", "human")
    assert store.add_prompts("p", [item(0), item(7)]) == 1
    with pytest.raises(UsageError, match="other settings"):
        store.create_project("p", "3h-1", overlap=3)
    with pytest.raises(DataError, match="another kind"):
        store.add_annotator("ada", "ai")
    with pytest.raises(DataError, match="another content"):
        store.add_prompts("p", [item(0, k=4)])
    assert [one.id for one in store.prompts("p")] == ["q0", "q1", "q2", "q3", "q7"]


@pytest.mark.parametrize(
    "bad",
    [
        Item("x", item(0).messages, item(0).candidates[:1]),
        Item("", item(0).messages, item(0).candidates),
        Item("x", (), item(0).candidates),
        Item("x", item(0).messages, item(0).candidates, None, (1, 2)),
        Item("x", item(0).messages, item(0).candidates, None, (0, 1, 2)),
    ],
)
def test_prompts_that_cannot_be_ranked_are_refused(store: Store, bad: Item) -> None:
    with pytest.raises(DataError):
        store.add_prompts("p", [item(8), bad])
    assert "q8" not in [one.id for one in store.prompts("p")]


def test_unknown_names_are_explained(store: Store) -> None:
    store.create_project("pilot")
    with pytest.raises(UsageError, match="did you mean 'pilot'"):
        store.next_task("pilto", "ada")
    with pytest.raises(UsageError, match="no annotator is called 'eve'"):
        store.next_task("p", "eve")
    with pytest.raises(UsageError, match="no prompt 'q99'"):
        store.task("p", "q99", "ada")
    with pytest.raises(UsageError, match="not a name"):
        store.add_annotator("a/b", "human")
    with pytest.raises(UsageError, match="overlap"):
        store.create_project("none", overlap=0)


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("this is no database " * 100)
    with pytest.raises(ArtifactError, match=re.escape("notes.db")):
        Store(tmp_path / "notes.db")
    with pytest.raises(UsageError, match="folder"):
        Store(tmp_path / "missing" / "f.db")
    with pytest.raises(UsageError, match="URL"):
        Store("nosuchdatabase://x/y")


def test_a_locked_database_says_busy_and_writes_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "f.db") as store:
        store.create_project("p")
        with store._reading() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
        other = sqlite3.connect(tmp_path / "f.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy):
            store.add_annotator("ada", "human")
        other.execute("ROLLBACK")
        other.close()
        store.add_annotator("ada", "human")
        assert [person.id for person in store.annotators()] == ["ada"]


def test_sqlite_is_opened_safely(tmp_path: Path) -> None:
    engine = connect(tmp_path / "f.db")
    with engine.connect() as connection:
        asked = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    engine.dispose()
    assert asked == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30000}


def test_a_backup_is_a_store(store: Store, tmp_path: Path) -> None:
    finish(store, "ada")
    store.backup(tmp_path / "copy.db")
    with pytest.raises(UsageError, match="already"):
        store.backup(tmp_path / "copy.db")
    with Store(tmp_path / "copy.db") as copy:
        assert list(copy.rankings("p")) == list(store.rankings("p"))


def test_imported_records_count_towards_the_overlap(store: Store) -> None:
    q0 = item(0)
    said = {"prompt": q0.messages, "completions": q0.candidates}
    new = [ranking((1, 2, 3), annotator=name).model_copy(update=said) for name in ("eve", "fay")]
    assert store.import_rankings("p", new).new == 2
    assert store.import_rankings("p", new).already == 2
    assert "q0" not in finish(store, "ada")
    assert store.stats("p").num_prompts == 4


def test_an_import_that_contradicts_the_store_changes_nothing(store: Store) -> None:
    store.import_rankings("p", [ranking((1, 2))])
    with pytest.raises(DataError, match="different ranking"):
        store.import_rankings("p", [ranking((1, 2), annotator="new"), ranking((2, 1))])
    assert [record.annotator.id for record in store.rankings("p")] == ["ada"]
    assert next(store.rankings("p")).created_at == WHEN
