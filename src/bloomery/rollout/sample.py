"""Ask a model many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence

from bloomery.seeds import derive
from bloomery.text.chat import Chat
from bloomery.types import Generate, Prompt, Rollout, SamplingParams


def ask(
    generate: Generate,
    chat: Chat,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    temperature: float,
    seed: int,
    top_p: float = 1.0,
) -> list[Rollout]:
    """One answer to each prompt, in the order given. To draw n answers, give a prompt n times.

    The draw of answer `i` depends on `(seed, i)` and its prompt only, not on what it is batched with.
    """
    encoded = [chat.prompt(prompt.messages) for prompt in prompts]
    params = [
        SamplingParams(
            max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=derive(seed, "answer", i)
        )
        for i in range(len(prompts))
    ]
    completions = generate(encoded, params)
    stop = chat.tokenizer.end_id
    return [
        Rollout(
            prompt=prompt,
            prompt_tokens=tuple(tokens),
            completion=completion,
            text=chat.tokenizer.decode([t for t in completion.tokens if t != stop]),
        )
        for prompt, tokens, completion in zip(prompts, encoded, completions, strict=True)
    ]
