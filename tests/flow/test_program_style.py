"""Ways in which users of the reference client write their programs, each run as typed on a real engine and trainer.

One backend and one model for all of them: a tiny one that has learned by heart to call a tool, so that nothing depends
on what is learned here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import AsyncOpenAI

import art
from art.local import LocalBackend
from art.metrics import MetricsBuilder
from art.rewards import ruler_score_group
from art_core.checkpoint import verify
from tests.art_core.client.chat_endpoint import chat_endpoint, completion
from tests.tool_model import ADD, question, result


@dataclass(frozen=True)
class Bench:
    """A registered model."""

    backend: LocalBackend
    model: art.TrainableModel[None]
    run: Path

    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run / "history.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory, tool_model: Path) -> AsyncIterator[Bench]:
    root = tmp_path_factory.mktemp("style")
    model = art.TrainableModel(
        name="agent", run_name="agent-001", project="style", base_model=str(tool_model), lora_config={"rank": 2}
    )
    async with LocalBackend(in_process=False, path=str(root), engine="torch", trainer="torch") as backend:
        await model.register(backend)
        yield Bench(backend, model, root / "style" / "models" / "agent-001")


async def one_turn(model: art.TrainableModel[None], number: int, reward: float = 0.0) -> art.Trajectory:
    """The rollout of most notebooks."""
    trajectory = art.Trajectory(messages_and_choices=[question(number)], reward=reward)
    chat_completion = await model.openai_client().chat.completions.create(
        messages=trajectory.messages(), model=model.get_inference_name(), max_tokens=8
    )
    trajectory.messages_and_choices.append(chat_completion.choices[0])
    return trajectory


async def test_a_notebook(bench: Bench) -> None:
    """Groups of coroutines, the older `model.train`, and only the best checkpoint kept."""
    model = bench.model
    start = await model.get_step()
    for i in range(start, start + 2):
        with pytest.warns(DeprecationWarning):
            train_groups = await art.gather_trajectory_groups(
                (art.TrajectoryGroup(one_turn(model, n, reward=r) for r in (0.0, 1.0)) for n in (1, 2)),
                pbar_desc="gather",
                max_exceptions=2 * 2,
            )
        await model.delete_checkpoints("train/reward")
        with pytest.warns(DeprecationWarning):
            trained = await model.train(
                train_groups, config=art.TrainConfig(learning_rate=1e-5), _config={"loss_fn": "ppo"}
            )
        assert trained.step == i + 1
    assert (bench.history()[-1]["training_step"], bench.history()[-1]["train/reward"]) == (start + 2, 0.5)


async def add(model: art.TrainableModel[None], number: int, wanted: str) -> None:
    """An agent that knows nothing of training but its reward: it calls the tool until there is an answer."""
    messages: list[Any] = [question(number)]
    client = model.openai_client()
    while True:
        reply = await client.chat.completions.create(
            model=model.name, messages=messages, tools=[ADD], max_tokens=100, temperature=0
        )
        message = reply.choices[0].message
        messages.append(message)
        if not message.tool_calls:
            break
        messages += [result(call.model_dump()) for call in message.tool_calls]
    trajectory = art.current_trajectory(require=True)
    trajectory.reward = float(message.content == wanted)
    trajectory.metrics["turns"] = len(trajectory.exchanges.chat_completions)


async def test_recorded_agents_with_tools(bench: Bench) -> None:
    model, backend = bench.model, bench.backend
    groups = [await art.trajectory_group(art.trajectory(add(model, 1, wanted)) for wanted in ("It is 3.", "It is 4."))]
    assert [t.reward for t in groups[0]] == [1.0, 0.0]
    for trajectory in groups[0]:
        assert [e.request["tools"] for e in trajectory.exchanges.chat_completions] == [[ADD], [ADD]]
        assert [m["role"] for m in trajectory.messages()] == ["user", "assistant", "tool", "assistant"]
    trained = await backend.train(model, groups, learning_rate=1e-6)
    assert trained.metrics["data/step_num_sequences"] == 2, "two turns of one chat are one sequence"
    assert trained.metrics["data/step_history_splits"] == 0
    await model.log(groups, split="train", metrics=trained.metrics, step=trained.step)
    assert bench.history()[-1]["train/turns"] == 2.0


async def test_a_rollout_with_a_sub_agent(bench: Bench) -> None:
    model = bench.model

    async def rollout(reward: float) -> art.Trajectory:
        main = await one_turn(model, 1, reward)
        helper = await one_turn(model, 2)
        main.additional_histories.append(
            art.History(messages_and_choices=helper.messages_and_choices, tools=helper.tools)
        )
        return main

    groups = await art.gather_trajectory_groups([art.trajectory_group(rollout(r) for r in (0.0, 1.0))])
    trained = await bench.backend.train(model, groups, learning_rate=1e-6)
    assert trained.metrics["data/step_num_sequences"] == 4


async def test_a_judge_of_one_s_own(bench: Bench) -> None:
    """RULER; the judge is a stand-in that ranks by length, over real HTTP."""

    def judge(request: dict[str, Any]) -> dict[str, Any]:
        runs = json.loads(request["messages"][1]["content"])["runs"]
        scores = [{"trajectory_id": n, "score": min(1.0, len(str(run)) / 500)} for n, run in runs.items()]
        return completion(json.dumps({"scores": scores}))

    with chat_endpoint(judge) as here:
        groups = await art.gather_trajectory_groups(
            (art.trajectory_group(one_turn(bench.model, n) for _ in range(2)) for n in (1, 2)),
            after_each=lambda group: ruler_score_group(
                group, "openai/own", extra_litellm_params={"api_base": here.base_url}, swallow_exceptions=True
            ),
        )
    assert all(t.reward == t.metrics["ruler_score"] for group in groups for t in group)
    assert (await bench.backend.train(bench.model, groups, learning_rate=1e-6)).metrics["publish/proved"] == 1.0


async def test_a_benchmark_that_returns_something_else(bench: Bench) -> None:
    async def benchmark(number: int) -> str:
        art.yield_trajectory(await one_turn(bench.model, number, reward=float(number)))
        return "score"

    trajectories = [await art.capture_yielded_trajectory(benchmark(n)) for n in (1, 2)]
    trained = await bench.backend.train(bench.model, [art.TrajectoryGroup(trajectories)], learning_rate=1e-6)
    assert trained.checkpoint_path is not None and verify(Path(trained.checkpoint_path)).step == trained.step


async def test_what_inference_costs(bench: Bench) -> None:
    model = bench.model
    model.set_cost_calculator(lambda prompt, sampled, context: {f"costs/{context}/tokens": (prompt or 0) * 1e-3})
    token = model.activate_metrics_context("eval")
    try:
        validation = await art.gather_trajectories(one_turn(model, n) for n in (1, 2))
        MetricsBuilder.get_active().add_cost("eval/judge", 0.5)
    finally:
        token.var.reset(token)
        model.set_cost_calculator(None)
    await model.log(validation, split="val")
    line = bench.history()[-1]
    prompts = sum(len(t.messages_and_choices[-1].model_extra["prompt_token_ids"]) for t in validation)
    assert line["costs/eval/tokens"] == pytest.approx(prompts * 1e-3)
    assert line["costs/all"] == pytest.approx(line["costs/eval/tokens"] + 0.5)


async def test_another_client_at_the_same_address(bench: Bench) -> None:
    """As other agent frameworks are pointed at a model; litellm's keywords are these."""
    model = bench.model
    params = model.litellm_completion_params()
    assert params["model"] == f"hosted_vllm/{model.get_inference_name()}"

    async def rollout(reward: float) -> art.Trajectory:
        async with AsyncOpenAI(base_url=params["base_url"], api_key=params["api_key"]) as client:
            reply = await client.chat.completions.create(
                model=model.get_inference_name(),
                messages=[question(1)],  # type: ignore[list-item]
                temperature=params["temperature"],
                extra_body=params["extra_body"],
                max_tokens=4,
            )
        return art.Trajectory(messages_and_choices=[question(1), reply.choices[0]], reward=reward)

    batches = art.trajectory_group_batches(
        (art.trajectory_group(rollout(r) for r in (0.0, 1.0)) for _ in range(4)), batch_size=2
    )
    steps = [(await bench.backend.train(model, batch, learning_rate=1e-6)).step async for batch in batches]
    assert steps == [steps[0], steps[0] + 1]


SCRIPT = """
import asyncio, sys
import art
from art.local import LocalBackend

async def rollout(model, reward):
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "Hi"}], reward=reward)
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=3
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    return trajectory

async def main(backend):
    model = art.TrainableModel(name="agent", project="style", base_model=sys.argv[1])
    await model.register(backend)
    groups = await art.gather_trajectory_groups([art.trajectory_group(rollout(model, r) for r in (0.0, 1.0))])
    print((await backend.train(model, groups)).step)

async def inside():
    with LocalBackend(path=".art") as backend:
        await main(backend)

if sys.argv[2] == "outside":
    with LocalBackend(path=".art") as backend:
        asyncio.run(main(backend))
else:
    asyncio.run(inside())
"""


@pytest.mark.heavy
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_plain_with_outside_or_inside_the_event_loop(tmp_path: Path, tiny_model: Path, where: str) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", str(tiny_model), where]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (0, "1\n", False), done.stderr
    left = [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(process.info["cmdline"])]
    assert psutil.wait_procs(left, 240)[1] == []
