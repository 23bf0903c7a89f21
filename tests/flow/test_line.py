"""The straight line, end to end, with the real model on the real engine and trainer."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

import art
from art_core.checkpoint import ADAPTER, OPTIMIZER, PROBE, verify
from tests.conftest import Real
from tests.flow.agent import by_length, constant, gather, rollout

pytestmark = pytest.mark.real


async def test_a_step_is_trained_proved_and_served(real: Real) -> None:
    before = await real.model.get_step()
    groups = await gather(real.model, by_length)
    result = await real.backend.train(real.model, groups, learning_rate=1e-4)

    assert result.step == before + 1 == await real.model.get_step()
    assert real.model.get_inference_name() == f"facts@{result.step}"
    assert result.metrics["publish/proved"] == 1.0
    assert abs(result.metrics["publish/beta"] - 1) <= 0.2
    assert result.metrics["publish/parity"] <= 1e-3
    assert result.metrics["loss/grad_norm"] > 0
    for stage in ("batch", "train", "save", "manifest", "commit", "publish", "flip", "behaviour"):
        assert result.metrics[f"time/step_{stage}_s"] >= 0

    assert result.checkpoint_path is not None
    manifest = verify(Path(result.checkpoint_path))
    assert manifest.step == result.step
    assert {ADAPTER, OPTIMIZER, PROBE} <= set(manifest.files)


async def test_engine_and_trainer_compute_the_same_policy(real: Real) -> None:
    """Sampled logprobs of the engine against the trainer's own, before any update of this batch."""
    result = await real.backend.train(real.model, await gather(real.model, by_length), learning_rate=1e-4)
    assert result.metrics["offpolicy/engine_logprob_gap"] <= 1e-3
    assert result.metrics["loss/ratio_max"] == pytest.approx(1.0, abs=1e-2)


async def test_what_a_choice_carries_is_what_training_needs(real: Real) -> None:
    name = real.model.get_inference_name()
    trajectory = await rollout(real.model, "Ben is 9 years old.", constant)
    choice = trajectory.messages_and_choices[-1]
    extra = choice.model_extra
    assert extra["policy_step"] == await real.model.get_step()
    assert extra["temperature"] == 1.0
    assert len(extra["token_ids"]) == len(choice.logprobs.content) > 0
    assert len(extra["prompt_token_ids"]) > 0
    completion = await real.model.openai_client().chat.completions.create(
        model=real.model.name, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert completion.model == name


async def test_nothing_to_learn_advances_the_step_and_keeps_the_weights(real: Real) -> None:
    first = await real.backend.train(real.model, await gather(real.model, by_length), learning_rate=1e-4)
    second = await real.backend.train(real.model, await gather(real.model, constant), learning_rate=1e-4)
    assert second.step == first.step + 1
    assert first.checkpoint_path is not None and second.checkpoint_path is not None
    old, new = verify(Path(first.checkpoint_path)), verify(Path(second.checkpoint_path))
    assert new.adapter_digest == old.adapter_digest
    assert new.files[OPTIMIZER] == old.files[OPTIMIZER]
    assert not new.updated
    assert second.metrics["publish/proved"] == 1.0
    assert second.metrics["data/step_num_groups_trainable"] == 0


async def test_an_old_step_answers_under_its_own_name(real: Real) -> None:
    groups = await gather(real.model, by_length)
    old = real.model.get_inference_name()
    await real.backend.train(real.model, groups, learning_rate=1e-3)
    assert real.model.get_inference_name() != old
    completion = await real.model.openai_client().chat.completions.create(
        model=old, messages=[{"role": "user", "content": "Hi"}], max_tokens=2
    )
    assert completion.model == old


async def test_log_writes_history_and_trajectories(real: Real) -> None:
    groups = await gather(real.model, by_length, runs=2)
    result = await real.backend.train(real.model, groups, learning_rate=1e-4)
    await real.model.log(groups, split="train", metrics=result.metrics, step=result.step)
    run = real.root / "tests" / "models" / "facts"
    line = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    assert line["train/reward"] == pytest.approx(sum(t.reward for g in groups for t in g) / 4)
    assert line["training_step"] == result.step
    assert (run / "trajectories" / "train" / f"{result.step:04d}.parquet").is_file()


async def test_the_gateway_asks_for_its_key_and_knows_no_other_model(real: Real) -> None:
    url = f"{real.model.inference_base_url}/chat/completions"
    body = {"model": "facts", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    async with httpx.AsyncClient() as client:
        assert (await client.post(url, json=body)).status_code == 401
        headers = {"Authorization": f"Bearer {real.model.inference_api_key}"}
        wrong = await client.post(url, json={**body, "model": "fact"}, headers=headers)
        assert wrong.status_code == 404
        assert "facts" in wrong.json()["error"]["message"]
        assert (await client.post(url, json=body, headers=headers)).status_code == 200


async def test_delete_checkpoints_keeps_what_is_served_and_the_newest(real: Real) -> None:
    await real.model.delete_checkpoints()
    run = real.root / "tests" / "models" / "facts" / "checkpoints"
    left = sorted(int(path.name) for path in run.iterdir() if path.name.isdigit())
    assert left[-1] == await real.model.get_step()
    assert 1 <= len(left) <= 4
    groups = await gather(real.model, by_length)
    assert (await real.backend.train(real.model, groups)).metrics["publish/proved"] == 1.0


async def test_a_run_directory_has_one_owner(real: Real) -> None:
    from art.local import LocalBackend
    from art_core.errors import RunLockedError

    other = art.TrainableModel(name="facts", project="tests", base_model=real.model.base_model)
    async with LocalBackend(path=real.root) as second:
        with pytest.raises(RunLockedError, match="held"):
            await other.register(second)
