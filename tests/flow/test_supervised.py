"""Supervised fine-tuning through the real line: engine and trainer in their processes, the tiny model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art.utils.sft import train_sft_from_file
from art_core.errors import ConfigError, TokenizationError, TrajectoryError
from tests.conftest import Real

SECRET = "the bird is blue"


@pytest.fixture(scope="module")
async def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Real]:
    root = tmp_path_factory.mktemp("supervised")
    async with LocalBackend(path=root, engine="torch", trainer="torch") as backend:
        model = art.TrainableModel(
            name="pupil", project="tests", base_model=str(tiny_model), lora_config={"rank": 16, "alpha": 64.0}
        )
        await model.register(backend)
        yield Real(backend, model, root)


def trajectory(answer: str = SECRET) -> art.Trajectory:
    asked: art.Messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": answer}]
    return art.Trajectory(messages_and_choices=[*asked])


async def test_what_the_assistant_said_is_learnt_served_and_logged(tiny: Real) -> None:
    losses = []
    for step in range(1, 4):
        config = art.TrainSFTConfig(learning_rate=[2e-2] * 8, batch_size=2)
        await tiny.model.train_sft([trajectory()] * 16, config)
        assert await tiny.model.get_step() == step
        lines = (tiny.root / "tests/models/pupil/history.jsonl").read_text().splitlines()
        logged = json.loads(lines[-1])
        assert (logged["step"], logged["publish/proved"], logged["data/step_num_gradient_steps"]) == (step, 1.0, 8.0)
        losses.append(logged["loss/train"])
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.heavy
@pytest.mark.real
async def test_the_real_model_says_what_it_was_taught(real: Real) -> None:
    before = await real.model.get_step()
    await real.model.train_sft([trajectory()] * 24, art.TrainSFTConfig(learning_rate=1e-3, batch_size=2))
    assert await real.model.get_step() == before + 1
    said = await real.model.openai_client().chat.completions.create(
        model=real.model.get_inference_name(),
        messages=[{"role": "user", "content": "Say it."}],
        temperature=0,
        max_tokens=40,
    )
    assert said.choices[0].message.content == SECRET
    assert said.choices[0].finish_reason == "stop", "the end of the turn is learnt too"


async def test_a_file_is_learnt(tiny: Real, tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    messages = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": SECRET}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(5)))
    before = await tiny.model.get_step()
    await train_sft_from_file(tiny.model, path, epochs=2, batch_size=4, log_metrics=False)
    assert await tiny.model.get_step() == before + 1


async def test_bad_input_is_refused_and_the_step_goes_on_serving(tiny: Real, tiny_model: Path) -> None:
    before = await tiny.model.get_step()
    with pytest.raises(TrajectoryError, match="there is no trajectory"):
        await tiny.model.train_sft([])
    with pytest.raises(TrajectoryError, match=r"trajectory 1 has \d+ tokens; the base model's context is 512"):
        await tiny.model.train_sft([trajectory(), trajectory("x" * 600)])
    with pytest.raises(ConfigError, match="learning_rate has 3 values"):
        await tiny.model.train_sft([trajectory()], art.TrainSFTConfig(learning_rate=[1e-4] * 3))
    with pytest.raises(ConfigError, match="_config has no option 'epsilon'"):
        await tiny.model.train_sft([trajectory()], None, {"epsilon": 0.2})
    shown = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    with pytest.raises(TokenizationError, match=r"trajectory 0, message 1: .* reads text only"):
        await tiny.model.train_sft([art.Trajectory(messages_and_choices=[shown, trajectory().messages()[1]])])  # type: ignore[list-item]
    assert await tiny.model.get_step() == before
    await tiny.model.train_sft([trajectory()])
    assert await tiny.model.get_step() == before + 1
