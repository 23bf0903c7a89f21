"""Models: keywords, addresses, state, logs, retention. The real backend is driven in tests/flow."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from art_core.client.backend import Backend
from art_core.client.config import TrainConfig
from art_core.client.log import best_step
from art_core.client.model import Model
from art_core.client.result import TrainResult
from art_core.client.trainable import TrainableModel
from art_core.errors import ConfigError
from art_core.trajectory import TrajectoryGroup
from tests.art_core.rollout import choice, group

EXTRA_BODY = {
    "return_token_ids": True,
    "return_tokens_as_token_ids": True,
    "chat_template_kwargs": {"preserve_thinking": True},
}


class RecordingBackend:
    """Keeps what it is called with. Proves what the client calls and in which order; nothing of training or serving."""

    def __init__(self, base_url: str = "http://127.0.0.1:9/v1", step: int = 4) -> None:
        self.base_url = base_url
        self.step = step
        self.calls: list[tuple[str, Any]] = []

    async def register(self, model: Model[Any]) -> None:
        self.calls.append(("register", model.name))

    async def close(self) -> None:
        self.calls.append(("close", None))

    async def train(self, model: Model[Any], trajectory_groups: list[TrajectoryGroup], **options: Any) -> TrainResult:
        self.calls.append(("train", (trajectory_groups, options)))
        self.step += 1
        return TrainResult(self.step, {"loss/train": 0.5, "train/reward": 9.0})

    async def _prepare_backend_for_training(
        self, model: TrainableModel[Any], config: Mapping[str, Any] | None
    ) -> tuple[str, str]:
        self.calls.append(("prepare", config))
        return self.base_url, "secret"

    def _model_inference_name(self, model: Model[Any], step: int | None = None) -> str:
        return f"{model.name}@{self.step if step is None else step}"

    async def _get_step(self, model: TrainableModel[Any]) -> int:
        return self.step

    async def _delete_checkpoint_files(self, model: TrainableModel[Any], steps_to_keep: list[int]) -> None:
        self.calls.append(("delete", steps_to_keep))


class FailingBackend(RecordingBackend):
    """Can't start what a model needs."""

    async def _prepare_backend_for_training(
        self, model: TrainableModel[Any], config: Mapping[str, Any] | None
    ) -> tuple[str, str]:
        raise ConnectionError


def trainable(**fields: Any) -> TrainableModel[Any]:
    return TrainableModel(**{"name": "agent", "project": "p", "base_model": "b", **fields})


async def registered(tmp_path: Path, **fields: Any) -> tuple[TrainableModel[Any], RecordingBackend]:
    model, backend = trainable(base_path=str(tmp_path), **fields), RecordingBackend()
    await model.register(backend)
    return model, backend


def history(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "p" / "models" / "agent" / "history.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_the_run_is_named_after_the_model_unless_it_has_a_name() -> None:
    assert trainable().run_name == "agent"
    assert trainable(run_name="second").run_name == "second"
    assert Model(name="gpt", project="p").run_name == "gpt"


def test_the_program_s_own_config_is_kept_whole() -> None:
    class Settings(BaseModel):
        turns: int = 3

    model = TrainableModel(name="agent", project="p", base_model="b", config=Settings(turns=5))
    assert model.config.turns == 5
    dumped = model.model_dump()
    assert (dumped["config"], dumped["_internal_config"]) == ({"turns": 5}, {})
    assert model.safe_model_dump() == {**dumped, "config": None}
    assert trainable().config is None


def test_the_classes_take_the_types_of_config_and_state() -> None:
    class Settings(BaseModel):
        turns: int = 3

    for kind in (TrainableModel[Settings], TrainableModel[Settings, dict[str, int]]):
        model = kind(name="agent", project="p", base_model="b", config=Settings())
        assert isinstance(model, TrainableModel) and model.config.turns == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"base_modle": "x"},
            r"TrainableModel\(\) got an unexpected keyword argument 'base_modle'; did you mean 'base_",
        ),
        ({"name": "a@1"}, "model name is 'a@1'; allowed: without '@'"),
        ({"lora_config": {"rnk": 4}}, "lora_config has no key 'rnk'; did you mean 'rank'"),
        ({"lora_config": {"rank": 0}}, "LoRA rank is 0"),
        ({"_internal_config": {"engine_arg": {}}}, "no key 'engine_arg'; did you mean 'engine_args'"),
        ({"_internal_config": {"trainer_gpu_ids": [0]}}, "must both be set or both unset"),
    ],
)
def test_bad_settings_are_refused_at_construction(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainable(**fields)


def test_a_missing_keyword_is_named() -> None:
    with pytest.raises(
        ConfigError, match=r"TrainableModel\(\) needs base_model=\.\.\.; needed: name, project, base_model"
    ):
        TrainableModel(name="a", project="p")  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"Model\(\) needs project"):
        Model(name="a")  # type: ignore[call-arg]


