"""The gateway over real sockets, before `fake_engine_http` (its docstring says what that does not prove)."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import openai
import pytest
from starlette.applications import Starlette

from art_core import completion
from art_core.config import Timeouts
from art_core.errors import RouteError, RunError
from art_core.gateway import Gateway
from art_core.route import RouteTable
from art_core.server import ServerThread
from art_core.testing.condition import LONGEST_S, NOTICED_S, within
from tests.art_core.fake_engine_http import BASE, KEY, FakeEngine
from tests.art_core.test_route import policy

CHAT, TEXT = "/chat/completions", "/completions"


def chat(model: str = "agent", **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


def text(model: str = "agent", **fields: object) -> dict[str, object]:
    return {"model": model, "prompt": "Hi", **fields}


@dataclass
class Front:
    """A gateway before a fake engine that has steps 3 and 4 loaded, and a client with the key."""

    engine: FakeEngine
    route: RouteTable
    gateway: Gateway
    client: httpx.AsyncClient

    async def arrival(self) -> None:
        """Wait until the engine has a request."""
        assert await asyncio.to_thread(self.engine.arrived.acquire, timeout=LONGEST_S)


@asynccontextmanager
async def opened() -> AsyncIterator[Front]:
    engine = FakeEngine({"agent@3", "agent@4"})
    route = RouteTable("agent", BASE)
    gateway = Gateway(route, engine.endpoint)
    for step in (3, 4):
        route.flip(policy(step))
    gateway.start()
    headers = {"authorization": f"Bearer {gateway.api_key}"}
    async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, timeout=120) as client:
        yield Front(engine, route, gateway, client)
    await asyncio.gather(asyncio.to_thread(gateway.close), asyncio.to_thread(engine.close))


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    """A fresh one, for tests that change what is served."""
    async with opened() as fresh:
        yield fresh


@pytest.fixture(scope="module")
async def opened_once() -> AsyncIterator[Front]:
    async with opened() as each:
        yield each


@pytest.fixture
def shared(opened_once: Front) -> Front:
    """One for all tests that only ask."""
    opened_once.engine.requests.clear()
    return opened_once


def events(body: str) -> list[dict[str, object]]:
    lines = [line[6:] for line in body.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize(("asked", "served", "step"), [("agent", "agent@4", 4), ("agent@3", "agent@3", 3)])
@pytest.mark.parametrize(("path", "body"), [(CHAT, chat), (TEXT, text)])
async def test_a_completion_says_which_step_and_temperature_sampled_it(
    shared: Front, asked: str, served: str, step: int, path: str, body: Any
) -> None:
    answer = (await shared.client.post(path, json=body(asked, n=2, temperature=0.7))).json()
    assert answer["model"] == served
    assert shared.engine.requests[0]["model"] == served
    assert len(answer["choices"]) == 2
    for choice in answer["choices"]:
        assert choice["policy_step"] == step
        assert choice["temperature"] == 0.7
        assert choice["prompt_token_ids"] == [1, 2, 3]
        assert choice["token_ids"] == [5, 6]


async def test_the_base_model_answers_under_its_own_name_and_claims_no_step(shared: Front) -> None:
    answer = (await shared.client.post(CHAT, json=chat(BASE))).json()
    assert answer["model"] == BASE
    assert "policy_step" not in answer["choices"][0]
    assert answer["choices"][0]["temperature"] == 1.0


@pytest.mark.parametrize(("path", "body", "logprobs"), [(CHAT, chat, True), (TEXT, text, 1)])
async def test_what_training_needs_is_asked_for_by_default(
    shared: Front, path: str, body: Any, logprobs: object
) -> None:
    await shared.client.post(path, json=body(max_tokens=5, seed=1))
    sent = shared.engine.requests[0]
    assert sent["path"] == f"/v1{path}"
    assert sent["key"] == f"Bearer {KEY}"
    expected = {"logprobs": logprobs, "return_token_ids": True, "temperature": 1.0, "top_p": 1.0}
    assert {key: sent[key] for key in expected} == expected
    assert (sent["max_tokens"], sent["seed"]) == (5, 1)


async def test_what_the_caller_sets_stays(shared: Front) -> None:
    own = {"logprobs": False, "return_token_ids": False, "temperature": 0.3, "top_p": 0.9}
    answer = await shared.client.post(CHAT, json=chat(**own))
    assert {key: shared.engine.requests[0][key] for key in own} == own
    assert "prompt_token_ids" not in answer.json()["choices"][0]


async def test_truncated_sampling_is_warned_about_once(shared: Front, caplog: pytest.LogCaptureFixture) -> None:
    completion._warn_truncated.cache_clear()
    with caplog.at_level(logging.WARNING, "art.gateway"):
        for fields in ({"top_p": 1.0, "top_k": -1}, {"top_p": 0.9}, {"top_p": 0.5}, {"top_k": 20}):
            await shared.client.post(CHAT, json=chat(**fields))
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "a request samples with top_p",
        "a request samples with top_k",
    ]


@pytest.mark.parametrize("key", [None, "Bearer wrong", "Bearer", "Basic eDp5", f"Bearer {KEY}"])
async def test_without_the_key_nothing_is_answered(shared: Front, key: str | None) -> None:
    headers = {} if key is None else {"authorization": key}
    async with httpx.AsyncClient(base_url=shared.gateway.base_url, headers=headers) as stranger:
        for answer in (await stranger.post(CHAT, json=chat()), await stranger.get("/models")):
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert not shared.engine.requests


async def test_the_key_is_a_secret_of_each_gateway_unless_given(shared: Front) -> None:
    other = Gateway(shared.route, shared.engine.endpoint)
    assert len(other.api_key) >= 32
    assert other.api_key != shared.gateway.api_key
    assert Gateway(shared.route, shared.engine.endpoint, "mine").api_key == "mine"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"agent"', b"{}", b"[" * 99_999, b'{"model": 3}', b"\xff\xfe"])
async def test_garbage_is_refused(shared: Front, body: bytes) -> None:
    answer = await shared.client.post(CHAT, content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert not shared.engine.requests


async def test_an_unknown_model_is_refused_with_the_names_that_are_served(shared: Front) -> None:
    answer = await shared.client.post(CHAT, json=chat("agent@5"))
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "agent@3, agent@4" in error["message"]
    assert not shared.engine.requests


async def test_what_the_engine_refuses_passes_through_as_it_is(shared: Front) -> None:
    answer = await shared.client.post(CHAT, json=chat(user="refuse"))
    assert (answer.status_code, answer.content) == (422, b'{"error":  "verbatim"}')


async def test_an_unknown_path_is_refused_in_the_api_s_shape(shared: Front) -> None:
    assert (await shared.client.get("/nothing")).json()["error"]["code"] == "not_found"
    assert (await shared.client.get(CHAT)).status_code == 405


async def test_models_and_health(front: Front) -> None:
    models = (await front.client.get("/models")).json()
    assert [model["id"] for model in models["data"]] == ["agent", "agent@3", "agent@4", BASE]
    url = front.gateway.base_url.removesuffix("/v1")
    async with httpx.AsyncClient() as stranger:
        assert (await stranger.get(f"{url}/health")).json()["status"] == "ok"
    front.engine.close()
    async with httpx.AsyncClient() as stranger:
        assert (await stranger.get(f"{url}/health")).status_code == 503


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_is_marked_and_otherwise_unchanged(shared: Front, n: int) -> None:
    answer = await shared.client.post(CHAT, json=chat(stream=True, n=n, temperature=0.5))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = events(answer.text)
    assert {chunk["model"] for chunk in chunks} == {"agent@4"}
    choices = [chunk["choices"][0] for chunk in chunks]
    for index in range(n):
        mine = [choice for choice in choices if choice["index"] == index]
        assert (mine[0]["policy_step"], mine[0]["temperature"]) == (4, 0.5)
        content = "".join(choice["delta"]["content"] for choice in mine)
        assert content == 'agent@4 {"model": "mine"}, "model": "x" \\!'


async def test_a_stream_is_passed_on_as_it_comes(front: Front) -> None:
    """The second chunk is made only after the first has arrived here."""
    async with front.client.stream("POST", CHAT, json=chat(stream=True, user="wait")) as answer:
        lines = answer.aiter_lines()
        first = json.loads((await anext(lines))[6:])
        assert first["choices"][0]["delta"]["content"] == "agent@4"
        front.engine.open_gate()
        assert [line async for line in lines][-2:] == ["data: [DONE]", ""]


async def test_the_openai_client_reads_both(shared: Front) -> None:
    async with openai.AsyncOpenAI(base_url=shared.gateway.base_url, api_key=shared.gateway.api_key) as client:
        messages = [{"role": "user", "content": "Hi"}]
        whole = await client.chat.completions.create(model="agent", messages=messages)
        assert whole.choices[0].model_extra["policy_step"] == 4
        stream = await client.chat.completions.create(model="agent@3", messages=messages, stream=True)
        chunks = [chunk async for chunk in stream]
        assert chunks[0].choices[0].model_extra == {"policy_step": 3, "temperature": 1.0}
        assert {chunk.model for chunk in chunks} == {"agent@3"}
        with pytest.raises(openai.NotFoundError, match="agent@4"):
            await client.chat.completions.create(model="agent@9", messages=messages)
        with pytest.raises(openai.APIError, match="does not answer"):
            stream = await client.chat.completions.create(model="agent", messages=messages, stream=True, user="break")
            _ = [chunk async for chunk in stream]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_away_cancels_its_request_and_lets_its_step_go(front: Front, stream: bool) -> None:
    body = chat("agent@3", user="wait", stream=stream)
    request = asyncio.create_task(front.client.post(CHAT, json=body))
    await front.arrival()
    assert front.route.in_flight() == {3: 1}
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert await asyncio.to_thread(front.engine.client_left.wait, LONGEST_S)
    assert [each.step for each in await front.route.make_room(2, keep=1, timeout_s=LONGEST_S)] == [3]
    assert front.route.in_flight() == {}


async def test_a_request_in_flight_keeps_its_step_while_the_route_moves_on(front: Front) -> None:
    request = asyncio.create_task(front.client.post(CHAT, json=chat("agent@3", user="wait")))
    await front.arrival()
    front.engine.adapters.add("agent@5")
    front.route.flip(policy(5))
    assert [each.step for each in front.route.take_idle(keep=1)] == [4]
    front.engine.open_gate()
    assert (await request).json()["choices"][0]["policy_step"] == 3
    assert [each.step for each in await front.route.make_room(2, keep=1, timeout_s=LONGEST_S)] == [3]
    assert (await front.client.post(CHAT, json=chat())).json()["model"] == "agent@5"


@pytest.mark.parametrize("fields", [{}, {"user": "refuse"}, {"stream": True}, {"stream": True, "user": "break"}])
async def test_every_way_to_end_lets_the_step_go(front: Front, fields: dict[str, object]) -> None:
    await front.client.post(CHAT, json=chat("agent@3", **fields))
    assert [each.step for each in await front.route.make_room(2, keep=1, timeout_s=LONGEST_S)] == [3]


async def test_a_stream_that_breaks_off_ends_with_an_error_and_not_as_if_whole(shared: Front) -> None:
    answer = await shared.client.post(CHAT, json=chat(stream=True, user="break"))
    assert "[DONE]" not in answer.text
    assert events(answer.text)[-1]["error"]["code"] == "engine_unavailable"


async def test_an_engine_that_is_down_is_said(front: Front) -> None:
    front.engine.close()
    for stream in (False, True):
        with within(NOTICED_S, "an engine that is down is said"):
            answer = await front.client.post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["code"] == "engine_unavailable"
    front.route.flip(policy(5))
    assert [each.step for each in await front.route.make_room(2, keep=1, timeout_s=LONGEST_S)] == [3, 4]


async def test_an_engine_that_never_answers_is_given_up(shared: Front) -> None:
    gateway = Gateway(shared.route, shared.engine.endpoint, "key", replace(Timeouts(), request_s=0.2))
    gateway.start()
    async with httpx.AsyncClient(base_url=gateway.base_url, headers={"authorization": "Bearer key"}) as client:
        answer = await client.post(CHAT, json=chat(user="wait"))
    assert answer.status_code == 503
    assert "nothing came for 0.2 s" in answer.json()["error"]["message"]
    gateway.close()


async def test_large_bodies_pass(shared: Front) -> None:
    body = chat(messages=[{"role": "user", "content": "é" * (4 << 20)}])
    assert (await shared.client.post(CHAT, json=body)).status_code == 200
    assert shared.engine.requests[0]["messages"] == body["messages"]


async def test_64_requests_at_once_are_each_answered_by_the_step_they_name_while_flips_happen(front: Front) -> None:
    """The engine answers for an adapter only while it is loaded, with that adapter's name as text."""
    done = threading.Event()

    def publish() -> None:
        for step in itertools.count(5):
            front.engine.adapters.add(f"agent@{step}")
            front.route.flip(policy(step))
            for old in front.route.take_idle(keep=2):
                front.engine.adapters.remove(old.name)
            if done.wait(0.002):
                return

    async def ask(number: int) -> int:
        stream = number % 2 == 0
        answer = await front.client.post(CHAT, json=chat(stream=stream))
        assert answer.status_code == 200, answer.text
        first = events(answer.text)[0] if stream else answer.json()
        choice = first["choices"][0]
        asked = choice["delta" if stream else "message"]["content"]
        assert first["model"] == asked == f"agent@{choice['policy_step']}"
        return choice["policy_step"]

    publisher = threading.Thread(target=publish)
    publisher.start()
    seen = set[int]()
    try:
        async with asyncio.timeout(LONGEST_S):
            while len(seen) < 4:
                seen.update(await asyncio.gather(*(ask(n) for n in range(64))))
    finally:
        done.set()
        await asyncio.to_thread(publisher.join)
    left = await front.route.make_room(2, keep=1, timeout_s=LONGEST_S)
    assert len(left) == len(front.engine.adapters) - 1
    assert front.route.in_flight() == {}


