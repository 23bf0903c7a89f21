"""Every hook is on its page of the docs, argument for argument, and has a test of its own."""

from __future__ import annotations

import inspect
import re

from art_core import hookspecs
from tests.architecture.source import ROOT, python_files

PAGE = ROOT / "docs" / "reference" / "hooks.md"


def specs() -> dict[str, str]:
    """Hook name to ``name(argument, …)``."""
    marked = {name: value for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.PROJECT}_spec")}
    return {name: f"{name}({', '.join(inspect.signature(hook).parameters)})" for name, hook in marked.items()}


def test_hooks_are_few_and_register_or_observe() -> None:
    assert specs()
    assert [name for name in specs() if not name.startswith(("art_register_", "art_on_"))] == []


def test_every_hook_is_documented_with_its_exact_arguments() -> None:
    headings = re.findall(r"^### `(.+)`$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(specs().values())


def test_every_hook_has_a_test() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in python_files(ROOT / "tests"))
    written = set(re.findall(r"^ *(?:async )?def test_hook_(\w+)\(", tests, re.MULTILINE))
    assert specs().keys() - written == set()
