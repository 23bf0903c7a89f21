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
from art_core.checkpoint import Manifest, StoredCheckpoint
from art_core.config import PartOptions
from art_core.errors import PluginContractError, PluginNotFoundError
from art_core.events import Observers, observe
from art_core.hookspecs import hookimpl
from art_core.part import EnginePart, Part, PublisherPart, StorePart, TrainerPart
from art_core.plugins import Kind, Plugins
from art_core.policy import Proof, ProofKind, PublishedPolicy
from art_core.run import LogRecord
from tests import installed
from tests.staged import FILES

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
        files=FILES,
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
    def art_on_log(self, run: str, record: LogRecord) -> None:
        self.told.append(("log", run, record))

    @hookimpl
    def art_on_close(self, run: str) -> None:
        self.told.append(("close", run))


class Broken:
    """An observer that raises."""

    @hookimpl
    def art_on_step(self, run: str) -> None:
        raise RuntimeError(f"no room for {run}")


def observed(*plugins: object) -> Observers:
    loaded = Plugins()
    observe(loaded, plugins)
    return Observers(loaded.manager)


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


def test_hook_art_on_log() -> None:
    watcher = Watcher()
    record = LogRecord(Path("root") / "p" / "models" / "facts", "val", 7, {"val/reward": 0.5}, None)
    observed(watcher).log(record)
    assert watcher.told == [("log", "facts", record)]


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


OBSERVER = """
from art_core.hookspecs import hookimpl

told = []

@hookimpl
def art_on_step(run, step):
    told.append((run, step))
"""


def test_observers_are_given_as_objects_or_by_the_name_of_their_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.install(tmp_path, "board", OBSERVER)
    installed.install(tmp_path, "shelf", installed.store("shelf"))
    loaded, watcher = Plugins(), Watcher()
    observe(loaded, ["board", watcher, "board", watcher])
    Observers(loaded.manager).step("facts", 7, {})
    assert loaded.manager.get_plugin("board").told == [("facts", 7)], "told once, however often it is named"
    assert len(watcher.told) == 1
    with pytest.raises(PluginNotFoundError, match="observer 'bord' is not installed; did you mean 'board'"):
        observe(loaded, ["bord"])
    with pytest.raises(PluginNotFoundError, match=r"'shelf' is installed but observes nothing; it has no art_on_"):
        observe(loaded, ["shelf"])


def test_an_observer_that_asks_for_what_its_hook_does_not_offer_is_refused() -> None:
    class Curious:
        @hookimpl
        def art_on_step(self, weights: object) -> None:
            """Never called."""

    with pytest.raises(PluginContractError, match=r"(?s)Curious.*weights"):
        observed(Curious())
