"""The engine's HTTP, on a real process: shapes, extras for training, streams, refusals."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, NotFoundError
from transformers import AutoTokenizer

from art_core.testing.condition import until
from tests.plugins.art_torch.engine_sample import EngineServer, prompt
from tests.tiny_model import CHAT_TEMPLATE

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


async def events(server: EngineServer, path: str, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, which ends with ``[DONE]``."""
    request = {"model": "base", "stream": True, **body}
    async with server.client.stream("POST", path, json=request) as response:
        assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Any) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


async def test_chat_shape_and_extras(engine_server: EngineServer, tokenizer: Any) -> None:
    extras = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True, "prompt_logprobs": 0}
    data = await engine_server.post(CHAT, messages=MESSAGES, max_tokens=6, seed=1, ignore_eos=True, **extras)
    (choice,) = data["choices"]
    assert data["object"] == "chat.completion" and data["model"] == "base"
    assert (
        data["prompt_token_ids"] == tokenizer("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )
    assert len(choice["token_ids"]) == 6 and choice["finish_reason"] == "length"
    assert choice["message"] == {
        "role": "assistant",
        "content": tokenizer.decode(choice["token_ids"], skip_special_tokens=True),
    }
    content = choice["logprobs"]["content"]
    assert [entry["token"] for entry in content] == [tokenizer.decode([t]) for t in choice["token_ids"]]
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] < 0 for entry in content)
    assert data["prompt_logprobs"][0] is None
    second = data["prompt_token_ids"][1]
    assert list(data["prompt_logprobs"][1]) == [str(second)]
    assert data["prompt_logprobs"][1][str(second)].keys() == {"logprob", "rank", "decoded_token"}
    count = len(data["prompt_token_ids"])
    assert data["usage"] == {"prompt_tokens": count, "completion_tokens": 6, "total_tokens": count + 6}