async def test_before_the_first_publication_only_the_base_answers() -> None:
    engine = FakeEngine()
    gateway = Gateway(RouteTable("agent", BASE), engine.endpoint, "key")
    gateway.start()
    async with httpx.AsyncClient(base_url=gateway.base_url, headers={"authorization": "Bearer key"}) as client:
        answer = await client.post(CHAT, json=chat())
        assert answer.status_code == 404
        assert "nothing of 'agent' is published yet" in answer.json()["error"]["message"]
        assert (await client.post(CHAT, json=chat(BASE))).status_code == 200
    gateway.close()
    engine.close()


async def test_it_listens_on_loopback_only_and_stops(front: Front) -> None:
    port = int(front.gateway.base_url.rsplit(":", 1)[1].removesuffix("/v1"))
    with pytest.raises(RouteError, match="already runs"):
        front.gateway.start()
    waiting = asyncio.create_task(front.client.post(CHAT, json=chat("agent@3", user="wait")))
    await front.arrival()
    await asyncio.to_thread(front.gateway.close)
    front.gateway.close()
    answer = await waiting
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "the gateway is closing" in answer.text
    assert front.route.in_flight() == {}
    with pytest.raises(RouteError, match="not running"):
        _ = front.gateway.base_url
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_an_application_that_does_not_start_is_an_error() -> None:
    @asynccontextmanager
    async def broken(app: Starlette) -> AsyncIterator[None]:
        raise OSError("no")
        yield

    with pytest.raises(RunError, match="broken did not start"):
        ServerThread(Starlette(lifespan=broken), "broken").start(10)
