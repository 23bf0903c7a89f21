"""The kit itself: its messages, its reach, and that nothing else of art_core needs pytest."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from subprocess import Popen

import pytest
from psutil import Process

import art_core.testing
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import StoredCheckpoint
from art_core.errors import EngineError, EngineUnavailableError, PublishError
from art_core.part import PublisherPart
from art_core.policy import PublishedPolicy
from art_core.testing import PublisherFailures
from art_core.testing.condition import LONGEST_S
from art_core.testing.family import kill
from art_core.testing.promise import need, promised, refused
from art_core.testing.publisher import PublisherBench, steps
from art_core.testing.store.bench import counterparts
from tests.architecture.source import CORE, python_files, tree

CLASSES = [each for name, each in vars(art_core.testing).items() if name.endswith("Conformance")]


def promises_of(conformance: type) -> dict[str, str | None]:
    """Test to docstring."""
    return {name: method.__doc__ for name, method in inspect.getmembers(conformance) if name.startswith("test_")}


def imported(module: ast.Module) -> Iterator[str]:
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_only_the_kit_imports_pytest() -> None:
    testing = {"pytest", "pytest_asyncio", "psutil"}
    users = {path.relative_to(CORE).parts[0] for path in python_files(CORE) if testing & {*imported(tree(path))}}
    assert users == {"testing"}


@pytest.mark.parametrize("conformance", CLASSES)
def test_every_test_is_async_and_says_its_promise(conformance: type) -> None:
    """A test that is not async would be marked in vain; a docstring is the promise in words."""
    found = promises_of(conformance)
    assert len(found) >= 10
    for name, promise in found.items():
        assert inspect.iscoroutinefunction(getattr(conformance, name)), name
        assert promise and promise.endswith("."), name


def test_every_capability_is_asked_for() -> None:
    source = "".join(path.read_text() for path in (CORE / "testing").rglob("*.py"))
    assert [each.name for each in Capability if f"Capability.{each.name}" not in source] == []


def test_a_kept_promise_passes() -> None:
    promised(True, "it holds")
    with refused(EngineError, "an error below the one that is promised will do"):
        raise EngineUnavailableError("gone")
    need(Capabilities({Capability.SCORE: FULL}), Capability.SCORE)


def test_a_broken_promise_is_named_with_what_was_seen() -> None:
    with pytest.raises(pytest.fail.Exception, match="broken promise: it holds; seen: 3"):
        promised(False, "it holds", 3)
    with (
        pytest.raises(pytest.fail.Exception, match="EngineError; seen: no error"),
        refused(EngineError, "no"),
    ):
        pass
    with pytest.raises(pytest.fail.Exception, match="EngineError; seen: KeyError: 'x'"), refused(EngineError, "no"):
        raise KeyError("x")
    with pytest.raises(pytest.skip.Exception, match="'score' is not declared"):
        need(Capabilities(), Capability.SCORE)


def test_killing_goes_on_where_one_has_ended_already() -> None:
    """As where processes hang on each other: killing the first ends the second before its turn."""
    first, second = (Popen(["sleep", "600"]) for _ in range(2))
    processes = [Process(each.pid) for each in (first, second)]
    first.kill()
    first.wait()
    kill(processes)
    assert second.wait(LONGEST_S) == -SIGKILL


class Forgetful(ReloadPublisher):
    """Fails before it has the engine load anything."""

    async def publish(self, name: str, stored: StoredCheckpoint) -> PublishedPolicy:
        if name == "kit@1":
            raise PublishError("no")
        return await super().publish(name, stored)


async def test_a_publish_that_never_comes_to_the_engine_is_not_waited_for(tmp_path: Path) -> None:
    part = PublisherPart(name="reload", options=ReloadOptions, create=Forgetful)
    bench = PublisherBench(part, ReloadOptions(), await steps(tmp_path))
    with pytest.raises(pytest.fail.Exception, match="a cancelled publish raises CancelledError; seen: no"):
        await PublisherFailures().test_a_cancelled_publish_leaves_nothing_loaded(bench)


def test_objects_are_swapped_by_name_where_names_tell_and_one_by_one_elsewhere() -> None:
    """A store that names objects by their content may keep fewer of a second step: what both share is there once."""
    assert counterparts(["r/1/a", "r/1/b"], ["r/2/b", "r/2/c"]) == [("r/1/b", "r/2/b")]
    assert counterparts(["r/3f", "r/5a", "r/91"], ["r/07", "r/e2"]) == [("r/3f", "r/07"), ("r/5a", "r/e2")]
    assert counterparts(["r/1"], []) == []
