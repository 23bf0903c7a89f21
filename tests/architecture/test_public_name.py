"""What users import: listed exactly, sorted, and documented."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

import art
from tests.architecture.source import CORE, name, python_files, tree


def test_the_list_of_names_is_sorted_and_names_nothing_twice() -> None:
    """Constants, then classes, then functions, each by name: the order that ruff's RUF022 writes."""
    assert list(art.__all__) == sorted(set(art.__all__), key=lambda n: (not n.isupper(), not n[0].isupper(), n))


def test_every_listed_name_exists() -> None:
    assert [listed for listed in art.__all__ if listed not in vars(art)] == []


def test_nothing_else_is_importable() -> None:
    """Submodules appear on their package when something imports them, so only other names count."""
    public = {n for n, value in vars(art).items() if not n.startswith("_") and not inspect.ismodule(value)}
    assert public - set(art.__all__) - {"annotations"} == set()


def undocumented(body: list[ast.stmt], where: str) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{where}:{node.lineno} {node.name}"
            if isinstance(node, ast.ClassDef):
                yield from undocumented(node.body, where)


def test_every_public_name_of_core_is_documented() -> None:
    missing = [each for path in python_files(CORE) for each in undocumented(tree(path).body, name(path))]
    missing += [name(path) for path in python_files(CORE) if not ast.get_docstring(tree(path))]
    assert not missing, f"no docstring: {missing}"
