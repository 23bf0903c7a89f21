"""What does not fit the model, handed to `train` and to `register`: refused by the door, and nothing is lost."""

from __future__ import annotations

import math
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat.chat_completion import Choice

import art
from art.local import LocalBackend
from art_core.capability import Capabilities
from art_core.config import LoRAConfig
from art_core.errors import ConfigError, DataError, TokenizationError, TrajectoryError
from art_core.run import RunDirectory
from tests import numpy_trainer
from tests.art_core.client.test_dev import TEXTS
from tests.faults.life import groups
from tests.faults.small import SmallEngine

Tiny = tuple[LocalBackend, art.TrainableModel]


@pytest.fixture(scope="module")
async def tiny(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tiny]:
    model = art.TrainableModel(name="bad", project="flow", base_model=str(tiny_model))
    async with LocalBackend(path=tmp_path_factory.mktemp("bad"), engine="torch", trainer="torch") as backend:
        await model.register(backend)
        yield backend, model


def extra(**values: Any) -> Callable[[Choice], None]:
    """Replace what the gateway put on a choice."""
    return lambda choice: (choice.model_extra or {}).update(values)


def logprob(value: float) -> Callable[[Choice], None]:
    """Replace the logprob of the second sampled token."""

    def edit(choice: Choice) -> None:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        choice.logprobs.content[1].logprob = value

    return edit


CASES: list[tuple[str, Callable[[Choice], None], type[DataError], str]] = [
    ("token", extra(token_ids=[1, 2, 300, 4, 5]), TokenizationError, r"token_ids holds 300; allowed: 0 to \d+"),
    ("prompt token", extra(prompt_token_ids=[1, 300]), TokenizationError, "prompt_token_ids holds 300; allowed: 0 to"),
    ("negative token", extra(token_ids=[1, 2, -3, 4, 5]), TokenizationError, "token_ids holds -3; allowed: 0 to"),
    ("fraction", extra(token_ids=[1.5] * 5), TokenizationError, "float64.*allowed: a list of whole numbers"),
    ("length", extra(prompt_token_ids=[7] * 600), TrajectoryError, "a sequence of 605 tokens; the context holds 512"),
    ("NaN logprob", logprob(math.nan), TokenizationError, "logprob nan at token 1; allowed: finite, at most 0"),
    ("infinite logprob", logprob(-math.inf), TokenizationError, "logprob -inf at token 1; allowed: finite"),
    ("logprob above 0", logprob(0.5), TokenizationError, "logprob 0.5 at token 1; allowed: finite, at most 0"),
    ("step to come", extra(policy_step=7), TrajectoryError, "policy step 7, which this run has not published"),
    ("step below 0", extra(policy_step=-1), TrajectoryError, "policy step -1, which this run has not published"),
    ("temperature", extra(temperature=math.inf), TokenizationError, "temperature inf; allowed: a finite number"),
]


@pytest.mark.parametrize(("edit", "error", "message"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
async def test_one_bad_choice(tiny: Tiny, edit: Callable[[Choice], None], error: type[DataError], message: str) -> None:
    backend, model = tiny
    before = await model.get_step(), model.get_inference_name()
    what = groups()
    edit(what[1].trajectories[2].messages_and_choices[-1])  # type: ignore[arg-type]
    with pytest.raises(error, match=f"group 1, trajectory 2.*{message}") as caught:
        await backend.train(model, what)
    assert type(caught.value) is error
    assert (await model.get_step(), model.get_inference_name()) == before


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf])
async def test_a_reward_that_is_no_number(tiny: Tiny, reward: float) -> None:
    backend, model = tiny
    what = groups()
    what[0].trajectories[1].reward = reward
    with pytest.raises(TrajectoryError, match=f"group 0, trajectory 1 has reward {reward}; allowed: a finite number"):
        await backend.train(model, what)


async def test_after_all_of_them_the_same_backend_trains(tiny: Tiny) -> None:
    backend, model = tiny
    before = await model.get_step()
    assert (await backend.train(model, groups(), learning_rate=1e-4)).step == before + 1


async def refused(path: Path, message: str, base_model: Path, parts: dict[str, Any], **fields: Any) -> None:
    model = art.TrainableModel(name="bad", project="flow", base_model=str(base_model), **fields)
    async with LocalBackend(path=path, **parts) as backend:
        with pytest.raises(ConfigError, match=message):
            await model.register(backend)


TORCH = {"engine": "torch", "trainer": "torch"}


async def test_a_base_that_is_no_causal_model(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    base = tmp_path / "bert"
    shutil.copytree(tiny_model, base, ignore=lambda *_: ["model.safetensors", "config.json"])
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=259, **size)).save_pretrained(base)
    await refused(tmp_path / "art", "is 'BertModel', not a causal LM; allowed here: ", base, TORCH)


async def test_a_target_that_matches_nothing_and_the_same_run_with_one_that_does(
    tiny_model: Path, tmp_path: Path
) -> None:
    lora = {"target_modules": ["q_porj"]}
    await refused(tmp_path, "'q_porj' matches no linear.*did you mean 'q_proj'", tiny_model, TORCH, lora_config=lora)
    mended = LoRAConfig(target_modules=["q_proj"])
    RunDirectory.create_or_open(tmp_path, "flow", "bad", str(tiny_model), mended).close()


async def test_engine_and_trainer_that_hold_different_bases(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=":")
    engine = SmallEngine()
    engine.capabilities = Capabilities()  # type: ignore[attr-defined]
    parts = {"engine": engine, "trainer": numpy_trainer.FACTORY}
    await refused(tmp_path, f"base model digest.*'0'.*'{'d' * 64}'", tiny_model, parts)
    assert list((tmp_path / "flow" / "models" / "bad" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(("config", "message"), TEXTS)
def test_gpus_that_can_not_be_split_so(config: dict[str, Any], message: str) -> None:
    """Said when the model is made: before there is a backend, a directory or a process."""
    with pytest.raises(ConfigError) as caught:
        art.TrainableModel(name="bad", project="flow", base_model="any", _internal_config=config)  # type: ignore[arg-type]
    assert str(caught.value) == message


async def test_gpus_that_the_registration_spoils(tiny_model: Path, tmp_path: Path) -> None:
    """`register` puts the server's arguments on top of the model's."""
    model = art.TrainableModel(name="bad", project="flow", base_model=str(tiny_model))
    async with LocalBackend(path=tmp_path, **TORCH) as backend:
        with pytest.raises(ConfigError, match=r"^Shared-GPU mode requires engine_args.enable_sleep_mode=True"):
            await model.register(backend, _openai_client_config={"engine_args": {"enable_sleep_mode": False}})
    assert list(tmp_path.iterdir()) == []
