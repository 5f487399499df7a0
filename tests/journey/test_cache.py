"""The stage cache against toy stages that count how often they run: a cached stage never runs, every change
of code, settings or input bytes runs exactly what depends on it, damage is found, and a dry run tells the
truth beforehand and writes nothing."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bloomery import lineage
from bloomery.errors import ArtifactError, BloomeryError, UsageError
from bloomery.journey import cache
from bloomery.journey import run as journey
from bloomery.journey.steps import Plan, Step
from bloomery.recipe import InputPath, Section


class Inner(Section):
    letter: str = "a"
    powers: tuple[int, ...] = (1, 2)


class Make(Section):
    text: str = "ore"
    inner: Inner = Inner()


class Source(Section):
    name: str
    path: InputPath


class Join(Section):
    parts: tuple[InputPath, ...] = ()
    sources: tuple[Source, ...] = ()
    extra: InputPath | None = None
    times: int = 1


class Workshop:
    """Two toy stages. `runs` is the log of what really ran; `fail` makes the next run stop half way."""

    def __init__(self, out: Path) -> None:
        self.out, self.runs, self.fail = out, list[str](), ""

    def make(self, recipe: Section, out: Path) -> None:
        assert isinstance(recipe, Make)
        self._start(out)
        (out / "text.txt").write_text(recipe.text + recipe.inner.letter)
        lineage.write_manifest(out)

    def join(self, recipe: Section, out: Path) -> None:
        assert isinstance(recipe, Join)
        self._start(out)
        paths = [
            *recipe.parts,
            *(source.path for source in recipe.sources),
            *([recipe.extra] if recipe.extra else []),
        ]
        (out / "text.txt").write_text("".join(p.read_text() for p in paths) * recipe.times)
        lineage.write_manifest(out)

    def _start(self, out: Path) -> None:
        self.runs.append(out.name.rsplit("-", 1)[0])
        out.mkdir(exist_ok=True)
        if self.fail and out.name.startswith(self.fail):
            (out / "half.tmp").write_text("")
            raise BloomeryError("stopped half way")
        (out / "half.tmp").unlink(missing_ok=True)

    def plan(self, *, left: Make | None = None, times: int = 1, extra: Path | None = None) -> Plan:
        parts = (self.out / "left" / "text.txt", self.out / "right" / "text.txt")
        return Plan(
            steps=(
                Step("left", "make", left or Make()),
                Step("right", "make", Make(text="coal")),
                Step("joint-1", "join", Join(parts=parts, times=times, extra=extra)),
                Step(
                    "last", "join", Join(sources=(Source(name="j", path=self.out / "joint-1" / "text.txt"),))
                ),
            ),
            aliases={"joint": "joint-1"},
        )

    def go(self, plan: Plan, said: list[str] | None = None, **kwargs: object) -> list[str]:
        """Carry a plan out; returns the steps that really ran."""
        self.runs.clear()
        arguments: dict[str, object] = {"recipe_text": "x: 1\n", "store": self.out / "stages", **kwargs}
        self.done = journey.carry_out(
            plan,
            self.out,
            runs={"make": self.make, "join": self.join},
            say=(said if said is not None else []).append,
            **arguments,  # type: ignore[arg-type]
        )
        return list(self.runs)


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "out")


ALL = ["left", "right", "joint-1", "last"]


def test_everything_runs_once_and_then_never_again(shop: Workshop) -> None:
    assert shop.go(shop.plan()) == ALL
    assert (shop.out / "last" / "text.txt").read_text() == "oreacoala"
    assert shop.go(shop.plan()) == []
    assert all(record.cached for record in shop.done)
    assert [record.name for record in journey.read_journal(shop.out)] == ALL


def test_links_are_relative_and_aliases_point_at_their_step(shop: Workshop) -> None:
    shop.go(shop.plan())
    for name in (*ALL, "joint"):
        assert not os.path.isabs(os.readlink(shop.out / name))
    assert (shop.out / "joint").resolve() == (shop.out / "joint-1").resolve()
    moved = shop.out.rename(shop.out.with_name("moved"))
    assert (moved / "joint" / "text.txt").read_text() == "oreacoala"


def test_a_setting_runs_its_step_and_what_depends_on_it(shop: Workshop) -> None:
    shop.go(shop.plan())
    assert shop.go(shop.plan(times=2)) == ["joint-1", "last"]
    assert shop.go(shop.plan(left=Make(inner=Inner(letter="b")))) == ["left", "joint-1", "last"]


def test_going_back_to_old_settings_is_free_and_moves_the_links_back(shop: Workshop) -> None:
    shop.go(shop.plan())
    shop.go(shop.plan(left=Make(text="tin")))
    assert (shop.out / "last" / "text.txt").read_text().startswith("tin")
    assert shop.go(shop.plan()) == []
    assert (shop.out / "last" / "text.txt").read_text() == "oreacoala"


def test_a_change_that_makes_the_same_bytes_stops_there(shop: Workshop) -> None:
    """`powers` is a setting of `left` that its output does not show: what follows is cached by content."""
    shop.go(shop.plan())
    assert shop.go(shop.plan(left=Make(inner=Inner(powers=(3,))))) == ["left"]


def test_a_byte_of_an_outside_input_runs_what_reads_it(shop: Workshop, tmp_path: Path) -> None:
    outside = tmp_path / "flux.txt"
    outside.write_text("1")
    assert shop.go(shop.plan(extra=outside)) == ALL
    outside.write_text("2")
    assert shop.go(shop.plan(extra=outside)) == ["joint-1", "last"]
    renamed = outside.rename(tmp_path / "other.txt")
    assert shop.go(shop.plan(extra=renamed)) == []


def test_new_code_runs_everything(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.go(shop.plan())
    monkeypatch.setattr(cache, "code_version", lambda: "other code")
    row = journey.look(shop.plan(), shop.out, shop.out / "stages")[0]
    assert row.reasons == ("the code changed",)
    assert shop.go(shop.plan()) == ALL
    assert journey.look(shop.plan(), shop.out, shop.out / "stages")[0].state == "cached"


@pytest.mark.parametrize("file", ["text.txt", "MANIFEST.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "delete"])
def test_damage_is_found_set_aside_and_made_again(shop: Workshop, file: str, harm: str) -> None:
    shop.go(shop.plan())
    target = shop.out / "left" / file
    if harm == "delete":
        target.unlink()
    elif harm == "cut":
        target.write_bytes(target.read_bytes()[:-1])
    else:
        raw = bytearray(target.read_bytes())
        raw[len(raw) // 2] ^= 1
        target.write_bytes(raw)
    said: list[str] = []
    assert shop.go(shop.plan(), said) == ["left"]
    assert lineage.verify(shop.out / "left") == []
    if (file, harm) != ("MANIFEST.json", "delete"):  # that one looks unfinished, and is finished
        assert any("damaged" in line for line in said)
        assert list((shop.out / "stages").glob("left-*.damaged-1"))


def test_a_failed_stage_keeps_what_was_done_and_goes_on_in_the_same_directory(shop: Workshop) -> None:
    shop.fail = "joint"
    with pytest.raises(BloomeryError, match="half way"):
        shop.go(shop.plan())
    row = journey.look(shop.plan(), shop.out, shop.out / "stages")[2]
    assert row.state == "half done"
    assert row.reasons == ("was interrupted; starts again",)
    (half,) = shop.out.rglob("half.tmp")
    shop.fail = ""
    assert shop.go(shop.plan()) == ["joint-1", "last"]
    assert not half.exists()


def test_a_checkpoint_is_kept_for_the_stage_to_go_on_from(shop: Workshop) -> None:
    shop.fail = "joint"
    with pytest.raises(BloomeryError):
        shop.go(shop.plan())
    (half,) = shop.out.rglob("half.tmp")
    (half.parent / "checkpoint-10").mkdir()
    assert "goes on from" in journey.look(shop.plan(), shop.out, shop.out / "stages")[2].reasons[0]
    shop.fail = ""
    said: list[str] = []
    shop.go(shop.plan(), said)
    assert (half.parent / "checkpoint-10").is_dir()
    assert any("joint-1: goes on" in line for line in said)


def test_a_stage_that_ends_without_a_manifest_is_an_error(shop: Workshop) -> None:
    def lazy(recipe: Section, out: Path) -> None:
        out.mkdir()

    with pytest.raises(ArtifactError, match="without a whole directory"):
        journey.carry_out(
            shop.plan(),
            shop.out,
            runs={"make": lazy, "join": lazy},
            recipe_text="",
            store=shop.out / "stages",
        )


def test_two_outputs_share_a_cache(shop: Workshop, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shop.go(shop.plan(), store=store)
    seconds = [record.seconds for record in shop.done]
    other = Workshop(tmp_path / "other")
    assert other.go(other.plan(), store=store) == []
    assert [record.seconds for record in other.done] == seconds
    assert not (other.out / "stages").exists()
    assert (other.out / "last" / "text.txt").read_text() == "oreacoala"


def test_the_key_is_the_one_that_runs_record(shop: Workshop) -> None:
    shop.go(shop.plan())
    recipe = journey.fill(shop.plan().steps[2].recipe, shop.out, {n: shop.out / n for n in ("left", "right")})
    assert cache.ingredients("join", recipe).key == lineage.stage_key("join", recipe)
    assert shop.done[2].key == lineage.stage_key("join", recipe)


# ----------------------------------------------------------------------------------------------- dry run


def snapshot(path: Path) -> dict[str, float]:
    return {str(p): p.lstat().st_mtime_ns for p in path.rglob("*")}


def test_a_dry_run_of_nothing_writes_nothing(shop: Workshop, tmp_path: Path) -> None:
    rows = journey.look(shop.plan(), shop.out, shop.out / "stages")
    assert [row.state for row in rows] == ["to do"] * 4
    assert rows[0].key
    assert rows[0].reasons == ("never made",)
    assert rows[2].key is None
    assert rows[2].reasons == ("waits for right and 1 more",)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_runs_and_why(shop: Workshop) -> None:
    shop.go(shop.plan())
    before = snapshot(shop.out)
    rows = journey.look(shop.plan(left=Make(inner=Inner(letter="b")), times=3), shop.out, shop.out / "stages")
    assert [row.state for row in rows] == ["to do", "cached", "to do", "to do"]
    assert rows[0].reasons == ("inner.letter: a -> b",)
    assert rows[2].reasons == ("waits for left", "times: 1 -> 3")
    assert snapshot(shop.out) == before


def test_a_dry_run_promises_what_the_run_then_does(shop: Workshop) -> None:
    shop.go(shop.plan())
    plan = shop.plan(times=5)
    promised = [r.step.name for r in journey.look(plan, shop.out, shop.out / "stages") if r.state != "cached"]
    assert shop.go(plan) == promised


def test_the_nearest_earlier_attempt_explains_a_miss(shop: Workshop) -> None:
    shop.go(shop.plan(left=Make(text="tin", inner=Inner(letter="z"))))
    shop.go(shop.plan(left=Make(text="tin")))
    row = journey.look(shop.plan(left=Make(text="lead")), shop.out, shop.out / "stages")[0]
    assert row.reasons == ("text: tin -> lead",)


def test_an_input_that_changed_is_named(shop: Workshop, tmp_path: Path) -> None:
    outside = tmp_path / "flux.txt"
    outside.write_text("1")
    shop.go(shop.plan(extra=outside))
    outside.write_text("2")
    assert journey.look(shop.plan(extra=outside), shop.out, shop.out / "stages")[2].reasons == (
        "input extra changed",
    )


# ------------------------------------------------------------------------------------- output directories


def test_a_missing_outside_input_stops_before_anything_runs(shop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="extra"):
        shop.go(shop.plan(extra=tmp_path / "nowhere"))
    assert shop.runs == []
    assert not shop.out.exists()


def test_a_directory_with_something_else_is_refused(shop: Workshop) -> None:
    shop.out.mkdir()
    (shop.out / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        shop.go(shop.plan())
    assert [p.name for p in shop.out.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_of_a_link_is_refused(shop: Workshop) -> None:
    shop.go(shop.plan())
    (shop.out / "last").unlink()
    (shop.out / "last").write_text("mine")
    with pytest.raises(ArtifactError, match="links"):
        shop.go(shop.plan())
    assert (shop.out / "last").read_text() == "mine"


def test_resume_never_wants_a_new_directory(shop: Workshop) -> None:
    assert shop.go(shop.plan(), resume="never") == ALL
    with pytest.raises(UsageError, match="never"):
        shop.go(shop.plan(), resume="never")


def test_other_settings_in_the_same_directory_are_announced(shop: Workshop) -> None:
    shop.go(shop.plan())
    (shop.out / "results.json").write_text("{}")
    shop.go(shop.plan())
    assert (shop.out / "results.json").exists()
    said: list[str] = []
    shop.go(shop.plan(), said, recipe_text="x: 2\n")
    assert "other settings" in said[0]
    assert not (shop.out / "results.json").exists()
    assert (shop.out / "recipe.yaml").read_text() == "x: 2\n"


def test_links_of_steps_that_are_no_longer_planned_go_and_foreign_links_stay(shop: Workshop) -> None:
    shop.go(shop.plan())
    (shop.out / "mine").symlink_to(shop.out.parent)
    shop.go(Plan(steps=shop.plan().steps[:2], aliases={}))
    assert sorted(p.name for p in shop.out.iterdir() if p.is_symlink()) == ["left", "mine", "right"]
    assert shop.go(shop.plan()) == []


@pytest.fixture
def slow(shop: Workshop) -> Iterator[tuple[Workshop, Callable[[], None], threading.Event]]:
    """A workshop whose first stage waits until it is let go."""
    started, go = threading.Event(), threading.Event()
    quick = shop.make

    def make(recipe: Section, out: Path) -> None:
        started.set()
        assert go.wait(20)
        quick(recipe, out)

    shop.make = make  # type: ignore[method-assign]
    yield shop, lambda: started.wait(20) and None, go
    go.set()


def test_two_journeys_in_one_directory_are_refused(
    slow: tuple[Workshop, Callable[[], None], threading.Event],
) -> None:
    shop, wait, go = slow
    first = threading.Thread(target=shop.go, args=(shop.plan(),))
    first.start()
    wait()
    with pytest.raises(UsageError, match="another process"):
        journey.carry_out(shop.plan(), shop.out, runs={}, recipe_text="", store=shop.out / "stages")
    go.set()
    first.join(20)
    assert json.loads((shop.out / "journey.json").read_text())["seconds"] >= 0


def test_two_journeys_that_share_a_cache_make_a_stage_once(
    slow: tuple[Workshop, Callable[[], None], threading.Event], tmp_path: Path
) -> None:
    shop, wait, go = slow
    store = tmp_path / "store"
    first = threading.Thread(target=shop.go, args=(shop.plan(),), kwargs={"store": store})
    first.start()
    wait()
    other, said = Workshop(tmp_path / "other"), list[str]()
    second = threading.Thread(target=other.go, args=(other.plan(), said), kwargs={"store": store})
    second.start()
    while not any("waiting for another process" in line for line in said):
        second.join(0.01)
        assert second.is_alive()
    go.set()
    first.join(20)
    second.join(20)
    assert len(shop.runs) + len(other.runs) == 4
    assert (other.out / "last" / "text.txt").read_text() == "oreacoala"
