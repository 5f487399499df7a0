"""Stages that learn by adapters: the base keeps every bit, only adapters are held and written, a broken run
goes on to the same bytes, and PPO's policy without its adapters is the reference that a copy would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import Tensor

from bloomery import lineage
from bloomery.data.shards import write_shards
from bloomery.errors import UsageError
from bloomery.models import hub, lora, peft
from bloomery.models.lora import Bare, LoraLinear
from bloomery.rewards.model import RewardModel
from bloomery.stages import ppo, reward, sft
from bloomery.stages.common import Optimiser
from bloomery.stages.ppo import Ppo
from bloomery.stages.reward import RewardRecipe
from bloomery.stages.sft import ChatLora, Sft
from bloomery.text.chat import Chat
from bloomery.text.tokenizer import Tokenizer
from bloomery.train import step as update
from bloomery.types import Document

RATES = Optimiser(learning_rate=0.02, schedule="constant", warmup=0, weight_decay=0.0)
LORA = ChatLora(rank=2, alpha=4.0)
ASKED = [f"what is {word}" for word in tiny.WORDS]
ADAPTERS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def place(chat: Chat, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, demonstrations, rankings and prompts."""
    root = tmp_path_factory.mktemp("lora-stages")
    hub.save(tiny.scalar_model(chat.tokenizer.vocab_size, 7), root / "reward", tokenizer_dir=tokenizer_dir)
    talks = [
        {
            "messages": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": f" {q.split()[-1]} tea"},
            ]
        }
        for q in ASKED
    ]
    tiny.write_lines(root / "talks.jsonl", [{"id": f"talk-{n}", **talk} for n, talk in enumerate(talks)])
    said = [tiny.ranking(q, [" plum jam", " tea", " milk two"], [1, 2, 3]) for q in ASKED]
    tiny.write_lines(root / "rankings.jsonl", [r.model_dump(mode="json", exclude_none=True) for r in said])
    tiny.write_lines(root / "prompts.jsonl", [{"prompt": text} for text in ASKED])
    return root


def compute(every: int = 0) -> dict[str, Any]:
    return {"threads": 1, "checkpoint_every": every, "precision": "fp32"}


