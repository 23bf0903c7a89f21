"""Turn chat messages into prompt tokens by the model's template."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from art_core.engine_front import RequestError, bad_parameter
from art_core.errors import ConfigError
from art_torch.serve.tool_probe import ToolSupport, probe_tools

Message = dict[str, Any]
Tool = dict[str, Any]
_REFUSALS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""What a template, which is somebody's program, raises on messages that it was not made for."""
_VARIABLES = "variables of the template, not the renderer's own"


class ChatTemplate:
    """A model's chat template.

    Args:
        tokenizer: With its chat template, or none.
        variables: Further variables of every rendering; a request's own win.

    Raises:
        ConfigError: The template is no Jinja, or a variable is the renderer's own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, object]) -> None:
        self._tokenizer = tokenizer
        self._variables = variables
        self._apply: Any = tokenizer.apply_chat_template
        self._reserved = inspect.signature(self._apply).parameters.keys()
        if reserved := sorted(variables.keys() & self._reserved):
            raise ConfigError(f"chat_template_kwargs holds {reserved[0]!r}; allowed: {_VARIABLES}")
        self.tools = ToolSupport() if tokenizer.chat_template is None else self._probe()

    def prompt(
        self, messages: list[Message], tools: list[Tool] | None = None, variables: Mapping[str, object] | None = None
    ) -> list[int]:
        """Token ids of a conversation, up to where the assistant's answer begins.

        Args:
            messages: As OpenAI's; content is a string, null or a list of text parts.
            tools: As OpenAI's; None: there are none.
            variables: Further variables for the template.

        Raises:
            RequestError: The model has no template, the template refuses the messages, or it does not know tools.
        """
        tokens: list[int] = list(self._render(*self._checked(messages, tools, variables), tokenize=True))
        return tokens

    def text(
        self,
        messages: list[Message],
        tools: list[Tool] | None = None,
        variables: Mapping[str, object] | None = None,
        *,
        to_answer: bool,
    ) -> str:
        """The same as text, with or without what stands before the assistant's answer.

        Args:
            messages: As in `prompt`.
            tools: As in `prompt`.
            variables: As in `prompt`.
            to_answer: Whether the text goes on to where an answer begins.

        Raises:
            RequestError: As in `prompt`.
        """
        checked = self._checked(messages, tools, variables)
        return str(self._render(*checked, tokenize=False, add_generation_prompt=to_answer))

    def _checked(
        self, messages: list[Message], tools: list[Tool] | None, variables: Mapping[str, object] | None
    ) -> tuple[list[Message], list[Tool] | None, Mapping[str, object]]:
        if self._tokenizer.chat_template is None:
            raise RequestError(400, "the model has no chat template; use /v1/completions", param="messages")
        given = variables or {}
        if reserved := sorted(given.keys() & self._reserved):
            raise bad_parameter("chat_template_kwargs", reserved[0], _VARIABLES)
        if tools:
            self.tools.require("tools")
            for tool in tools:
                _check_tool(tool)
        return self._plain(messages), tools or None, {**self._variables, **given}

    def _probe(self) -> ToolSupport:
        def text(messages: list[Message], tools: list[Tool]) -> str:
            # as an answer's text is made: markup that this leaves out could not be read in an answer either
            tokens = self._render(messages, tools, self._variables, tokenize=True)
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

        try:
            return probe_tools(text)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"the chat template is no Jinja: {error} (line {error.lineno})") from error

    def _render(
        self,
        messages: list[Message],
        tools: list[Tool] | None,
        variables: Mapping[str, object],
        tokenize: bool,
        add_generation_prompt: bool = True,
    ) -> Any:
        how = {"tokenize": tokenize, "add_generation_prompt": add_generation_prompt}
        try:
            return self._apply(messages, tools=tools, return_dict=False, **how, **variables)
        except jinja2.TemplateSyntaxError:
            raise
        except _REFUSALS as error:
            raise RequestError(400, f"the chat template refuses these messages: {error}", param="messages") from error

    def _plain(self, messages: list[Message]) -> list[Message]:
        """Messages as templates expect them: content is text, calls only where there are some, results have names."""
        plain, called = [], dict[object, str]()
        for message in messages:
            role = message.get("role")
            if not isinstance(role, str):
                raise bad_parameter("messages.role", role, "a string, e.g. 'user'")
            shown = {key: value for key, value in message.items() if key != "tool_calls"}
            shown["content"] = _text(message.get("content"))
            if role == "tool":
                self.tools.require("messages.role")
                answered = message.get("tool_call_id")
                if message.get("name") is None and isinstance(answered, str) and answered in called:
                    shown["name"] = called[answered]
            if calls := self._calls(message.get("tool_calls")):
                shown["tool_calls"] = calls
                called |= {call["id"]: call["function"]["name"] for call in calls if isinstance(call.get("id"), str)}
            plain.append(shown)
        return plain

    def _calls(self, calls: Any) -> list[dict[str, Any]]:
        if not calls:
            return []
        self.tools.require("messages.tool_calls")
        if not isinstance(calls, list):
            raise bad_parameter("messages.tool_calls", calls, "a list of calls")
        return [self._call(call) for call in calls]

    def _call(self, call: Any) -> dict[str, Any]:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_parameter("messages.tool_calls", call, "{'id': …, 'type': 'function', 'function': {'name': …}}")
        arguments = function.get("arguments")
        try:
            values = json.loads(arguments) if isinstance(arguments, str) else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise bad_parameter("messages.tool_calls.function.arguments", arguments, "the JSON text of an object")
        return {**call, "function": {**function, "arguments": arguments if self.tools.arguments_as_text else values}}


def _check_tool(tool: Tool) -> None:
    function = tool.get("function")
    named = isinstance(function, dict) and isinstance(function.get("name"), str)
    if tool.get("type") != "function" or not named:
        raise bad_parameter("tools", tool, "{'type': 'function', 'function': {'name': string, 'parameters': schema}}")


def _text(content: object) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_parameter("messages.content", content, "a string, null, or a list of text parts")
    texts = []
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise bad_parameter(
                "messages.content", part, "{'type': 'text', 'text': string}; this engine reads text only"
            )
        texts.append(part["text"])
    return "\n".join(texts)
