"""Write docs/reference/configuration.md and options.md from the code: ``python docs/generate.py``.

A test holds the pages to what this writes. Sentences are the docstrings below each field, so they are read from the
sources; plugins are imported from this repository, without their libraries and whether or not they are installed.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from art_core.config import Environment, LoRAConfig, PartOptions, Timeouts
from art_core.part import Part
from art_core.plugins import KINDS, Kind
from art_core.step import StepConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "reference"
UNITS = {"_s": "seconds", "_ms": "milliseconds", "_tokens": "tokens", "_sequences": "sequences", "_bytes": "bytes"}

CONFIGURATION = """\
# Configuration

What can be set, with its default. This page is written by `docs/generate.py` from the code, and held to it by a test.
The options of engines, trainers, stores and publishers are on [a page of their own](options.md).

## Environment variables

{variables}

A part that the caller names (`LocalBackend(engine=…)`) goes before its variable; without either, the store is `file`,
the publisher is `reload`, and engine and trainer are chosen by priority among those that can work here. `art doctor`
says which, and why.

## Time-outs

Fields of `art_core.config.Timeouts`, given as `LocalBackend(timeouts=Timeouts(step_s=7200))`.

{timeouts}

## A training step

Fields of `art_core.step.StepConfig`: keywords of `backend.train(...)`, [three of them under another
name](client.md#training-options), or, as `trainer_args` of the model's `_internal_config`, the run's defaults. How they
come together is explained on [its own page](../explanation/learning.md). {step}

{steps}

## The adapter

Fields of `art_core.config.LoRAConfig`. {lora}

{loras}
"""

OPTIONS = """\
# Options of the parts

Every option of every part in this repository. This page is written by `docs/generate.py` from the code, and held to it
by a test. Options are given as an instance of their class (`LocalBackend(engine=TorchEngineOptions(max_loras=8))`), or
by name in the model's `_internal_config` (`engine_args`, `trainer_args`). An unknown option is refused before anything
starts, and the nearest known one is named.

{parts}
"""


def configuration() -> str:
    """The text of configuration.md."""
    columns = ("name", "unit", "default", "what it is")
    return CONFIGURATION.format(
        variables=table(("variable", "default", "what it is"), variables()),
        timeouts=table(columns, fields(Timeouts)),
        step=first_sentences(StepConfig),
        steps=table((*columns, "source"), [(*row[:-1], *sourced(row[-1])) for row in fields(StepConfig)]),
        lora=first_sentences(LoRAConfig),
        loras=table(columns, fields(LoRAConfig)),
    )


def options() -> str:
    """The text of options.md."""
    return OPTIONS.format(parts="\n\n".join(section(*each) for each in parts()))


def section(distribution: str, kind: Kind, part: Part) -> str:
    """One part: its name, its class of options, and the options."""
    cls = part.options
    title = f"## {kind.capitalize()} `{part.name}` ({distribution})\n\n`{cls.__module__}.{cls.__name__}`. "
    rows = list(option_rows(cls))
    listed = table(("option", "type", "default", "allowed", "what it is"), rows) if rows else "No options."
    return f"{title}{first_sentences(cls)}\n\n{listed}"


def option_rows(cls: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, ...]]:
    """A row for each option of a part, those that it inherits included; for a record of options, one for each in it."""
    classes = [each for each in reversed(cls.__mro__) if issubclass(each, BaseModel) and each not in BASES]
    sentences = {name: text for each in classes for name, text in docstrings(each).items()}
    types = {name: text for each in classes for name, text in written_types(each).items()}
    for name, field in cls.model_fields.items():
        limits = [
            f"{sign} {getattr(each, word)}" for each in field.metadata for word, sign in SIGNS if word in dir(each)
        ]
        value, record = field.get_default(call_default_factory=True), field.annotation
        if not (inspect.isclass(record) and issubclass(record, BaseModel)):
            yield f"`{prefix}{name}`", f"`{types[name]}`", f"`{value!r}`", ", ".join(limits), sentences[name]
        else:
            yield f"`{prefix}{name}`", f"`{types[name]}`", f"`{types[name]}()`", "", sentences[name]
            yield from option_rows(record, f"{prefix}{name}.")


BASES = (BaseModel, PartOptions)
SIGNS = (("gt", "above"), ("ge", "at least"), ("lt", "below"), ("le", "at most"))


def parts() -> Iterator[tuple[str, Kind, Part]]:
    """Every part of the repository: its distribution, kind and part, by distribution, name and kind."""
    for path in (ROOT / "pyproject.toml", *sorted((ROOT / "plugins").glob("*/pyproject.toml"))):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        if str(path.parent) not in sys.path:
            sys.path.append(str(path.parent))
        for _, module in sorted(project.get("entry-points", {}).get("art_core", {}).items()):
            for kind in KINDS:
                registered: list[Part] = []
                if hook := vars(importlib.import_module(module)).get(f"art_register_{kind}s"):
                    hook(register=registered.append)
                yield from ((project["name"], kind, part) for part in registered)


def variables() -> list[tuple[str, ...]]:
    """Environment variables: a field's docstring starts with the variable's name."""
    rows: list[tuple[str, ...]] = []
    for name, _, default, sentence in fields(Environment):
        variable, _, rest = sentence.partition(": ")
        if not re.fullmatch(r"`[A-Z_]+`", variable):
            raise SystemExit(f"the docstring of Environment.{name} does not start with its variable: {sentence!r}")
        rows.append((variable, "unset" if default in {"`None`", "`False`"} else default, rest[0].upper() + rest[1:]))
    return rows


def fields(cls: Any) -> list[tuple[str, ...]]:
    """A row for each field of a frozen dataclass: name, unit, default, sentence."""
    sentences = docstrings(cls)
    return [(f"`{f.name}`", unit(f.name), default(f.default), sentences[f.name]) for f in dataclasses.fields(cls)]


def default(value: object) -> str:
    """A default as one would type it."""
    return f"`{value}`" if isinstance(value, Path) else f"`{value!r}`"


def unit(name: str) -> str:
    """The unit that a name ends in."""
    return next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")


def sourced(sentence: str) -> tuple[str, str]:
    """What a field is, and where it comes from.

    Raises:
        SystemExit: It does not say.
    """
    said, mark, source = sentence.partition(" Source: ")
    if not mark or not source.endswith("."):
        raise SystemExit(f"no source is named: {sentence!r}")
    return said, source.removesuffix(".")


def first_sentences(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def docstrings(cls: type) -> Mapping[str, str]:
    """Field to the docstring below it.

    Raises:
        SystemExit: A field has none.
    """
    found: dict[str, str] = {}
    body = class_body(cls)
    for node, below in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not is_class_variable(node):
            if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
                raise SystemExit(f"{cls.__name__}.{node.target.id} has no docstring below it")
            found[node.target.id] = " ".join(str(below.value.value).split()).replace("``", "`")
    return found


def written_types(cls: type) -> Mapping[str, str]:
    """Field to its type as it is written, aliases of literals spelled out."""
    aliases = {name: repr(value) for name, value in vars(sys.modules[cls.__module__]).items() if is_literal(value)}
    written = {
        node.target.id: ast.unparse(node.annotation)
        for node in class_body(cls)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return {name: aliases.get(text, text).removeprefix("typing.") for name, text in written.items()}


def is_literal(value: object) -> bool:
    """Whether it is a ``Literal[...]``."""
    return repr(value).startswith("typing.Literal")


def is_class_variable(node: ast.AnnAssign) -> bool:
    """Whether it is no field."""
    return ast.unparse(node.annotation).startswith("ClassVar")


def class_body(cls: type) -> list[ast.stmt]:
    """The statements of a class."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    if not isinstance(node, ast.ClassDef):
        raise TypeError(f"{cls.__name__} is no class statement")
    return node.body


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; bars in cells are escaped."""
    lines = [columns, ["---"] * len(columns), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def pages() -> dict[Path, str]:
    """Every page that is written here, with its text."""
    return {PAGES / "configuration.md": configuration(), PAGES / "options.md": options()}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
