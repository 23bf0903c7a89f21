"""Which part is chosen and why; objects of the caller's, held to their contracts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import Field

from art_core.builtin.file import FileStoreOptions
from art_core.builtin.fsspec import FsspecStoreOptions
from art_core.builtin.reload import ReloadOptions, ReloadPublisher
from art_core.capability import FULL, Capabilities, Capability
from art_core.checkpoint import ADAPTER_CONFIG
from art_core.compose import Choice, compose
from art_core.config import Environment, PartOptions, Timeouts
from art_core.errors import ConfigError, PluginContractError, PluginNotFoundError, PluginUnusableError
from art_core.file_store import FileStore
from art_core.part import EnginePart, StorePart, TrainerPart
from art_core.plugins import Kind, Plugins
from art_core.protocols.engine import InferenceEngine
from art_core.selection import Given, Selection, select
from tests import numpy_trainer
from tests.art_core.builtin.numpy_engine import NumpyEngine
from tests.installed import install, store


class Mine(NumpyEngine):
    """The numpy engine as somebody's own object, with what it can do."""

    capabilities = Capabilities({Capability.SCORE: FULL})


def publisher(engine: InferenceEngine, capabilities: Capabilities) -> ReloadPublisher:
    """A factory as a user would write it."""
    return ReloadPublisher(ReloadOptions(require_proof=True), engine, capabilities)


def selected(kind: Kind, selection: Selection, **variables: str) -> tuple[str, str]:
    seen = select(Plugins(), kind, selection, Environment(**variables))  # type: ignore[arg-type]
    return seen.part.name, seen.reason


def test_the_option_goes_before_the_variable_before_the_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "one", store("one"))
    install(tmp_path, "two", store("two"))
    assert selected("store", "one", store="two") == ("one", "named by the option store")
    assert selected("store", None, store="two") == ("two", "named by ART_STORE")
    assert selected("store", None) == ("file", "preset")
    assert selected("store", FileStoreOptions(), store="two") == ("file", "named by the option store")


def test_an_option_that_some_parts_lack_chooses_among_those_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "first", _engine("first", ", priority=900"))
    second = _engine("second", ", priority=800").replace('part = "second"', 'part = "second"\n    runtime: str = ""')
    install(tmp_path, "second", second)
    given = Given({"runtime": "there", "usual": 1}, foreign={"usual"})
    seen = select(Plugins(), "engine", None, Environment(), given)
    assert (seen.part.name, seen.reason) == ("second", "automatic, it has the option runtime")
    assert seen.options.model_dump()["runtime"] == "there"
    assert select(Plugins(), "engine", None, Environment(), Given({"usual": 1}, foreign={"usual"})).part.name == "first"
    with pytest.raises(ConfigError, match="'first' has no option 'runtim'"):
        select(Plugins(), "engine", None, Environment(), Given({"runtim": 1}))


def test_the_reason_of_an_automatic_choice_names_those_that_were_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, extra in (("win", ", priority=900"), ("next", ", priority=800"), ("big", ", usable=lambda: 'no GPU'")):
        install(tmp_path, name, _engine(name, extra))
    name, reason = selected("engine", None)
    assert name == "win"
    assert reason.startswith("automatic, highest priority (900) before 'next' (800)")
    assert "'big' can't work here: no GPU" in reason


def _engine(name: str, extra: str) -> str:
    code = store(name, extra=extra).replace("priority=0, ", "")
    return code.replace("StorePart", "EnginePart").replace("stores", "engines")


def test_a_named_part_that_can_not_work_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        PluginUnusableError,
        match=r"engine 'torch' \(named by ART_ENGINE\) can't work here: not installed: peft; try: pip install",
    ):
        selected("engine", None, engine="torch")


def test_a_directory_as_a_store_is_told_its_url() -> None:
    with pytest.raises(
        ConfigError, match="store is '/mnt/my share'; a directory is named by its URL: file:///mnt/my%20"
    ):
        selected("store", "/mnt/my share")


