"""Settings: read once, refused by name before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from art_core.config import Environment, LoRAConfig, PartOptions, Timeouts
from art_core.errors import ConfigError

VARIABLES = {
    "ART_ENGINE": "engine",
    "ART_TRAINER": "trainer",
    "ART_STORE": "store",
    "ART_PUBLISHER": "publisher",
}


class Options(PartOptions):
    part: ClassVar[str] = "example"
    max_loras: int = Field(default=4, ge=1)
    device: str = "auto"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*VARIABLES, "ART_CACHE"):
        monkeypatch.delenv(variable, raising=False)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Environment.read() == Environment(cache=Path("~/.cache/art").expanduser())


@pytest.mark.parametrize(("variable", "field"), VARIABLES.items())
def test_each_variable_sets_its_field_and_no_other(variable: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "mine")
    assert Environment.read() == dataclasses.replace(
        Environment(cache=Path("~/.cache/art").expanduser()), **{field: "mine"}
    )


@pytest.mark.parametrize("variable", [*VARIABLES, "ART_CACHE"])
def test_a_variable_set_to_nothing_counts_as_not_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Environment.read()
    monkeypatch.setenv(variable, "")
    assert Environment.read() == default


def test_the_cache_may_be_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ART_CACHE", "~/models")
    assert Environment.read().cache == Path.home() / "models"


def test_every_timeout_is_a_positive_number_of_seconds() -> None:
    table = dataclasses.asdict(Timeouts())
    assert table.pop("engine_restarts") >= 1  # the one count
    assert table
    assert [name for name, value in table.items() if not (name.endswith("_s") and value > 0)] == []


def test_options_are_built_from_plain_values() -> None:
    assert Options.parse({"max_loras": 2}) == Options(max_loras=2)
    assert Options.parse({}) == Options()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_lora": 2}, ["'example'", "no option 'max_lora'", "did you mean 'max_loras'?", "device, max_loras"]),
        ({"max_loras": 0}, ["'example'", "'max_loras'", "is 0", "greater than or equal to 1"]),
        ({"max_loras": "many"}, ["'example'", "'max_loras'", "is 'many'", "integer"]),
    ],
)
def test_a_wrong_option_is_refused_by_name(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        Options.parse(values)
    assert [word for word in words if word not in str(raised.value)] == []


def test_options_can_not_be_changed_after_they_were_checked() -> None:
    with pytest.raises(ValidationError):
        Options().max_loras = 0


@pytest.mark.parametrize("values", [{}, {"rank": 1}, {"rank": 512}, {"alpha": 0.5}, {"target_modules": ["q_proj"]}])
def test_a_usable_adapter_shape_is_accepted(values: dict[str, Any]) -> None:
    assert dataclasses.asdict(LoRAConfig(**values)).items() >= values.items()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, ["rank", "0", "1 to 512"]),
        ({"rank": 513}, ["rank", "513", "1 to 512"]),
        ({"rank": 8.0}, ["rank", "8.0", "whole number"]),
        ({"alpha": 0}, ["alpha", "0", "above 0"]),
        ({"alpha": float("nan")}, ["alpha", "nan", "above 0"]),
        ({"target_modules": []}, ["target_modules", "empty"]),
    ],
)
def test_an_unusable_adapter_shape_is_refused_with_the_value_and_the_limits(
    values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        LoRAConfig(**values)
    assert [word for word in words if word not in str(raised.value)] == []
