"""Bodies of completion requests: what may be asked, and what it means."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from art_core.engine_front import RequestError, bad_parameter
from art_torch.serve.chat import ChatTemplate, Message, Tool
from art_torch.serve.sequence import Sampling
from art_torch.serve.tool_call import ToolFormat

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_choice": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "logit_bias": ({},),
    "min_p": (0,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "suffix": ("",),
    "use_beam_search": (False,),
}
"""Parameters that would change the answer and are not supported: only values that change nothing pass."""

Top = Annotated[int, Field(ge=0, le=20)]


class StreamOptions(BaseModel):
    """What a stream carries beside the answer."""

    include_usage: bool = False


class Body(BaseModel):
    """What completions and chat completions share."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    model: str
    n: int = Field(default=1, ge=1, le=1024)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0)
    prompt_logprobs: Top | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


B = TypeVar("B", bound=Body)


class TextBody(Body):
    """Body of POST /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: Top | None = None


class ChatBody(Body):
    """Body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    tool_choice: Any = None
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: Top | None = None
    chat_template_kwargs: dict[str, Any] | None = None


@dataclass(frozen=True)
class Job:
    """A checked request: what to compute and how to show it."""

    kind: Literal["text", "chat"]
    model: str
    prompts: list[list[int]]
    samplings: list[Sampling]
    """One per prompt: the number of tokens left differs."""
    n: int
    stream: bool
    include_usage: bool
    return_token_ids: bool
    tokens_as_ids: bool
    """Show tokens as ``token_id:<int>`` instead of text."""
    tool_format: ToolFormat | None = None
    """How tool calls are read out of the text; None: they are not."""


def parse(kind: type[B], raw: bytes) -> B:
    """Check a request's body.

    Raises:
        RequestError: 400, with parameter, value and what is allowed.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"the body is no JSON: {error}") from error
    if not isinstance(data, dict):
        raise RequestError(400, f"the body is a JSON {type(data).__name__}; an object is needed")
    for name, neutral in _NEUTRAL.items():
        value = data.get(name)
        if value is not None and value not in neutral:
            allowed = f"{neutral[0]!r}, or leave it out" if neutral else "leave it out"
            raise bad_parameter(name, value, f"{allowed}: this engine does not support it")
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise bad_parameter(name, "missing" if first["type"] == "missing" else first["input"], first["msg"]) from error


@dataclass(frozen=True)
class Window:
    """What the model can take."""

    context_tokens: int
    vocab_size: int
    eos_token_ids: frozenset[int]


def text_job(body: TextBody, window: Window, tokenize: Callable[[str], list[int]]) -> Job:
    """What a completions body asks for.

    Raises:
        RequestError: 400.
    """
    prompts = _prompts(body.prompt, tokenize)
    for prompt in prompts:
        _check_prompt("prompt", prompt, window)
    samplings = [_sampling(body, prompt, window, body.max_tokens, body.logprobs) for prompt in prompts]
    return _job("text", body, prompts, samplings)


def chat_job(body: ChatBody, window: Window, template: ChatTemplate) -> Job:
    """What a chat completions body asks for.

    Raises:
        RequestError: 400.
    """
    if body.top_logprobs and not body.logprobs:
        raise bad_parameter("top_logprobs", body.top_logprobs, "0, or set 'logprobs' to true")
    if body.tool_choice not in (None, "auto", "none"):
        raise bad_parameter("tool_choice", body.tool_choice, "'auto' or 'none': this engine can't force a call")
    prompt = template.prompt(body.messages, body.tools, body.chat_template_kwargs)
    _check_prompt("messages", prompt, window)
    most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    job = _job("chat", body, [prompt], [_sampling(body, prompt, window, most, logprobs)])
    # with "none" the model is shown the tools all the same, so that the chat goes on as it began
    calls = body.tools and body.tool_choice != "none"
    return replace(job, tool_format=template.tools.form) if calls else job


def _prompts(
    given: str | list[int] | list[str] | list[list[int]], tokenize: Callable[[str], list[int]]
) -> list[list[int]]:
    if isinstance(given, str):
        return [tokenize(given)]
    tokens = [item for item in given if isinstance(item, int)]
    if len(tokens) == len(given):
        return [tokens]
    return [tokenize(item) if isinstance(item, str) else item for item in given if not isinstance(item, int)]


def _job(kind: Literal["text", "chat"], body: Body, prompts: list[list[int]], samplings: list[Sampling]) -> Job:
    return Job(
        kind=kind,
        model=body.model,
        prompts=prompts,
        samplings=samplings,
        n=body.n,
        stream=body.stream,
        include_usage=body.stream_options is not None and body.stream_options.include_usage,
        return_token_ids=bool(body.return_token_ids),
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
    )


def _sampling(body: Body, prompt: list[int], window: Window, most: int | None, logprobs: int | None) -> Sampling:
    room = window.context_tokens - len(prompt)
    if most is not None and most > room:
        raise bad_parameter(
            "max_tokens", most, f"1 to {room}: the prompt has {len(prompt)} tokens, the context {window.context_tokens}"
        )
    limit = room if most is None else most
    if body.min_tokens > limit:
        raise bad_parameter("min_tokens", body.min_tokens, f"0 to {limit}, the most tokens")
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if "" in stop:
        raise bad_parameter("stop", body.stop, "strings of at least one character")
    eos = frozenset() if body.ignore_eos else window.eos_token_ids
    return Sampling(
        max_tokens=limit,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        seed=body.seed,
        stop=tuple(stop),
        stop_token_ids=eos | frozenset(body.stop_token_ids or ()),
        min_tokens=body.min_tokens,
        logprobs=logprobs,
        prompt_logprobs=body.prompt_logprobs,
    )


def _check_prompt(name: str, prompt: list[int], window: Window) -> None:
    if not prompt:
        raise bad_parameter(name, prompt, "at least one token")
    if len(prompt) >= window.context_tokens:
        raise bad_parameter(
            name, f"{len(prompt)} tokens", f"at most {window.context_tokens - 1}, to leave room for an answer"
        )
    outside = [token for token in prompt if not 0 <= token < window.vocab_size]
    if outside:
        raise bad_parameter(name, outside[0], f"token ids from 0 to {window.vocab_size - 1}")