async def test_text_shape_and_extras(engine_server: EngineServer, tokenizer: Any) -> None:
    data = await engine_server.post(
        TEXT, prompt=["ab", "cde"], n=2, max_tokens=3, logprobs=1, return_token_ids=True, prompt_logprobs=1,
        ignore_eos=True, return_tokens_as_token_ids=True,
    )  # fmt: skip
    assert [choice["index"] for choice in data["choices"]] == [0, 1, 2, 3]
    assert [choice["prompt_token_ids"] for choice in data["choices"]] == [
        tokenizer(text)["input_ids"] for text in ("ab", "ab", "cde", "cde")
    ]
    for choice in data["choices"]:
        shown = choice["logprobs"]
        assert shown["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
        assert len(shown["token_logprobs"]) == len(shown["top_logprobs"]) == len(shown["text_offset"]) == 3
        assert all(name in top for name, top in zip(shown["tokens"], shown["top_logprobs"], strict=True))
        assert len(choice["prompt_logprobs"]) == len(choice["prompt_token_ids"])
    assert data["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


async def test_token_id_prompts_equal_text_prompts(engine_server: EngineServer, tokenizer: Any) -> None:
    tokens = tokenizer("some text")["input_ids"]
    one = await engine_server.post(TEXT, prompt="some text", seed=4, max_tokens=5)
    two = await engine_server.post(TEXT, prompt=tokens, seed=4, max_tokens=5)
    three = await engine_server.post(TEXT, prompt=[tokens, tokens], seed=4, max_tokens=5)
    assert one["choices"] == two["choices"]
    assert [choice["text"] for choice in three["choices"]] == [one["choices"][0]["text"]] * 2


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_a_stream_carries_what_the_whole_answer_does(engine_server: EngineServer, path: str) -> None:
    body: dict[str, Any] = {"n": 3, "seed": 5, "max_tokens": 24, "return_token_ids": True, "temperature": 1.5}
    body |= {"messages": MESSAGES, "logprobs": True} if path == CHAT else {"prompt": "x y", "logprobs": 1}
    whole = await engine_server.post(path, **body)
    chunks = await events(engine_server, path, stream_options={"include_usage": True}, **body)
    assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    assert not any("prompt_token_ids" in chunk for chunk in chunks[1:])
    assert chunks[-1]["usage"] == whole["usage"] and chunks[-1]["choices"] == []
    for choice in whole["choices"]:
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == choice["index"]]
        assert [token for c in own for token in c.get("token_ids", [])] == choice["token_ids"]
        assert [c["finish_reason"] for c in own if c["finish_reason"]] == [choice["finish_reason"]]
        if path == CHAT:
            assert own[0]["delta"] == {"role": "assistant", "content": ""}
            assert "".join(c["delta"]["content"] for c in own) == choice["message"]["content"]
            joined = [entry for c in own if c["logprobs"] for entry in c["logprobs"]["content"]]
            for streamed, entry in zip(joined, choice["logprobs"]["content"], strict=True):
                assert streamed == {**entry, "logprob": pytest.approx(entry["logprob"], abs=1e-4)}
        else:
            assert "".join(c["text"] for c in own) == choice["text"]
            for key in ("tokens", "text_offset"):
                assert [x for c in own for x in c["logprobs"][key]] == choice["logprobs"][key]
            logprobs = [x for c in own for x in c["logprobs"]["token_logprobs"]]
            # The prompt is computed afresh or taken up: the last digits may differ.
            assert logprobs == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_strings_end_the_text_but_not_the_tokens(engine_server: EngineServer, stream: bool) -> None:
    body = {"prompt": prompt(12, 3), "seed": 6, "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
    full = (await engine_server.post(TEXT, **body))["choices"][0]
    stop = full["text"][10:12]
    at = full["text"].index(stop)
    if stream:
        parts = [chunk["choices"][0] for chunk in await events(engine_server, TEXT, **body, stop=[stop, "§§"])]
        text, tokens = "".join(part["text"] for part in parts), [t for part in parts for t in part["token_ids"]]
        reason = parts[-1]["finish_reason"]
    else:
        (choice,) = (await engine_server.post(TEXT, **body, stop=stop))["choices"]
        text, tokens, reason = choice["text"], choice["token_ids"], choice["finish_reason"]
    assert text == full["text"][:at] and reason == "stop"
    assert tokens == full["token_ids"][: len(tokens)] and len(tokens) < 40


async def test_a_stop_token_is_reported_and_has_no_text(engine_server: EngineServer) -> None:
    body = {"prompt": prompt(12, 4), "seed": 7, "max_tokens": 10, "ignore_eos": True, "return_token_ids": True}
    full = (await engine_server.post(TEXT, **body))["choices"][0]
    stop = full["token_ids"][4]
    (choice,) = (await engine_server.post(TEXT, **body, stop_token_ids=[stop]))["choices"]
    cut = full["token_ids"].index(stop) + 1
    assert choice["token_ids"] == full["token_ids"][:cut] and choice["finish_reason"] == "stop"


async def test_without_max_tokens_the_context_is_the_limit(engine_server: EngineServer) -> None:
    data = await engine_server.post(TEXT, prompt=prompt(500), ignore_eos=True)
    assert data["usage"] == {"prompt_tokens": 500, "completion_tokens": 12, "total_tokens": 512}


@pytest.mark.parametrize(
    "content", [None, "", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "日本語 🙂"]
)
async def test_contents_of_every_kind(engine_server: EngineServer, tokenizer: Any, content: Any) -> None:
    data = await engine_server.post(
        CHAT, messages=[{"role": "user", "content": content}], max_tokens=1, return_token_ids=True
    )
    text = {None: "", "": "", "日本語 🙂": "日本語 🙂"}[content] if not isinstance(content, list) else "a\nb"
    shown = tokenizer("<|im_start|>user\n" + text + "<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert data["prompt_token_ids"] == shown


BAD: list[tuple[str, dict[str, Any], str]] = [
    (TEXT, {"prompt": "a", "temperature": -1}, r"'temperature' is -1"),
    (TEXT, {"prompt": "a", "top_p": 0}, r"'top_p' is 0"),
    (TEXT, {"prompt": "a", "n": 0}, r"'n' is 0"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, r"'max_tokens' is 0"),
    (TEXT, {"prompt": "a", "max_tokens": 512}, r"'max_tokens' is 512; allowed: 1 to 511.*1 tokens, the context 512"),
    (TEXT, {"prompt": "a", "logprobs": 21}, r"'logprobs' is 21"),
    (TEXT, {"prompt": "a", "stop": [""]}, r"'stop' is \[''\]"),
    (TEXT, {"prompt": "a", "min_tokens": 9, "max_tokens": 8}, r"'min_tokens' is 9; allowed: 0 to 8"),
    (TEXT, {"prompt": "a", "frequency_penalty": 0.5}, r"'frequency_penalty' is 0\.5; allowed: 0, or leave it out"),
    (TEXT, {"prompt": "a", "echo": True}, r"'echo' is True"),
    (TEXT, {"prompt": ""}, r"'prompt' is \[\]; allowed: at least one token"),
    (TEXT, {"prompt": []}, r"'prompt' is \[\]"),
    (TEXT, {"prompt": [[1, 2], []]}, r"'prompt' is \[\]"),
    (TEXT, {"prompt": [1, 258]}, r"'prompt' is 258; allowed: token ids from 0 to 257"),
    (TEXT, {"prompt": [1] * 512}, r"'prompt' is '512 tokens'; allowed: at most 511"),
    (TEXT, {"prompt": {"a": 1}}, r"parameter 'prompt"),
    (TEXT, {}, r"'prompt' is 'missing'"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": "x" * 600}]},
        r"'messages' is '6\d\d tokens'; allowed: at most",
    ),
    (CHAT, {"messages": []}, r"'messages' is \[\]"),
    (CHAT, {"messages": MESSAGES, "top_logprobs": 2}, r"'top_logprobs' is 2.*'logprobs' to true"),
    (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, r"'response_format' is .*json_object"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, r"'messages.content' is .*text only"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, r"'messages.content' is 3"),
    (CHAT, {"messages": [{"content": "no role"}]}, r"'messages.role' is None"),
    (
        CHAT,
        {"messages": MESSAGES, "chat_template_kwargs": {"chat_template": "x"}},
        r"'chat_template_kwargs' is 'chat_t",
    ),
]


@pytest.mark.parametrize(("path", "body", "message"), BAD)
async def test_bad_parameters_are_named(
    engine_server: EngineServer, path: str, body: dict[str, Any], message: str
) -> None:
    data = await engine_server.post(path, status=400, **body)
    assert data["error"]["type"] == "invalid_request_error"
    assert re.search(message, data["error"]["message"]), data


async def test_a_body_that_is_no_json(engine_server: EngineServer) -> None:
    for raw in (b"{", b"[1]", b"[" * 99_999):
        response = await engine_server.client.post(TEXT, content=raw)
        assert response.status_code == 400 and "body" in response.json()["error"]["message"]


@pytest.mark.parametrize("name", ["", "a@1", "bas", "A"])
async def test_unknown_models_are_404_never_the_base(engine_server: EngineServer, name: str) -> None:
    data = await engine_server.post(TEXT, status=404, model=name, prompt="x")
    assert data["error"]["code"] == "model_not_found" and f"{name!r}" in data["error"]["message"]


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/art/load", TEXT])
async def test_every_route_wants_the_key(engine_server: EngineServer, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": engine_server.endpoint.api_key}):
        async with httpx.AsyncClient(base_url=engine_server.endpoint.base_url, headers=headers, timeout=60) as client:
            response = await (client.get(path) if path in ("/health", "/v1/models") else client.post(path, json={}))
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"


async def test_the_openai_client_is_served(engine_server: EngineServer) -> None:
    endpoint = engine_server.endpoint
    async with AsyncOpenAI(base_url=f"{endpoint.base_url}/v1", api_key=endpoint.api_key, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == ["base", "a"]
        done = await client.chat.completions.create(model="a", messages=MESSAGES, max_tokens=4, logprobs=True)  # type: ignore[arg-type]
        assert done.usage is not None and done.choices[0].logprobs is not None
        assert len(done.choices[0].logprobs.content or []) == done.usage.completion_tokens
        with pytest.raises(NotFoundError, match="'nope' is not served"):
            await client.completions.create(model="nope", prompt="x")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_rows(engine_server: EngineServer, stream: bool) -> None:
    body = {"model": "a", "prompt": "x", "n": 8, "max_tokens": 500, "ignore_eos": True, "stream": stream}

    async def ask_on() -> None:
        while True:  # one that ended before it was seen is no proof of anything
            async with engine_server.client.stream("POST", TEXT, json=body) as response:
                assert response.status_code == 200
                await response.aread()

    async def running() -> int:
        return (await engine_server.engine.health()).running_requests

    async def all_run() -> bool:
        return await running() == 8

    async def none_runs() -> bool:
        return await running() == 0

    task = asyncio.create_task(ask_on())
    await until(all_run, "eight rows are taken")
    task.cancel()
    await until(none_runs, "the rows are free")


async def test_the_template_is_the_models(engine_server: EngineServer) -> None:
    assert engine_server.endpoint.model.chat_template == CHAT_TEMPLATE
