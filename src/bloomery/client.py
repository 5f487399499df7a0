"""The `Generate` protocol over HTTP: prompts of token ids to a server, completions of token ids back.

The server speaks OpenAI's `/v1/completions`, with a prompt given as token ids and one addition: asked to
`return_token_ids`, a choice holds `token_ids` beside `logprobs.token_logprobs` and `finish_reason`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from bloomery.errors import BloomeryError, DataError, UsageError
from bloomery.types import Completion, SamplingParams

MAX_BYTES = 16_000_000


class Client:
    """`Client("http://127.0.0.1:8000")(prompts, params)`; `workers` requests are under way at a time.

    Nothing is asked before the first call. Raises `UsageError` for what is no http(s) address,
    `BloomeryError` when the server does not answer or refuses, `DataError` when its answer is not one.
    """

    def __init__(self, url: str, *, model: str = "default", timeout: float = 60.0, workers: int = 8) -> None:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
            raise UsageError("not the address of a server", got=url, expected="http://host:port")
        self.url, self.model = url.rstrip("/") + "/v1/completions", model
        self.timeout, self.workers = timeout, workers

    def __call__(
        self, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[Completion]:
        """One completion for each prompt, in their order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self._one, prompts, params))

    def _one(self, prompt: Sequence[int], params: SamplingParams) -> Completion:
        body = {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
            "seed": params.seed,
            "logprobs": 0,
            "return_token_ids": True,
        }
        if params.top_k:
            body["top_k"] = params.top_k
        return self._completion(self._post(body))

    def _post(self, body: dict[str, Any]) -> bytes:
        request = Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with urlopen(request, timeout=self.timeout) as answer:
                found: bytes = answer.read(MAX_BYTES + 1)
        except HTTPError as error:
            said = error.read(2000).decode(errors="replace")
            raise BloomeryError("the server refused", where=self.url, got=f"{error.code}: {said}") from None
        except OSError as error:  # refused, timed out, cut off
            raise BloomeryError(
                "the server does not answer", where=self.url, got=error, do="start it, or check the address"
            ) from None
        if len(found) > MAX_BYTES:
            raise DataError("the server's answer does not end", where=self.url, expected=f"{MAX_BYTES} bytes")
        return found

    def _completion(self, answer: bytes) -> Completion:
        try:
            (choice,) = json.loads(answer)["choices"]
            tokens = [int(t) for t in choice["token_ids"]]
            logprobs = [float(p) for p in choice["logprobs"]["token_logprobs"]]
            finish = choice["finish_reason"]
            if len(tokens) != len(logprobs) or finish not in ("stop", "length"):
                raise ValueError(f"{len(tokens)} tokens, {len(logprobs)} log-probs, ended by {finish}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(
                "the server's answer is not a completion",
                where=self.url,
                got=f"{answer[:200].decode(errors='replace')} ({error!r})",
                expected="choices[0] with token_ids, logprobs.token_logprobs and finish_reason",
            ) from None
        return Completion(tuple(tokens), tuple(logprobs), finish)