def test_a_stores_url_may_carry_its_other_options() -> None:
    """So that a command, or ART_STORE, can say what a program would say by options."""
    url = "memory://place/prefix%3F?single_writer=true"
    for chosen in (
        select(Plugins(), "store", url, Environment()),
        select(Plugins(), "store", None, Environment(store=url)),
    ):
        assert chosen.options == FsspecStoreOptions(url="memory://place/prefix%3F", single_writer=True)
    with pytest.raises(ConfigError, match="'fsspec' has no option 'single_writers'; did you mean 'single_writer'"):
        selected("store", "memory://place?single_writers=true")
    with pytest.raises(ConfigError, match="option 'single_writer' is 'perhaps'"):
        selected("store", "memory://place?single_writer=perhaps")
    with pytest.raises(ConfigError, match="'file' has no option 'b'"):
        selected("store", "file:///a?b")


async def test_objects_of_the_callers_are_used_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, checkpoints = Mine(), FileStore(tmp_path)
    choice = Choice(
        engine=engine,
        store=checkpoints,
        publisher=publisher,
        trainer=numpy_trainer.FACTORY,
        trainer_options={"anything": [1, 2], "max_seq_length": 7},
        foreign_options=("max_seq_length",),
    )
    plugins = Plugins()
    with caplog.at_level(logging.INFO, "art.compose"):
        parts = compose(choice, plugins, tmp_path, Timeouts())
        compose(choice, plugins, tmp_path, Timeouts())
    assert parts.engine is engine and parts.store is checkpoints
    assert parts.engine_capabilities is Mine.capabilities
    assert isinstance(parts.publisher, ReloadPublisher)
    assert parts.trainer_name == numpy_trainer.FACTORY
    (line,) = [record.message for record in caplog.records]  # said once, not per run
    assert line == (
        "engine 'engine Mine': given by the option engine; "
        "trainer 'tests.numpy_trainer:NumpyTrainer': named by the option trainer; "
        "store 'store FileStore': given by the option store; "
        "publisher 'publisher function': given by the option publisher"
    )


class PassingOptions(PartOptions):
    part: ClassVar[str] = "passing"
    pass_through: ClassVar[str | None] = "rest"
    own: int = 0
    rest: dict[str, Any] = Field(default_factory=dict)


def test_arguments_of_a_library_reach_a_part_that_passes_them_on() -> None:
    part = EnginePart(name="passing", options=PassingOptions, create=lambda options: Mine())
    given = Given({"own": 1, "load_in_4bit": True}, {"own": 2, "deep": {"a": 1}, "seed": 3}, foreign={"load_in_4bit"})
    options = select(Plugins(), "engine", part, Environment(), given).options
    assert options == PassingOptions(own=2, rest={"deep": {"a": 1}, "seed": 3})


def test_arguments_of_a_library_are_options_where_a_part_does_not_pass_them_on() -> None:
    given = Given({}, {"max_loras": 3, "swap_space": 1}, foreign={"swap_space"})
    options = select(Plugins(), "engine", "torch", Environment(), given).options
    assert options.model_dump(exclude_unset=True) == {"max_loras": 3}
    with pytest.raises(ConfigError, match="'torch' has no option 'swap_space'"):
        select(Plugins(), "engine", "torch", Environment(), Given({}, {"swap_space": 1}))


async def test_a_trainer_named_module_callable_gets_its_options_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    options = {"fail_start": False, "deep": {"a": [1, 2.5, None]}}
    choice = Choice(engine=Mine(), trainer=numpy_trainer.FACTORY, trainer_options=options)
    trainer = compose(choice, Plugins(), tmp_path, Timeouts()).trainer
    try:
        await trainer.start(numpy_trainer.SPEC, None)
        (tmp_path / "saved").mkdir()
        await trainer.save(tmp_path / "saved")  # the numpy trainer writes its options there
    finally:
        await trainer.stop()
    assert json.loads((tmp_path / "saved" / ADAPTER_CONFIG).read_text()) == options


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module_at_all:make", PluginNotFoundError, "there is no module 'no_such_module_at_all'"),
        ("tests.numpy_trainer:", PluginContractError, "is no 'module:callable'"),
        (":make", PluginContractError, "is no 'module:callable'"),
        ("tests/numpy_trainer.py:Make", PluginContractError, "is no 'module:callable'"),
    ],
)
def test_a_wrong_module_callable(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        selected("trainer", name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.numpy_trainer:NumpyTraner", "has no callable 'NumpyTraner'; did you mean 'NumpyTrainer'"),
        ("tests.no_such:Make", "can't be imported: No module named 'tests.no_such'.*PYTHONPATH"),
        ("tests.numpy_trainer:dict", "has no callable 'dict'"),
        ("tests.numpy_trainer:Path", "what trainer 'tests.numpy_trainer:Path' returns does not keep the contract"),
    ],
)
def test_what_only_the_trainers_process_can_see(name: str, message: str) -> None:
    """Called here, in this process: the way of an error through the worker is tested with the worker."""
    options: Any = "."
    from art_core.worker_server import _factory

    with pytest.raises((PluginNotFoundError, ImportError, TypeError), match=message):
        _factory(name)(options)


