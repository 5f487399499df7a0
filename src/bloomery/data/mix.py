"""Source weights: how many times each source is gone through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from bloomery.errors import UsageError, nearest
from bloomery.seeds import stream
from bloomery.types import Document


def mix(documents: Sequence[Document], weights: Mapping[str, float], seed: int) -> list[Document]:
    """The documents with those of source `s` taken `weights[s]` times (1 unless named), in order.

    A weight of 2.5 takes each document twice and a random half of them a third time; copies get ids of
    their own (`<id>#2`). Raises `UsageError` for an unknown source or a weight that is no number >= 0.
    """
    by_source: dict[str, list[int]] = defaultdict(list)
    for i, document in enumerate(documents):
        by_source[document.source].append(i)
    times = [1] * len(documents)
    for source, weight in weights.items():
        if source not in by_source:
            hint = nearest(source, by_source)
            raise UsageError(
                f"no document has source '{source}'{hint}", expected=", ".join(sorted(by_source))
            )
        if not 0 <= weight < float("inf"):
            raise UsageError(f"the weight of source '{source}' is a number of times", got=weight)
        members = by_source[source]
        extra = stream(seed, "mix", source).permutation(len(members))[: round(weight % 1 * len(members))]
        for i in members:
            times[i] = int(weight)
        for i in extra:
            times[members[i]] += 1
    return [
        document if copy == 1 else document.model_copy(update={"id": f"{document.id}#{copy}"})
        for document, count in zip(documents, times, strict=True)
        for copy in range(1, count + 1)
    ]
