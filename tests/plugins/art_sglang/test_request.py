"""What is refused before SGLang sees it, and what ART decides in the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from art_sglang.serve.request import for_sglang, parse

from art_core.engine_front import RequestError


def body(**values: Any) -> bytes:
    return json.dumps({"model": "m@1", **values}).encode()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "no JSON"),
        (b"[" * 99_999, "no JSON"),
        (b"[]", "an object with a string 'model'"),
        (b'{"model": 1}', "an object with a string 'model'"),
        (b"{}", "an object with a string 'model'"),
        (body(lora_path="other"), "name the adapter as 'model'"),
        (body(prompt=[1, 100]), "'prompt' holds token id 100; allowed: 0 to 99"),
        (body(prompt=[[1], [2, -1]]), "'prompt' holds token id -1"),
        (body(input_ids=[10**12]), "'input_ids' holds token id 1000000000000"),
        (body(stop_token_ids=[3, 500]), "'stop_token_ids' holds token id 500"),
    ],
)
def test_refused(raw: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parse(raw, vocab_size=100)
    assert caught.value.status == 400
    assert caught.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("prompt", ["text", ["a", "b"], [0, 99], [[0], [99]], None])
def test_prompts_of_every_kind_pass(prompt: object) -> None:
    assert parse(body(prompt=prompt), vocab_size=100)["prompt"] == prompt


def test_the_adapter_is_ours_to_name() -> None:
    assert for_sglang(parse(body(), 10), "m@1#7", None)["lora_path"] == "m@1#7"
    assert for_sglang(parse(body(lora_path=None), 10), None, None)["lora_path"] is None


def test_a_chat_s_template_arguments_come_on_top_of_the_engine_s() -> None:
    defaults = {"enable_thinking": False, "a": 1}
    asked = for_sglang(parse(body(chat_template_kwargs={"a": 2}), 10), None, defaults)
    assert asked["chat_template_kwargs"] == {"enable_thinking": False, "a": 2}
    assert "chat_template_kwargs" not in for_sglang(parse(body(), 10), None, None)


def test_token_ids_in_a_chat_s_stream_are_not_asked_of_sglang_which_refuses_them() -> None:
    streamed = body(stream=True, return_token_ids=True)
    assert for_sglang(parse(streamed, 10), None, {})["return_token_ids"] is False
    assert for_sglang(parse(streamed, 10), None, None)["return_token_ids"] is True
    assert for_sglang(parse(body(return_token_ids=True), 10), None, {})["return_token_ids"] is True
