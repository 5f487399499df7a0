"""The house of docs/architecture.md: a module imports only from floors below its own, rooms on one floor
never import each other, and nothing in the source can run code that came from a file."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "bloomery"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("types", "registry", "errors", "seeds", "recipe", "lineage", "client"),
    ("objectives", "text", "feedback"),
    ("models", "data", "world"),
    ("infer", "train"),
    ("rollout", "rewards", "evals", "synth"),
    ("stages",),
    ("journey",),
    ("label", "serve", "report", "chat", "cli"),
)
FLOOR = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
NO_TORCH = {
    "types",
    "registry",
    "errors",
    "seeds",
    "recipe",
    "lineage",
    "client",
    "text",
    "feedback",
    "world",
    "label",
}
FORBIDDEN_CALLS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load", "yaml.load", "os.system"}
FORBIDDEN_FLAGS = {("shell", True), ("trust_remote_code", True)}


def room_of(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(room: str, source: str) -> list[str]:
    """What is wrong with one module's source, were it to live in `room`."""
    found: list[str] = []
    tree = ast.parse(source)
    for name in sorted(imports(tree)):
        if name.split(".")[0] == "torch" and room in NO_TORCH:
            found.append(f"{room} imports torch")
        if not name.startswith("bloomery."):
            continue
        other = name.split(".")[1]
        if other in ("__version__", room):
            continue
        if other not in FLOOR:
            found.append(f"{room} imports {other}, which has no floor")
        elif FLOOR[other] >= FLOOR[room] and not (room == "cli" or FLOOR[room] == FLOOR[other] == 0):
            found.append(f"{room} (floor {FLOOR[room]}) imports {other} (floor {FLOOR[other]})")
        elif room == "label" and FLOOR[other] > 1:
            found.append("label imports above floor 1")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) in FORBIDDEN_CALLS:
                found.append(f"{room} calls {ast.unparse(node.func)}")
            for keyword in node.keywords:
                if (
                    isinstance(keyword.value, ast.Constant)
                    and (keyword.arg, keyword.value.value) in FORBIDDEN_FLAGS
                ):
                    found.append(f"{room} passes {keyword.arg}=True")
    return found


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_every_module_keeps_to_its_floor(path: Path) -> None:
    if path == SRC / "__init__.py":
        return
    assert room_of(path) in FLOOR, (
        f"{room_of(path)} has no floor: add it to FLOORS and to docs/architecture.md"
    )
    assert violations(room_of(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("types", "import torch"),
        ("text", "from torch import nn"),
        ("objectives", "from bloomery.models import llama"),
        ("models", "import bloomery.data.pack"),
        ("models", "from bloomery import data"),
        ("label", "from bloomery.models import llama"),
        ("text", "from bloomery.cellar import wine"),
        ("train", "import torch\ntorch.load('x')"),
        ("journey", "import subprocess\nsubprocess.run('x', shell=True)"),
        ("models", "AutoModel.from_pretrained('x', trust_remote_code=True)"),
    ],
)
def test_planted_violations_are_found(room: str, source: str) -> None:
    assert violations(room, source)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("stages", "from bloomery.models import llama\nimport torch"),
        ("lineage", "from bloomery.errors import BloomeryError"),
        ("cli", "from bloomery.report import page"),
        ("models", "model.eval()"),
    ],
)
def test_what_is_allowed_passes(room: str, source: str) -> None:
    assert violations(room, source) == []


def test_files_stay_short() -> None:
    """About 400 lines a file is the habit; past 450 a file is split by idea."""
    long = {
        str(p.relative_to(SRC)): n for p in SRC.rglob("*.py") if (n := len(p.read_text().splitlines())) > 450
    }
    assert not long


def test_every_test_module_has_a_name_of_its_own() -> None:
    """The tests are no packages, so two modules of one name would be one to Python."""
    names = Counter(p.name for p in Path(__file__).parent.rglob("*.py") if p.name != "conftest.py")
    assert not [name for name, n in names.items() if n > 1]
