"""Habits that hide faults: settings read in odd places, waits of a guessed length, errors that vanish."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.architecture.source import CORE, ROOT, name, python_files, tree

POLLS: dict[str, str] = {
    "art_core/client/retry.py attempt": "decorates functions of the program's own that block",
    "art_core/testing/condition.py until": "what a test looks at can't be awaited",
}
"""``file function``: why it can't wait for an event and polls instead."""


def reads_environment(module: ast.Module) -> Iterator[int]:
    """Lines that reach for environment variables, by whatever spelling."""
    reachable = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    for node in ast.walk(module):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=attribute) if attribute in reachable:
                yield node.lineno
            case ast.ImportFrom(module="os") if reachable & {alias.name for alias in node.names}:
                yield node.lineno


def fixed_sleeps(module: ast.Module) -> Iterator[int]:
    """Lines that sleep in a thread at all, or in a coroutine for a length known when the code was written."""
    for node in ast.walk(module):
        match node:
            case ast.ImportFrom(module="time" | "asyncio") if any(alias.name == "sleep" for alias in node.names):
                yield node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="time"), attr="sleep")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(value=ast.Name(id="asyncio"), attr="sleep"), args=[length, *_]):
                yields_only = isinstance(length, ast.Constant) and length.value == 0
                if is_fixed(length) and not yields_only:
                    yield node.lineno


def is_fixed(length: ast.expr) -> bool:
    """A number, or a name in capitals (with a sign or arithmetic around it)."""
    names = [node.id for node in ast.walk(length) if isinstance(node, ast.Name)]
    return all(each.isupper() for each in names) and not any(isinstance(n, ast.Call) for n in ast.walk(length))


def swallowed_errors(module: ast.Module) -> Iterator[int]:
    """Lines where every error is caught and nothing is done with it."""
    broad = {"Exception", "BaseException"}
    for node in ast.walk(module):
        match node:
            case ast.ExceptHandler(body=body) if all(isinstance(item, ast.Pass | ast.Continue) for item in body):
                if node.type is None or broad & names_in(node.type):
                    yield node.lineno
            case ast.Call(func=ast.Name(id="suppress") | ast.Attribute(attr="suppress")):
                if broad & {each for argument in node.args for each in names_in(argument)}:
                    yield node.lineno


def names_in(node: ast.expr) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def enclosing(module: ast.Module, line: int) -> str:
    """Name of the innermost function around a line."""
    around = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= line <= (node.end_lineno or 0)
    ]
    return max(around, key=lambda node: node.lineno).name if around else "<module>"


def found_in(rule: Callable[[ast.Module], Iterator[int]], *folders: Path) -> dict[str, int]:
    """``file function`` to line."""
    return {
        f"{name(path)} {enclosing(tree(path), line)}": line
        for path in python_files(*folders)
        for line in rule(tree(path))
    }


def test_only_config_reads_environment_variables() -> None:
    found = found_in(reads_environment, CORE)
    # the kit reads none either: it hands all of them on to a process that is older than the test
    allowed = {"art_core/config.py", "art_core/testing/store/race.py"}
    assert {where.split()[0] for where in found} == allowed, found


def test_nothing_waits_for_a_guessed_length_of_time() -> None:
    found = found_in(fixed_sleeps, CORE, ROOT / "plugins")
    assert found.keys() == POLLS.keys(), f"wait for the event itself: {found}; listed: {POLLS}"


def test_no_error_vanishes() -> None:
    assert found_in(swallowed_errors, CORE, ROOT / "art", ROOT / "plugins") == {}


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (reads_environment, "import os\nos.environ['A']"),
        (reads_environment, "import os\nos.getenv('A')"),
        (reads_environment, "from os import environ"),
        (fixed_sleeps, "import time\ntime.sleep(delay_s)"),
        (fixed_sleeps, "async def f():\n await asyncio.sleep(0.1)"),
        (fixed_sleeps, "async def f():\n await asyncio.sleep(2 * POLL_S)"),
        (fixed_sleeps, "from asyncio import sleep"),
        (swallowed_errors, "try: f()\nexcept Exception: pass"),
        (swallowed_errors, "try: f()\nexcept: pass"),
        (swallowed_errors, "for x in y:\n try: f()\n except (ValueError, Exception): continue"),
        (swallowed_errors, "with contextlib.suppress(Exception): f()"),
    ],
)
def test_the_rule_sees(rule: Callable[[ast.Module], Iterator[int]], code: str) -> None:
    assert list(rule(ast.parse(code)))


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (reads_environment, "import os\nos.getpid()"),
        (fixed_sleeps, "async def f():\n await asyncio.sleep(0)"),
        (fixed_sleeps, "async def f(delay_s):\n await asyncio.sleep(delay_s * 2)"),
        (swallowed_errors, "try: f()\nexcept ValueError: pass"),
        (swallowed_errors, "try: f()\nexcept Exception: log.exception('x')"),
    ],
)
def test_the_rule_passes(rule: Callable[[ast.Module], Iterator[int]], code: str) -> None:
    assert not list(rule(ast.parse(code)))
