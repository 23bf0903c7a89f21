"""Answers GraphQL queries out of plain dicts, by the names of fields alone: no schema, no types, no checks.

So a test server of somebody's API is a dict of what it knows, whatever operations a client's version makes of it. A
value may be a function, which is called with the field's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from graphql import parse
from graphql.language import (
    DirectiveNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    ValueNode,
)
from graphql.utilities import value_from_ast_untyped

Node = Mapping[str, Any]


def execute(query: str, variables: Mapping[str, Any], root: Callable[[str], Node]) -> dict[str, Any]:
    """Answer a request.

    Args:
        query: Its text.
        variables: Its variables.
        root: ``"query"`` or ``"mutation"`` to the fields that stand at the top.

    Raises:
        KeyError: It asks for a field that is not known.
    """
    document = parse(query)
    fragments = {each.name.value: each for each in document.definitions if isinstance(each, FragmentDefinitionNode)}
    operation = next(each for each in document.definitions if isinstance(each, OperationDefinitionNode))
    defaults = {
        each.variable.name.value: value_from_ast_untyped(each.default_value)
        for each in operation.variable_definitions or ()
        if each.default_value is not None
    }
    given = {key: value for key, value in variables.items() if value is not None}
    return _Query(fragments, {**dict.fromkeys(_names(operation)), **defaults, **given}).answer(
        root(operation.operation.value), operation.selection_set
    )


def connection(items: Sequence[Node], first: int | None = None, after: str | None = None) -> Node:
    """A page of nodes, as the Relay convention has it; the cursor is a number."""
    start = int(after or 0)
    end = len(items) if first is None else min(start + first, len(items))
    return {
        "totalCount": len(items),
        "pageInfo": {"__typename": "PageInfo", "hasNextPage": end < len(items), "endCursor": str(end)},
        "edges": [{"node": each, "cursor": str(n + 1), **each.get("edge", {})} for n, each in enumerate(items)][
            start:end
        ],
    }


def _names(operation: OperationDefinitionNode) -> Iterator[str]:
    return (each.variable.name.value for each in operation.variable_definitions or ())


class _Query:
    def __init__(self, fragments: Mapping[str, FragmentDefinitionNode], variables: Mapping[str, Any]) -> None:
        self._fragments = fragments
        self._variables = dict(variables)

    def answer(self, node: Node, selections: SelectionSetNode) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field in self._fields(selections):
            name = field.name.value
            if name not in node:
                raise KeyError(f"{node.get('__typename', 'the root')} has no field {name!r}")
            value = node[name]
            if callable(value):
                value = value(**{each.name.value: self._value(each.value) for each in field.arguments or ()})
            key = field.alias.value if field.alias else name
            merged = self._below(value, field.selection_set)
            found[key] = {**found[key], **merged} if isinstance(found.get(key), dict) and merged else merged
        return found

    def _below(self, value: Any, selections: SelectionSetNode | None) -> Any:
        if selections is None or value is None:
            return value
        if isinstance(value, list):
            return [self._below(each, selections) for each in value]
        return self.answer(value, selections)

    def _fields(self, selections: SelectionSetNode) -> Iterator[FieldNode]:
        for each in selections.selections:
            if not self._included(each.directives or ()):
                continue
            if isinstance(each, FieldNode):
                yield each
            elif isinstance(each, FragmentSpreadNode):
                yield from self._fields(self._fragments[each.name.value].selection_set)
            elif isinstance(each, InlineFragmentNode):
                yield from self._fields(each.selection_set)

    def _included(self, directives: Sequence[DirectiveNode]) -> bool:
        wanted = {"include": True, "skip": False}
        return all(
            self._value(each.arguments[0].value) is wanted[each.name.value]
            for each in directives
            if each.name.value in wanted
        )

    def _value(self, node: ValueNode) -> Any:
        return value_from_ast_untyped(node, self._variables)