def run_sft(place: Path, model: Path, out: Path, every: int = 0, **changed: Any) -> list[dict[str, Any]]:
    small = {"epochs": 3, "batch": 5, "held_out": 0.0, "optimiser": RATES, "compute": compute(every)}
    files = (place / "talks.jsonl",)
    sft.run(Sft(**{"model": model, "demonstrations": files, "lora": LORA, **small, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def run_reward(place: Path, model: Path, out: Path, every: int = 0, **changed: Any) -> list[dict[str, Any]]:
    small = {"epochs": 3, "batch": 5, "held_out": 0.1, "optimiser": RATES, "compute": compute(every)}
    files = (place / "rankings.jsonl",)
    reward.run(RewardRecipe(**{"model": model, "rankings": files, "lora": LORA, **small, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def run_ppo(place: Path, model: Path, out: Path, every: int = 0, **changed: Any) -> list[dict[str, Any]]:
    small = {"prompts_per_step": 6, "max_tokens": 5, "steps": 4, "compute": compute(every)}
    inputs = {"policy": model, "reference": model, "reward": place / "reward"}
    files = (place / "prompts.jsonl",)
    rates = {"optimiser": RATES, "critic": RATES}
    ppo.run(Ppo(**{**inputs, "prompts": files, "lora": LORA, **small, **rates, **changed}), out)
    return tiny.lines(out / "metrics.jsonl")


def run_ppo_on_adapters(
    place: Path, model: Path, out: Path, every: int = 0, **changed: Any
) -> list[dict[str, Any]]:
    judge = place / "reward of adapters"
    if not judge.exists():
        run_reward(place, model, judge)
    return run_ppo(place, model, out, every, reward=judge, **changed)


def loss_on_talks(chat: Chat, directory: Path) -> float:
    """Of the assistant's tokens, by one forward pass a conversation."""
    model, nats, number = hub.load(directory), 0.0, 0
    for asked in ASKED:
        prompt = chat.prompt(tiny.user(asked))
        tokens = [*prompt, *chat.tokenizer.encode(f" {asked.split()[-1]} tea"), chat.tokenizer.end_id]
        with torch.no_grad():
            nats -= float(tiny.logprobs_of(model, tokens)[len(prompt) :].sum())
        number += len(tokens) - len(prompt)
    return nats / number


def base_bits(directory: Path, kind: Any = "causal") -> dict[str, Tensor]:
    """The weights under a directory's adapters."""
    model = hub.load(directory, kind, merge=False)
    with lora.without(model):
        return dict(model.state_dict())


def test_fine_tuning_by_adapters_learns_and_leaves_the_base_alone(
    chat: Chat, place: Path, model_dir: Path, tmp_path: Path
) -> None:
    before = lineage.digest_path(model_dir)
    run_sft(place, model_dir, tmp_path / "out", epochs=25)
    assert loss_on_talks(chat, tmp_path / "out") < 0.5 * loss_on_talks(chat, model_dir)
    assert lineage.digest_path(model_dir) == before
    base = hub.load(model_dir).state_dict()
    assert all(torch.equal(t, base[n]) for n, t in base_bits(tmp_path / "out").items())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_config.json", ADAPTERS, "tokenizer.json", "chat_template.jinja"} <= names
    assert not names & {"config.json", "model.safetensors"}
    assert lineage.complete(tmp_path / "out")
    (parent, *_) = lineage.read(tmp_path / "out").inputs
    assert (parent.role, parent.digest) == ("model", before)
    assert lineage.ancestry(tmp_path / "out").parents[0].status == "ok"
    Tokenizer.load(tmp_path / "out")


def test_the_next_stage_starts_from_the_adapters(place: Path, model_dir: Path, tmp_path: Path) -> None:
    """Once with adapters of its own on top, and once with all weights."""
    run_sft(place, model_dir, tmp_path / "first")
    start = hub.load(tmp_path / "first").state_dict()
    run_sft(place, tmp_path / "first", tmp_path / "second", epochs=1, seed=1)
    assert all(torch.equal(t, start[n]) for n, t in base_bits(tmp_path / "second").items())
    run_sft(place, tmp_path / "first", tmp_path / "whole", epochs=1, lora=None)
    assert not peft.is_adapter(tmp_path / "whole")
    frozen = Optimiser(learning_rate=1e-12, schedule="constant", warmup=0, weight_decay=0.0)
    run_sft(place, tmp_path / "first", tmp_path / "still", epochs=1, lora=None, optimiser=frozen)
    still = hub.load(tmp_path / "still").state_dict()
    for name, tensor in start.items():
        torch.testing.assert_close(still[name], tensor, atol=1e-6, rtol=0)


def test_tokens_that_the_base_has_not_read_learn_rows_of_their_own(
    chat: Chat, place: Path, model_dir: Path, tmp_path: Path
) -> None:
    """Of those in the conversations: the chat's own, and what is not in the corpus; nothing else of the
    embedding moves, and nothing where that is said."""
    before = hub.load(model_dir).state_dict()["model.embed_tokens.weight"]
    tokenizer = chat.tokenizer
    told = {token for one in ASKED for token in chat.prompt(tiny.user(one))} | {tokenizer.end_id}
    told |= {token for one in ASKED for token in tokenizer.encode(f" {one.split()[-1]} tea")}
    read = Document(id="1", text="what is red tea", source="shelf")
    corpus = write_shards([read], tokenizer, tmp_path / "text", val_fraction=0.0).path
    new = told - set(tokenizer.encode(read.text)) - {tokenizer.doc_id}
    assert told & tokenizer.control_ids < new < told
    for name, settings, moved in (
        ("chat", {}, told & tokenizer.control_ids),
        ("corpus", {"corpus": corpus, "replay": {"coef": 0.0}}, new),
        ("none", {"corpus": corpus, "lora": LORA.model_copy(update={"new_tokens": False})}, set[int]()),
    ):
        run_sft(place, model_dir, tmp_path / name, epochs=1, **settings)
        after = hub.load(tmp_path / name).state_dict()["model.embed_tokens.weight"]
        assert set((after != before).any(1).nonzero().flatten().tolist()) == moved


@pytest.mark.parametrize(
    "changed",
    [{"rank": 3}, {"alpha": 1.0}, {"rslora": True}, {"targets": ("q_proj",)}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_of_the_adapters_is_read(
    place: Path, model_dir: Path, tmp_path: Path, changed: dict[str, Any]
) -> None:
    settings = {"epochs": 1}
    run_sft(place, model_dir, tmp_path / "a", **settings)
    run_sft(place, model_dir, tmp_path / "b", lora=LORA.model_copy(update=changed), **settings)
    a, b = (lora.adapter_of(hub.load(tmp_path / n, merge=False)) for n in ("a", "b"))
    assert a is not None
    assert b is not None
    for name in ("rank", "alpha", "rslora", "targets"):
        want = changed.get(name, getattr(LORA, name))
        assert getattr(b, name) == (tuple(sorted(want)) if name == "targets" else want)
    weights = [tiny.weights(hub.load(tmp_path / n)) for n in ("a", "b")]
    assert not torch.allclose(*weights, atol=1e-4)


def test_a_part_of_the_weights_can_learn(place: Path, model_dir: Path, tmp_path: Path) -> None:
    run_sft(place, model_dir, tmp_path / "out", lora=None, train=("*norm.weight", "model.layers.0.mlp.*"))
    before, after = (hub.load(path).state_dict() for path in (model_dir, tmp_path / "out"))
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved == {name for name in before if "norm" in name or ".mlp." in name}
    with pytest.raises(UsageError, match=r"'\*nrm\.weight'"):
        run_sft(place, model_dir, tmp_path / "other", lora=None, train=("*nrm.weight",))
    with pytest.raises(UsageError, match="lora and train"):
        run_sft(place, model_dir, tmp_path / "both", train=("*norm.weight",))
    with pytest.raises(UsageError, match=r"did you mean 'q_proj'"):
        run_sft(place, model_dir, tmp_path / "typo", lora=ChatLora(targets=("q_prj",)))


@pytest.mark.parametrize("again", [False, True])
def test_a_reward_model_of_adapters_and_a_head(
    place: Path, model_dir: Path, tmp_path: Path, again: bool
) -> None:
    start = {"start": place / "reward"} if again else {}
    rows = run_reward(
        place, model_dir, tmp_path / "out", epochs=8, demonstrations=place / "talks.jsonl", **start
    )
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["eval_accuracy"] > 0.75
    whole = hub.load(place / "reward", "scalar") if again else hub.load(model_dir)
    want, got = whole.model.state_dict(), base_bits(tmp_path / "out", "scalar")
    assert all(torch.equal(got[f"model.{n}"], t) for n, t in want.items())
    model = hub.load(tmp_path / "out", "scalar")
    assert model.shift != 0
    if again:
        assert not torch.equal(model.score.weight, whole.score.weight)


def differing(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> set[str]:
    """The metrics that are not equal to the last bit, but those that measure time."""
    names = {n for row in a + b for n in row if not n.startswith(tiny.CLOCKS)}
    return {n for n in names if [row.get(n) for row in a] != [row.get(n) for row in b]}


def test_the_policy_without_its_adapters_is_the_reference_a_copy_would_be(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    hub.save(hub.load(model_dir), copy)
    references: list[object] = []
    real = ppo.look_back

    def look_back(recipe: Any, batch: Any, scores: Any, worth: Any, learner: ppo.Learner, *rest: Any) -> Any:
        references.append(learner.reference)
        return real(recipe, batch, scores, worth, learner, *rest)

    monkeypatch.setattr(ppo, "look_back", look_back)
    shared = run_ppo(place, model_dir, tmp_path / "shared")
    apart = run_ppo(place, model_dir, tmp_path / "apart", reference=copy)
    assert [isinstance(one, Bare) for one in references] == [True] * 4 + [False] * 4
    assert differing(shared, apart) == set()
    assert abs(shared[-1]["objective/kl"]) > 1e-3
    assert (tmp_path / "shared" / ADAPTERS).read_bytes() == (tmp_path / "apart" / ADAPTERS).read_bytes()
    assert all(row["sampling/sampling_logp_difference/max"] < 1e-5 for row in shared)
    base = hub.load(model_dir).state_dict()
    assert all(torch.equal(t, base[n]) for n, t in base_bits(tmp_path / "shared").items())


def test_policy_critic_and_reward_model_share_one_trunk(
    place: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward model is adapters on the policy's base: all that is held beside that base is thin."""
    run_reward(place, model_dir, tmp_path / "reward")
    models: list[tuple[Any, Any]] = []
    real, judges = ppo.improve, list[Any]()

    def improve(recipe: Any, step: int, experience: Any, learner: ppo.Learner, corpus: Any) -> Any:
        models.append((learner.actor, learner.critic))
        return real(recipe, step, experience, learner, corpus)

    made = RewardModel.__init__

    def judge(self: RewardModel, model: Any, pad_id: int) -> None:
        judges.append(model)
        made(self, model, pad_id)

    monkeypatch.setattr(ppo, "improve", improve)
    monkeypatch.setattr(RewardModel, "__init__", judge)
    shared = run_ppo(place, model_dir, tmp_path / "shared", reward=tmp_path / "reward")
    actor, critic = models[0]
    base, (score_of,) = dict(hub.load(model_dir).named_parameters()), judges
    own = {id(p): p for m in (actor, critic, score_of) for p in m.parameters()}
    thin = [p for m in (actor, critic, score_of) for n, p in m.named_parameters() if n not in base]
    assert len(own) == len(base) + len(thin)
    for name, before in base.items():
        assert torch.equal(dict(actor.named_parameters())[name], before)
    saved, scored = (dict(hub.load(tmp_path / "reward", "scalar", merge=False).named_parameters()), score_of)
    learned = {n: not torch.equal(p, saved[n]) for n, p in critic.named_parameters()}
    assert all(moved is ("lora_" in n or n == "score.weight") for n, moved in learned.items())
    assert all(torch.equal(p, saved[n]) for n, p in scored.named_parameters())
    # A whole reward model scores the same, and its critic, which is whole, starts from the same values.
    hub.save(hub.load(tmp_path / "reward", "scalar"), tmp_path / "whole", tokenizer_dir=model_dir)
    apart = run_ppo(place, model_dir, tmp_path / "apart", reference=model_dir, reward=tmp_path / "whole")
    assert not any(isinstance(m, LoraLinear) for m in models[-1][1].modules())
    for name in ("objective/scores", "explained_variance", "objective/kl"):
        assert shared[0][name] == pytest.approx(apart[0][name], abs=1e-4)


def test_the_pretraining_term_reaches_the_adapters(
    chat: Chat, place: Path, model_dir: Path, tmp_path: Path
) -> None:
    corpus = tiny.corpus(chat.tokenizer, tmp_path / "corpus")
    text = {"corpus": corpus.path, "ptx_coef": 1.0, "ptx_batch": 2, "steps": 1}
    (row,) = run_ppo(place, model_dir, tmp_path / "out", **text)
    assert row["grad_norm/ptx"] > 0
    assert row["grad_norm/ppo"] > 0


class Stop(Exception):
    """Stands for whatever ends a run."""


@pytest.mark.parametrize(
    ("run", "updates", "modules"),
    [
        (run_sft, 5, {"model"}),
        (run_reward, 5, {"model"}),
        (run_ppo, 10, {"actor", "critic"}),
        (run_ppo_on_adapters, 10, {"actor", "critic"}),
    ],
    ids=["sft", "reward", "ppo", "ppo, all adapters"],
)
def test_a_broken_run_goes_on_to_the_same_bytes(
    place: Path,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., list[dict[str, Any]]],
    updates: int,
    modules: set[str],
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    want = run(place, model_dir, whole, every=2)
    real, count = update.apply_all, 0

    def apply_all(*args: Any, **rest: Any) -> list[float]:
        nonlocal count
        count += 1
        if count == updates:
            raise Stop
        return real(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(update, "apply_all", apply_all)
        with pytest.raises(Stop):
            run(place, model_dir, broken, every=2)
    (newest, *_) = sorted(broken.glob("checkpoint-*"))
    held = {name: load_file(newest / f"{name}.safetensors") for name in modules}
    for name in modules - ({"critic"} if run is run_ppo else set()):
        assert all("lora_" in key or key.endswith(("score/weight", "/rows")) for key in held[name]), (
            "a checkpoint of frozen weights"
        )
    got = run(place, model_dir, broken, every=2)
    assert differing(want, got) == set()
    assert (whole / ADAPTERS).read_bytes() == (broken / ADAPTERS).read_bytes()
