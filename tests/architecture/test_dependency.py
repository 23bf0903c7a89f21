"""Who may import whom, and what `import art` costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.architecture.source import ROOT, name, python_files, tree

HEAVY = ("torch", "transformers", "peft", "pyarrow", "gguf", "tokenizers", "pygal")
DOORS = "art, art.local, art.dev"


def plugin_packages() -> set[str]:
    return {
        path.parent.name for folder in ("plugins", "contrib") for path in ROOT.glob(f"{folder}/*/art_*/__init__.py")
    }


def test_the_import_contracts_are_kept() -> None:
    run = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_contracts_cover_every_plugin_and_excuse_nothing() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    section = tomllib.loads(text)["tool"]["importlinter"]
    layers, no_plugin, only_names, only_contracts, no_model = section["contracts"]
    packages = plugin_packages()
    assert packages
    assert packages <= set(section["root_packages"])
    assert packages <= set(no_plugin["forbidden_modules"])
    assert packages <= set(only_names["forbidden_modules"])
    assert packages == set(only_contracts["source_modules"])
    assert "transformers" in no_model["forbidden_modules"]
    assert layers["exhaustive"] is True
    assert not [layer for layer in layers["layers"] if layer.startswith("(")], "an optional layer is a room not there"
    assert not [contract["name"] for contract in section["contracts"] if "ignore_imports" in contract]


def test_art_holds_nothing_but_names() -> None:
    """Each file of `art`: a docstring, imports from art_core or art, and `__all__`."""
    wrong = []
    for path in python_files(ROOT / "art"):
        for node in tree(path).body:
            match node:
                case ast.Expr(value=ast.Constant(value=str())):
                    continue
                case ast.ImportFrom(module=str(module), level=0):
                    if module.split(".")[0] in {"__future__", "art", "art_core"}:
                        continue
                case ast.Assign(targets=[ast.Name(id="__all__")]):
                    continue
            wrong.append(f"{name(path)}:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not wrong, "art re-exports only; code belongs in art_core/client:\n" + "\n".join(wrong)


def test_importing_art_loads_nothing_heavy_and_no_plugin() -> None:
    code = f"import {DOORS}, sys; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.split())
    assert {"art", "art_core"} <= loaded
    assert not loaded & {*HEAVY, *plugin_packages()}
