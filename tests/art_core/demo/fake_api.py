"""A model and backend that answer from a script.

It proves what the demo asks for, when it stops and what it remembers. It does not prove that anything is generated,
trained, published or served: `tests/flow/test_demo.py` runs the demo on the real engine and trainer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

from openai.types.chat import ChatCompletion

from art_core.demo.task import NAMES
from art_core.run import RunDirectory
from art_core.trajectory import TrajectoryGroup

Answer = Callable[[int, str], str]
"""Step that answers and the user's sentence, to the answer."""


def right_answer(step: int, sentence: str) -> str:
    """What full marks get, for the sentences of the training set."""
    name, _, age, *_ = sentence.split()
    return json.dumps({"name": name, "age": int(age)}) if name in NAMES else "{}"


class World:
    """What the fake model and backend share: the step, the requests seen, the script."""

    def __init__(self, answer: Answer) -> None:
        self.step = 0
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.kwargs: dict[str, Any] = {}

    def install(self, monkeypatch: Any) -> Self:
        """Let the demo's loop import the fakes in place of the real classes."""
        monkeypatch.setattr("art_core.demo.run.TrainableModel", self.model)
        monkeypatch.setattr("art_core.demo.run.LocalBackend", self.backend)
        return self

    def model(self, **kwargs: Any) -> FakeModel:
        self.kwargs = kwargs
        return FakeModel(self, kwargs)

    def backend(self, **kwargs: Any) -> FakeBackend:
        return FakeBackend(self)


class FakeModel:
    def __init__(self, world: World, kwargs: dict[str, Any]) -> None:
        self.world, self.base_model, self.run_name = world, kwargs["base_model"], kwargs["run_name"]
        self.run = RunDirectory(Path(kwargs["base_path"]) / kwargs["project"] / "models" / kwargs["run_name"])
        self.run.path.mkdir(parents=True, exist_ok=True)
        self.name = kwargs["name"]

    async def register(self, backend: FakeBackend) -> None:
        self.backend = backend

    def get_inference_name(self) -> str:
        return f"{self.name}@{self.world.step}"

    async def get_step(self) -> int:
        return self.world.step

    def read_state(self) -> dict[str, Any] | None:
        return self.run.read_state() or None

    def merge_state(self, state: dict[str, Any]) -> None:
        self.run.write_state({**self.run.read_state(), **state})

    async def log(self, groups: list[TrajectoryGroup], *, split: str, metrics: dict[str, float], step: int) -> None:
        rewards = [trajectory.reward for group in groups for trajectory in group]
        self.run.append_history({**metrics, f"{split}/reward": sum(rewards) / len(rewards), "step": step})

    def openai_client(self) -> Any:
        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self._create)))

    async def _create(self, **request: Any) -> ChatCompletion:
        self.world.requests.append({"step": self.world.step, **request})
        text = self.world.answer(self.world.step, request["messages"][-1]["content"])
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        choice |= {"token_ids": list(range(10)), "logprobs": None}
        return ChatCompletion.model_validate(
            {"id": "c", "created": 0, "object": "chat.completion", "model": request["model"], "choices": [choice]}
        )


class FakeBackend:
    def __init__(self, world: World) -> None:
        self.world, self.closed = world, False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.closed = True

    async def train(self, model: FakeModel, groups: Iterable[TrajectoryGroup], *, learning_rate: float) -> Any:
        self.world.step += 1
        metrics = {"time/step_train_s": 2.0, "time/step_publish_s": 0.2, "publish/proved": 1.0, "publish/beta": 1.0}
        return SimpleNamespace(step=self.world.step, metrics=metrics)
