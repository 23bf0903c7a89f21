from __future__ import annotations

import json
from pathlib import Path

import pytest

from art_core.config import LoRAConfig
from art_core.demo.place import Place, find_place, read_history, settle
from art_core.errors import ConfigError, StoreError
from art_core.run import RunDirectory


def test_without_a_path_every_start_is_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("art_core.demo.place.time.strftime", lambda form: "demo-20260101-000000")
    places = [find_place(None) for _ in range(3)]
    assert [place.root.name for place in places] == [f"demo-20260101-000000{end}" for end in ("", "-2", "-3")]
    assert all(place.root.parent == tmp_path / ".art" and place.root.is_dir() for place in places)


def test_a_root_or_a_runs_own_directory(tmp_path: Path) -> None:
    place = find_place(tmp_path)
    assert place.directory == tmp_path / "demo" / "models" / "json-facts"
    assert find_place(place.path) == place
    run = tmp_path / "other" / "models" / "mine"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    mine = find_place(run)
    assert mine == Place(tmp_path, "other", "mine")
    assert mine.path == mine.directory == run


def test_a_path_that_cannot_be_a_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is not a directory"):
        find_place(tmp_path / "file")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="does not end in <project>/models/<run>"):
        find_place(tmp_path)


def test_a_run_says_what_it_was_made_with(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert place.record is None
    RunDirectory.create_or_open(tmp_path, place.project, place.run, "some-model", LoRAConfig(random_state=5)).close()
    assert place.record is not None
    assert (place.record.base_model, place.record.lora.random_state) == ("some-model", 5)


def test_the_first_start_settles_the_settings() -> None:
    assert settle("seed", None, None, default=1) == 1
    assert settle("seed", None, 5, default=1) == 5
    assert settle("seed", 5, None, default=1) == 5
    assert settle("seed", 5, 5, default=1) == 5
    with pytest.raises(ConfigError, match="made with seed 5, not 6"):
        settle("seed", 5, 6, default=1)


def test_history_is_the_training_steps_in_order_the_last_word_on_each(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert read_history(place) == []
    place.directory.mkdir(parents=True)
    records = [{"step": 2, "train/reward": 0.2}, {"step": 2, "val/reward": 0.9}, {"step": 1, "train/reward": 0.1}]
    records.append({"step": 2, "train/reward": 0.3})
    (place.directory / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert [(record["step"], record["train/reward"]) for record in read_history(place)] == [(1, 0.1), (2, 0.3)]


def test_where_no_fresh_root_can_be_made_the_error_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".art").write_text("")
    with pytest.raises(
        StoreError, match=r"can't make a directory for the demo \(--path names another\): .*/.art: File exists"
    ):
        find_place(None)
