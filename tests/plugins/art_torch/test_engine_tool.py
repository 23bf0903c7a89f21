"""Tool calls: how they are read out of text, which templates know them, and whole conversations over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from art_torch.engine import TorchEngine
from art_torch.options import TorchEngineOptions
from art_torch.serve.chat import ChatTemplate
from art_torch.serve.tool_call import Reading, ToolCall, ToolFormat
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from art_core.engine_front import RequestError
from art_core.errors import ConfigError, EngineStartError
from art_core.protocols.engine import EngineSpec
from tests.plugins.art_torch.engine_sample import EngineServer
from tests.tool_model import ADD, ROUNDS, TOOL_TEMPLATE, question, result, spoken

CHAT = "/v1/chat/completions"
TAGGED, BARE = ToolFormat.TAGGED, ToolFormat.BARE
GREEDY = {"temperature": 0, "max_tokens": 80, "return_token_ids": True, "logprobs": True}


def tagged(body: str) -> str:
    return f"<tool_call>{body}</tool_call>"


def read(form: ToolFormat, *pieces: str) -> Reading:
    """What a reader makes of an answer that comes in pieces."""
    reader = form.reader()
    readings = [*map(reader.feed, pieces), reader.finish()]
    return Reading("".join(r.text for r in readings), tuple(call for r in readings for call in r.calls))


F = '{"name": "f", "arguments": {"x":1,  "y": [{"arguments": 2}]}}'
F_CALL = ToolCall("f", '{"x":1,  "y": [{"arguments": 2}]}')
READINGS: list[tuple[ToolFormat, str, Reading]] = [
    (TAGGED, "Just text.\n", Reading("Just text.\n")),
    (TAGGED, tagged(f"\n{F}\n"), Reading("", (F_CALL,))),
    (TAGGED, f"Now.\n{tagged(F)}\n{tagged(F)}\n", Reading("Now.", (F_CALL, F_CALL))),
    (TAGGED, f"Now.\n\n{tagged(F)} \n and then.", Reading("Now.\nand then.", (F_CALL,))),
    (TAGGED, tagged('{"arguments" : { } ,"id":"7", "name":"g h"}'), Reading("", (ToolCall("g h", "{ }"),))),
    (
        TAGGED,
        tagged('{"name": "f", "arguments": {}, "arguments": {"z": 1}}'),
        Reading("", (ToolCall("f", '{"z": 1}'),)),
    ),
    (TAGGED, f"<tool_call>{F}", Reading("", (F_CALL,))),  # its closing tag was a stop string
    (TAGGED, f"a\n<tool_call>{F[:-9]}", Reading(f"a\n<tool_call>{F[:-9]}")),
    (TAGGED, f"a\n{tagged('b')}\n\n{tagged('c')}\n", Reading(f"a\n{tagged('b')}\n\n{tagged('c')}\n")),
    (TAGGED, tagged("no json") + tagged(F), Reading(tagged("no json"), (F_CALL,))),
    (TAGGED, tagged('{"name": "f", "arguments": "{}"}'), Reading(tagged('{"name": "f", "arguments": "{}"}'))),
    (TAGGED, tagged('{"name": "f"}'), Reading(tagged('{"name": "f"}'))),
    (TAGGED, tagged('{"name": 3, "arguments": {}}'), Reading(tagged('{"name": 3, "arguments": {}}'))),
    (TAGGED, tagged(r'{"name": "\ud800", "arguments": {}}'), Reading(tagged(r'{"name": "\ud800", "arguments": {}}'))),
    (TAGGED, tagged("[" * 5_000), Reading(tagged("[" * 5_000))),
    (TAGGED, "a <tool_ca", Reading("a <tool_ca")),
    (BARE, "Just text {}", Reading("Just text {}")),
    (BARE, ' {"name": "f", "parameters": {"x":1}}\n', Reading("", (ToolCall("f", '{"x":1}'),))),
    (BARE, '{"name": "f", "parameters"', Reading('{"name": "f", "parameters"')),
    (BARE, F, Reading(F)),
    (BARE, "  ", Reading("  ")),
]


@pytest.mark.parametrize(("form", "text", "expected"), READINGS, ids=[text[:40] for _, text, _ in READINGS])
def test_what_is_read(form: ToolFormat, text: str, expected: Reading) -> None:
    assert read(form, text) == expected
    assert read(form, *text) == expected  # sign by sign, as a stream brings it


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", F, "\n", " ", "text", "<", "{", "}"])), st.data())
def test_how_a_stream_is_cut_changes_nothing(parts: list[str], data: st.DataObject) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for form in ToolFormat:
        assert read(form, *pieces) == read(form, text)


def test_text_is_not_held_back_longer_than_needed() -> None:
    reader = TAGGED.reader()
    assert [reader.feed(piece).text for piece in ("Hi\n", "<to", "ast> ", "<tool_call>x")] == [
        "Hi",
        "",
        "\n<toast> ",
        "",
    ]


@pytest.fixture(scope="module")
def tokenizer(tool_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tool_model)


def template_of(tokenizer: PreTrainedTokenizerBase, source: str | None, **variables: object) -> ChatTemplate:
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer, variables)


PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
AS_OBJECT = TOOL_TEMPLATE.replace("item.function.arguments if item.function.arguments is string else ", "")
LLAMA = (
    "{% if tools is not none %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one') }}"
    "{% endif %}{% set call = m.tool_calls[0].function %}<|im_start|>assistant\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|im_end|>'
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>{% endif %}{% endfor %}"
)
NAMED = TOOL_TEMPLATE.replace("<tool_response>\n", "<tool_response>\n{% if not message.name %}{{ nope() }}{% endif %}")
XML = "{% for t in tools or () %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.content }}{% for c in "
XML += "m.tool_calls or () %}<tool_call><function={{ c.function.name }}></function></tool_call>{% endfor %}{% endfor %}"
SUPPORT: list[tuple[str | None, bool, ToolFormat | None, bool]] = [
    (None, False, None, False),
    (PLAIN, False, None, False),
    ("{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}", False, None, False),
    (TOOL_TEMPLATE, True, TAGGED, True),
    (AS_OBJECT, True, TAGGED, False),
    (NAMED, True, TAGGED, True),
    (LLAMA, True, BARE, False),
    (XML, True, None, False),
]


@pytest.mark.parametrize(("source", "shown", "form", "as_text"), SUPPORT)
def test_what_templates_know(
    tokenizer: PreTrainedTokenizerBase, source: str | None, shown: bool, form: ToolFormat | None, as_text: bool
) -> None:
    tools = template_of(tokenizer, source).tools
    assert (tools.shown, tools.form, tools.arguments_as_text) == (shown, form, as_text)


def test_markup_that_decoding_drops_can_not_be_read(tokenizer: PreTrainedTokenizerBase) -> None:
    source = (
        TOOL_TEMPLATE.replace("tool_call>", "tool_call|>")
        .replace("<tool_call|", "<|im_end|")
        .replace("</tool_call|", "<|im_end|")
    )
    assert template_of(tokenizer, source).tools.form is None


def called(content: str | None = None, arguments: str = '{"a":1}', **call: Any) -> list[dict[str, Any]]:
    function = {"name": "add", "arguments": arguments}
    calls = [{"id": "1", "type": "function", "function": function, **call}]
    return [question(1), {"role": "assistant", "content": content, "tool_calls": calls}]


@pytest.mark.parametrize(
    ("source", "content", "rendered"),
    [
        (TOOL_TEMPLATE, None, 'assistant\n<tool_call>\n{"name": "add", "arguments": {"a":1}}\n</tool_call>'),
        (TOOL_TEMPLATE, "Hm.", 'assistant\nHm.\n<tool_call>\n{"name": "add", "arguments": {"a":1}}\n</tool_call>'),
        (AS_OBJECT, "", 'assistant\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'),
        (LLAMA, None, 'assistant\n{"name": "add", "parameters": {"a": 1}}'),
    ],
)
def test_calls_and_results_are_rendered_back(
    tokenizer: PreTrainedTokenizerBase, source: str, content: str | None, rendered: str
) -> None:
    messages = [*called(content), {"role": "tool", "tool_call_id": "1", "content": "3"}]
    text = tokenizer.decode(template_of(tokenizer, source).prompt(messages, [ADD]))
    assert f"<|im_start|>{rendered}<|im_end|>" in text
    assert "3\n</tool_response>" in text or "<|im_start|>tool\n3<|im_end|>" in text


def test_a_result_is_given_the_name_of_its_call(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [*called(), {"role": "tool", "tool_call_id": "1", "content": "3"}]
    source = "{{ tools | tojson }}" + TOOL_TEMPLATE + "{{ messages[-1].name }}!"
    assert tokenizer.decode(template_of(tokenizer, source).prompt(messages)).endswith("add!")


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ messages[0].content.a.b }}", "{{ {}.popitem() }}", "{{ messages[0].content + 1 }}"]
)
def test_a_template_that_fails_refuses_the_request(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    with pytest.raises(RequestError, match="the chat template refuses these messages"):
        template_of(tokenizer, source).prompt([question(1)])


def test_half_a_surrogate_pair_is_no_text(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(RequestError, match="the chat template refuses these messages"):
        template_of(tokenizer, PLAIN).prompt([{"role": "user", "content": "\ud800"}])


def test_a_template_is_checked_when_it_is_loaded(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"no Jinja: .*line 2"):
        template_of(tokenizer, "{{ messages }}\n{% if %}")
    with pytest.raises(ConfigError, match=r"'tools'.*not the renderer's own"):
        template_of(tokenizer, PLAIN, tools=[])


@pytest.fixture(scope="module")
async def server(tool_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EngineServer]:
    """An engine process that serves the model that calls tools."""
    engine = TorchEngine(TorchEngineOptions(device="cpu", cpu_threads=1))
    log_path = tmp_path_factory.mktemp("tool-engine") / "engine.log"
    endpoint = await engine.start(EngineSpec(str(tool_model), "base", lora_rank=1, log_path=log_path))
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=60) as client:
        yield EngineServer(engine, endpoint, client)
    await engine.stop()


async def test_a_conversation_with_tools_grows_append_only(
    server: EngineServer, tokenizer: PreTrainedTokenizerBase
) -> None:
    messages, before = [question(1)], list[int]()
    for number in range(1, ROUNDS + 1):
        for wanted in spoken(number):
            data = await server.post(CHAT, messages=messages, tools=[ADD], tool_choice="auto", **GREEDY)
            (choice,) = data["choices"]
            assert tokenizer.decode(choice["token_ids"]) == wanted + "<|im_end|>"
            assert len(choice["logprobs"]["content"]) == len(choice["token_ids"])  # the markup's tokens too
            assert data["prompt_token_ids"][: len(before)] == before
            before = data["prompt_token_ids"] + choice["token_ids"]
            messages.append(choice["message"])
            if "tool_call" not in wanted:
                assert choice["finish_reason"] == "stop" and choice["message"] == {
                    "role": "assistant",
                    "content": wanted,
                }
                continue
            assert choice["finish_reason"] == "tool_calls"
            assert choice["message"]["content"] == ("Let me see." if number % 2 else None)
            (call,) = choice["message"]["tool_calls"]
            assert call.keys() == {"id", "type", "function"} and call["type"] == "function"
            assert call["function"] == {"name": "add", "arguments": f'{{"a":{number}, "b": {number + 1}}}'}
            messages.append(result(call))
        messages.append(question(number + 1))
    assert len(messages) == 1 + 4 * ROUNDS


@pytest.mark.parametrize("number", [1, 2])
async def test_a_stream_says_the_same(server: EngineServer, number: int) -> None:
    """Through OpenAI's own client, which puts the deltas together."""
    messages: list[Any] = [question(1)]
    for past in range(1, number):
        call, answer = ({"role": "assistant", "content": said} for said in spoken(past))
        messages += [call, {"role": "user", "content": f"<tool_response>\n{2 * past + 1}\n</tool_response>"}, answer]
        messages.append(question(past + 1))
    body: dict[str, Any] = {"model": "base", "messages": messages, "tools": [ADD], "n": 2, **GREEDY}
    whole = (await server.post(CHAT, **body))["choices"][0]
    endpoint = server.endpoint
    async with AsyncOpenAI(base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key, max_retries=0) as client:
        extra = {"return_token_ids": body.pop("return_token_ids")}
        async with client.chat.completions.stream(**body, extra_body=extra) as stream:
            tokens = [
                token
                async for event in stream
                if event.type == "chunk"
                for choice in event.chunk.choices
                if choice.index == 0
                for token in (choice.model_extra or {}).get("token_ids", [])
            ]
            final = await stream.get_final_completion()
    assert tokens == whole["token_ids"]
    for choice in final.choices:
        assert choice.finish_reason == whole["finish_reason"] == "tool_calls"
        assert (choice.message.content or None) == whole["message"]["content"]
        (call,) = choice.message.tool_calls or ()
        assert call.function.model_dump(include={"name", "arguments"}) == whole["message"]["tool_calls"][0]["function"]
        assert choice.logprobs is not None and len(choice.logprobs.content or ()) == len(tokens)


