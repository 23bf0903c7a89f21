"""The door before vLLM's routes. Behind it is an application that only answers; heavy tests have the real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from art_vllm import door
from art_vllm.door import Door, tools_refusal
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from art_core.testing.condition import until

KEY = {"Authorization": "Bearer right"}
PATHS = ["/health", "/v1/models", "/collective_rpc", "/sleep", "/pause", "/v1/load_lora_adapter", "/art/state", "/docs"]


class Models:
    """What the door asks of vLLM's own list of models."""

    def __init__(self) -> None:
        self.lora_requests: dict[str, Any] = {}

    def is_base_model(self, name: str) -> bool:
        return name == "base"

    def load(self, name: str, number: int) -> None:
        self.lora_requests[name] = SimpleNamespace(lora_int_id=number, lora_path=f"/steps/{number}")


class Behind:
    """Answers every path; completions wait until they are let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.go.set()
        self.models = Models()
        self.changing: list[str] = []
        paths = [Route(path, self.answer, methods=["GET", "POST"]) for path in ("/{path:path}",)]
        app = Starlette(routes=paths)
        app.state.openai_serving_models = self.models
        app.state.engine_client = SimpleNamespace(errored=False)
        self.state = app.state
        self.door = Door(app)

    async def answer(self, request: Request) -> Response:
        if "lora_adapter" in request.url.path:
            self.changing.append(request.url.path)
            await asyncio.sleep(0)
            self.changing.append("done")
        await self.go.wait()
        return JSONResponse({"body": (await request.body()).decode()})


@pytest.fixture(autouse=True)
def configured() -> Iterator[None]:
    door.configure("right")
    yield
    door._settings.clear()


@pytest.fixture
async def behind() -> AsyncIterator[Behind]:
    yield Behind()


@pytest.fixture
async def client(behind: Behind) -> AsyncIterator[httpx.AsyncClient]:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await behind.door({**scope, "app": SimpleNamespace(state=behind.state)}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://door") as client:
        yield client


async def state_of(client: httpx.AsyncClient) -> Any:
    await asyncio.sleep(0)  # nothing on this way to the door waits, so others would not get their turn
    return (await client.get("/art/state", headers=KEY)).json()


async def running(client: httpx.AsyncClient, expected: dict[str, int]) -> None:
    """Wait until those requests are inside."""

    async def inside() -> bool:
        return (await state_of(client))["running"] == expected

    await until(inside, f"{expected} are inside")


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_asks_for_the_key(client: httpx.AsyncClient, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}, {"Authorization": ""}):
        assert (await client.get(path, headers=headers)).status_code == 401
        assert (await client.post(path, headers=headers, json={})).status_code == 401
    assert (await client.get(path, headers=KEY)).status_code == 200


@pytest.mark.parametrize(
    "body", [b'{"model": ""}', b"{}", b'{"model": null}', b'{"model": 3}', b"[]", b"[" * 99_999, b"{", b""]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_a_request_that_names_no_model_is_404(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    response = await client.post(path, headers=KEY, content=body)
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "model"


async def test_a_request_passes_with_its_body_whole(client: httpx.AsyncClient) -> None:
    text = '{"model": "base", "prompt": "' + "x" * 300_000 + '"}'
    response = await client.post("/v1/completions", headers=KEY, content=text)
    assert response.json()["body"] == text


async def test_requests_are_counted_under_the_adapter_that_the_name_stood_for(
    behind: Behind, client: httpx.AsyncClient
) -> None:
    behind.models.load("m@1", 4)
    behind.go.clear()
    names = ["m@1", "m@1", "base"]
    calls = [asyncio.ensure_future(client.post("/v1/completions", headers=KEY, json={"model": name})) for name in names]
    await running(client, {"4": 2, "0": 1})
    del behind.models.lora_requests["m@1"]
    behind.models.load("m@1", 5)
    state = await state_of(client)
    assert state["adapters"] == {"m@1": {"id": 5, "directory": "/steps/5"}}
    assert state["running"] == {"4": 2, "0": 1}
    behind.go.set()
    await asyncio.gather(*calls)
    assert (await state_of(client)) == {**state, "running": {}, "alive": True}


async def test_a_request_that_breaks_off_is_not_counted_any_more(behind: Behind, client: httpx.AsyncClient) -> None:
    behind.go.clear()
    call = asyncio.ensure_future(client.post("/v1/completions", headers=KEY, json={"model": "base"}))
    await running(client, {"0": 1})
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    assert (await state_of(client))["running"] == {}


async def test_loads_and_unloads_happen_one_after_the_other(behind: Behind, client: httpx.AsyncClient) -> None:
    paths = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"] * 3
    await asyncio.gather(*(client.post(path, headers=KEY, json={}) for path in paths))
    assert behind.changing == [each for path in paths for each in (path, "done")]


async def test_a_load_says_which_number_the_name_has_now(behind: Behind, client: httpx.AsyncClient) -> None:
    async def loaded(name: str) -> str | None:
        answer = await client.post("/v1/load_lora_adapter", headers=KEY, json={"lora_name": name})
        return answer.headers.get(door.NUMBER)

    behind.models.load("m@1", 7)
    assert await loaded("m@1") == "7"
    assert await loaded("said to be loaded, and not there") is None


async def test_a_dead_core_shows_in_the_state(behind: Behind, client: httpx.AsyncClient) -> None:
    behind.state.engine_client.errored = True
    assert (await state_of(client))["alive"] is False


async def test_an_unload_waits_for_who_is_inside_and_nobody_waits_for_it(
    behind: Behind, client: httpx.AsyncClient
) -> None:
    behind.models.load("m@1", 1)
    behind.go.clear()
    call = asyncio.ensure_future(client.post("/v1/completions", headers=KEY, json={"model": "m@1"}))
    await running(client, {"1": 1})
    answer = await client.post("/v1/unload_lora_adapter", headers=KEY, json={"lora_name": "m@1"})
    assert answer.status_code == 200 and behind.changing == []
    assert "m@1" in behind.models.lora_requests, "vLLM may look the request's name up only now"
    state = (await client.get("/art/state", headers=KEY)).json()
    assert state["adapters"] == {} and state["running"] == {"1": 1}
    assert (await client.post("/v1/completions", headers=KEY, json={"model": "m@1"})).status_code == 404
    behind.go.set()
    assert (await call).status_code == 200
    assert behind.models.lora_requests == {}


@pytest.mark.parametrize(
    ("template", "parser", "says"),
    [
        ("{{ tools }}<tool_call>", None, "'tool_call_parser' is None"),
        ("{{ messages }}", "hermes", "does not show them to the model"),
        ("{{ messages }}<tool_call>", "llama3_json", "does not show them to the model"),
        ("{{ tools }}", "hermes", "does not write calls as 'hermes' reads them"),
        ("{{ tools }}", "llama3_json", None),
        ("{% if tools %}<tool_call>{% endif %}", "hermes", None),
        ({"default": "{{ messages }}"}, "hermes", None),
    ],
)
def test_tools_are_served_where_the_template_knows_them(template: object, parser: str | None, says: str | None) -> None:
    told = tools_refusal(template, parser)
    assert told is None if says is None else told is not None and says in told


async def test_a_request_with_tools_is_not_passed_over(
    behind: Behind, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced: list[Any] = []
    monkeypatch.setattr(door, "announce", announced.append)
    tokenizer = SimpleNamespace(chat_template="{{ messages }}")
    model = SimpleNamespace(model="/m", get_vocab_size=lambda: 9, max_model_len=8, dtype="torch.float32")
    renderer = SimpleNamespace(get_tokenizer=lambda: tokenizer)
    behind.state.engine_client = SimpleNamespace(errored=False, model_config=model, renderer=renderer)
    behind.state.args = SimpleNamespace(chat_template=None, tool_call_parser="hermes")
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        pass

    await behind.door({"type": "lifespan", "app": SimpleNamespace(state=behind.state)}, receive, send)
    assert announced[0]["chat_template"] == "{{ messages }}"
    body: dict[str, Any] = {"model": "base", "messages": [], "tools": [{"type": "function"}]}
    refused = await client.post("/v1/chat/completions", headers=KEY, json=body)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "tools"
    for fields in ({"tools": []}, {"tool_choice": "none"}):
        assert (await client.post("/v1/chat/completions", headers=KEY, json={**body, **fields})).status_code == 200
