"""Compared: recipes with what their YAML and `--set` say, each problem with the file and line it is on, and a
recipe with the one read back from its own dump."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field

from bloomery.errors import RecipeError, UsageError
from bloomery.recipe import InputPath, Section, dump, input_keys, input_paths, load


class Model(Section):
    width: int = 8
    kind: Literal["llama", "gpt2"] = "llama"


class Source(Section):
    path: InputPath
    weight: float = 1.0


class Toy(Section):
    seed: int = 0
    lr: float = 1e-3
    shuffle: bool = False
    note: str = ""
    model: Model = Model()
    maybe: Model | None = None
    data: tuple[InputPath, ...] = ()
    reference: InputPath | None = None
    log_to: Path | None = None
    sources: tuple[Source, ...] = ()
    named: dict[str, Source] = Field(default_factory=dict)


class Needy(Section):
    corpus: InputPath
    model: Model = Model()


@pytest.fixture
def write(tmp_path: Path):
    def write_it(text: str | bytes) -> Path:
        path = tmp_path / "toy.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write_it


# ---------------------------------------------------------------------------------- what is read


def test_defaults_then_file_then_set(write) -> None:
    path = write("seed: 3\nmodel:\n  width: 16\n")
    assert load(Toy) == Toy()
    assert load(Toy, path) == Toy(seed=3, model=Model(width=16))
    got = load(Toy, path, ["seed=4", "model.kind=gpt2", "lr=1e-4", "maybe.width=5", "note=a=b"])
    assert got == Toy(seed=4, lr=1e-4, model=Model(width=16, kind="gpt2"), maybe=Model(width=5), note="a=b")


def test_set_takes_yaml_values_and_the_last_one_wins() -> None:
    got = load(Toy, None, ["seed=1", "seed=2", "data=[a.jsonl, b.jsonl]", "shuffle=true", "maybe={width: 2}"])
    assert got == Toy(seed=2, data=(Path("a.jsonl"), Path("b.jsonl")), shuffle=True, maybe=Model(width=2))


def test_set_begins_a_section_that_the_file_leaves_off(write) -> None:
    got = load(Toy, write("maybe: null\nmodel:\n"), ["maybe.width=5", "model.kind=gpt2"])
    assert got == Toy(maybe=Model(width=5), model=Model(kind="gpt2"))
    with pytest.raises(RecipeError, match=r"unknown key 'maybe.widht' \(did you mean 'width'"):
        load(Toy, write("maybe: null\n"), ["maybe.widht=5"])


@pytest.mark.parametrize("text", ["", "# nothing\n", "\ufeffseed: 0\n", "seed: 0\r\nlr: 0.001\r\n", "{}"])
def test_what_says_nothing_new_gives_the_defaults(write, text: str) -> None:
    assert load(Toy, write(text)) == Toy()


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Toy().seed = 1  # type: ignore[misc]


# ------------------------------------------------------------------------------------- every problem


def test_all_problems_come_at_once_each_with_its_line_and_nearest_key(write) -> None:
    path = write(
        "seed: one\n"
        "modle: {}\n"
        "model:\n"
        "  widht: 3\n"
        "  kind: gtp2\n"
        "sources:\n"
        "- path: a\n"
        "- path: b\n"
        "  weigth: 3\n"
        "seed: on\n"
    )
    with pytest.raises(RecipeError) as caught:
        load(Toy, path, ["lr=.inf", "shufle=true", "model.kind.x=1"])
    assert sorted(caught.value.problems) == sorted(
        [
            f"{path}:10: 'seed' is given twice (first on line 1)",
            f"{path}:10: 'seed': input should be a number (got True)",
            f"{path}:2: unknown key 'modle' (did you mean 'model'?)",
            f"{path}:4: unknown key 'model.widht' (did you mean 'width'?)",
            f"{path}:5: 'model.kind': input should be 'llama' or 'gpt2' (got 'gtp2')",
            f"{path}:9: unknown key 'sources.1.weigth' (did you mean 'weight'?)",
            "--set lr=.inf: 'lr': input should be a finite number (got inf)",
            "--set shufle=true: unknown key 'shufle' (did you mean 'shuffle'?)",
            "--set model.kind.x=1: 'model.kind' is a value, not a section (got 'gtp2')",
        ]
    )
    assert "9 problems" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_missing_key_is_named() -> None:
    with pytest.raises(RecipeError) as caught:
        load(Needy)
    assert caught.value.problems == ["'corpus' is required"]


def test_an_unknown_key_with_no_near_name_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError) as caught:
        load(Model, None, ["zzz=1"])
    assert caught.value.problems == ["--set zzz=1: unknown key 'zzz'; known keys: kind, width"]


def test_an_unknown_section_given_by_set_is_blamed_on_the_set_and_not_on_the_file(write) -> None:
    with pytest.raises(RecipeError) as caught:
        load(Toy, write("seed: 1\n"), ["modle.width=3"])
    assert caught.value.problems == [
        "--set modle.width=3: unknown key 'modle' (did you mean 'model'?)",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: true\n", "'seed': input should be a number (got True)"),
        ("seed: yes\n", "'seed': input should be a number (got True)"),
        ("lr: on\n", "'lr': input should be a number (got True)"),
        ("lr: .nan\n", "'lr': input should be a finite number (got nan)"),
        ("lr: .inf\n", "'lr': input should be a finite number (got inf)"),
        ("data: a.jsonl\n", "'data': input should be a valid tuple (got 'a.jsonl')"),
        ("model:\n", "'model': input should be a valid dictionary or instance of Model (got None)"),
        ("1: 2\n", "'1': keys should be strings (got 1)"),
        ("model: {width: 1, width: 2}\n", "'model.width' is given twice (first on line 1)"),
        ("sources: [{path: a, path: b}]\n", "'sources.0.path' is given twice (first on line 1)"),
    ],
)
def test_each_wrong_value_is_one_problem_on_line_1(write, text: str, problem: str) -> None:
    path = write(text)
    with pytest.raises(RecipeError) as caught:
        load(Toy, path)
    assert caught.value.problems == [f"{path}:1: {problem}"]


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("seed: [1\n", ":2:1", "this is not YAML"),
        ("a: b: c\n", ":1:5", "this is not YAML"),
        ("seed:\t1\n", ":1:6", "this is not YAML"),
        ("seed: 1\n---\nseed: 2\n", ":2:1", "this is not YAML"),
        ("seed: !!python/object/apply:os.system ['echo']\n", ":1:7", "this is not YAML"),
        ("? [a, b]\n: 2\n", ":1:3", "this is not YAML"),
        ("seed: \0\n", "", "this is not YAML"),
        ("- a\n", ":1", "a recipe is a mapping"),
        ("just text", ":1", "a recipe is a mapping"),
        ("model: &m\n  width: *m\n", ":2", "no aliases"),
        ("a: &x [1]\nb: *x\n", ":2", "no aliases"),
        (b"\xff\xfe", "", "cannot read the recipe"),
        ("[" * 20_000, ":1", "nested too deeply"),
        ("a: " + "{a: " * 60 + "1" + "}" * 60, ":1", "nested too deeply"),
    ],
)
def test_what_is_not_a_recipe_is_refused_with_its_place(
    write, text: str | bytes, place: str, what: str
) -> None:
    path = write(text)
    with pytest.raises(UsageError) as caught:
        load(Toy, path)
    assert str(caught.value).startswith(f"{path}{place}")
    assert what in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load(Toy, tmp_path / "no.yaml")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        load(Toy, tmp_path)


@pytest.mark.parametrize("text", ["seed", "=3", " =3", "seed 3"])
def test_a_set_without_key_and_value_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="--set takes key=value"):
        load(Toy, None, [text])


def test_a_huge_value_is_cut_in_the_message(write) -> None:
    with pytest.raises(RecipeError) as caught:
        load(Toy, write(f"seed: {'x' * 10_000}\n"))
    assert len(caught.value.problems[0]) < 400
    assert "(10002 characters)" in caught.value.problems[0]


# ------------------------------------------------------------------------------- there and back again


def test_a_dump_says_everything_and_loads_to_the_same_recipe(tmp_path: Path) -> None:
    recipe = Toy(
        seed=7,
        lr=1e-5,
        maybe=Model(width=3),
        data=(Path("a b.jsonl"), Path("a b.jsonl")),
        sources=(Source(path=Path("x")), Source(path=Path("x"))),
        named={"q": Source(path=Path("z"), weight=2)},
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe), encoding="utf-8")
    assert load(Toy, path) == recipe
    assert {line.split(":")[0] for line in dump(recipe).splitlines() if line[0].isalpha()} == set(
        Toy.model_fields
    )


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False), st.integers(), st.booleans())
@example("\x85 \u2028", 0.0, 0, False)
@example("学", 1e-5, -1, True)
@settings(max_examples=50, deadline=None)
def test_any_value_survives_the_dump(note: str, lr: float, seed: int, shuffle: bool) -> None:
    recipe = Toy(note=note, lr=lr, seed=seed, shuffle=shuffle)
    assert Toy.model_validate(yaml.safe_load(dump(recipe))) == recipe


# ------------------------------------------------------------------------------------------- inputs


def test_inputs_are_found_wherever_they_stand_and_nothing_else_is() -> None:
    recipe = Toy(
        data=(Path("a"), Path("b")),
        reference=Path("c"),
        log_to=Path("not an input"),
        sources=(Source(path=Path("d")),),
        named={"q.r": Source(path=Path("e"))},
    )
    assert list(input_paths(recipe)) == [
        ("data[0]", Path("a")),
        ("data[1]", Path("b")),
        ("reference", Path("c")),
        ("sources[0].path", Path("d")),
        ("named.q.r.path", Path("e")),
    ]
    assert [keys for keys, _ in input_keys(recipe)][-1] == ("named", "q.r", "path")
    assert list(input_paths(Toy())) == []


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (InputPath, Path("x")),
        (InputPath | None, Path("x")),
        (tuple[InputPath, ...], (Path("x"),)),
        (list[InputPath] | None, [Path("x")]),
        (dict[str, InputPath], {"k": Path("x")}),
        (Source | None, {"path": "x"}),
        (tuple[tuple[InputPath, int], ...], ((Path("x"), 1),)),
    ],
)
def test_every_way_to_write_an_input_field_is_seen(annotation: object, value: object) -> None:
    schema = type("Schema", (Section,), {"__annotations__": {"field": annotation}})
    assert [path for _, path in input_paths(schema(field=value))] == [Path("x")]