async def test_calls_are_text_where_none_are_wanted(server: EngineServer) -> None:
    body = {"messages": [question(1)], "tools": [ADD], "tool_choice": "none", **GREEDY}
    (choice,) = (await server.post(CHAT, **body))["choices"]
    assert choice["message"] == {"role": "assistant", "content": spoken(1)[0]} and choice["finish_reason"] == "stop"


async def test_a_call_that_is_cut_off_is_text(server: EngineServer) -> None:
    body = {"messages": [question(1)], "tools": [ADD], **GREEDY, "max_tokens": 25}
    (choice,) = (await server.post(CHAT, **body))["choices"]
    assert choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]
    assert spoken(1)[0].startswith(choice["message"]["content"]) and "<tool_call>" in choice["message"]["content"]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"tools": [ADD], "tool_choice": "required"}, r"'tool_choice' is 'required'; allowed: 'auto' or 'none'"),
    ({"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}}, r"'tool_choice' is .*'add'"),
    ({"tools": [ADD], "parallel_tool_calls": False}, r"'parallel_tool_calls' is False; allowed: True"),
    ({"tools": [{"type": "web_search"}]}, r"'tools' is .*web_search.*; allowed: \{'type': 'function'"),
    ({"tools": [{"type": "function", "function": {}}]}, r"'tools' is "),
    ({"tools": "add"}, r"'tools' is 'add'"),
    ({"messages": called(arguments="{")}, r"'messages.tool_calls.function.arguments' is '\{'; allowed: the JSON text"),
    ({"messages": called(arguments="[" * 9000)}, r"'messages.tool_calls.function.arguments' is '\[\["),
    ({"messages": called(arguments="[1]")}, r"'messages.tool_calls.function.arguments' is '\[1\]'"),
    ({"messages": called(arguments={"a": 1})}, r"'messages.tool_calls.function.arguments' is \{'a': 1\}"),
    ({"messages": called(function="add")}, r"'messages.tool_calls' is "),
    ({"messages": [question(1), {"role": "assistant", "tool_calls": 3}]}, r"'messages.tool_calls' is 3"),
    ({"chat_template": "{{ messages }}"}, r"'chat_template' is .*; allowed: leave it out"),
    ({"guided_json": {}}, r"'guided_json' is \{\}; allowed: leave it out: this engine does not support it"),
    ({"structured_outputs": {"json": {}}}, r"'structured_outputs' is .* does not support it"),
    ({"response_format": {"type": "json_schema"}}, r"'response_format' is .*; allowed: \{'type': 'text'\}"),
]


@pytest.mark.parametrize(("body", "message"), BAD)
async def test_what_can_not_be_done_is_refused(server: EngineServer, body: dict[str, Any], message: str) -> None:
    data = await server.post(CHAT, status=400, **{"messages": [question(1)], **body})
    assert data["error"]["type"] == "invalid_request_error"
    assert re.search(message, data["error"]["message"]), data


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [ADD]}, "tools"),
        ({"messages": called()}, "messages.tool_calls"),
        ({"messages": [question(1), {"role": "tool", "content": "3", "tool_call_id": "1"}]}, "messages.role"),
    ],
)
async def test_a_template_without_tools_refuses_them(
    engine_server: EngineServer, body: dict[str, Any], param: str
) -> None:
    data = await engine_server.post(CHAT, status=400, **{"messages": [question(1)], **body})
    assert data["error"]["param"] == param and "does not show tools" in data["error"]["message"]


