"""The vLLM engine as ART sees it: a stock server in a process of its own, or one that somebody else runs."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from art_core.adapter_file import Site, adaptable_modules, read_adapter
from art_core.base_model import BaseIdentity, ModelInfo, base_digest
from art_core.capability import Capabilities, Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.config import Timeouts
from art_core.errors import EngineDiedError, EngineError, EngineUnavailableError, StaleWeightsError
from art_core.protocols.engine import Endpoint, EngineHealth, EngineSpec, LoadedAdapter
from art_vllm.api import Api, State
from art_vllm.attach import Paths, attach
from art_vllm.launch import launch
from art_vllm.options import VllmOptions

_log = logging.getLogger("art.engine")


@dataclass(frozen=True)
class _Running:
    """A server that answers."""

    api: Api
    spec: EngineSpec
    endpoint: Endpoint
    sites: dict[str, Site]
    """What an adapter can change."""
    paths: Paths


class VllmEngine:
    """Inference engine; see `InferenceEngine`.

    Args:
        options: How it runs.
        capabilities: What it declares with them.
        timeouts: How long its calls may take.
    """

    def __init__(self, options: VllmOptions, capabilities: Capabilities, timeouts: Timeouts | None = None) -> None:
        self._options = options
        self._capabilities = capabilities
        self._timeouts = timeouts or Timeouts()
        self._running: _Running | None = None
        self._starting = False
        self._untidy = False
        """Whether the worker may hold adapters whose names are gone."""
        self._asleep: int | None = None
        """The level at which it sleeps; None: it is awake."""
        self._lent: set[str] = set()
        """Names that we have loaded into a server that somebody else runs, which outlives us."""

    async def start(self, spec: EngineSpec) -> Endpoint:
        """See `InferenceEngine.start`."""
        if self._running is not None or self._starting:
            raise EngineError("engine 'vllm' is started already; stop it first", stage="start")
        self._starting = True
        try:
            self._running = await self._start(spec)
        finally:
            self._starting = False
        self._untidy, self._asleep = False, None
        return self._running.endpoint

    async def health(self) -> EngineHealth:
        """See `InferenceEngine.health`."""
        running = self._started()
        state = await running.api.state()
        if lost := self._lent - state.adapters.keys():
            raise EngineDiedError(
                f"the vLLM server at {running.api.server.base_url} has lost {', '.join(sorted(lost))}: it was started "
                f"again, or somebody has unloaded that"
            )
        adapters = {name: running.paths.from_server(held.directory) for name, held in state.adapters.items()}
        return EngineHealth(adapters, sum(state.running.values()))

    async def load_adapter(self, name: str, checkpoint: StoredCheckpoint) -> LoadedAdapter:
        """See `InferenceEngine.load_adapter`."""
        running, directory = self._awake(), checkpoint.directory.absolute()
        await asyncio.to_thread(read_adapter, directory, running.sites, running.spec.lora_rank)
        async with self._connected(running.api) as api:
            if self._untidy:
                await self._tidy(api)
            self._require_free(name, running, await api.state())
            self._untidy = True
            try:
                loaded = await self._load(name, checkpoint, replace(running, api=api))
            except EngineError:
                await self.unload_adapter(name)
                raise
            self._untidy = False
            return loaded

    async def unload_adapter(self, name: str) -> None:
        """See `InferenceEngine.unload_adapter`."""
        self._untidy = True
        self._lent.discard(name)
        async with self._connected(self._started().api) as api:
            await api.unload(name)
            await self._tidy(api)

    async def score(self, name: str, sequences: Sequence[NDArray[np.int32]]) -> list[NDArray[np.float32]]:
        """See `InferenceEngine.score`."""
        self._capabilities.require(Capability.SCORE, "engine 'vllm'")
        running = self._awake()
        return await running.api.score(name, sequences, running.endpoint.model.context_tokens)

    async def sleep(self, level: int) -> None:
        """See `InferenceEngine.sleep`. Refused while requests run: vLLM would let new ones wait without end."""
        self._capabilities.require(Capability.SLEEP, "engine 'vllm'")
        api = self._awake().api
        if level not in (1, 2):
            raise EngineError(f"sleep level is {level}; allowed: 1 (weights to the host) and 2 (weights dropped)")
        if busy := sum((await api.state()).running.values()):
            raise EngineError(f"engine 'vllm' can't sleep: {busy} requests run; let them finish first")
        await api.sleep(level)
        self._asleep = level

    async def wake(self) -> None:
        """See `InferenceEngine.wake`. Ends with a proof of every adapter's slot, where slots can be proved."""
        self._capabilities.require(Capability.SLEEP, "engine 'vllm'")
        running, level = self._started(), self._asleep
        if level is None:
            return
        api = running.api
        await api.wake("weights")
        if level == 2:
            await api.call_workers("reload_weights")
        await api.wake("kv_cache")
        adapters = (await api.state()).adapters
        if level == 2:
            listed = [(name, held.number, str(held.directory)) for name, held in adapters.items()]
            await api.call_workers("art_reload", json.dumps(listed))
        self._asleep = None
        for name, held in adapters.items():
            proved = await self._prove(name, held.number, str(held.directory), api)
            if proved.slot_digest != proved.expected_digest:
                raise StaleWeightsError(f"engine 'vllm' woke with other weights under {name!r}; start it again")

    async def stop(self) -> None:
        """See `InferenceEngine.stop`."""
        running, self._running = self._running, None
        if running is None:
            return
        await running.api.server.stop()
        try:
            async with asyncio.timeout(self._timeouts.engine_stop_s):
                await self._take_back(running.api, self._lent.copy())
        except (EngineError, TimeoutError) as error:  # gone; should it come back, `start` takes them out
            _log.warning("the vLLM server at %s keeps %s: %s", running.api.server.base_url, self._lent, error)

    async def _take_back(self, api: Api, names: set[str]) -> None:
        """Take adapters of ours out of a server that somebody else runs."""
        for name in sorted(names):
            await api.unload(name)
            self._lent.discard(name)

    async def _start(self, spec: EngineSpec) -> _Running:
        if self._options.external:
            api, endpoint, directory = await attach(self._options, spec, self._timeouts)
            await self._take_back(api, self._lent & (await api.state()).adapters.keys())
            self._lent.clear()
            sites, paths = await asyncio.to_thread(adaptable_modules, directory), Paths.of(self._options.runtime)
            return _Running(api, spec, endpoint, sites, paths)
        launched = await launch(self._options, spec, self._timeouts)
        hello, directory = launched.hello, Path(launched.hello["directory"])
        model = ModelInfo(
            identity=BaseIdentity(name=spec.base_model, digest=await asyncio.to_thread(base_digest, directory)),
            vocab_size=hello["vocab_size"],
            context_tokens=hello["context_tokens"],
            chat_template=hello["chat_template"],
            dtype=hello["dtype"],
        )
        endpoint = Endpoint(launched.server.base_url, launched.api_key, model, self._options.max_loras)
        sites = await asyncio.to_thread(adaptable_modules, directory)
        return _Running(Api(launched.server, self._timeouts, own=True), spec, endpoint, sites, Paths())

    def _started(self) -> _Running:
        if self._running is None:
            raise EngineUnavailableError("engine 'vllm' is not started; call start first")
        return self._running

    def _awake(self) -> _Running:
        if self._asleep is not None:
            raise EngineError("engine 'vllm' sleeps; wake it first")
        return self._started()

    @asynccontextmanager
    async def _connected(self, api: Api) -> AsyncIterator[Api]:
        """The same over one connection for all calls of a block."""
        async with api.server.connected() as server:
            yield Api(server, self._timeouts, own=api.own)

    def _require_free(self, name: str, running: _Running, state: State) -> None:
        if name in state.adapters or name == running.spec.base_name:
            raise EngineError(f"adapter name {name!r} is taken; unload it first, or choose another name")
        used, leaving = len(state.adapters) + len(state.leaving), len(state.leaving)
        if used >= self._options.max_loras:
            raise EngineError(
                f"no free slot for adapter {name!r}: {used} of {self._options.max_loras} in use ({leaving} of them by "
                f"unloaded adapters whose requests still run); unload one, or raise max_loras"
            )

    async def _load(self, name: str, checkpoint: StoredCheckpoint, running: _Running) -> LoadedAdapter:
        api, directory = running.api, running.paths.to_server(checkpoint.directory.absolute())
        if api.own:
            return await self._prove(name, await api.load(name, directory), directory, api)
        proves = Capability.WEIGHT_PROOF in self._capabilities
        before = await api.numbers() if proves else set[int]()
        await api.load(name, directory)
        self._lent.add(name)
        if not proves:
            return LoadedAdapter(name)
        await api.require_files(checkpoint, directory)
        # a stock server does not say which number a name has: it must be the one that is new
        new = await api.numbers() - before
        return await self._prove(name, new.pop() if len(new) == 1 else None, directory, api)

    async def _prove(self, name: str, number: int | None, directory: str, api: Api) -> LoadedAdapter:
        if Capability.WEIGHT_PROOF not in self._capabilities:
            return LoadedAdapter(name)
        if number is None:
            raise EngineError(f"vLLM said that it had loaded {name!r}, and does not show it; load it again")
        return await api.prove(name, number, directory)

    async def _tidy(self, api: Api) -> None:
        """Have the worker let go of adapters that no name stands for and no request uses.

        vLLM itself keeps them until their slots are wanted, and may then evict one that serves instead: that one it
        would read again, in the middle of a step, from files that must still be there.
        """
        if not api.own:
            return  # it may hold adapters of other people's
        state = await api.state()
        named = {held.number for held in state.adapters.values() if held.number is not None}
        await api.call_workers("art_keep", json.dumps(sorted(named | state.running.keys())))
        self._untidy = bool(state.leaving)