class TestUnregistered:
    """Before `register`."""

    async def test_everything_that_needs_a_backend_says_so(self) -> None:
        message = r"^Model is not registered with the Backend\. You must call `model\.register\(\)` first\.$"
        with pytest.raises(ValueError, match=message):
            trainable().backend()
        with pytest.raises(ValueError, match=message):
            await trainable().get_step()

    def test_the_client_is_not_there_yet(self) -> None:
        with pytest.raises(
            ValueError,
            match=r"^OpenAI client not yet available on this trainable model\. "
            r"You must call `model\.register\(\)` first\.$",
        ):
            trainable().openai_client()
        with pytest.raises(ValueError, match="you must provide an `inference_api_key` and `inference_base_url`"):
            Model(name="gpt", project="p").openai_client()

    async def test_a_model_that_is_only_compared_with_needs_no_backend(self) -> None:
        model = Model(
            name="gpt",
            project="p",
            inference_model_name="vendor/gpt",
            inference_base_url="http://127.0.0.1:9/v1",
            inference_api_key="k",
        )
        assert model.get_inference_name() == "vendor/gpt"
        assert await model.get_step() == 0
        assert str(model.openai_client().base_url) == "http://127.0.0.1:9/v1/"
        assert model.litellm_completion_params()["model"] == "vendor/gpt"
        assert "k" not in repr(model).split("=")


