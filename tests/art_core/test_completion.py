"""What is added to completions, as bytes and JSON data; the wire around it is in `test_gateway`."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_core.completion import Served, StreamMarker, choice_count, mark, with_defaults

SERVED = Served("agent@7", 7, 0.5)


def stream(texts: list[str], model: str = 'engine"s', **dumps: object) -> bytes:
    """A stream of one choice that carries those texts, as an engine writes it."""
    lines = [b": a comment"]
    for text in texts:
        choice = {"index": 0, "delta": {"content": text}, "logprobs": None}
        data = {"id": "c", "model": model, "choices": [choice], "usage": None}
        lines.append(b"data: " + json.dumps(data, **dumps).encode())
    return b"\n\n".join([*lines, b"data: [DONE]", b""])


def chunks(data: bytes) -> list[dict]:
    return [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]


def run(data: bytes, cuts: list[int], choices: int = 1) -> bytes:
    marker = StreamMarker(SERVED, choices)
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return b"".join(marker.feed(data[a:b]) for a, b in itertools.pairwise(edges)) + marker.end()


@given(
    st.lists(st.text() | st.sampled_from(['{"model": "x"}', ',"model":"y"', "\\", '\\"', "data: {"]), min_size=1),
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from([(",", ":"), (", ", ": ")]),
    st.booleans(),
    st.sampled_from(['engine"s', SERVED.name]),
)
def test_whatever_the_text_and_however_the_stream_is_cut_only_our_fields_change(
    texts: list[str], cuts: list[int], separators: tuple[str, str], ascii_only: bool, model: str
) -> None:
    data = stream(texts, model, separators=separators, ensure_ascii=ascii_only)
    seen, sent = chunks(run(data, cuts)), chunks(data)
    assert seen[0]["choices"][0].pop("policy_step") == 7
    assert seen[0]["choices"][0].pop("temperature") == 0.5
    assert [chunk.pop("model") for chunk in seen] == ["agent@7"] * len(texts)
    for chunk in sent:
        del chunk["model"]
    assert seen == sent
    assert run(data, cuts).startswith(b": a comment\n\n")
    assert run(data, cuts).endswith(b"data: [DONE]\n\n")


def test_every_line_that_is_whole_passes_at_once() -> None:
    marker, data = StreamMarker(SERVED, 1), stream(["a", "b"])
    first = data.index(b"\n\n", data.index(b"data:")) + 2
    assert marker.feed(data[:first]).endswith(b"}\n\n")


def test_a_line_that_broke_off_is_never_sent() -> None:
    """Else an error event after it would be part of it."""
    data = stream(["a", "b"], SERVED.name)
    marker = StreamMarker(SERVED, 1)
    cut = data.rindex(b"data: {") + 12
    assert marker.feed(data[:cut]).endswith(b"}\n\n")


def test_events_that_end_with_carriage_returns_are_events_still() -> None:
    seen = run(stream(["a", "b", "c"]).replace(b"\n", b"\r\n"), [])
    assert [chunk["model"] for chunk in chunks(seen)] == ["agent@7"] * 3


def test_errors_and_usage_pass_without_choices() -> None:
    data = b'data: {"error": {"message": "no"}}\n\ndata: {"choices": [], "usage": {"total_tokens": 3}}\n\n'
    seen = chunks(run(data, []))
    assert seen[0]["error"] == {"message": "no"}
    assert seen[1]["usage"] == {"total_tokens": 3}


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        ({}, 1),
        ({"n": None}, 1),
        ({"n": 3}, 3),
        ({"prompt": "a"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "b"], "n": 2}, 4),
        ({"prompt": [[1], [2], [3]]}, 3),
        ({"prompt": []}, 1),
    ],
)
def test_how_many_choices_a_request_asks_for(request_: dict, count: int) -> None:
    assert choice_count(request_) == count


def test_a_choice_s_own_prompt_tokens_stay() -> None:
    answer = {"prompt_token_ids": [1], "choices": [{"prompt_token_ids": [2]}, {"prompt_token_ids": None}, {}]}
    mark(answer, SERVED)
    assert [choice["prompt_token_ids"] for choice in answer["choices"]] == [[2], [1], [1]]


@pytest.mark.parametrize("given", [{}, {"temperature": None, "top_p": None}])
def test_sampling_is_written_out(given: dict) -> None:
    request = with_defaults(given, chat=True)
    assert (request["temperature"], request["top_p"]) == (1.0, 1.0)


def test_the_caller_s_request_is_not_changed() -> None:
    payload = {"model": "agent"}
    with_defaults(payload, chat=False)
    assert payload == {"model": "agent"}
