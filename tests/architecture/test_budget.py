"""How large a file, a function, a class and a signature may grow.

Each soft budget has a list of those that are over it, with the reason; a list entry that is no longer needed fails
too. Nothing is excused from a hard budget.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections.abc import Iterator
from pathlib import Path

from tests.architecture.source import CORE, PRODUCT, ROOT, name, python_files, tree

FILE_LINES, FILE_LINES_HARD = 300, 400
FUNCTION_LINES, FUNCTION_LINES_HARD = 30, 50
PUBLIC_METHODS = 10
PROTOCOL_METHODS = 8
PARAMETERS = 6

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}

NO_SUBJECT = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc", "core"}
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: no docstring, no comment, not blank."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    lines = {n for t in tokens if t.type not in NOT_CODE for n in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(tree(path)):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines -= set(range(docstring.lineno, (docstring.end_lineno or 0) + 1))
    return lines


def functions() -> Iterator[tuple[str, Function, int]]:
    """Every function and method: `file:line name`, the node, its code lines (signature counted, decorators not)."""
    for path in python_files(*PRODUCT):
        lines = code_lines(path)
        for node in ast.walk(tree(path)):
            if isinstance(node, Function):
                yield name(path), node, len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1)))


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for path in python_files(*PRODUCT):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                yield f"{name(path)}:{node.lineno} {node.name}", node


def public_methods(node: ast.ClassDef) -> list[str]:
    """Names, so that the overloads, setters and deleters of one name count once."""
    return sorted({item.name for item in node.body if isinstance(item, Function) and not item.name.startswith("_")})


def parameters(node: Function) -> list[str]:
    """Parameter names but for self and cls."""
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in every if argument is not None and argument.arg not in {"self", "cls"}]


def takes_unpacked_options(node: Function) -> bool:
    """Whether its ``**kwargs`` is ``Unpack[SomeTypedDict]``: the signatures that users of `art` know."""
    annotation = node.args.kwarg.annotation if node.args.kwarg else None
    return isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value).split(".")[-1] == "Unpack"


def test_files_keep_their_budget() -> None:
    sizes = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files(*PRODUCT)}
    over = {file: lines for file, lines in sizes.items() if lines > FILE_LINES}
    hard = {file: lines for file, lines in over.items() if lines > FILE_LINES_HARD}
    assert not hard, f"files over {FILE_LINES_HARD} lines; split the room: {hard}"
    assert over.keys() == LONG_FILES.keys(), f"files over {FILE_LINES} lines: {over}; listed: {LONG_FILES}"


def test_functions_keep_their_budget() -> None:
    over = {f"{file} {node.name}": lines for file, node, lines in functions() if lines > FUNCTION_LINES}
    hard = {function: lines for function, lines in over.items() if lines > FUNCTION_LINES_HARD}
    assert not hard, f"functions over {FUNCTION_LINES_HARD} code lines: {hard}"
    assert over.keys() == LONG_FUNCTIONS.keys(), (
        f"functions over {FUNCTION_LINES} code lines: {over}; listed: {LONG_FUNCTIONS}"
    )


def test_classes_have_few_public_methods() -> None:
    over = {where: methods for where, node in classes() if len(methods := public_methods(node)) > PUBLIC_METHODS}
    assert not over, f"classes with more than {PUBLIC_METHODS} public methods: {over}"


def test_contracts_stay_small() -> None:
    protocols = {
        where: public_methods(node)
        for where, node in classes()
        if "art_core/protocols/" in where and any(ast.unparse(base) == "Protocol" for base in node.bases)
    }
    assert len(protocols) >= 4, "the four contracts were not found"
    over = {where: methods for where, methods in protocols.items() if len(methods) > PROTOCOL_METHODS}
    assert not over, f"contracts of more than {PROTOCOL_METHODS} methods: {over}"


def test_signatures_have_few_parameters() -> None:
    over = {
        f"{file}:{node.lineno} {node.name}": parameters(node)
        for file, node, _ in functions()
        if len(parameters(node)) > PARAMETERS and not takes_unpacked_options(node)
    }
    assert not over, f"more than {PARAMETERS} parameters; put them in a frozen config: {over}"


def test_modules_are_named_after_their_subject() -> None:
    """`art` is exempt: it spells the import paths that users know."""
    files = python_files(CORE, ROOT / "plugins")
    wrong = [name(path) for path in files if NO_SUBJECT & set(path.relative_to(ROOT).with_suffix("").parts)]
    assert not wrong, f"a module's name says what it holds: {wrong}"
