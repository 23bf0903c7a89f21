"""A client to be killed: trains the tiny model step after step and says on stdout where it is.

    python -m tests.faults.victim ROOT BASE_MODEL STEPS

Prints ``ready <step>`` once registered, ``training <step>`` before each call of train, ``served <step>`` after it, and
``error <type> <retryable>`` for a typed error of a step, which it answers with one more call. Needs no sampling: the
completions of one gathering are trained on again and again, which keeps the steps short and the kills dense.
"""

from __future__ import annotations

import asyncio
import sys

import art
from art.local import LocalBackend
from art_core.errors import RunError
from tests.flow.agent import by_length, gather


def say(*words: object) -> None:
    print(*words, flush=True)


async def main(root: str, base_model: str, steps: int) -> None:
    model = art.TrainableModel(name="victim", project="faults", base_model=base_model)
    async with LocalBackend(path=root, engine="torch", trainer="torch") as backend:
        await model.register(backend)
        say("ready", await model.get_step())
        groups = await gather(model, by_length)
        for _ in range(steps):
            say("training", await model.get_step())
            try:
                result = await backend.train(model, groups, learning_rate=1e-4)
            except RunError as error:
                say("error", type(error).__name__, error.retryable)
                result = await backend.train(model, groups, learning_rate=1e-4)
            say("served", result.step)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
