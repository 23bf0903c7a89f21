"""Every hook, called the way core calls it: registering through a plugin, observing through `Observers`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from art_core.base_model import BaseIdentity
from art_core.checkpoint import ADAPTER, FileRecord, Manifest, StoredCheckpoint
from art_core.config import PartOptions
from art_core.events import Observers
from art_core.hookspecs import hookimpl
from art_core.part import EnginePart, Part, PublisherPart, StorePart, TrainerPart
from art_core.plugins import Kind, Plugins
from art_core.policy import Proof, ProofKind, PublishedPolicy

NAME = "example"


class Options(PartOptions):
    part: ClassVar[str] = NAME


def never(*_: object) -> Any:
    raise AssertionError("registering a part must not create it")


PARTS: dict[Kind, Part] = {
    "engine": EnginePart(name=NAME, options=Options, create=never),
    "trainer": TrainerPart(name=NAME, options=Options, create=never),
    "store": StorePart(name=NAME, options=Options, create=never),
    "publisher": PublisherPart(name=NAME, options=Options, create=never),
}


def policy() -> PublishedPolicy:
    manifest = Manifest(
        run="facts",
        step=7,
        base_model=BaseIdentity(name="tiny", digest="0" * 64),
        files={ADAPTER: FileRecord(size_bytes=1, sha256="0" * 64)},
    )
    stored = StoredCheckpoint(Path("checkpoints") / "0007", manifest)
    return PublishedPolicy("facts@7", stored, Proof(ProofKind.WEIGHTS))


@dataclass(eq=False)
class Watcher:
    """An observer that writes down what it is told."""

    told: list[tuple[Any, ...]] = field(default_factory=list)

    @hookimpl
    def art_on_step(self, run: str, step: int, metrics: Mapping[str, float]) -> None:
        self.told.append(("step", run, step, metrics))

    @hookimpl
    def art_on_publish(self, run: str, policy: PublishedPolicy, metrics: Mapping[str, float]) -> None:
        self.told.append(("publish", run, policy, metrics))

    @hookimpl
    def art_on_swap(self, run: str, edge: str, seconds: float) -> None:
        self.told.append(("swap", run, edge, seconds))

    @hookimpl
    def art_on_close(self, run: str) -> None:
        self.told.append(("close", run))


class Broken:
    """An observer that raises."""

    @hookimpl
    def art_on_step(self, run: str) -> None:
        raise RuntimeError(f"no room for {run}")


def observed(*plugins: object) -> Observers:
    manager = Plugins().manager
    for plugin in plugins:
        manager.register(plugin)
    manager.check_pending()
    return Observers(manager)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Kind], None]:
    """Put a distribution on the path that offers the example part of one kind, found as any plugin is found."""

    def install(kind: Kind) -> None:
        module = ModuleType("art_example_plugin")

        def register_part(register: Callable[[Part], None]) -> None:
            register(PARTS[kind])

        setattr(module, f"art_register_{kind}s", hookimpl(register_part))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        metadata = tmp_path / "art_example-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: art-example\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(f"[art_core]\n{NAME} = {module.__name__}\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_hook_art_register_engines(install: Callable[[Kind], None]) -> None:
    install("engine")
    assert Plugins().part("engine", NAME) is PARTS["engine"]


def test_hook_art_register_trainers(install: Callable[[Kind], None]) -> None:
    install("trainer")
    assert Plugins().part("trainer", NAME) is PARTS["trainer"]


def test_hook_art_register_stores(install: Callable[[Kind], None]) -> None:
    install("store")
    assert Plugins().part("store", NAME) is PARTS["store"]


def test_hook_art_register_publishers(install: Callable[[Kind], None]) -> None:
    install("publisher")
    assert Plugins().part("publisher", NAME) is PARTS["publisher"]


def test_hook_art_on_step() -> None:
    watcher = Watcher()
    observed(watcher).step("facts", 7, {"loss/train": 0.5})
    assert watcher.told == [("step", "facts", 7, {"loss/train": 0.5})]


def test_hook_art_on_publish() -> None:
    watcher, served = Watcher(), policy()
    observed(watcher).publish("facts", served, {"time/step_publish_s": 0.1})
    assert watcher.told == [("publish", "facts", served, {"time/step_publish_s": 0.1})]


def test_hook_art_on_swap() -> None:
    watcher = Watcher()
    observed(watcher).swap("facts", "engine asleep", 1.5)
    assert watcher.told == [("swap", "facts", "engine asleep", 1.5)]


def test_hook_art_on_close() -> None:
    watcher = Watcher()
    observed(watcher).close("facts")
    assert watcher.told == [("close", "facts")]


def test_an_observer_that_raises_is_logged_and_counted_and_the_others_are_still_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    early, late = Watcher(), Watcher()
    observers = observed(early, Broken(), late)
    with caplog.at_level(logging.ERROR, logger="art.events"):
        observers.step("facts", 7, {})
        observers.step("facts", 8, {})
    assert [told[2] for told in early.told] == [told[2] for told in late.told] == [7, 8]
    assert observers.errors == 2
    assert "no room for facts" in caplog.text
    assert "art_on_step" in caplog.text


def test_an_observer_may_take_fewer_arguments_than_the_hook_offers() -> None:
    class Counter:
        steps = 0

        @hookimpl
        def art_on_step(self, step: int) -> None:
            self.steps += step

    counter = Counter()
    observed(counter).step("facts", 7, {})
    assert counter.steps == 7