class TestRegistered:
    """After `register`."""

    async def test_register_prepares_and_takes_the_address(self, tmp_path: Path) -> None:
        config = {"engine_args": {"max_loras": 2}}
        model, backend = await registered(tmp_path, _internal_config=config)
        assert backend.calls == [("register", "agent"), ("prepare", None)]
        assert model._internal_config == config
        assert model.backend() is backend
        assert (model.inference_base_url, model.inference_api_key) == (backend.base_url, "secret")
        client = model.openai_client()
        assert client is model.openai_client()
        assert (client.api_key, client.max_retries, client.timeout.read, client.timeout.connect) == (
            "secret",
            2,
            1200,
            5,
        )

    async def test_registering_again_takes_the_new_address(self, tmp_path: Path) -> None:
        model, _ = await registered(tmp_path)
        model.openai_client()
        await model.register(RecordingBackend(base_url="http://127.0.0.1:10/v1"))
        assert str(model.openai_client().base_url) == "http://127.0.0.1:10/v1/"

    async def test_a_backend_that_fails_leaves_no_old_address(self, tmp_path: Path) -> None:
        model, _ = await registered(tmp_path)
        with pytest.raises(ConnectionError):
            await model.register(FailingBackend())
        assert (model.inference_base_url, model.inference_api_key, model.inference_model_name) == (None, None, None)
        with pytest.raises(ValueError, match="OpenAI client not yet available"):
            model.openai_client()

    async def test_names_follow_the_newest_step_or_pin_one(self, tmp_path: Path) -> None:
        model, backend = await registered(tmp_path)
        assert (model.get_inference_name(), await model.get_step()) == ("agent@4", 4)
        backend.step = 5
        assert (model.get_inference_name(), model.get_inference_name(2)) == ("agent@5", "agent@2")
        assert model.litellm_completion_params(2) == {
            "model": "hosted_vllm/agent@2",
            "base_url": backend.base_url,
            "api_key": "secret",
            "temperature": 1,
            "extra_body": EXTRA_BODY,
        }

    async def test_the_older_train_trains_and_logs(self, tmp_path: Path) -> None:
        model, backend = await registered(tmp_path)
        groups = [group(0.0, 1.0)]
        with pytest.warns(DeprecationWarning, match=r"backend\.train\(model, groups"):
            result = await model.train(iter(groups), TrainConfig(learning_rate=1e-5), {"loss_fn": "ppo"})
        assert backend.calls[-1] == ("train", (groups, {"learning_rate": 1e-5, "loss_fn": "ppo"}))
        assert result.step == 5
        (line,) = history(tmp_path)
        assert (line["training_step"], line["loss/train"], line["train/reward"]) == (5, 0.5, 9.0)
        assert (tmp_path / "p/models/agent/trajectories/train/0005.parquet").is_file()

    async def test_delete_checkpoints_keeps_the_newest_and_the_best(self, tmp_path: Path) -> None:
        model, backend = await registered(tmp_path)
        for step, reward in ((1, 0.2), (2, 0.9), (2, 0.1), (3, 0.6)):
            await model.log(metrics={"reward": reward, "other": -step}, step=step)
        await model.delete_checkpoints()
        assert backend.calls[-1] == ("delete", [3, 4])
        await model.delete_checkpoints(best_checkpoint_metric="val/other")
        assert backend.calls[-1] == ("delete", [1, 4])

    async def test_delete_checkpoints_without_that_metric_keeps_the_newest(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        model, backend = await registered(tmp_path)
        await model.delete_checkpoints()
        assert backend.calls[-1] == ("delete", [4])
        assert capsys.readouterr().out == 'No "val/reward" metric found in history\n'

    async def test_a_config_that_can_t_be_written_is_refused(self, tmp_path: Path) -> None:
        class Settings(BaseModel):
            hook: Any = None

        model = trainable(base_path=str(tmp_path), config=Settings(hook=lambda: None))
        with pytest.raises(ConfigError, match="The model config cannot be serialized to JSON"):
            await model.register(RecordingBackend())
        assert model.safe_model_dump()["config"] is None


def test_the_best_step() -> None:
    def line(step: int, value: float) -> dict[str, Any]:
        return {"training_step": step, "m": value}

    assert best_step([], "m") is None
    assert best_step([{"training_step": 1}], "m") is None
    assert best_step([line(1, float("nan"))], "m") is None
    assert best_step([line(1, 3.0), line(2, 3.0), line(3, float("nan"))], "m") == 2
    assert best_step([line(1, -1.0), line(2, -2.0)], "m") == 1


def test_state_is_merged_replaced_and_read_by_another_model(tmp_path: Path) -> None:
    model = trainable(base_path=str(tmp_path))
    assert model.read_state() is None
    model.overwrite_state({"a": 1, "b": {"c": {"d": 2, "e": 3}}})
    assert model.merge_state({"b": {"c": {"d": 4}}}) == {"a": 1, "b": {"c": {"d": 4, "e": 3}}}
    assert model.merge_state({"b": 3}) == {"a": 1, "b": 3}
    assert trainable(base_path=str(tmp_path)).read_state() == {"a": 1, "b": 3}
    model.overwrite_state({"z": 0})
    assert model.read_state() == {"z": 0}


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A chat endpoint that answers one canned completion with the gateway's extras, and keeps the requests."""
    requests: list[dict[str, Any]] = []
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "agent@4",
        "choices": [choice([1, 2], [3], policy_step=4, temperature=0.5).model_dump()],
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    thread.join()
    server.server_close()


async def test_what_the_gateway_adds_arrives_on_the_choice(endpoint: tuple[str, list[dict[str, Any]]]) -> None:
    base_url, requests = endpoint
    model = trainable()
    await model.register(RecordingBackend(base_url))
    async with model.openai_client() as client:
        completion = await client.chat.completions.create(
            model=model.get_inference_name(), messages=[{"role": "user", "content": "q"}]
        )
    asked = {"model": "agent@4", "messages": [{"role": "user", "content": "q"}]}
    assert requests == [{**asked, **EXTRA_BODY}]
    extras = {"prompt_token_ids": [1, 2], "token_ids": [3], "policy_step": 4, "temperature": 0.5}
    assert completion.choices[0].model_extra == extras


def test_the_fake_fulfils_the_contract() -> None:
    backend: Backend = RecordingBackend()
    assert callable(backend.train)
