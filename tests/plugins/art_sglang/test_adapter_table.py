"""Names, slots and requests, against an SGLang that takes as long to unload as the test says."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from art_sglang.serve.adapter_table import AdapterTable

from art_core.errors import EngineError, NoRouteError


class Pool:
    """Records what is unloaded, once `go` is set. It knows nothing of SGLang's locks."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.unloaded: list[str] = []
        self.error: EngineError | None = None

    async def unload(self, key: str) -> None:
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.unloaded.append(key)


def load(table: AdapterTable, name: str) -> str:
    adapter = table.reserve(name, Path("/checkpoints") / name)
    table.add(adapter)
    return adapter.key


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_names_are_taken_and_slots_are_counted() -> None:
    table = AdapterTable(Pool(), "base", slots=2)
    load(table, "m@1")
    for name, holder in (("m@1", "/checkpoints/m@1"), ("base", "the base model")):
        with pytest.raises(EngineError, match=f"'{name}' is taken, by {holder}"):
            table.reserve(name, Path("x"))
    table.reserve("never@1", Path("x"))  # a load that failed holds nothing
    load(table, "m@2")
    with pytest.raises(EngineError, match="no slot is free for 'm@3': 2 fit"):
        table.reserve("m@3", Path("x"))
    await table.unload("m@1")
    load(table, "m@3")
    assert sorted(table.adapters()) == ["m@2", "m@3"]


async def test_a_name_loaded_anew_is_another_adapter_to_sglang() -> None:
    table = AdapterTable(Pool(), "base", slots=2)
    first = load(table, "m@1")
    await table.unload("m@1")
    assert load(table, "m@1") != first


async def test_only_what_is_loaded_is_used() -> None:
    table = AdapterTable(Pool(), "base", slots=2)
    key = load(table, "a:b@1")
    with table.using("a:b@1") as seen, table.using("base") as base:
        assert (seen, base) == (key, None) and table.running == 2
    assert table.running == 0
    for name in ("a", "b@1", "a:b", "base:a:b@1", key, "", "BASE"):
        with pytest.raises(NoRouteError, match=r"is not served; served: base, a:b@1"), table.using(name):
            pass


async def test_an_adapter_in_use_is_unloaded_by_its_last_request() -> None:
    """SGLang's own unload would wait for the requests, and every load would wait for it."""
    pool = Pool()
    table = AdapterTable(pool, "base", slots=2)
    key = load(table, "m@1")
    with table.using("m@1"):
        with table.using("m@1"):
            await table.unload("m@1")
            assert pool.unloaded == [] and not table.adapters() and table.running == 2
            with pytest.raises(NoRouteError), table.using("m@1"):
                pass
            again = load(table, "m@1")
            with pytest.raises(EngineError, match="1 unloaded ones still answer requests"):
                table.reserve("m@3", Path("x"))
        await settle()
        assert pool.unloaded == []
    await settle()
    assert pool.unloaded == [key]
    with table.using("m@1") as seen:
        assert seen == again
    load(table, "m@3")


async def test_unloading_what_is_idle_frees_its_slot_before_it_returns() -> None:
    pool = Pool()
    pool.go.clear()
    table = AdapterTable(pool, "base", slots=1)
    load(table, "m@1")
    unload = asyncio.create_task(table.unload("m@1"))
    await settle()
    assert not unload.done() and not table.adapters()
    with pytest.raises(EngineError, match="no slot is free"):
        table.reserve("m@2", Path("x"))
    pool.go.set()
    await unload
    await table.unload("m@1")
    await table.unload("never")
    table.reserve("m@2", Path("x"))


async def test_an_unload_that_fails_keeps_its_slot_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool()
    table = AdapterTable(pool, "base", slots=1)
    load(table, "m@1")
    pool.error = EngineError("SGLang does not unload")
    with caplog.at_level(logging.ERROR, "art.engine"):
        with table.using("m@1"):
            await table.unload("m@1")
        await settle()
    assert "an unloaded adapter keeps its slot: SGLang does not unload" in caplog.text
    with pytest.raises(EngineError, match="no slot is free"):
        table.reserve("m@2", Path("x"))
