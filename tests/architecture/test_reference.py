"""The pages that are written from the code are as the code is now."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import pytest

from art_core import config
from art_core.config import Environment, Timeouts
from art_core.step import StepConfig
from tests.architecture.source import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """`docs/generate.py`, which is no package's."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["configuration.md", "options.md"])
def test_the_page_is_what_the_code_says(generate: ModuleType, name: str) -> None:
    (page,) = (path for path in generate.pages() if path.name == name)
    assert page.read_text(encoding="utf-8") == generate.pages()[page], "run: python docs/generate.py"


def test_nothing_is_left_out(generate: ModuleType) -> None:
    """Counted without the generator: rows against fields, headings against what plugins declare."""
    text = generate.configuration()
    rows = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert {field.name for cls in (Timeouts, StepConfig) for field in fields(cls)} <= set(rows)
    variables = [row for row in rows if row.isupper()]
    assert len(variables) == len(fields(Environment))
    read = set(re.findall(r'get\("([A-Z_]+)"\)', Path(config.__file__).read_text(encoding="utf-8")))
    assert set(variables) == read
    registered = re.findall(
        r"^def art_register_(\w+)s\(",
        "\n".join(
            path.read_text(encoding="utf-8")
            for path in (*(ROOT / "art_core" / "builtin").glob("*.py"), *(ROOT / "plugins").glob("*/*/plugin.py"))
        ),
        re.MULTILINE,
    )
    headings = re.findall(r"^## (\w+) `", generate.options(), re.MULTILINE)
    assert sorted(headings) == sorted(kind.capitalize() for kind in registered)


def test_a_step_s_field_without_a_source_is_refused(generate: ModuleType) -> None:
    assert generate.sourced("What it is. Source: a paper (arXiv:1), equation 2.") == (
        "What it is.",
        "a paper (arXiv:1), equation 2",
    )
    with pytest.raises(SystemExit, match="no source is named: 'What it is"):
        generate.sourced("What it is.")


def test_a_field_without_a_sentence_is_refused(generate: ModuleType) -> None:
    class Silent:
        """A class whose field says nothing."""

        loud: int = 1

    with pytest.raises(SystemExit, match=r"Silent\.loud has no docstring"):
        generate.docstrings(Silent)
