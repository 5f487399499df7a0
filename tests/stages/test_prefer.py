"""Direct preference optimisation: how rankings become pairs, a step against every answer read by itself, the
reference read once or every time, resume, and what is and is not learned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from jam import many, starts_with_jam
from safetensors.torch import load_file
from torch import Tensor

from bloomery.data.convert import write
from bloomery.errors import DataError, UsageError
from bloomery.lineage import digest_file
from bloomery.models import hub, slates
from bloomery.models.llama import Llama
from bloomery.objectives import preference
from bloomery.stages import prefer
from bloomery.stages.common import Optimiser, is_held_out
from bloomery.stages.prefer import Prefer
from bloomery.stages.preferences import Slate, example, make_slates, with_strays
from bloomery.stages.slates import prompt_id
from bloomery.text.chat import Chat
from bloomery.types import Message, Ranking

ABC = ("red", "blue", "green")
RATES = Optimiser(learning_rate=0.005, schedule="constant", warmup=0, weight_decay=0.0)

SAID = [
    tiny.ranking("what is best", ABC, (1, 2, 3), "ada", correction="plum and jam"),
    tiny.ranking("what is best", ABC, (2, 1, 2), "bob"),
    tiny.ranking("one", ("red red red red", "two"), (2, 1), "ada"),
    tiny.ranking("two three", ("red", "blue", "plum", "jam jam"), (1, 1, 3, 4), "bob"),
    tiny.ranking("two three", ("red", "milk"), (2, 1), "cat"),
    tiny.ranking("tea", ("milk", "jam"), (1, 1), "bob"),
]


def slates_of(said: Sequence[Ranking], chat: Chat, corrections: bool = True) -> tuple[list[Slate], list[str]]:
    lines: list[str] = []
    return make_slates(said, chat, corrections, lines.append), lines


def texts(slate: Slate, chat: Chat) -> list[str]:
    """What counts of each answer, decoded."""
    counted = [[t for t, counts in zip(*answer, strict=True) if counts] for answer in slate.answers]
    return [chat.tokenizer.decode(ids, skip_special=False) for ids in counted]


# ------------------------------------------------------------------------------ pairs


def test_a_prompts_rankings_are_one_slate_and_each_weighs_one(chat: Chat) -> None:
    slates, lines = slates_of(SAID, chat)
    assert [s.id for s in slates] == [prompt_id(r.prompt) for r in (SAID[0], SAID[2], SAID[3])]
    end = chat.tokenizer.names["end"]
    named = [
        [(t[c].removesuffix(end), t[r].removesuffix(end), w) for c, r, w in s.pairs]
        for s in slates
        for t in [texts(s, chat)]
    ]
    sixth, half = pytest.approx(1 / 6), pytest.approx(1 / 2)
    assert sorted(named[0]) == [
        ("blue", "green", sixth),
        ("blue", "green", half),
        ("blue", "red", half),
        ("plum and jam", "blue", sixth),
        ("plum and jam", "green", sixth),
        ("plum and jam", "red", sixth),
        ("red", "blue", sixth),
        ("red", "green", sixth),
    ]
    assert named[1] == [("two", "red red red red", 1.0)]
    assert len(named[2]) == 5 + 1
    assert [len(s.answers) for s in slates] == [4, 2, 5]
    assert lines == ["left out 2 pairs (tie), 1 rankings (all tied)"]
    assert [sum(w for *_, w in s.pairs) for s in slates] == pytest.approx([2, 1, 2])


def test_without_corrections_only_what_was_shown_is_compared(chat: Chat) -> None:
    slates, _ = slates_of(SAID, chat, corrections=False)
    assert "plum and jam" not in "".join(texts(slates[0], chat))
    assert len(slates[0].pairs) == 3 + 2


def test_what_counts_is_the_answer_with_its_end_and_nothing_of_the_prompt(chat: Chat) -> None:
    prompt = (
        Message(role="user", content="what is"),
        Message(role="assistant", content="tea"),  # an answer of the past is part of the prompt
        Message(role="user", content="what is best"),
    )
    tokens, mask = example(prompt, (Message(role="assistant", content="jam"),), chat)
    counted = [t for t, counts in zip(tokens, mask, strict=True) if counts]
    assert counted == [*chat.tokenizer.encode("jam"), chat.tokenizer.end_id]
    assert tokens == chat.render((*prompt, Message(role="assistant", content="jam"))).tokens
    _, empty = example(prompt, (Message(role="assistant", content=""),), chat)
    assert sum(empty) == 1  # an empty answer still ends
    with pytest.raises(DataError, match="nothing to learn"):
        example(prompt, (Message(role="assistant", content="jam", weight=0),), chat)


def test_a_stray_is_the_next_answer_that_fits_after_ones_own_prompt(chat: Chat) -> None:
    slates, _ = slates_of(SAID[2:5], chat)
    one, two = with_strays(slates, 64)
    assert (one.stray, two.stray) == (2, 5)
    assert one.pairs == slates[0].pairs
    first = texts(slates[1], chat)[0].removesuffix(chat.tokenizer.names["end"])
    assert one.answers[2] == example(SAID[2].prompt, (Message(role="assistant", content=first),), chat)
    second = texts(slates[0], chat)[1].removesuffix(chat.tokenizer.names["end"])
    assert two.answers[5] == example(SAID[3].prompt, (Message(role="assistant", content=second),), chat)
    with pytest.raises(UsageError, match="none fits"):
        with_strays(slates, 3)
    with pytest.raises(UsageError, match="1 prompts"):
        with_strays(slates[:1], 64)


# ------------------------------------------------------------------------------ a step


def plain_loss(
    name: str, settings: dict[str, Any], model: Llama, reference: Llama, slates: Sequence[Slate]
) -> Tensor:
    """The mean over rankings of the mean over pairs, every answer read by itself."""

    def totals(reader: Llama) -> list[list[Tensor]]:
        return [[tiny.logprobs_of(reader, t)[torch.tensor(m)].sum() for t, m in s.answers] for s in slates]

    with torch.no_grad():
        frozen = totals(reference)
    policy = totals(model)
    moved = [p[s.stray] - f[s.stray] for s, p, f in zip(slates, policy, frozen, strict=True) if s.stray]
    kl = torch.stack(moved).mean().clamp(min=0).detach() if moved else torch.zeros(())
    losses, weights = [], 0.0
    for s, p, f in zip(slates, policy, frozen, strict=True):
        for chosen, rejected, weight in s.pairs:
            pair = preference.Pairs(
                chosen_logps=p[chosen],
                rejected_logps=p[rejected],
                chosen_ratio=p[chosen] - f[chosen],
                rejected_ratio=p[rejected] - f[rejected],
                chosen_length=torch.tensor(float(sum(s.answers[chosen][1]))),
                rejected_length=torch.tensor(float(sum(s.answers[rejected][1]))),
                kl=kl,
            )
            losses.append(weight * preference.values(preference.losses.bind(name, settings), pair))
            weights += weight
    return torch.stack(losses).sum() / weights


def save(said: Sequence[Ranking], path: Path) -> Path:
    write(said, path, "ranking")
    return path


def train(model: Path, rankings: Path, out: Path, **changed: Any) -> list[dict[str, Any]]:
    usual = {"batch": 8, "held_out": 0.0, "optimiser": RATES, "compute": tiny.TRAINING}
    prefer.run(Prefer(model=model, rankings=(rankings,), **{**usual, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


@pytest.fixture(scope="module")
def other_dir(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "model"
    model = tiny.language_model(chat.tokenizer.vocab_size, 5)
    hub.save(model, path, tokenizer_dir=tokenizer_dir)
    return path


@pytest.fixture(scope="module")
def said_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(SAID, tmp_path_factory.mktemp("said") / "rankings.jsonl")


@pytest.mark.parametrize("batch_tokens", [8192, 1])
@pytest.mark.parametrize(
    ("loss", "settings", "precompute"),
    [
        ("dpo", {"beta": 0.3, "label_smoothing": 0.1}, True),
        ("dpo", {"beta": 0.3, "label_smoothing": 0.1}, False),
        ("kto", {"undesirable": 2.0}, True),
        ("simpo", {}, True),
    ],
)
def test_the_first_step_by_hand(
    chat: Chat,
    model_dir: Path,
    other_dir: Path,
    said_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    settings: dict[str, float],
    precompute: bool,
    batch_tokens: int,
) -> None:
    """With one token a batch each prompt is learnt from by itself, and the step is the same."""
    model, reference = hub.load(model_dir), hub.load(other_dir)
    slates, _ = slates_of(SAID, chat)
    if loss == "kto":
        slates = with_strays(slates, 64)
    want = plain_loss(loss, settings, model, reference, slates)

    found: dict[str, Tensor] = {}

    def stop(optimizer: torch.optim.Optimizer, max_norm: object, *, loss: Tensor, **rest: object) -> float:
        held = [p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]
        found.update(objective=loss.detach(), gradient=torch.cat(held))
        raise KeyboardInterrupt

    monkeypatch.setattr(prefer.update, "apply", stop)
    with pytest.raises(KeyboardInterrupt):
        train(
            model_dir,
            said_file,
            tmp_path / "out",
            loss=loss,
            loss_settings=settings,
            reference=other_dir,
            precompute=precompute,
            batch=len(slates),
            batch_tokens=batch_tokens,
        )
    assert found["objective"].item() == pytest.approx(want.item(), abs=1e-5)
    in_order = sorted(model.parameters(), key=lambda p: p.dim() < 2)  # those that decay stand first
    slopes = torch.cat([slope.flatten() for slope in torch.autograd.grad(want, in_order)])
    torch.testing.assert_close(found["gradient"], slopes, atol=1e-5, rtol=1e-3)


def test_the_next_steps_slates_are_laid_out_while_a_step_is_under_way(
    model_dir: Path, said_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = tiny.makers(monkeypatch, prefer, "laid_out")
    train(model_dir, said_file, tmp_path / "out", batch=1)
    assert makers == ["MainThread", "ahead_0", "ahead_0"]


@pytest.mark.parametrize("loss", list(preference.losses))
def test_parts_of_a_step_leave_the_gradient_of_the_whole(chat: Chat, loss: str) -> None:
    """And no part's graph is there when the next is read."""
    shown = with_strays(slates_of(SAID, chat)[0], 64)
    model, bound = tiny.language_model(chat.tokenizer.vocab_size, 3), preference.losses.bind(loss, {})
    reference = torch.linspace(-30.0, -20.0, sum(len(s.answers) for s in shown))
    found = []
    for batch_tokens in (8192, 1):
        groups = prefer.laid_out(shown, 64, chat.tokenizer.pad_id, batch_tokens)
        objective, metrics = prefer.backward(model, shown, groups, reference, bound, nullcontext)
        found.append([objective, tiny.held_gradient(model), torch.tensor(list(metrics.values()))])
        model.zero_grad()
    assert len(groups) == 3
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    assert float(found[0][1].norm()) > 0.01