async def test_variables_of_the_spec_and_of_the_request(tool_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine(TorchEngineOptions(device="cpu", cpu_threads=1))
    source = "{{ a }}|{{ b }}|{{ messages[0].content }}"
    variables: dict[str, object] = {"a": "spec", "b": [1, {"c": None}]}
    spec = EngineSpec(
        str(tool_model), "base", 1, tmp_path / "log", chat_template=source, chat_template_kwargs=variables
    )
    endpoint = await engine.start(spec)
    headers = {"Authorization": f"Bearer {endpoint.api_key}"}
    async with httpx.AsyncClient(base_url=endpoint.base_url, headers=headers, timeout=60) as client:
        server = EngineServer(engine, endpoint, client)
        tokenizer = AutoTokenizer.from_pretrained(tool_model)
        for given_variables, expected in (({}, "spec|[1, {'c': None}]|x"), ({"a": "mine"}, "mine|[1, {'c': None}]|x")):
            data = await server.post(
                CHAT,
                messages=[{"role": "user", "content": "x"}],
                chat_template_kwargs=given_variables,
                max_tokens=1,
                return_token_ids=True,
            )
            assert tokenizer.decode(data["prompt_token_ids"]) == expected
    await engine.stop()


async def test_a_template_that_is_no_jinja_stops_the_start(tool_model: Path, tmp_path: Path) -> None:
    engine = TorchEngine(TorchEngineOptions(device="cpu"))
    with pytest.raises((ConfigError, EngineStartError), match="no Jinja"):
        await engine.start(EngineSpec(str(tool_model), "base", 1, tmp_path / "log", chat_template="{% if %}"))


def test_arguments_are_json(tokenizer: PreTrainedTokenizerBase) -> None:
    for _, _, expected in READINGS:
        assert all(isinstance(json.loads(call.arguments), dict) for call in expected.calls)
