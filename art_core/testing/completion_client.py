"""Asks an engine's endpoint as the gateway does, and reads what training needs out of the answer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from art_core.protocols.engine import Endpoint
from art_core.testing.promise import promised

ROUTES = (("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/v1/chat/completions"))


@dataclass(frozen=True)
class Answer:
    """One choice."""

    prompt: list[int]
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str | None


class CompletionClient:
    """One engine's endpoint, with its key.

    Args:
        endpoint: Where it answers.
        base_model: Its base model's directory.
    """

    def __init__(self, endpoint: Endpoint, base_model: Path) -> None:
        self._http = httpx.AsyncClient(base_url=endpoint.base_url, timeout=120, trust_env=False)
        self._key = endpoint.api_key
        self._stop_tokens = stop_tokens(base_model)

    async def request(self, method: str, path: str, body: object = None, key: str | None = None) -> httpx.Response:
        """Make a request; `key` replaces the endpoint's."""
        headers = {"Authorization": f"Bearer {self._key if key is None else key}"}
        return await self._http.request(method, path, json=body, headers=headers)

    async def request_without_key(self, method: str, path: str, body: object) -> httpx.Response:
        """Make a request without any key."""
        return await self._http.request(method, path, json=body)

    async def complete(self, model: str, prompt: list[int], max_tokens: int = 8, **more: Any) -> Answer:
        """Sample after token ids."""
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "logprobs": 1, "return_token_ids": True}
        return self._read(await self._answered("/v1/completions", {**body, **more}), max_tokens, text=True)

    async def chat(self, model: str, content: str, max_tokens: int = 8, **more: Any) -> Answer:
        """Sample after one user message."""
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "logprobs": True}
        body["return_token_ids"] = True
        return self._read(await self._answered("/v1/chat/completions", {**body, **more}), max_tokens, text=False)

    async def stream(self, model: str, content: str, max_tokens: int) -> list[dict[str, Any]]:
        """The choices of a streamed chat completion's chunks, in order."""
        messages = [{"role": "user", "content": content}]
        body = {"model": model, "messages": messages, "max_tokens": max_tokens, "stream": True}
        body |= {"return_token_ids": True, "logprobs": True}
        headers = {"Authorization": f"Bearer {self._key}"}
        async with self._http.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
            # not aiter_lines: it also cuts at characters that a random model is free to say inside of a JSON string
            answer = b"".join([part async for part in response.aiter_bytes()])
        lines = [line.removeprefix(b"data: ") for line in answer.split(b"\n") if line.startswith(b"data: ")]
        promised(lines[-1:] == [b"[DONE]"], "a stream ends with [DONE]", lines[-1:])
        return [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _answered(self, path: str, body: object) -> dict[str, Any]:
        response = await self.request("POST", path, body)
        promised(response.status_code == 200, f"{path} answers a loaded name", response.text[:500])
        data: dict[str, Any] = response.json()
        return data

    def _read(self, data: dict[str, Any], max_tokens: int, *, text: bool) -> Answer:
        choice = data["choices"][0]
        prompt = data.get("prompt_token_ids") or choice.get("prompt_token_ids")
        promised(
            prompt,
            "with return_token_ids a completion carries prompt_token_ids, at its top level or on its choice",
            f"{sorted(data)}, {sorted(choice)}",
        )
        promised("token_ids" in choice, "with return_token_ids a choice carries token_ids", sorted(choice))
        shown = choice["logprobs"] or {}
        logprobs = shown.get("token_logprobs") if text else [each["logprob"] for each in shown.get("content", [])]
        answer = Answer(prompt, choice["token_ids"], logprobs or [], choice["finish_reason"])
        self._check(answer, max_tokens)
        return answer

    def _check(self, answer: Answer, max_tokens: int) -> None:
        count = len(answer.tokens)
        promised(
            len(answer.logprobs) == count, "one logprob per sampled token", f"{len(answer.logprobs)} for {count} tokens"
        )
        if answer.finish_reason == "length":
            promised(count == max_tokens, "token_ids are all of the sampled ids", f"{count} of {max_tokens}")
        elif self._stop_tokens:
            promised(
                answer.tokens[-1] in self._stop_tokens,
                "token_ids include the stop token",
                f"{answer.tokens[-3:]}, finish_reason {answer.finish_reason!r}, stop tokens {self._stop_tokens}",
            )


def stop_tokens(base_model: Path) -> set[int]:
    """Stop token ids that a base model's files name."""
    found: set[int] = set()
    for name in ("config.json", "generation_config.json"):
        path = base_model / name
        value = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
        found |= set(value) if isinstance(value, list) else {value} if isinstance(value, int) else set()
    return found
