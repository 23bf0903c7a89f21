"""Every documented error, provoked: by what a user, a plugin or a machine does, never by constructing it.

`SCENARIOS` runs on one backend with the tiny model. An error that needs more stands in `ELSEWHERE` with the test that
provokes it; one that nothing raises yet in `NOT_RAISED`, with the reason; that nothing does is looked up.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import art
from art.local import LocalBackend
from art_core import errors
from art_core.checkpoint import ADAPTER
from art_core.errors import ArtError
from tests.faults.life import groups
from tests.flow import provocation as by
from tests.flow.provocation import Place

ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture(scope="module")
async def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[LocalBackend]:
    """A backend with two adapter slots, its model at step 3."""
    config = {"engine_args": {"max_loras": 2}}
    model = art.TrainableModel(name="provoked", project="errors", base_model=str(tiny_model), _internal_config=config)
    async with LocalBackend(path=tmp_path_factory.mktemp("errors"), engine="torch", trainer="torch") as door:
        await model.register(door)
        for _ in range(STEPS):
            await door.train(model, groups(), learning_rate=1e-4)
        door.model = model  # type: ignore[attr-defined]
        yield door


@pytest.fixture
def place(trained: LocalBackend, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    return Place(tmp_path / "art", tiny_model, trained, trained.model, site)  # type: ignore[attr-defined]


Scenario = Callable[[Place], Awaitable[None]]

SCENARIOS: dict[type[ArtError], tuple[Scenario, str]] = {
    errors.ConfigError: (by.config, "'engin'; did you mean 'engine'"),
    errors.PluginNotFoundError: (by.plugin_not_found, "engine 'torhc' is not installed; did you mean 'torch'"),
    errors.PluginLoadError: (by.plugin_load, r"'broken' \(art-broken\).*boom"),
    errors.PluginConflictError: (by.plugin_conflict, "art-one, art-two"),
    errors.PluginContractError: (by.plugin_contract, "contract_version 99"),
    errors.PluginUnusableError: (by.plugin_unusable, "store 'big'.*no GPU here; try: buy one"),
    errors.EnvironmentBuildError: (
        by.environment_build,
        "art-copied 1.0 has no record of its files.*install it with pip",
    ),
    errors.CapabilityError: (by.capability, "does not declare.*sleep"),
    errors.TrajectoryError: (by.trajectory, "none of the 0 groups.*hand in at least one"),
    errors.TokenizationError: (by.tokenization, "group 1, trajectory 0, choice 0.*no logprobs; sample through"),
    errors.BatchError: (by.batch, "100000.*allowed"),
    errors.RunError: (by.run, "art-provoked did not start within 10 s; see the log"),
    errors.EngineError: (by.engine, "adapter name 'provoked@3' is taken; unload it first"),
    errors.EngineStartError: (by.engine_start, "can't be started.*[Dd]irectory"),
    errors.EngineUnavailableError: (by.engine_unavailable, "not started; call start first"),
    errors.StaleWeightsError: (by.stale_weights, "stands for .*0003 in the engine, not for .*0004; it is unloaded"),
    errors.TrainerError: (by.trainer, "not started.*call start first"),
    errors.TrainerStartError: (by.trainer_start, "/no/such/python can't be started"),
    errors.TrainerUnavailableError: (by.trainer_unavailable, "is gone: process .* was killed by SIGKILL"),
    errors.CheckpointError: (by.checkpoint, "adapter_model.bin.*not allowed.*allowed: .json"),
    errors.CheckpointCorruptError: (by.checkpoint_corrupt, f"{ADAPTER} has .* bytes, sha256.*; delete that step"),
    errors.StoreError: (by.store_fails, "state.json line 1 is damaged.*restore the file"),
    errors.StoreUnavailableError: (by.store_unavailable, "can.t create s3://b/.art-probe/.* now: .*127.0.0.1:9"),
    errors.CheckpointNotFoundError: (by.checkpoint_not_found, "nobody has no checkpoint.*name another run"),
    errors.CommitConflictError: (by.commit_conflict, "another checkpoint stands at .*; delete step"),
    errors.RunLockedError: (by.run_locked, r"held by process \d+ on .* since .*, which is this one: close the backend"),
    errors.PublishError: (by.publish, "is published already; retract it"),
    errors.PublishTimeoutError: (by.publish_timeout, "no adapter slot came free"),
    errors.RouteError: (by.route, r"not running; call start\(\)"),
    errors.NoRouteError: (by.no_route, "step 999"),
    errors.EngineDiedError: (by.engine_died, "is gone: process .* was killed by SIGKILL"),
    errors.LocalServingUnavailableError: (by.local_serving_unavailable, "can't be reached.*register"),
}
"""Error to who provokes it, and what its message must say: the value seen and the next step. Destructive ones last."""

ELSEWHERE: dict[type[ArtError], str] = {
    errors.OutOfMemoryError: (
        "tests/plugins/art_torch/test_trainer_resume.py::"
        "test_running_out_of_memory_says_what_to_lower_and_changes_nothing"
    ),
    errors.NonFiniteLossError: (
        "tests/plugins/art_torch/test_trainer_step.py::test_a_loss_or_gradient_that_is_not_finite_changes_nothing"
    ),
}

NOT_RAISED: dict[type[ArtError], str] = {
    errors.ArtError: "the root: to be caught",
    errors.PluginError: "to be caught; what is raised says which",
    errors.DataError: "to be caught; what is raised says which",
    errors.SwapError: "no part gives its GPU back yet",
}


@pytest.mark.parametrize("cls", SCENARIOS, ids=lambda cls: cls.__name__)
async def test_an_error_is_provoked(place: Place, cls: type[ArtError]) -> None:
    scenario, message = SCENARIOS[cls]
    with pytest.raises(cls, match=re.compile(message, re.DOTALL)) as caught:
        await scenario(place)
    assert type(caught.value) is cls


def test_every_error_is_provoked_somewhere_or_has_its_reason() -> None:
    every = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ArtError)}
    listed = [*SCENARIOS, *ELSEWHERE, *NOT_RAISED]
    assert set(listed) == every and len(listed) == len(every)


@pytest.mark.parametrize("test", ELSEWHERE.values())
def test_the_other_test_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()


@pytest.mark.parametrize("cls", NOT_RAISED, ids=lambda cls: cls.__name__)
def test_what_is_not_provoked_is_not_raised(cls: type[ArtError]) -> None:
    files = [path for folder in ("art_core", "art", "plugins", "contrib") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 100
    raising = [
        path for path in files if re.search(rf"\b{cls.__name__}\(", path.read_text()) and path.name != "errors.py"
    ]
    assert raising == []
