"""What starting and stopping promise. These tests come last: they end the class's engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from art_core.base_model import base_digest
from art_core.errors import ConfigError, EngineUnavailableError
from art_core.testing.adapter import AdapterShape
from art_core.testing.engine.bench import BASE, EngineBench, EngineCase
from art_core.testing.family import descendants, kill, outlived, survivors
from art_core.testing.promise import promised, refused


class EngineLife(EngineCase):
    """Tests of start and stop."""

    async def test_start_says_where_it_answers_and_what_it_holds(self, bench: EngineBench) -> None:
        """`start` returns a loopback endpoint, the base model's identity and the number of adapters."""
        endpoint, model = bench.endpoint, bench.endpoint.model
        host = urlsplit(endpoint.base_url).hostname
        promised(host in {"127.0.0.1", "::1", "localhost"}, "the endpoint is a loopback one", endpoint.base_url)
        promised(not endpoint.base_url.rstrip("/").endswith("/v1"), "base_url is without /v1", endpoint.base_url)
        digest = base_digest(bench.base_model)
        promised(model.identity.digest == digest, "identity.digest is base_digest of the files", model.identity)
        promised(model.identity.name == str(bench.base_model), "identity.name is as given", model.identity)
        promised(model.vocab_size > 0 and model.context_tokens > 0, "vocabulary and context are known", model)
        promised(endpoint.max_adapters >= 2, "two adapters fit: the next step beside the served", endpoint.max_adapters)
        promised(bench.spec.log_path.is_file(), "the engine's process writes its log to spec.log_path")

    async def test_a_base_model_that_is_not_there_is_refused(self, bench: EngineBench, tmp_path: Path) -> None:
        """`start` with a spec that can't work is a ConfigError, and nothing was launched."""
        engine, before = bench.part.create(bench.options), descendants().keys()
        missing = replace(bench.spec, base_model=str(tmp_path / "no-such-model"), log_path=tmp_path / "engine.log")
        with refused(ConfigError, "start refuses a base model that is missing"):
            await engine.start(missing)
        promised(not missing.log_path.exists(), "a start that is refused as a ConfigError launches nothing", "its log")
        left = [process for pid, process in descendants().items() if pid not in before]
        promised(not await survivors(left), "a refused start leaves no process", left)
        with refused(EngineUnavailableError, "health of an engine that is not started"):
            await engine.health()
        await engine.stop()
        await engine.stop()

    async def test_a_dead_engine_is_unavailable_and_can_be_stopped(self, bench: EngineBench) -> None:
        """Calls to an engine that has died are EngineUnavailableError; `stop` never raises, however often."""
        stored = await bench.shelf.store(AdapterShape(1))
        promised(bench.processes, "the engine runs in a process of its own")
        kill(bench.processes)
        with refused(EngineUnavailableError, "health of a dead engine"):
            await bench.engine.health()
        with refused(EngineUnavailableError, "load_adapter on a dead engine"):
            await bench.engine.load_adapter("late@1", stored)
        with refused(EngineUnavailableError, "unload_adapter on a dead engine"):
            await bench.engine.unload_adapter("late@1")
        await bench.stop()
        await bench.stop()

    async def test_it_starts_again_empty_and_stop_leaves_no_process(self, class_bench: EngineBench) -> None:
        """After `stop`, `start` gives an engine without adapters; `stop` ends every process and the endpoint."""
        bench = class_bench
        await bench.stop()
        template = "{{ greeting }}{% for message in messages %}{{ message['content'] }}{% endfor %}"
        variables: dict[str, object] = {"greeting": "Good morning! "}
        await bench.start(replace(bench.spec, chat_template=template, chat_template_kwargs=variables))
        adapters = (await bench.engine.health()).adapters
        promised(not adapters, "a started engine has no adapter", dict(adapters))
        seen = bench.endpoint.model.chat_template
        promised(seen == template, "spec.chat_template overrides the model's own", seen)
        await self._check_template_variables(bench, variables)
        base_url, processes = bench.endpoint.base_url, bench.processes
        await bench.stop()
        promised(not await survivors(processes), "stop ends every process that start started", processes)
        async with httpx.AsyncClient(trust_env=False) as client:
            with refused(httpx.ConnectError, "a stopped engine's endpoint is closed"):
                await client.get(f"{base_url}/health")
        with refused(EngineUnavailableError, "health of a stopped engine"):
            await bench.engine.health()
        await bench.engine.stop()

    async def _check_template_variables(self, bench: EngineBench, variables: dict[str, object]) -> None:
        spec = (await bench.client.chat(BASE, "Hello", max_tokens=1)).prompt
        same, other = [
            (await bench.client.chat(BASE, "Hello", max_tokens=1, chat_template_kwargs=own)).prompt
            for own in (variables, {"greeting": "Quite another one. "})
        ]
        promised(spec == same, "spec.chat_template_kwargs are variables of the template", (spec, same))
        promised(other != spec, "a request's own chat_template_kwargs win over the spec's", other)

    async def test_it_dies_with_the_process_that_started_it(self, class_bench: EngineBench, tmp_path: Path) -> None:
        """The engine's process and its children die with the process that called `start`, also on kill -9."""
        bench, spec = class_bench, replace(class_bench.spec, log_path=tmp_path / "engine.log")
        started, left = await outlived(lambda: bench.part.create(bench.options).start(spec))
        promised(started, "start launches a process")
        promised(not left, "the engine dies with a killed owner", f"{len(left)} of {started} processes live on")
