"""One command per stage: `bloomery sft --config F --set k=v --out DIR`.

The names stand here rather than in the registry of stages so that `--help` need not import torch; a test
compares the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

PANEL = "Single stages"

# command -> (stage, summary); a space in the command puts it into a group
COMMANDS: dict[str, tuple[str, str]] = {
    "world": ("world", "Make the embedded world: documents, questions with known answers, demonstrations."),
    "data clean": ("clean", "Clean, deduplicate and mix documents."),
    "tokenizer train": ("tokenizer", "Train a byte-level BPE tokenizer on documents."),
    "data encode": ("encode", "Tokenise documents into memory-mapped shards."),
    "pretrain": ("pretrain", "Train a base model on tokenised text."),
    "sft": ("sft", "Fine-tune a model on demonstrations."),
    "label simulate": ("label", "Have simulated annotators rank the answers of models."),
    "label spoil": ("spoil", "Keep a share of rankings, turn some over: budgets and noise for experiments."),
    "reward": ("reward", "Train a reward model on rankings."),
    "process-reward": ("process", "Train a process reward model: is each step of an answer right?"),
    "ppo": ("ppo", "Improve a policy against a reward model, on a KL leash."),
    "grpo": ("grpo", "Improve a policy without a critic: answers measured against each other."),
    "prefer": ("prefer", "Train a policy on rankings directly: DPO and its family."),
    "prefer-online": ("prefer_online", "Train a policy on its own answers, ranked by a reward: online DPO."),
    "best-of-n": ("best_of_n", "Answer prompts n times and keep what a reward likes best."),
    "rejection": ("rejection", "Fine-tune a policy on the best of its own answers: rejection sampling."),
    "evaluate": ("evaluate", "Measure a model (the oracle's table, text, divergence), or a reward model."),
    "evaluate --task reward": ("evaluate_reward", "Measure a reward model: its report card."),
}


def where(stage: str) -> str:
    """The command that runs a stage."""
    return next(f"bloomery {command}" for command, (name, _) in COMMANDS.items() if name == stage)


def add_to(app: typer.Typer, group: str = "") -> None:
    """Add the stage commands of a group ("data"), or those that are in none."""
    for command, (stage, summary) in COMMANDS.items():
        outer, _, name = command.rpartition(" ")
        if outer == group:
            panel = None if group else PANEL
            found = evaluate if stage == "evaluate" else _command(stage)
            app.command(name, help=summary, rich_help_panel=panel)(found)


Out = Annotated[
    Path, typer.Option("--out", help="Where to write; must be new, or an unfinished run of the same.")
]
Config = Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value, over the YAML; may be repeated.")
]
Resume = Annotated[
    Literal["auto", "never"], typer.Option(help="Go on with an unfinished run, or start it again.")
]


def _command(stage: str) -> Callable[..., None]:
    def command(out: Out, config: Config = None, settings: Settings = None, resume: Resume = "auto") -> None:
        run(stage, config, settings or [], out, resume)

    command.__doc__ = f"Settings: bloomery ls stages {stage}"
    return command


def evaluate(
    out: Out,
    task: Annotated[
        Literal["policy", "reward"], typer.Option(help="A model that answers, or one that judges answers.")
    ] = "policy",
    model: Annotated[
        list[Path] | None,
        typer.Option("--model", help="What to measure; several reward models are judged as one."),
    ] = None,
    rankings: Annotated[
        list[Path] | None,
        typer.Option("--rankings", help="With --task reward: what people said; may be repeated."),
    ] = None,
    gold: Annotated[
        list[Path] | None,
        typer.Option("--gold", help="With --task reward: the oracle's verdicts; may be repeated."),
    ] = None,
    config: Config = None,
    settings: Settings = None,
    resume: Resume = "auto",
) -> None:
    """Settings: bloomery ls stages evaluate, or evaluate_reward."""
    if task == "reward":
        given = {"models": model, "rankings": rankings, "gold": gold}
        run("evaluate_reward", config, [*_named(given), *(settings or [])], out, resume)
        show_card(out)
        return
    for name, value in (("--rankings", rankings), ("--gold", gold)):
        if value:
            raise typer.BadParameter(f"{name} goes with --task reward")
    if model and len(model) > 1:
        raise typer.BadParameter("several of --model go with --task reward")
    named = [f"model={json.dumps(str(model[0]))}"] if model else []
    run("evaluate", config, [*named, *(settings or [])], out, resume)


def _named(given: dict[str, list[Path] | None]) -> list[str]:
    """Options as settings; JSON is YAML that no name of a file can break."""
    return [f"{key}={json.dumps([str(path) for path in paths])}" for key, paths in given.items() if paths]


def show_card(out: Path) -> None:
    """Print a reward model's report card, and write its page."""
    from bloomery.cli.card import tables
    from bloomery.cli.show import console
    from bloomery.report import build

    screen = console()
    for part in tables(json.loads((out / "evaluation.json").read_text(encoding="utf-8"))):
        screen.print(part)
    typer.echo(f"\nreport: {build(out)}")


def run(stage: str, config: Path | None, settings: list[str], out: Path, resume: str) -> None:
    from bloomery import recipe
    from bloomery.stages import STAGES
    from bloomery.train.run import discard

    part = STAGES[stage]
    read = recipe.load(part.recipe, config, settings)
    missing_inputs(read)
    if resume == "never":
        discard(out)
    part.run(read, out)
    typer.echo(str(out))


def missing_inputs(read: object) -> None:
    """Raises a `UsageError` that names every input that is not there."""
    from bloomery.errors import UsageError
    from bloomery.recipe import Section, input_paths

    assert isinstance(read, Section)
    missing = [f"{name}: {path}" for name, path in input_paths(read) if not path.exists()]
    if missing:
        raise UsageError(
            "there is nothing at " + ", ".join(missing), do="check the paths in --config and --set"
        )
