"""Tool calls in a model's text, read while the text grows.

Two ways of writing them are read; which one a model's template uses is found out by `art_torch.serve.tool_probe`.
What a model writes that only looks like a call stays text: nothing that was sampled is lost or guessed at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_SPACE = re.compile(r"[ \t\n\r]*")
_JSON = json.JSONDecoder()


class ToolFormat(Enum):
    """How a model writes a call; the value names the key of its arguments."""

    TAGGED = "arguments"
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, any number, text around them (Hermes, Qwen 2.5, 3)."""
    BARE = "parameters"
    """The whole answer is ``{"name": …, "parameters": {…}}`` (Llama 3.1 and later)."""

    def reader(self) -> ToolReader:
        """A reader for one answer."""
        return TaggedReader() if self is ToolFormat.TAGGED else BareReader()


@dataclass(frozen=True)
class ToolCall:
    """One call, as the model wrote it."""

    name: str
    arguments: str
    """The text of a JSON object, byte for byte as sampled: rendered back, it is tokenised as it was."""


@dataclass(frozen=True)
class Reading:
    """What became clear of an answer."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()


class ToolReader(Protocol):
    """Splits the text of one answer into text and calls."""

    def feed(self, text: str) -> Reading:
        """Take more of the answer; what may still become a call is held back."""
        ...

    def finish(self) -> Reading:
        """The rest; nothing can follow it."""
        ...


class TaggedReader:
    """Reads `ToolFormat.TAGGED`."""

    def __init__(self) -> None:
        self._unread = ""
        self._tag = ""
        """The tag of the call that is being read, with the line break before it; empty outside."""
        self._after_call = False
        """Whether white space that comes next is layout between calls."""

    def feed(self, text: str) -> Reading:
        """See `ToolReader.feed`."""
        self._unread += text
        said, calls = "", list[ToolCall]()
        while (at := self._unread.find(_CLOSE if self._tag else _OPEN)) >= 0:
            before, tag = self._unread[:at], self._tag
            self._unread = self._unread[at + len(_CLOSE if tag else _OPEN) :]
            if not tag:
                # templates put a line break of their own before a call
                self._tag = "\n" + _OPEN if before.endswith("\n") else _OPEN
                said += self._say(before.removesuffix("\n"))
                continue
            self._tag = ""
            if (call := _parse(before, ToolFormat.TAGGED)) is None:
                said += self._say(tag + before + _CLOSE)
            else:
                calls.append(call)
                self._after_call = True
        if not self._tag:
            safe = len(self._unread) - self._held()
            said += self._say(self._unread[:safe])
            self._unread = self._unread[safe:]
        return Reading(said, tuple(calls))

    def finish(self) -> Reading:
        """See `ToolReader.finish`. A call whose closing tag a stop string cut off is one all the same."""
        rest, self._unread = self._unread, ""
        call = _parse(rest, ToolFormat.TAGGED) if self._tag else None
        return Reading(self._say(self._tag + rest)) if call is None else Reading(calls=(call,))

    def _say(self, text: str) -> str:
        if self._after_call:
            text = text.lstrip()
            self._after_call = not text
        return text

    def _held(self) -> int:
        """Length of the longest end of the unread text that the line break and tag before a call begin with."""
        for mark in ("\n" + _OPEN, _OPEN):
            for length in range(min(len(mark), len(self._unread)), 0, -1):
                if self._unread.endswith(mark[:length]):
                    return length
        return 0


class BareReader:
    """Reads `ToolFormat.BARE`: what begins with a brace is held back to the end."""

    def __init__(self) -> None:
        self._unread = ""
        self._text = False
        """Whether it is known to be no call."""

    def feed(self, text: str) -> Reading:
        """See `ToolReader.feed`."""
        self._unread += text
        begun = self._unread.lstrip()
        self._text = self._text or (begun != "" and begun[0] != "{")
        if not self._text:
            return Reading()
        said, self._unread = self._unread, ""
        return Reading(said)

    def finish(self) -> Reading:
        """See `ToolReader.finish`."""
        rest, self._unread = self._unread, ""
        call = None if self._text else _parse(rest, ToolFormat.BARE)
        return Reading(rest) if call is None else Reading(calls=(call,))


def _parse(text: str, form: ToolFormat) -> ToolCall | None:
    """The call that a JSON text is; None: it is none."""
    text = text.strip()
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):  # what a model samples need not be JSON, and may be nested without end
        return None
    if not (isinstance(call, dict) and isinstance(call.get(form.value), dict)):
        return None
    name = call.get("name")
    # a name that can't be printed may be half a surrogate pair, which no answer can carry
    return ToolCall(name, _member(text, form.value)) if isinstance(name, str) and name.isprintable() else None


def _member(text: str, key: str) -> str:
    """The text of one member of a JSON object that has it, as it stands there; the last one of its name counts."""
    found, at = "", 0
    while text[at] != "}":
        name, colon = _read(text, at + 1)
        _, end = _read(text, colon + 1)
        found = text[_skip(text, colon + 1) : end].rstrip() if name == key else found
        at = end
    return found


def _read(text: str, at: int) -> tuple[Any, int]:
    """A JSON value after white space, and where the next sign after it stands."""
    value, end = _JSON.raw_decode(text, _skip(text, at))
    return value, _skip(text, end)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
