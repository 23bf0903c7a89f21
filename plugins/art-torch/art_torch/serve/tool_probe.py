"""What a chat template can do with tools, found out by rendering a small conversation with a tool in it.

Asking the template beats reading it: a template is a program, and what counts is what it writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from art_core.engine_front import RequestError
from art_torch.serve.tool_call import ToolCall, ToolFormat

_NAME, _ID = "probe", "probe0000"
_ARGUMENTS = '{"key":"some value"}'
"""Spaced as no template would write it, so that it comes back unchanged only where it was taken as text."""
_PARAMETERS = {"type": "object", "properties": {"key": {"type": "string", "description": "A key."}}}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "A tool.", "parameters": _PARAMETERS}}
_ASKED = {"role": "user", "content": "Go on."}

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]]], str]
"""Messages and tools to the prompt's text as a client would see it; raises `RequestError` where they can't be."""


@dataclass(frozen=True)
class ToolSupport:
    """What a chat template does with tools."""

    shown: bool = False
    """Whether the model gets to see the tools."""
    form: ToolFormat | None = None
    """How it writes a call; None: in no way that is read here, so calls can be neither read nor shown."""
    arguments_as_text: bool = False
    """Whether it takes a call's arguments as JSON text, and leaves them as they are; else it wants the object."""

    def require(self, param: str) -> None:
        """Refuse a request that has something to do with tools, where the template can't do it.

        Raises:
            RequestError: 400; names what of the request it is about.
        """
        if not self.shown:
            problem = "does not show tools to the model"
        elif self.form is None:
            problem = f"writes tool calls in a way that this engine does not read ({_READ})"
        else:
            return
        message = (
            f"parameter {param!r} needs a chat template that knows tools, and the model's {problem}; give one in "
            f"_internal_config['chat_template'], or leave tools out and let the model write calls as text"
        )
        raise RequestError(400, message, param=param, code="unsupported_value")


_READ = 'it reads <tool_call>{"name": …, "arguments": {…}}</tool_call> and {"name": …, "parameters": {…}}'


def probe_tools(render: Render) -> ToolSupport:
    """Find out what a template does with tools.

    Args:
        render: The template.
    """
    if _NAME not in _rendered(render, [_ASKED]):
        return ToolSupport()
    for arguments in (_ARGUMENTS, json.loads(_ARGUMENTS)):
        text = _rendered(render, _conversation(arguments))
        for form in ToolFormat:
            if (call := _written(text, form)) is not None:
                return ToolSupport(True, form, arguments_as_text=call.arguments == _ARGUMENTS)
    return ToolSupport(shown=True)


def _rendered(render: Render, messages: list[dict[str, Any]]) -> str:
    """Nothing where the template refuses: what it can't write it does not know."""
    try:
        return render(messages, [_TOOL])
    except RequestError:
        return ""


def _conversation(arguments: object) -> list[dict[str, Any]]:
    call = {"id": _ID, "type": "function", "function": {"name": _NAME, "arguments": arguments}}
    return [
        _ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "Done.", "tool_call_id": _ID, "name": _NAME},
    ]


def _written(text: str, form: ToolFormat) -> ToolCall | None:
    """The probe's call in a rendered conversation."""
    if form is ToolFormat.BARE:
        start = text.find(f'{{"name": "{_NAME}", "{form.value}": ')
        if start < 0:
            return None
        # its answer ends with the object; after it come the template's own marks
        text = text[start:]
        try:
            text = text[: json.JSONDecoder().raw_decode(text)[1]]
        except ValueError:
            return None
    reader = form.reader()
    calls = (*reader.feed(text).calls, *reader.finish().calls)
    return next((call for call in calls if call.name == _NAME and json.loads(call.arguments) == _VALUES), None)


_VALUES = json.loads(_ARGUMENTS)
