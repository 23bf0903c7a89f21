"""Which base model two parts hold, and the refusal where they differ."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from art_core.base_model import (
    UNKNOWN_DIGEST,
    BaseIdentity,
    ModelInfo,
    base_digest,
    require_same_base,
    require_trained_on,
)
from art_core.errors import ConfigError

MIB = 1 << 20
INFO = ModelInfo(
    identity=BaseIdentity(name="tiny", digest="a" * 64),
    vocab_size=256,
    context_tokens=512,
    chat_template="{{ messages }}",
    dtype="float32",
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    (tmp_path / "model.safetensors").write_bytes(bytes(3 * MIB))
    (tmp_path / "README.md").write_text("about")
    return tmp_path


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_the_digest_depends_on_content_only(model: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("elsewhere")
    for path in sorted(model.iterdir(), reverse=True):
        (copy / path.name).write_bytes(path.read_bytes())
    assert base_digest(copy) == base_digest(model)
    assert len(base_digest(model)) == 64


@pytest.mark.parametrize("at", [0, MIB - 1, 2 * MIB, 3 * MIB - 1])
def test_a_changed_byte_in_the_first_or_last_mebibyte_is_noticed(model: Path, at: int) -> None:
    before = base_digest(model)
    overwrite(model / "model.safetensors", at, b"\1")
    assert base_digest(model) != before


def test_a_changed_setting_name_or_size_is_noticed(model: Path) -> None:
    seen = [base_digest(model)]
    (model / "config.json").write_text('{"hidden_size": 65}')
    seen.append(base_digest(model))
    (model / "config.json").rename(model / "settings.json")
    seen.append(base_digest(model))
    with (model / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    seen.append(base_digest(model))
    assert len(set(seen)) == len(seen)


def test_the_documented_blind_spot_and_other_files_do_not_count(model: Path) -> None:
    """The digest samples both ends; this holds the docstring's admission to what the code does."""
    before = base_digest(model)
    overwrite(model / "model.safetensors", MIB + MIB // 2, b"\1")
    (model / "README.md").write_text("about something else")
    (model / "generation_config.json").write_text('{"temperature": 0.6}')
    assert base_digest(model) == before


def test_small_files_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("ab")
    first = base_digest(tmp_path)
    (tmp_path / "config.json").write_text("ba")
    assert base_digest(tmp_path) != first


def test_equal_bases_pass_whatever_their_name_precision_and_context() -> None:
    other = dataclasses.replace(
        INFO, identity=BaseIdentity(name="hub/tiny", digest="a" * 64), dtype="bfloat16", context_tokens=256
    )
    require_same_base(INFO, other)


@pytest.mark.parametrize(
    ("trainer", "words"),
    [
        (dataclasses.replace(INFO, identity=BaseIdentity(name="big", digest="b" * 64)), ["digest", "a" * 60, "b" * 60]),
        (dataclasses.replace(INFO, vocab_size=257), ["vocabulary size", "256", "257"]),
        (dataclasses.replace(INFO, chat_template=None), ["chat template", "messages", "None"]),
    ],
)
def test_different_bases_are_refused_and_both_values_named(trainer: ModelInfo, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        require_same_base(INFO, trainer)
    message = str(raised.value)
    assert [word for word in [*words, "'tiny'", f"{trainer.identity.name!r}"] if word not in message] == []


def test_a_long_template_is_shortened_in_the_message() -> None:
    with pytest.raises(ConfigError) as raised:
        require_same_base(INFO, dataclasses.replace(INFO, chat_template="x" * 5000))
    assert "(5002 characters)" in str(raised.value)
    assert len(str(raised.value)) < 500


def test_a_run_goes_on_with_the_base_model_that_it_was_trained_on() -> None:
    require_trained_on(BaseIdentity(name="elsewhere", digest=INFO.identity.digest), INFO, 7)
    require_trained_on(BaseIdentity(name=INFO.identity.name, digest=UNKNOWN_DIGEST), INFO, 7)
    with pytest.raises(ConfigError, match=r"step 7 was trained on another base model: .*choose another run name"):
        require_trained_on(BaseIdentity(name=INFO.identity.name, digest="f" * 64), INFO, 7)