class Half:
    """An engine that is not one."""

    async def start(self, spec: object) -> None: ...
    def health(self) -> None: ...
    async def load_adapter(self, name: str) -> None: ...
    async def unload_adapter(self, *arguments: object) -> None: ...
    async def score(self, name: str, sequences: object, more: int = 0) -> None: ...


@pytest.mark.parametrize(
    ("kind", "made", "message"),
    [
        ("engine", Half(), r"engine Half does not keep the contract InferenceEngine: health\(\) is not `async def`"),
        ("engine", Half(), r"load_adapter\(name, checkpoint\) is load_adapter\(name: 'str'\).*too many positional"),
        ("engine", Half(), r"sleep\(level\) is missing; wake\(\) is missing; stop\(\) is missing; see art_core"),
        ("engine", Mine, "engine Mine is a class; give an instance of it"),
        ("engine", 7, "engine int does not keep the contract"),
        ("engine", TrainerPart(name="t", options=FileStoreOptions, create=print), "as engine; expected EnginePart"),
        ("store", Half(), "store Half does not keep the contract CheckpointStore: check"),
        ("publisher", Half(), "publisher Half does not keep the contract Publisher: publish"),
        ("publisher", lambda engine: None, "is called with the engine and its capabilities"),
        ("trainer", numpy_trainer.NumpyTrainer({}), "is an object; a trainer lives in a process of its own: give 'mod"),
        ("trainer", numpy_trainer.NumpyTrainer, "trainer NumpyTrainer is an object; a trainer lives in a process"),
        (
            "trainer",
            TrainerPart(name="file", options=FileStoreOptions, create=numpy_trainer.NumpyTrainer),
            "'file' is a part that no plugin registers; a trainer lives in a process of its own",
        ),
    ],
)
def test_what_does_not_keep_its_contract_is_refused(kind: Kind, made: Any, message: str) -> None:
    with pytest.raises(PluginContractError, match=message):
        selected(kind, made)


def test_half_keeps_what_it_keeps() -> None:
    with pytest.raises(PluginContractError) as error:
        selected("engine", Half())  # type: ignore[arg-type]
    assert "unload_adapter" not in str(error.value)
    assert "start" not in str(error.value)
    assert "score" not in str(error.value)


def test_capabilities_of_the_wrong_type(tmp_path: Path) -> None:
    engine = Mine()
    engine.capabilities = {"score"}  # type: ignore[assignment]
    with pytest.raises(PluginContractError, match=r"has capabilities \{'score'\}; expected art_core.capability"):
        selected("engine", engine)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (lambda engine: Choice(engine=_part(Half)), "what engine 'file' creates does not keep the contract Inf"),
        (lambda engine: Choice(engine=engine, publisher=lambda e, c: Half()), "what publisher .* does not keep"),
        (
            lambda engine: Choice(
                engine=engine, store=StorePart(name="file", options=FileStoreOptions, create=lambda _: Half())
            ),
            "what store 'file' creates",
        ),
    ],
)
def test_what_a_part_creates_is_held_to_its_contract(
    choice: Callable[[Any], Choice], message: str, tmp_path: Path
) -> None:
    with pytest.raises(PluginContractError, match=message):
        compose(choice(Mine()), Plugins(), tmp_path, Timeouts())


def _part(create: Callable[[], Any]) -> EnginePart:
    return EnginePart(name="file", options=FileStoreOptions, create=lambda options: create())


def test_an_object_has_no_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'an object of your own' has no option 'max_lora'"):
        compose(Choice(engine=Mine(), engine_options={"max_lora": 3}), Plugins(), tmp_path, Timeouts())
