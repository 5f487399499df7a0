"""Faults between a text and a batch: rendering, packing, order, duplicates."""

from __future__ import annotations

from mutations.mutation import Mutation

RENDER, BATCHES = ("text/test_render.py",), ("data/test_batches.py",)
DEDUPE = ("data/test_dedupe.py",)

DATA = (
    Mutation(
        "user-tokens-trained",
        "text/chat.py",
        "mask += [trained] * len(ids)",
        "mask += [True] * len(ids)",
        RENDER,
    ),
    Mutation(
        "turn-end-not-trained",
        "text/chat.py",
        "mask += [ends_turn] + [False] * (len(ids) - 1)",
        "mask += [False] * len(ids)",
        RENDER,
    ),
    Mutation(
        "text-after-the-turn-trained",
        "text/chat.py",
        "mask += [ends_turn] + [False] * (len(ids) - 1)",
        "mask += [ends_turn] * len(ids)",
        RENDER,
    ),
    Mutation(
        "control-ids-from-typed-text",
        "text/tokenizer.py",
        "self._plain.encode_special_tokens = True",
        "self._plain.encode_special_tokens = False",
        ("text/test_tokenizer.py", *RENDER),
    ),
    Mutation(
        "first-token-predicted-from-another-document",
        "data/batches.py",
        "mask[b, at + 1 : at + size] = True",
        "mask[b, at : at + size] = True",
        BATCHES,
    ),
    Mutation(
        "examples-in-one-segment",
        "data/batches.py",
        "segments[row, here] = number[row]",
        "segments[row, here] = 1",
        BATCHES,
    ),
    Mutation(
        "cut-documents-lose-their-rest",
        "data/pack.py",
        "pieces = -(-size // length)",
        "pieces = np.maximum(size // length, 1)",
        BATCHES,
    ),
    Mutation(
        "every-epoch-in-one-order",
        "data/loader.py",
        'stream(seed, "shuffle", epoch).permutation(num)',
        'stream(seed, "shuffle").permutation(num)',
        BATCHES,
    ),
    Mutation(
        "last-examples-never-seen",
        "data/loader.py",
        "first = step * batch_size\n",
        "first = step * batch_size\n    num -= num % batch_size if num > batch_size else 0\n",
        BATCHES,
    ),
    Mutation(
        "step-made-ahead-is-the-one-before",
        "data/loader.py",
        "made[step + 1] = pool.submit(make, step + 1)",
        "made[step + 1] = pool.submit(make, step)",
        BATCHES,
    ),
    Mutation(
        "jaccard-over-the-shorter",
        "data/dedupe.py",
        "return shared / (len(a) + len(b) - shared)",
        "return shared / min(len(a), len(b))",
        DEDUPE,
    ),
    Mutation(
        "minhash-bands-never-meet",
        "data/dedupe.py",
        "bucket.setdefault(band.tobytes(), []).append(len(self.kept))",
        "bucket.setdefault(signature.tobytes(), []).append(len(self.kept))",
        DEDUPE,
    ),
    Mutation(
        "near-duplicates-taken-on-trust",
        "data/dedupe.py",
        "return most >= self.threshold and jaccard(a, b) >= self.threshold",
        "return most >= self.threshold",
        DEDUPE,
    ),
    Mutation(
        "streams-depend-on-the-process",
        "seeds.py",
        "hashlib.sha256(text.encode()).digest()[:8]",
        "hash(text).to_bytes(8, 'little', signed=True)",
        ("test_seeds.py",),
    ),
    Mutation(
        "names-of-streams-run-together",
        "seeds.py",
        'text = "/".join(',
        'text = "".join(',
        ("test_seeds.py",),
    ),
    Mutation(
        "held-out-text-depends-on-the-process",
        "data/shards.py",
        'int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")',
        "(hash(text) % 2**64)",
        ("data/test_shards.py",),
    ),
)
