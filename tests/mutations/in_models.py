"""Faults in the models, their adapters and caches, and in how tokens are drawn."""

from __future__ import annotations

from mutations.mutation import Mutation

LLAMA, PARITY = ("models/test_llama.py",), ("models/test_parity.py",)
LORA, SLATES = ("models/test_lora.py",), ("models/test_slates.py", "rewards/test_reward_model.py")
SAMPLING, ENGINE = ("infer/test_sampling.py",), ("infer/test_engine.py",)
ROLLOUT = ("rollout/test_rollout.py",)

MODELS = (
    Mutation(
        "rope-turns-one-half-only",
        "models/layers.py",
        "torch.cat((-sin, sin), dim=-1)",
        "torch.cat((sin, sin), dim=-1)",
        PARITY,
    ),
    Mutation(
        "gqa-heads-interleaved",
        "models/layers.py",
        "x.repeat_interleave(h // kv_heads, dim=1)",
        "x.repeat(1, h // kv_heads, 1, 1)",
        LLAMA,
    ),
    Mutation("attention-not-scaled", "models/layers.py", "(q * dh**-0.5).reshape", "q.reshape", PARITY),
    Mutation(
        "future-seen-by-one",
        "models/llama.py",
        "mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()",
        "mask = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril(1)",
        LLAMA,
    ),
    Mutation(
        "documents-see-each-other",
        "models/llama.py",
        "return ((segments[:, :, None] == segments[:, None, :]) & causal)[:, None]",
        "return ((segments[:, :, None] > 0) & (segments[:, None, :] > 0) & causal)[:, None]",
        LLAMA,
    ),
    Mutation(
        "cache-positions-from-the-longest-row",
        "models/cache.py",
        "return self.lengths[:, None] + torch.arange",
        "return torch.full_like(self.lengths, self.longest)[:, None] + torch.arange",
        LLAMA,
    ),
    Mutation("cache-hides-the-newest-token", "models/llama.py", "seen <= places", "seen < places", LLAMA),
    Mutation(
        "answers-start-at-position-nought",
        "models/llama.py",
        "segment_positions(segments) + torch.where(answers, prefix[:, None], 0)",
        "segment_positions(segments)",
        SLATES,
    ),
    Mutation(
        "score-read-before-the-last-token",
        "rewards/model.py",
        "row * width + end - 1 for row",
        "row * width + end - 2 for row",
        ("rewards/test_reward_model.py",),
    ),
    Mutation(
        "answer-without-its-first-token",
        "models/slates.py",
        "index[n, 0] = row * width + max(prefixes[row] - 1, 0)",
        "index[n, 0] = row * width + first - 1",
        SLATES,
    ),
    Mutation(
        "lora-multiplied-by-rank",
        "models/lora.py",
        "self.rank**0.5 if self.rslora else self.rank",
        "self.rank**0.5 if self.rslora else 1 / self.rank",
        LORA,
    ),
    Mutation(
        "lora-reference-keeps-its-adapters",
        "models/lora.py",
        "model.set_submodule(name, layer.plain())\n        yield",
        "layer.plain()\n        yield",
        LORA,
    ),
    Mutation(
        "lora-base-learns-too", "models/lora.py", "    model.requires_grad_(False)\n    for", "    for", LORA
    ),
    # Drawing tokens.
    Mutation(
        "temperature-upside-down",
        "infer/sampling.py",
        "logits / warm[:, None]",
        "logits * warm[:, None]",
        SAMPLING,
    ),
    Mutation(
        "top-p-drops-the-token-that-crosses",
        "infer/sampling.py",
        "(before < top_p * whole)",
        "(before + mass <= top_p * whole)",
        SAMPLING,
    ),
    Mutation(
        "top-p-of-the-whole-after-top-k",
        "infer/sampling.py",
        "whole = torch.where(limit <= size, mass.sum(dim=-1, keepdim=True), 1.0)",
        "whole = torch.ones_like(log_total)",
        SAMPLING,
    ),
    Mutation(
        "draws-depend-on-the-row",
        "infer/sampling.py",
        "_splitmix(_splitmix(seeds) + steps)",
        "_splitmix(_splitmix(seeds) + steps + torch.arange(len(seeds), device=seeds.device))",
        SAMPLING,
    ),
    Mutation(
        "same-draw-every-step",
        "infer/sampling.py",
        "_splitmix(_splitmix(seeds) + steps)",
        "_splitmix(_splitmix(seeds))",
        SAMPLING,
    ),
    Mutation(
        "logprobs-of-another-distribution",
        "infer/sampling.py",
        "return tokens, logprobs, own.gather(1, chosen).squeeze(1) - own.logsumexp(dim=-1)",
        "return tokens, *[own.gather(1, chosen).squeeze(1) - own.logsumexp(dim=-1)] * 2",
        (*SAMPLING, *ENGINE),
    ),
    Mutation(
        "draws-numbered-by-the-prompt-too",
        "infer/engine.py",
        "steps = torch.tensor([len(seq.tokens) for seq in running], device=self._device)",
        "steps = torch.tensor([seq.cached for seq in running], device=self._device)",
        (*ENGINE, "infer/test_scheduling.py", *ROLLOUT),
    ),
    Mutation(
        "engine-keeps-old-weights",
        "infer/engine.py",
        "            self._packed = self._steps = None\n\n    def _weights",
        "            self._steps = None\n\n    def _weights",
        ("models/test_packed.py",),
    ),
    Mutation(
        "recording-of-the-lengths-before",
        "infer/capture.py",
        "        self.lengths.copy_(lengths)\n",
        "",
        ("infer/test_scheduling.py",),
    ),
    Mutation(
        "recording-of-a-cache-that-has-moved",
        "infer/capture.py",
        "if place != self.place:",
        "if not self.place:",
        ("infer/test_scheduling.py",),
    ),
    Mutation(
        "recording-writes-over-the-rows-that-read",
        "infer/scheduler.py",
        "lengths = [seq.cached for seq in self.rows[start:stop]]",
        "lengths = [seq.cached for seq in self.rows[start : self.running]] or [0]",
        ("infer/test_scheduling.py",),
    ),
    Mutation(
        "recording-of-rows-the-cache-no-longer-has",
        "infer/scheduler.py",
        "cache.share(start, min(stop, cache.batch))",
        "cache.share(start, stop)",
        ("infer/test_scheduling.py",),
    ),
    Mutation(
        "swap-with-a-row-the-cache-does-not-have",
        "infer/scheduler.py",
        "self._fit(len(self.rows), length).swap(",
        "self.cache.swap(",
        ("infer/test_scheduling.py",),
    ),
    Mutation(
        "rows-of-the-first-token-for-all",
        "models/rows.py",
        "F.embedding(place.clamp(min=0), self.rows)",
        "self.rows[0]",
        ("models/test_lora.py",),
    ),
    Mutation(
        "rows-of-their-own-never-predicted",
        "models/rows.py",
        "return scores.index_copy_(-1, self.ids, F.linear(hidden, self.rows))",
        "return scores",
        ("models/test_lora.py",),
    ),
    Mutation(
        "chat-tokens-stay-as-chance-made-them",
        "stages/sft.py",
        "new = told & chat.tokenizer.control_ids",
        "new = set[int]()",
        ("stages/test_lora_stages.py",),
    ),
    Mutation(
        "packed-without-the-adapters",
        "models/packed.py",
        "return layer.whole() if isinstance(layer, LoraLinear | TokenRows) else layer.weight.detach()",
        "return layer.weight.detach()",
        ("models/test_packed.py",),
    ),
    Mutation(
        "settings-of-the-row-before",
        "infer/engine.py",
        "if self._draw is None or self._draw[0] != scheduler.changes:",
        "if self._draw is None:",
        (*ENGINE, "infer/test_scheduling.py"),
    ),
    Mutation(
        "answers-to-one-prompt-alike",
        "rollout/sample.py",
        'seed=derive(seed, "answer", i)',
        "seed=seed",
        ROLLOUT,
    ),
    Mutation(
        "end-token-never-trained",
        "rollout/batch.py",
        "mask[i, start:end] = True",
        "mask[i, start : end - 1] = True",
        ROLLOUT,
    ),
    Mutation(
        "pieces-come-back-shuffled",
        "rollout/batch.py",
        "back = torch.cat(order).argsort()",
        "back = torch.cat(order)",
        ROLLOUT,
    ),
)
