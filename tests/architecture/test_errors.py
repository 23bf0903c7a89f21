"""The error tree: what is drawn is what exists, it crosses pickles and processes, and it is on its page of the docs."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from art_core import errors
from art_core.errors import ArtError, RunError, from_wire, to_wire

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "errors.md"
FIELDS = ("stage", "run", "step")


def classes() -> dict[str, type[ArtError]]:
    return {
        name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, ArtError)
    }


EVERY = pytest.mark.parametrize("cls", classes().values(), ids=classes().keys())


def example(cls: type[ArtError]) -> ArtError:
    if issubclass(cls, RunError):
        return cls("what failed", stage="publish", run="facts", step=7)
    return cls("what failed")


def fields(error: BaseException) -> dict[str, object]:
    return {name: vars(error).get(name) for name in FIELDS}


def own_parent(cls: type[ArtError]) -> str | None:
    parents = [base.__name__ for base in cls.__bases__ if issubclass(base, ArtError)]
    return parents[0] if parents else None


def other_parents(cls: type[ArtError]) -> list[str]:
    return [base.__name__ for base in cls.__bases__ if not issubclass(base, ArtError) and base is not Exception]


def drawn() -> dict[str, tuple[str | None, list[str], bool]]:
    """The tree in the module's docstring: name to parent, other bases, retryable."""
    found: dict[str, tuple[str | None, list[str], bool]] = {}
    ancestors: list[str] = []
    line_of_tree = re.compile(r"^(?P<indent>(?:│ |  )*)(?P<branch>[├└] )?(?P<name>[A-Z]\w+)(?P<rest>.*)$")
    for line in (errors.__doc__ or "").split("\n\n")[1].splitlines():
        match = line_of_tree.match(line.removeprefix("    "))
        assert match, f"not a line of the tree: {line!r}"
        depth = len(match["indent"]) // 2 + bool(match["branch"])
        del ancestors[depth:]
        parent = ancestors[-1] if ancestors else None
        bases = re.search(r"\((.*?)\)", match["rest"])
        found[match["name"]] = (parent, bases[1].split(", ") if bases else [], "retryable" in match["rest"])
        ancestors.append(match["name"])
    return found


def test_the_drawn_tree_is_the_real_one() -> None:
    real = {name: (own_parent(cls), other_parents(cls), cls.retryable) for name, cls in classes().items()}
    assert drawn() == real


@EVERY
def test_an_error_pickles_with_its_fields(cls: type[ArtError]) -> None:
    error = example(cls)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert str(copy) == str(error)
    assert fields(copy) == fields(error)


@EVERY
def test_an_error_crosses_the_wire_with_its_fields_and_its_traceback(cls: type[ArtError]) -> None:
    error = example(cls)
    try:
        raise error
    except ArtError as raised:
        rebuilt = from_wire(to_wire(raised))
    assert type(rebuilt) is cls
    assert str(rebuilt) == str(error)
    assert fields(rebuilt) == fields(error)
    assert rebuilt.retryable == cls.retryable
    assert "test_an_error_crosses_the_wire" in "".join(rebuilt.__notes__)


def test_an_unknown_type_becomes_the_callers_fallback_and_keeps_its_name() -> None:
    class Foreign(Exception):
        pass

    rebuilt = from_wire(to_wire(Foreign("odd")), errors.TrainerError)
    assert type(rebuilt) is errors.TrainerError
    assert str(rebuilt) == "Foreign: odd"


@EVERY
def test_an_error_is_one_sentence(cls: type[ArtError]) -> None:
    first = (cls.__doc__ or "").split("\n\n")[0]
    assert first.endswith(".")
    assert "\n" not in first


def test_the_page_lists_every_error_in_its_own_words() -> None:
    """Rows are ``| `Name` | parent | also a | retryable | sentence |``."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    listed = {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
    assert len(rows) == len(listed), "an error is listed twice"
    assert listed == {
        name: [
            f"`{own_parent(cls)}`" if own_parent(cls) else "",
            ", ".join(f"`{base}`" for base in other_parents(cls)),
            "yes" if cls.retryable else "",
            (cls.__doc__ or "").split("\n\n")[0],
        ]
        for name, cls in classes().items()
    }
