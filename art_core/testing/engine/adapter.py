"""What loading and unloading promise."""

from __future__ import annotations

import asyncio

import numpy as np

from art_core.capability import Capability
from art_core.errors import EngineError
from art_core.testing.adapter import AdapterShape
from art_core.testing.engine.bench import BASE, EngineBench, EngineCase, alike, gather
from art_core.testing.promise import promised, refused

FLIGHTS = 10
"""How often requests may end before they were seen."""


class EngineAdapters(EngineCase):
    """Tests of adapters and their names."""

    async def test_a_loaded_name_answers_with_its_own_weights(self, bench: EngineBench) -> None:
        """When `load_adapter` returns, the name answers requests; the base and other adapters answer as before."""
        base = await bench.fingerprint(BASE)
        await bench.load("own@1", 1)
        first = await bench.fingerprint("own@1")
        await bench.client.complete("own@1", bench.tokens(4), max_tokens=1)
        await bench.load("own@2", 2)
        second = await bench.fingerprint("own@2")
        promised(not alike(bench, first, base), "an adapter does not answer as the base")
        promised(not alike(bench, second, base), "a second adapter does not answer as the base")
        promised(not alike(bench, first, second), "two adapters answer differently")
        promised(alike(bench, await bench.fingerprint("own@1"), first), "a loaded adapter is not changed by the next")
        promised(alike(bench, await bench.fingerprint(BASE), base), "the base is not changed by adapters")

    async def test_an_adapter_equal_to_the_base_answers_as_the_base(self, bench: EngineBench) -> None:
        """An adapter with B = 0, as step 0 is, changes nothing."""
        await bench.load("zero@0", 1, strength=0.0)
        same = alike(bench, await bench.fingerprint("zero@0"), await bench.fingerprint(BASE))
        promised(same, "an adapter with B = 0 answers as the base")

    async def test_names_asked_together_answer_each_with_its_own_weights(self, bench: EngineBench) -> None:
        """Requests for several names at once are answered by the weights of each."""
        await bench.load("mixed@1", 1)
        await bench.load("mixed@2", 2)
        names = [BASE, "mixed@1", "mixed@2"]
        alone = {name: await bench.fingerprint(name) for name in names}
        together = await gather(bench.fingerprint(name) for name in names * 3)
        for name, seen in zip(names * 3, together, strict=True):
            promised(alike(bench, seen, alone[name]), f"{name!r} asked beside others answers with its own weights")

    async def test_health_lists_every_name_with_its_directory(self, bench: EngineBench) -> None:
        """`health().adapters` maps each adapter's name to the directory it was loaded from; idle, nothing runs."""
        stored = {name: await bench.load(name, seed) for name, seed in (("listed@1", 1), ("other@1", 2))}
        health = await bench.engine.health()
        expected = {name: checkpoint.directory for name, checkpoint in stored.items()}
        promised(health.adapters == expected, "health lists name -> directory", dict(health.adapters))
        promised(health.running_requests == 0, "no request runs on an idle engine", health.running_requests)

    async def test_a_name_in_use_is_refused_and_nothing_changes(self, bench: EngineBench) -> None:
        """`load_adapter` under a taken name, the base's included, is an EngineError; what is served stays."""
        await bench.load("taken@1", 1)
        other = await bench.shelf.store(AdapterShape(2))
        for name in ("taken@1", BASE):
            before, listed = await bench.fingerprint(name), (await bench.engine.health()).adapters
            with refused(EngineError, f"load_adapter refuses {name!r}, a name in use"):
                await bench.engine.load_adapter(name, other)
            promised((await bench.engine.health()).adapters == listed, "a refused load leaves the list as it was")
            promised(alike(bench, await bench.fingerprint(name), before), f"a refused load leaves {name!r}'s weights")

    async def test_a_full_engine_refuses_and_goes_on_serving(self, bench: EngineBench) -> None:
        """`Endpoint.max_adapters` can be loaded at once; one more is an EngineError until one is unloaded."""
        count = bench.endpoint.max_adapters
        stored = await bench.shelf.store(AdapterShape(1))
        for number in range(count):
            await bench.engine.load_adapter(f"full@{number}", stored)
        more = await bench.shelf.store(AdapterShape(2))
        with refused(EngineError, "load_adapter refuses where no slot is free"):
            await bench.engine.load_adapter("more@1", more)
        listed = set((await bench.engine.health()).adapters)
        promised(listed == {f"full@{n}" for n in range(count)}, "a refused load leaves the list as it was", listed)
        first, last = await bench.fingerprint("full@0"), await bench.fingerprint(f"full@{count - 1}")
        promised(alike(bench, first, last), "every one of max_adapters answers with its weights")
        await bench.unload("full@0")
        await bench.engine.load_adapter("more@1", more)

    async def test_unload_forgets_the_name_and_is_idempotent(self, bench: EngineBench) -> None:
        """`unload_adapter` forgets a name, also one that it does not know; the name is 404 from then on."""
        await bench.load("gone@1", 1)
        await bench.unload("gone@1", "gone@1", "never-loaded@1")
        promised("gone@1" not in (await bench.engine.health()).adapters, "an unloaded name is not listed")
        body = {"model": "gone@1", "prompt": "x", "max_tokens": 1}
        response = await bench.client.request("POST", "/v1/completions", body)
        promised(response.status_code == 404, "an unloaded name is 404", response.status_code)

    async def test_a_name_loaded_anew_answers_with_the_new_weights(self, bench: EngineBench) -> None:
        """Nothing of an unloaded adapter, cached prompts included, answers for the next of its name."""
        await bench.load("again@1", 1)
        old = await bench.fingerprint("again@1")
        await bench.unload("again@1")
        await bench.load("fresh@1", 2)
        new = await bench.fingerprint("fresh@1")
        await bench.load("again@1", 2)
        seen = await bench.fingerprint("again@1")
        promised(alike(bench, seen, new) and not alike(bench, seen, old), "a name loaded anew has the new weights only")

    async def test_requests_in_flight_finish_with_the_unloaded_weights(self, bench: EngineBench) -> None:
        """`unload_adapter`: requests in flight on the name finish, with its weights."""
        stored = await bench.load("flight@1", 1)
        room = bench.endpoint.model.context_tokens - 16
        for _ in range(FLIGHTS):
            # a random model may say its last word at once: without `ignore_eos` all may have ended before anybody looks
            calls = [
                asyncio.ensure_future(bench.client.complete("flight@1", bench.tokens(8, n), room, ignore_eos=True))
                for n in range(4)
            ]
            seen = 0
            while seen < sum(not call.done() for call in calls):
                seen = (await bench.engine.health()).running_requests
            if seen:
                break
            await gather(calls)  # on a machine that does much else they may end unseen: once more
        promised(seen, "health counts the requests that run", f"0 all the time, {FLIGHTS} times")
        await bench.unload("flight@1")
        await bench.load("next@1", 2)
        answers = await gather(calls)
        if Capability.SCORE in bench.capabilities:
            await bench.engine.load_adapter("same@1", stored)
            sequences = [np.asarray(answer.prompt + answer.tokens, np.int32) for answer in answers]
            scored = await bench.engine.score("same@1", sequences)
            for answer, row in zip(answers, scored, strict=True):
                gap = float(np.abs(row[len(answer.prompt) :] - np.asarray(answer.logprobs)).max())
                promised(gap <= bench.tolerance_nats, "requests in flight finish with their weights", f"{gap} nats")

    async def test_a_cancelled_load_is_undone_by_an_unload(self, bench: EngineBench) -> None:
        """A cancelled `load_adapter` may or may not have taken effect; the caller unloads the name."""
        stored = await bench.shelf.store(AdapterShape(1))
        for turns in range(0, 60, 6):
            load = asyncio.ensure_future(bench.engine.load_adapter("cut@1", stored))
            for _ in range(turns):
                await asyncio.sleep(0)
            load.cancel()
            await asyncio.gather(load, return_exceptions=True)
            await bench.unload("cut@1")
            listed = (await bench.engine.health()).adapters
            promised("cut@1" not in listed, "after a cancelled load and an unload the name is gone", dict(listed))
        await bench.engine.load_adapter("cut@1", stored)