def test_what_is_logged(model_dir: Path, said_file: Path, tmp_path: Path) -> None:
    """At the reference: log 2 and no reward yet; then what TRL names, and the held-out set."""
    rows = train(model_dir, said_file, tmp_path / "out", batch=3, epochs=4)
    first, last = rows[0], rows[-1]
    assert len(rows) == 4
    assert first["loss"] == pytest.approx(float(np.log(2)), abs=1e-5)
    assert first["rewards/chosen"] == first["rewards/rejected"] == pytest.approx(0.0, abs=1e-5)
    assert last["rewards/margins"] == pytest.approx(
        last["rewards/chosen"] - last["rewards/rejected"], abs=1e-5
    )
    assert last["rewards/margins"] > 0.001
    assert last["rewards/accuracies"] > 0.5
    assert last["logps/chosen"] < 0
    assert "kl" not in last
    rows = train(model_dir, said_file, tmp_path / "kto", loss="kto", held_out=0.4, batch=3, epochs=2)
    assert rows[-1]["kl"] >= 0
    assert {"eval_loss", "eval_rewards/accuracies", "eval_kl"} <= rows[-1].keys()


def test_each_answer_is_read_once_and_the_reference_once_in_a_run(
    model_dir: Path, said_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = {True: 0, False: 0}
    real = slates.batch_logprobs

    def counted(model: Llama, batches: Any, answers: Any) -> Any:
        read[next(model.parameters()).requires_grad] += len(answers)
        return real(model, batches, answers)

    for module in (slates, prefer):
        monkeypatch.setattr(module, "batch_logprobs", counted)
    train(model_dir, said_file, tmp_path / "out", batch=3, epochs=3)
    answers = 4 + 2 + 5  # and not two for each of the 15 pairs
    assert read == {True: 3 * answers, False: answers}
    read.update({True: 0, False: 0})
    train(model_dir, said_file, tmp_path / "fly", batch=3, epochs=3, precompute=False)
    assert read == {True: 3 * answers, False: 3 * answers}


def test_reading_the_reference_before_or_in_every_step_is_the_same(
    model_dir: Path, other_dir: Path, said_file: Path, tmp_path: Path
) -> None:
    both = [
        train(model_dir, said_file, tmp_path / str(p), reference=other_dir, precompute=p, batch=2, epochs=3)
        for p in (True, False)
    ]
    for before, fly in zip(*both, strict=True):
        assert before == {name: pytest.approx(value, abs=1e-4, rel=1e-3) for name, value in fly.items()}


# ------------------------------------------------------------------------------ the stage


def test_killed_and_gone_on_with_it_gives_the_same_bytes(
    model_dir: Path, other_dir: Path, said_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "loss": "kto",
        "reference": other_dir,
        "batch": 2,
        "epochs": 6,
        "compute": {"threads": 1, "checkpoint_every": 2},
        "optimiser": {"learning_rate": 0.003, "warmup": 2},
    }
    train(model_dir, said_file, tmp_path / "whole", **settings)
    tiny.break_off(monkeypatch, prefer.update, "apply", 6)
    with pytest.raises(MemoryError):
        train(model_dir, said_file, tmp_path / "killed", **settings)
    monkeypatch.setattr(prefer, "hub", HubWithout(other_dir))  # what it said is in the checkpoint
    train(model_dir, said_file, tmp_path / "killed", **settings)
    for name in ("model.safetensors", "metrics.jsonl"):
        assert digest_file(tmp_path / "whole" / name) == digest_file(tmp_path / "killed" / name)
    assert json.loads((tmp_path / "killed" / "trainer_state.json").read_text())["resumed_at"] == [4]


class HubWithout:
    """The hub, but one directory must not be read."""

    save = staticmethod(hub.save)

    def __init__(self, closed: Path) -> None:
        self.closed = closed

    def load(self, path: Path) -> Llama:
        assert path != self.closed
        return hub.load(path)


# Beside what every run needs. `on_bad_row`, `held_out`, `precompute`, `batch_tokens` have tests of their own,
# and `judged` a file of them.
CHANGES: dict[str, dict[str, Any]] = {
    "reference": {"reference": "other"},
    "loss": {"loss": "hinge"},
    "loss_settings": {"loss_settings": {"beta": 0.5}},
    "use_corrections": {"use_corrections": False},
    "train": {"train": ["*norm.weight"]},
    "lora": {"lora": {"rank": 2}},
    "seed": {"seed": 1},
    "epochs": {"epochs": 3.0},
    "batch": {"batch": 2},
    "evaluate_every": {"evaluate_every": 1},
    "optimiser": {"optimiser": {"learning_rate": 0.001}},
    "compute": {"compute": {"precision": "bf16", "threads": 1, "checkpoint_every": 0}},
}


def test_every_setting_makes_a_difference(
    model_dir: Path, other_dir: Path, said_file: Path, tmp_path: Path
) -> None:
    elsewhere = {"model", "rankings", "judged", "on_bad_row", "held_out", "precompute", "batch_tokens"}
    assert set(CHANGES) | elsewhere == set(Prefer.model_fields)
    usual: dict[str, Any] = {"batch": 1, "epochs": 2, "held_out": 0.4}
    outcome = {"usual": train(model_dir, said_file, tmp_path / "usual", **usual)}
    for key, change in CHANGES.items():
        settings = {**usual, **{k: other_dir if v == "other" else v for k, v in change.items()}}
        outcome[key] = train(model_dir, said_file, tmp_path / key, **settings)
    same = [a for a in outcome for b in outcome if a < b and outcome[a] == outcome[b]]
    assert same == []


def test_bad_rows_stop_the_run_or_are_counted(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": "what is", "chosen": "jam", "rejected": "tea"},
        {"prompt": "what is", "chosen": "jam"},
        {"prompt": "one", "chosen": "two", "rejected": "red"},
    ]
    file = tiny.write_lines(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match=r"pairs\.jsonl:2"):
        train(model_dir, file, tmp_path / "stopped")
    train(model_dir, file, tmp_path / "out", on_bad_row="skip", batch=2)
    assert "skipped 1 bad rows of 3" in capsys.readouterr().err


def test_held_out_prompts_are_never_trained_on(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = many(40, seed=0)
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    real = prefer.compare

    def compare(model: Llama, slates: Sequence[Slate], *rest: Any) -> Any:
        seen[torch.is_grad_enabled()] |= {s.id for s in slates}
        return real(model, slates, *rest)

    monkeypatch.setattr(prefer, "compare", compare)
    train(model_dir, save(said, tmp_path / "r.jsonl"), tmp_path / "out", held_out=0.3, epochs=1.5, batch=16)
    ids = {prompt_id(r.prompt) for r in said}
    assert seen[False] == {i for i in ids if is_held_out(i, 0.3)}
    assert seen[True] == ids - seen[False]


def test_prompts_that_do_not_fit_are_said_and_none_at_all_is_an_error(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tiny.ranking("why", ("red", " ".join(["one"] * 70)), (1, 2))
    train(model_dir, save([*SAID, long], tmp_path / "r.jsonl"), tmp_path / "out")
    assert "left out 1 of 4 prompts with compared answers longer than 64 tokens" in capsys.readouterr().err
    with pytest.raises(
        UsageError, match=r"no prompts with compared answers of at most 64 tokens\n.*shortest of 77"
    ):
        train(model_dir, save([long], tmp_path / "long.jsonl"), tmp_path / "none")
    with pytest.raises(UsageError, match="0 prompts with compared answers"):
        train(model_dir, save(SAID[-1:], tmp_path / "tied.jsonl"), tmp_path / "tied")


def test_a_wrong_loss_or_setting_stops_before_anything_is_written(
    model_dir: Path, said_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="did you mean 'hinge'"):
        train(model_dir, said_file, tmp_path / "out", loss="hing")
    with pytest.raises(UsageError, match="gamma"):
        train(model_dir, said_file, tmp_path / "out", loss_settings={"gamma": 1.0})
    assert not (tmp_path / "out").exists()


def test_a_loss_without_reference_loads_none_and_says_that_one_has_no_effect(
    model_dir: Path,
    other_dir: Path,
    said_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prefer, "hub", HubWithout(other_dir))
    train(model_dir, said_file, tmp_path / "out", loss="orpo", reference=other_dir)
    assert "'orpo' does not read a reference" in capsys.readouterr().err


def test_only_the_named_parameters_are_trained(model_dir: Path, said_file: Path, tmp_path: Path) -> None:
    train(model_dir, said_file, tmp_path / "out", train=["model.layers.0.mlp.*", "model.norm.weight"])
    before, after = (load_file(d / "model.safetensors") for d in (model_dir, tmp_path / "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "model.norm.weight",
        *(f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    with pytest.raises(UsageError, match=r"no parameter is called 'model\.nrm\.weight' \(did you mean"):
        train(model_dir, said_file, tmp_path / "wrong", train=["model.nrm.weight"])


@pytest.mark.parametrize("precompute", [True, False])
def test_a_policy_without_its_adapters_is_the_reference(
    model_dir: Path, said_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precompute: bool
) -> None:
    """To the same numbers as with a copy of the model, of which only one is then loaded."""
    settings = {"lora": {"rank": 2}, "epochs": 4, "batch": 3, "precompute": precompute}
    with_copy = train(model_dir, said_file, tmp_path / "copy", reference=model_dir, **settings)
    loaded, real = list[Path](), hub.load
    monkeypatch.setattr(prefer.hub, "load", lambda path: loaded.append(path) or real(path))
    alone = train(model_dir, said_file, tmp_path / "alone", **settings)
    assert loaded == [model_dir]
    for one, other in zip(alone, with_copy, strict=True):
        assert one == {name: pytest.approx(value, abs=1e-5, rel=1e-4) for name, value in other.items()}
    assert alone[-1]["rewards/margins"] > 0.001


def test_lineage_names_who_ranked_and_who_answered(model_dir: Path, said_file: Path, tmp_path: Path) -> None:
    train(model_dir, said_file, tmp_path / "out")
    lineage = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert {p["id"]: p["rankings"] for p in lineage["people"]} == {"ada": 2, "bob": 3, "cat": 1}
    assert [t["id"] for t in lineage["teachers"]] == ["sft"]


# ------------------------------------------------------------------------------ does it learn


@pytest.mark.parametrize("loss", list(preference.losses))
def test_it_learns_what_people_prefer(chat: Chat, talker_dir: Path, tmp_path: Path, loss: str) -> None:
    file = save(many(120, seed=2), tmp_path / "rankings.jsonl")
    train(talker_dir, file, tmp_path / "out", loss=loss, batch=12, epochs=3)
    before, after = (starts_with_jam(hub.load(path), chat) for path in (talker_dir, tmp_path / "out"))
    assert before < 0.2
    assert after > 0.5


def test_it_learns_nothing_from_shuffled_labels(chat: Chat, talker_dir: Path, tmp_path: Path) -> None:
    file = save(many(120, seed=2, shuffled=True), tmp_path / "rankings.jsonl")
    train(talker_dir, file, tmp_path / "out", batch=12, epochs=3)
    assert starts_with_jam(hub.load(tmp_path / "out"), chat) < 0.2
