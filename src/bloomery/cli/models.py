"""Commands that use a finished model: chat, generate, export."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bloomery.errors import ArtifactError

if TYPE_CHECKING:
    from bloomery.infer.engine import Engine
    from bloomery.text.chat import Chat

PANEL = "Using a model"


def add_to(app: typer.Typer) -> None:
    app.command("chat", rich_help_panel=PANEL)(chat)
    app.command("generate", rich_help_panel=PANEL)(generate)
    group = typer.Typer(help="Adapters in the form that other tools read.", no_args_is_help=True)
    group.command("peft")(export_peft)
    group.command("merged")(export_merged)
    app.add_typer(group, name="export", rich_help_panel=PANEL)


def chat(
    model: Annotated[Path, typer.Argument(help="A model directory, for example runs/demo/rl.")],
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="A reply is cut after so many tokens.")] = 256,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Talk to a model; /help lists what you can do, Ctrl-C stops a reply."""
    from bloomery.chat import Session, talk

    engine, renderer = load(model)
    session = Session(
        chat=renderer,
        stream=engine.stream,
        context=engine.model.config.max_position_embeddings,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
        seed=seed,
        system=system,
    )
    if sys.stdin.isatty():
        typer.secho(
            f"{model}: {engine.model.config.num_parameters():,} parameters. /help for help.",
            dim=True,
            err=True,
        )
    talk(session, typed() if sys.stdin.isatty() else sys.stdin)


def typed() -> Iterator[str]:
    """Lines from the keyboard; Ctrl-D ends them, Ctrl-C clears the line and asks for Ctrl-D."""
    with suppress(ImportError):
        import readline  # noqa: F401 - gives the arrow keys and the history
    while True:
        try:
            yield input("you> ")
        except EOFError:
            typer.echo(err=True)
            return
        except KeyboardInterrupt:
            typer.secho(" (/quit or Ctrl-D to leave)", dim=True, err=True)


def generate(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="A completion is cut after so many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="0 always takes the likeliest token.")] = 1.0,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Sample from the likeliest tokens of this mass.")
    ] = 1.0,
    samples: Annotated[int, typer.Option(min=1, help="Completions of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    prompts: Annotated[
        Path, typer.Option("--prompts", help="JSON Lines of prompts; - is standard input.")
    ] = Path("-"),
) -> None:
    """Answer prompts (JSON Lines on standard input) with completions (JSON Lines on standard output)."""
    from bloomery.data.sources import read_prompts
    from bloomery.rollout.sample import ask
    from bloomery.types import Prompt

    asked = list(read_prompts(_standard_input() if str(prompts) == "-" else prompts))
    engine, renderer = load(model)
    repeated: list[Prompt] = [prompt for prompt in asked for _ in range(samples)]
    rollouts = ask(
        engine, renderer, repeated, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
    )
    for number, rollout in enumerate(rollouts):
        line = {
            "id": rollout.prompt.id,
            "prompt": [message.model_dump(exclude_none=True) for message in rollout.prompt.messages],
            "completion": rollout.text,
            "finish_reason": rollout.completion.finish_reason,
            "logprob": sum(rollout.completion.logprobs),
            "sample": number % samples,
        }
        sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")


def export_peft(
    adapters: Annotated[Path, typer.Argument(help="A directory of adapters, as `lora` in a stage makes it.")],
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="What to name as the base model: a path, or a name on the Hugging Face hub."
        ),
    ] = None,
) -> None:
    """Adapters alone, for PEFT: readable from any directory, as the base is named by its whole path."""
    from bloomery.models import export

    saved = export.adapters(adapters, out, base=base)
    typer.echo(f"{out}: adapters of a {saved.kind} model, rank {saved.adapter.rank}")
    _say_shift(saved.shift)


def export_merged(
    adapters: Annotated[Path, typer.Argument(help="A directory of adapters; they may stand on others.")],
    out: Annotated[Path, typer.Argument(help="A new directory.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option("--dtype", help="Of the weights: float32, bfloat16 or float16."),
    ] = "float32",
) -> None:
    """Adapters folded into their base: a whole model, which transformers loads by itself."""
    import torch

    from bloomery.models import ScalarModel, export

    model = export.merged(adapters, out, dtype=getattr(torch, dtype))
    typer.echo(f"{out}: a whole model, {model.config.num_parameters():,} parameters in {dtype}")
    _say_shift(float(model.shift) if isinstance(model, ScalarModel) else None)


def _say_shift(shift: float | None) -> None:
    """Other tools keep no constant beside a reward model's scores; it changes no comparison."""
    if shift:
        typer.echo(f"its scores elsewhere lack {shift:.4g}, which is added here")


def load(model: Path) -> tuple[Engine, Chat]:
    """An engine and a renderer for a model directory. Raises `ArtifactError` when it is none."""
    from bloomery.infer.engine import Engine
    from bloomery.models import hub
    from bloomery.text.chat import Chat
    from bloomery.text.tokenizer import Tokenizer
    from bloomery.train import precision

    if not hub.is_model(model):
        raise ArtifactError(
            "this is not a model directory",
            where=model,
            got="neither config.json nor adapter_config.json",
            do="name for example runs/demo/rl",
        )
    precision.setup()
    tokenizer = Tokenizer.load(model)
    weights = hub.load(model).to(precision.device()).train(False)
    return Engine(weights, stop_id=tokenizer.end_id, pad_id=tokenizer.pad_id), Chat(tokenizer)


def _standard_input() -> Path:
    """Standard input as a file that the strict readers can read and name."""
    import atexit
    import tempfile

    folder = tempfile.TemporaryDirectory(prefix="bloomery-")
    atexit.register(folder.cleanup)
    path = Path(folder.name) / "standard-input.jsonl"
    path.write_bytes(sys.stdin.buffer.read())
    return path
