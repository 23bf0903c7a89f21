"""The kit itself: its messages, its reach, and that nothing else of art_core needs pytest."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import pytest

import art_core.testing
from art_core.capability import FULL, Capabilities, Capability
from art_core.errors import EngineError, EngineUnavailableError
from art_core.testing.promise import need, promised, refused
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
