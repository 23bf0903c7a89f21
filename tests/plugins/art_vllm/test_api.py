"""What is sent to vLLM. A server that takes everything stands for it: how vLLM answers is for the heavy tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from art_vllm.api import Api
from art_vllm.options import VllmOptions
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from art_core.config import Timeouts
from art_core.engine_server import EngineServer
from art_core.errors import ConfigError
from art_core.server import ServerThread

Asked = list[tuple[str, Any]]


@pytest.fixture
async def api() -> AsyncIterator[tuple[Api, Asked]]:
    asked: Asked = []

    async def answer(request: Request) -> Response:
        body = await request.body()
        asked.append((str(request.url).partition(request.url.netloc)[2], await request.json() if body else None))
        return Response()

    thread = ServerThread(Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])]), "vllm-that-takes-all")
    thread.start(10)
    try:
        yield (
            Api(EngineServer("vllm", f"http://127.0.0.1:{thread.port}", {}, None, Timeouts()), Timeouts(), own=True),
            asked,
        )
    finally:
        thread.close()


async def test_sleep_waits_for_requests_which_vllm_would_cut(api: tuple[Api, Asked]) -> None:
    await api[0].sleep(1)
    await api[0].wake("weights")
    assert api[1] == [("/sleep?level=1&mode=wait", None), ("/wake_up?tags=weights", None)]


async def test_an_adapter_is_never_loaded_in_place(api: tuple[Api, Asked]) -> None:
    """With that flag vLLM reads it again in every step, and keeps cached prompts of the weights before."""
    await api[0].load("m@1", "/steps/1")
    assert api[1] == [("/v1/load_lora_adapter", {"lora_name": "m@1", "lora_path": "/steps/1"})]


def test_one_slot_is_too_few() -> None:
    """The next step's requests would wait until the last of this one's has ended."""
    with pytest.raises(ConfigError, match="'vllm' option 'max_loras' is 1: Input should be greater than or equal to 2"):
        VllmOptions.parse({"max_loras": 1})
