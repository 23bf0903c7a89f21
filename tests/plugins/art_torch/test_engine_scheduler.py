"""Batching: shared prefixes, reloads, preemption, unloads and cancellations, on the real model thread."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art_torch.serve.model_runner import ModelRunner, Span
from art_torch.serve.reply import Choice
from art_torch.serve.serving import Serving

from art_core.errors import EngineError, NoRouteError
from art_core.testing.condition import LONGEST_S
from tests.plugins.art_torch.engine_sample import Reference, answer, ids, job, prompt, write_adapter


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[list[Span]]:
    """The spans of every forward pass made in the test."""
    made: list[list[Span]] = []
    forward = ModelRunner.forward

    def noted(self: ModelRunner, spans: list[Span]) -> Any:
        made.append(list(spans))
        return forward(self, spans)

    monkeypatch.setattr(ModelRunner, "forward", noted)
    return made


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], threading.Event]]:
    """Call it to let so many forward passes be made, and further ones only once the event is set that it gives."""
    events = []

    def held_after(count: int) -> threading.Event:
        go, forward, numbers = threading.Event(), ModelRunner.forward, itertools.count()
        events.append(go)

        def held(self: ModelRunner, spans: list[Span]) -> Any:
            assert next(numbers) < count or go.wait(LONGEST_S)
            return forward(self, spans)

        monkeypatch.setattr(ModelRunner, "forward", held)
        return go

    yield held_after
    for each in events:
        each.set()


def computed(passes: list[list[Span]]) -> int:
    return sum(len(span.tokens) for spans in passes for span in spans)


def logprobs(choice: Choice) -> list[float]:
    return [token.logprob for token in choice.tokens]


async def test_choices_of_one_request_share_the_prefill(serving: Serving, passes: list[list[Span]]) -> None:
    choices = await answer(serving, job("a", prompt(60), n=6, seed=3, max_tokens=5))
    # The prompt once, its last token again for each other choice, then 4 tokens each (the fifth is never fed).
    assert computed(passes) == 60 + 5 + 6 * 4
    assert len({tuple(ids(choice)) for choice in choices}) == 6


async def test_concurrent_requests_share_the_prefill(serving: Serving, passes: list[list[Span]]) -> None:
    wanted = [job("a", [*prompt(50), tail, tail], max_tokens=1) for tail in range(4)]
    await asyncio.gather(*(answer(serving, one) for one in wanted))
    assert computed(passes) == 52 + 3 * 2


async def test_shared_prefill_gives_what_separate_prefill_gives(
    serving: Serving, tiny_model: Path, engine_adapters: dict[str, Path]
) -> None:
    p = prompt(40, 4)
    together = await answer(serving, job("a", p, n=4, seed=9))
    reference = Reference(tiny_model, engine_adapters)
    for choice in together:
        np.testing.assert_allclose(logprobs(choice), reference.sampled("a", p, choice), atol=1e-4)


async def test_a_later_turn_takes_up_what_was_computed(serving: Serving, passes: list[list[Span]]) -> None:
    p = prompt(30, 5)
    (first,) = await answer(serving, job("a", p, max_tokens=6))
    passes.clear()
    await answer(serving, job("a", p + ids(first) + [1, 2, 3], max_tokens=1))
    assert computed(passes) == 4  # The sixth sampled token was never fed; then three new ones.


async def test_prefixes_are_not_shared_between_adapters(
    serving: Serving, tiny_model: Path, engine_adapters: dict[str, Path]
) -> None:
    reference, p = Reference(tiny_model, engine_adapters), prompt(40, 6)
    for name in ("base", "a", "b", "a", "base"):
        (choice,) = await answer(serving, job(name, p))
        np.testing.assert_allclose(logprobs(choice), reference.sampled(name, p, choice), atol=1e-4)


async def test_a_reloaded_name_starts_from_nothing(
    serving: Serving, tiny_model: Path, engine_adapters: dict[str, Path], passes: list[list[Span]], tmp_path: Path
) -> None:
    other = write_adapter(tiny_model, tmp_path / "c", seed=3, r=8, lora_alpha=16, target_modules="all-linear")
    p = prompt(40, 7)
    await answer(serving, job("a", p))
    serving.adapters.unload("a")
    serving.adapters.load("a", other)
    passes.clear()
    (choice,) = await answer(serving, job("a", p, max_tokens=4))
    assert computed(passes) == 40 + 3
    reference = Reference(tiny_model, {"a": other})
    np.testing.assert_allclose(logprobs(choice), reference.sampled("a", p, choice), atol=1e-4)


async def test_seeds_do_not_depend_on_the_batch(serving: Serving) -> None:
    wanted = job("a", prompt(20, 8), seed=11, n=2)
    alone = await answer(serving, wanted)
    crowd = await asyncio.gather(answer(serving, wanted), *(answer(serving, job("b", prompt(9, i))) for i in range(6)))
    assert [ids(c) for c in crowd[0]] == [ids(c) for c in alone]
    assert ids(alone[0]) != ids(alone[1])
    assert [ids(c) for c in await answer(serving, job("a", prompt(20, 8), seed=12, n=2))] != [ids(c) for c in alone]


async def test_more_sequences_than_rows_wait(serving: Serving, passes: list[list[Span]]) -> None:
    choices = await answer(serving, job("base", prompt(8), n=40, max_tokens=3))
    assert all(len(choice.tokens) == 3 for choice in choices)
    assert max(len(spans) for spans in passes) == 16


async def test_a_full_cache_preempts_and_loses_nothing(
    serving: Serving, passes: list[list[Span]], hold: Callable[[int], threading.Event]
) -> None:
    wanted = [job("a", prompt(100, i), seed=i, max_tokens=60) for i in range(4)]
    plenty = [await answer(serving, one) for one in wanted]
    cache = serving.thread._scheduler._cache
    # Four rows of 128 tokens fit, but only two of 256.
    cache._budget_bytes = 2 * 256 * cache._token_bytes
    serving.thread._scheduler._prefixes._entries.clear()
    cache.rows = cache.capacity = 0
    cache._layers = [cache._empty(shape, 0, 0) for shape in cache._shapes]
    passes.clear()
    go, calls = hold(0), [asyncio.ensure_future(answer(serving, one)) for one in wanted]
    await asyncio.sleep(0)  # each has asked by now, so none can be through before the last has
    go.set()
    scarce = await asyncio.gather(*calls)
    assert [ids(c[0]) for c in scarce] == [ids(c[0]) for c in plenty]
    assert max(len(spans) for spans in passes) == 4 and cache.rows * cache.capacity <= 2 * 256


async def test_unload_lets_running_requests_finish_and_keeps_their_slot(
    serving: Serving, tiny_model: Path, engine_adapters: dict[str, Path], hold: Callable[[int], threading.Event]
) -> None:
    p, go = prompt(30, 12), hold(1)
    with serving.run(job("a", p, max_tokens=150, stream=True)) as run:
        updates = run.updates()
        choice = Choice()
        choice.add(await anext(updates))
        serving.adapters.unload("a")
        serving.adapters.unload("a")  # idempotent
        with pytest.raises(NoRouteError, match="'a' is not served"):
            serving.run(job("a", p))
        serving.adapters.load("c", engine_adapters["b"])  # the third and last slot
        with pytest.raises(EngineError, match=r"no free slot.*\(1 of them"):
            serving.adapters.load("d", engine_adapters["b"])
        go.set()
        async for update in updates:
            choice.add(update)
    assert len(choice.tokens) == 150
    reference = Reference(tiny_model, engine_adapters)
    np.testing.assert_allclose(logprobs(choice), reference.sampled("a", p, choice), atol=1e-4)
    serving.adapters.load("d", engine_adapters["b"])


async def test_leaving_early_frees_row_and_slot(serving: Serving, engine_adapters: dict[str, Path]) -> None:
    with serving.run(job("a", prompt(10), n=3, max_tokens=400, stream=True)) as run:
        await anext(run.updates())
        serving.adapters.unload("a")
    # The thread takes actions in order, so this runs after the cancellation was noticed.
    await answer(serving, job("base", prompt(5), max_tokens=2))
    assert serving.thread.running == 0
    serving.adapters.load("c", engine_adapters["b"])
    serving.adapters.load("d", engine_adapters["b"])


async def test_a_failed_pass_fails_its_requests_and_nothing_else(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ModelRunner, spans: list[Span]) -> Any:
        raise RuntimeError("out of memory, say")

    before = await answer(serving, job("a", prompt(20), seed=1))
    with monkeypatch.context() as patched:
        patched.setattr(ModelRunner, "forward", broken)
        with pytest.raises(EngineError, match="out of memory, say"):
            await answer(serving, job("a", prompt(20), n=3))
    assert serving.thread.running == 0
    assert ids((await answer(serving, job("a", prompt(20), seed=1)))[0]) == ids(before[0])
