from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from art_core.demo.place import Place, read_history
from art_core.demo.progress import Progress
from art_core.demo.run import DemoSettings, run_demo
from art_core.errors import ConfigError
from tests.art_core.demo.fake_api import World, right_answer


def progress() -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    return Progress(Console(file=out)), out


def wrong(step: int, sentence: str) -> str:
    return "no idea"


def learned_at(step: int) -> object:
    return lambda now, sentence: right_answer(now, sentence) if now >= step else wrong(now, sentence)


async def test_a_step_is_four_prompts_of_eight_rollouts_each_a_request_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(wrong).install(monkeypatch)
    await run_demo(DemoSettings(steps=2), Place(tmp_path), progress()[0])
    held_out = [r for r in world.requests if r["temperature"] == 0.0]
    assert [r["step"] for r in held_out] == [0, 0, 0, 2, 2, 2]
    for step in (0, 1):
        asked = [r for r in world.requests if r["messages"][-1]["content"].endswith("years old.") and r["step"] == step]
        assert len(asked) == 32
        assert len({r["messages"][-1]["content"] for r in asked}) == 4
        assert len({r["seed"] for r in asked}) == 32
        assert {(r["model"], r["max_tokens"], r["temperature"]) for r in asked} == {(f"json-facts@{step}", 18, 1.0)}
    assert len(world.requests) == 2 * 32 + 2 * 3 * 9


async def test_one_seed_asks_the_same_questions_in_two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        world = World(wrong).install(monkeypatch)
        await run_demo(DemoSettings(steps=1, seed=seed), Place(tmp_path / name), progress()[0])
        assert world.kwargs["lora_config"]["random_state"] == seed
        asked.append(sorted((r["messages"][-1]["content"], r["seed"]) for r in world.requests))
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


async def test_it_stops_when_there_is_little_left_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(learned_at(2)).install(monkeypatch)  # type: ignore[arg-type]
    told, out = progress()
    result = await run_demo(DemoSettings(steps=8), Place(tmp_path), told)
    assert (world.step, result.served) == (3, "json-facts@3")
    assert [record["train/reward"] for record in read_history(Place(tmp_path))] == pytest.approx([0.0, 0.0, 1.0])
    assert "stopping early" in out.getvalue()


async def test_a_resumed_run_goes_on_and_remembers_where_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, place = World(wrong).install(monkeypatch), Place(tmp_path)
    first = await run_demo(DemoSettings(steps=2), place, progress()[0])
    world.answer = lambda step, sentence: "{}"
    world.requests.clear()
    second = await run_demo(DemoSettings(steps=1), place, progress()[0])
    assert second.before == first.before
    assert (second.before.model, second.after.model) == ("json-facts@0", "json-facts@3")
    assert second.after.sampled == pytest.approx(0.4)
    assert {r["step"] for r in world.requests} == {2, 3}
    history = read_history(place)
    assert [record["step"] for record in history] == [1, 2, 3]
    assert all(record["throughput/generated_tokens_per_s"] > 0 for record in history)


async def test_a_run_that_something_else_trained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(wrong).install(monkeypatch)
    world.step = 4
    with pytest.raises(ConfigError, match="its answers before training are not on this machine"):
        await run_demo(DemoSettings(), Place(tmp_path), progress()[0])
    assert world.requests == []


async def test_every_step_is_one_plain_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    World(wrong).install(monkeypatch)
    told, out = progress()
    await run_demo(DemoSettings(steps=2), Place(tmp_path), told)
    lines = [line for line in out.getvalue().splitlines() if line.startswith("reward")]
    assert len(lines) == 2
    assert "served json-facts@2 proved, β 1.00" in lines[1]
    assert "train 2.0s publish 0.2s" in lines[1]
    assert "\x1b" not in out.getvalue()
