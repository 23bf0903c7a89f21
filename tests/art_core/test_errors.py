"""What an error tells: the nearest name, and where in another process it came from."""

from __future__ import annotations

import json

import pytest

from art_core.errors import EngineError, StoreError, TrainerError, from_wire, nearest, to_wire


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ("trch", "did you mean 'torch'? known: file, reload, torch"),
        ("relaod", "did you mean 'reload'? known: file, reload, torch"),
        ("quantum", "known: file, reload, torch"),
    ],
)
def test_the_nearest_name_is_suggested_and_all_are_listed(seen: str, expected: str) -> None:
    assert nearest(seen, ["torch", "file", "reload"]) == expected


def test_of_very_many_names_the_nearest_alone_is_told() -> None:
    assert nearest("name7x", [f"name{number}" for number in range(99)]) == "did you mean 'name7'?"


def test_nothing_to_choose_from_is_said() -> None:
    assert nearest("torch", []) == "known: none"


def test_the_wire_form_is_plain_json_and_leaves_unset_fields_out() -> None:
    data = to_wire(EngineError("died", stage="publish", step=0))
    assert json.loads(json.dumps(data)) == data
    assert data["type"] == "EngineError"
    assert data["message"] == "died"
    assert data["fields"] == {"stage": "publish", "step": 0}


def test_the_cause_in_the_other_process_stands_in_the_note() -> None:
    try:
        try:
            raise FileNotFoundError("adapter_model.safetensors")
        except FileNotFoundError as error:
            raise StoreError("commit failed", step=3) from error
    except StoreError as raised:
        rebuilt = from_wire(to_wire(raised))
    [note] = rebuilt.__notes__
    assert "FileNotFoundError: adapter_model.safetensors" in note
    assert "test_the_cause_in_the_other_process" in note


def test_a_foreign_error_with_the_name_of_ours_is_not_mistaken_for_it() -> None:
    class Foreign(Exception):
        pass

    Foreign.__name__ = "ArtErrorOfAnother"
    rebuilt = from_wire(to_wire(Foreign("odd")), TrainerError)
    assert isinstance(rebuilt, TrainerError)


def test_a_message_that_is_not_a_string_crosses_the_wire_as_text() -> None:
    rebuilt = from_wire(to_wire(KeyError("slot")))
    assert str(rebuilt) == "KeyError: 'slot'"
