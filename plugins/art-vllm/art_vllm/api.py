"""vLLM's HTTP routes as calls: what is sent, what comes back, and what a refusal means."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from art_core.checkpoint import StoredCheckpoint
from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import EngineDiedError, EngineError
from art_core.protocols.engine import LoadedAdapter
from art_vllm.door import NUMBER, STATE
from art_vllm.failures import ROOTS, death, refusal

MOST_LOGPROBS = -1
"""What vLLM takes for "of every token"."""


@dataclass(frozen=True)
class Held:
    """An adapter that a name stands for."""

    directory: Path
    """As the server calls it."""
    number: int | None
    """vLLM's own; None where the server does not say."""


@dataclass(frozen=True)
class State:
    """What a server holds and does."""

    adapters: Mapping[str, Held]
    running: Mapping[int, int]
    """Adapter number to its requests; 0 is the base. A server that somebody else runs puts all of them there."""

    @property
    def leaving(self) -> set[int]:
        """Adapters whose names are gone and whose requests still run."""
        return set(self.running) - {held.number for held in self.adapters.values()} - {0}


class Api:
    """Asks one server.

    Args:
        server: It.
        timeouts: How long its answers may take.
        own: Whether it is ours, with our `Door` before it.
    """

    def __init__(self, server: EngineServer, timeouts: Timeouts, *, own: bool) -> None:
        self.server = server
        self.own = own
        self._timeouts = timeouts

    async def state(self) -> State:
        """What it holds and does, in one look where it is ours.

        Raises:
            EngineDiedError: Its process has ended, or the part that computes has.
            EngineUnavailableError: It does not answer.
        """
        if not self.own:
            async with self.server.connected() as server:
                return await Api(server, self._timeouts, own=False)._stock_state()
        data = (await self._get(STATE)).json()
        if not data["alive"]:
            child = self.server.child
            raise EngineDiedError(death(child.log_tail(4000) if child else ""))
        held = {name: Held(Path(each["directory"]), each["id"]) for name, each in data["adapters"].items()}
        return State(held, {int(number): count for number, count in data["running"].items()})

    async def load(self, name: str, directory: str) -> int | None:
        """Load an adapter under a name.

        Args:
            name: Not in use.
            directory: Its files', as the server calls it.

        Returns:
            Its number; None where the server does not say.

        Raises:
            CheckpointCorruptError: vLLM refuses the files.
            EngineError: vLLM refuses the name, or for another reason.
        """
        request = {"lora_name": name, "lora_path": directory}
        response = await self._post(
            "/v1/load_lora_adapter", request, self._timeouts.load_adapter_s, f"load adapter {name!r}"
        )
        number = response.headers.get(NUMBER)
        return None if number is None else int(number)

    async def unload(self, name: str) -> None:
        """Forget a name; one that is not known is no error."""
        request = {"lora_name": name}
        response = await self.server.ask("POST", "/v1/unload_lora_adapter", request, self._timeouts.load_adapter_s)
        if response.is_error and not (response.status_code == 404 and "cannot be found" in response.text):
            raise refusal(response, f"unload adapter {name!r}")

    async def call_workers(self, method: str, *arguments: str) -> list[Any]:
        """Call a method of every worker.

        Args:
            method: Its name.
            arguments: Its arguments.

        Returns:
            What each of them answered.

        Raises:
            EngineError: One of them failed; the engine lives on.
        """
        request = {"method": method, "args": list(arguments)}
        response = await self._post("/collective_rpc", request, self._timeouts.load_adapter_s, f"call {method}")
        results: list[Any] = response.json()["results"] if response.content else []
        for result in results:
            if isinstance(result, dict) and "error" in result:
                raise EngineError(f"engine 'vllm' could not {method}: {result['error']}")
        return results

    async def numbers(self) -> set[int]:
        """Numbers of the adapters that the workers hold."""
        return set((await self.call_workers("list_loras"))[0])

    async def prove(self, name: str, number: int, directory: str) -> LoadedAdapter:
        """Digest an adapter's slot, and what its files say that it must hold.

        Args:
            name: The adapter's.
            number: The adapter's.
            directory: Its files', as the server calls it.
        """
        start = time.perf_counter()
        results = await self.call_workers("art_digest", str(number), directory)
        slots, expected = ([each[key] for each in results] for key in ("slot", "expected"))
        return LoadedAdapter(name, _together(slots), _together(expected), time.perf_counter() - start)

    async def require_files(self, checkpoint: StoredCheckpoint, directory: str) -> None:
        """Refuse an adapter whose files are others where the server runs: the weight proof reads them there.

        Args:
            checkpoint: What they must be.
            directory: Theirs, as the server calls it.

        Raises:
            EngineError: They can't be read, or differ.
        """
        files = checkpoint.manifest.files
        for result in await self.call_workers("art_files", directory):
            other = [name for name, sha256 in result["files"].items() if sha256 != files[name].sha256]
            if other:
                raise EngineError(
                    f"{other[0]} in {directory}, where the server runs, is not that of {checkpoint.directory} here; "
                    f"{ROOTS}"
                )

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]], longest: int) -> list[NDArray[np.float32]]:
        """Logprobs of given tokens; see `InferenceEngine.score`.

        Args:
            name: A served name.
            sequences: Per sequence, T token ids.
            longest: The server's context: a prompt must leave room for a token to sample.

        Raises:
            NoRouteError: The name is not served.
        """
        prompts = [tokens[: longest - 1].tolist() for tokens in sequences]
        request = {"model": name, "prompt": prompts, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
        response = await self._post("/v1/completions", request, self._timeouts.score_s, f"score under {name!r}")
        choices = sorted(response.json()["choices"], key=lambda choice: int(choice["index"]))
        scored = [_prompt_logprobs(choice, prompt) for choice, prompt in zip(choices, prompts, strict=True)]
        for tokens, row, prompt in zip(sequences, scored, prompts, strict=True):
            if len(tokens) == longest:
                row.append(await self._next(name, prompt, int(tokens[-1])))
        return [np.array(row, np.float32) for row in scored]

    async def sleep(self, level: int) -> None:
        """Give device memory back; requests in flight are waited for (vLLM's own choice would cut them)."""
        path = f"/sleep?level={level}&mode=wait"
        await self._post(path, None, self._timeouts.engine_start_s, f"sleep at level {level}")

    async def wake(self, tag: str) -> None:
        """Take device memory of one kind again: ``weights`` or ``kv_cache``."""
        await self._post(f"/wake_up?tags={tag}", None, self._timeouts.engine_start_s, f"wake its {tag}")

    async def _next(self, name: str, prompt: list[int], token: int) -> float:
        """Logprob of the token after a prompt that is as long as prompts may be: of all that vLLM could sample."""
        request = {
            "model": name,
            "prompt": prompt,
            "max_tokens": 1,
            "logprobs": MOST_LOGPROBS,
            "temperature": 1.0,
            "return_tokens_as_token_ids": True,
        }
        response = await self._post("/v1/completions", request, self._timeouts.score_s, f"score under {name!r}")
        return float(response.json()["choices"][0]["logprobs"]["top_logprobs"][0][f"token_id:{token}"])

    async def _stock_state(self) -> State:
        await self._get("/health")
        listed = (await self._get("/v1/models")).json()["data"]
        load = (await self._get("/load")).json()["server_load"]
        return State({each["id"]: Held(Path(each["root"]), None) for each in listed if each["parent"]}, {0: load})

    async def _get(self, path: str) -> httpx.Response:
        response = await self.server.ask("GET", path, None, self._timeouts.engine_silence_s)
        if response.is_error:
            raise refusal(response, f"answer {path}")
        return response

    async def _post(self, path: str, request: object, timeout_s: float, what: str) -> httpx.Response:
        response = await self.server.ask("POST", path, request, timeout_s)
        if response.is_error:
            raise refusal(response, what)
        return response


def _together(digests: list[str]) -> str:
    """One digest of those of several workers; that of a single one as it is."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _prompt_logprobs(choice: Mapping[str, Any], prompt: list[int]) -> list[float]:
    rows = zip(choice["prompt_logprobs"][1:], prompt[1:], strict=True)
    return [0.0, *(float(row[str(token)]["logprob"]) for row, token in rows)]
