"""What an agent and a model say to each other: messages, chats, and the requests and answers they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

from openai.types.chat import ChatCompletion
from openai.types.chat.chat_completion import Choice
from pydantic import BaseModel, BeforeValidator, ConfigDict, SkipValidation

from art_core.errors import TrajectoryError

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolUnionParam

    Message: TypeAlias = ChatCompletionMessageParam
    """A chat message as the OpenAI API spells it: ``role``, ``content``, ``tool_calls`` and so on."""
    Tool: TypeAlias = ChatCompletionToolUnionParam
else:
    # Checked against openai's types, pydantic would drop the keys that other providers add.
    Message = Tool = dict[str, Any]
Messages: TypeAlias = list[Message]


def as_item(item: object) -> Message | Choice:
    """A chat item as a message or a choice; a dict with the key ``message`` is a dumped `Choice`.

    Args:
        item: A message dict, a `Choice`, or a dumped `Choice`.

    Raises:
        TrajectoryError: It is something else.
    """
    if isinstance(item, Choice):
        return item
    if isinstance(item, Mapping):
        return Choice.model_validate(item) if "message" in item else cast(Message, dict(item))
    raise TrajectoryError(
        f"messages_and_choices holds a {type(item).__name__}; allowed: a message dict, or the Choice itself "
        f"(append `completion.choices[0]`, not its message)"
    )


MessageOrChoice: TypeAlias = Annotated[SkipValidation[Message | Choice], BeforeValidator(as_item)]
MessagesAndChoices: TypeAlias = list[MessageOrChoice]
Tools: TypeAlias = list[Tool]


class Record(BaseModel):
    """Dumps without defaults, so that an empty list or a reward of 0.0 does not stand on the wire."""

    # NaN would be written as null otherwise, which is no reward; validators are built when the first one is needed, so
    # that `import art` need not wait for them
    model_config = ConfigDict(ser_json_inf_nan="strings", defer_build=True)

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """As pydantic's, defaults dropped unless ``exclude_defaults=False`` is given."""
        return super().model_dump(**{"exclude_defaults": True, **options})

    def model_dump_json(self, **options: Any) -> str:
        """As pydantic's, defaults dropped unless ``exclude_defaults=False`` is given."""
        return super().model_dump_json(**{"exclude_defaults": True, **options})


class History(Record):
    """One chat: messages of the environment and choices of the policy, in order."""

    messages_and_choices: MessagesAndChoices = []
    tools: Tools | None = None

    def messages(self) -> Messages:
        """The chat as plain messages, to be sent to a chat endpoint; a choice becomes its message."""
        return [as_message(as_item(item)) for item in self.messages_and_choices]


class ChatCompletionsExchange(BaseModel):
    """One request to a chat endpoint, and its answer."""

    model_config = ConfigDict(defer_build=True)
    request: dict[str, Any]
    """The JSON body that was sent."""
    response: ChatCompletion
    start_time: datetime
    end_time: datetime

    @property
    def model(self) -> str:
        """The model that was asked for; the one that answered where the request names none."""
        asked = self.request.get("model")
        return asked if isinstance(asked, str) else self.response.model


class TrajectoryExchanges(BaseModel):
    """What was recorded, by protocol, each in order. False where nothing was."""

    model_config = ConfigDict(extra="forbid", defer_build=True)
    chat_completions: list[ChatCompletionsExchange] = []

    def __bool__(self) -> bool:
        return bool(self.chat_completions)


def family(model: str) -> str:
    """A model's name without the step: ``agent`` of ``agent@7``."""
    return model.rpartition("@")[0] or model


def chats(exchanges: Iterable[ChatCompletionsExchange]) -> list[History]:
    """The chats that recorded requests and answers make up, in the order in which they began.

    A request that goes on where a chat of the same model ended extends it, any other begins a new one; so does every
    further choice of one answer.

    Args:
        exchanges: In the order in which they were answered.
    """
    found: list[tuple[str, History]] = []
    for exchange in exchanges:
        messages = cast("Messages", exchange.request["messages"])
        tools = cast("Tools | None", exchange.request.get("tools") or None)
        name = family(exchange.model)
        for choice in exchange.response.choices:
            history = _continued([chat for model, chat in found if model == name], messages, tools)
            if history is None:
                history = History(tools=tools)
                found.append((name, history))
            history.messages_and_choices += [*messages[len(history.messages_and_choices) :], choice]
    return [history for _, history in found]


def as_message(item: Message | Choice) -> Message:
    """An item as a plain message.

    Args:
        item: Of a chat.
    """
    if isinstance(item, Choice):
        # Templates read `content` even where the model only called a tool.
        return cast(Message, {**item.message.model_dump(exclude_none=True), "content": item.message.content or ""})
    return item


def _continued(histories: list[History], messages: list[Message], tools: Tools | None) -> History | None:
    """The chat that the messages go on from: what was said so far, unchanged."""
    wanted = [_content(message) for message in messages]
    for history in reversed(histories):
        said = [_content(message) for message in history.messages()]
        if history.tools == tools and len(said) < len(wanted) and wanted[: len(said)] == said:
            return history
    return None


def _content(message: Mapping[str, Any]) -> tuple[object, ...]:
    """What of a message must be equal for it to be the same one."""
    calls = [(call["id"], call["function"]) for call in message.get("tool_calls") or ()]
    return message["role"], message.get("content") or "", calls, message.get("tool_call_id")
