from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from art_core.cli import program
from art_core.errors import ArtError, ConfigError, PluginNotFoundError, StaleWeightsError
from art_core.testing.condition import LONGEST_S


def art(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user types it."""
    command = [str(Path(sys.executable).with_name("art")), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin", **environment})


def test_version() -> None:
    done = art("version")
    assert (done.returncode, done.stdout) == (0, f"art-core {version('art-core')}\n")


def test_model_prints_the_directory_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = art("model", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path}\n", "")


def test_a_hub_name_has_no_directory() -> None:
    done = art("model", "nobody/nothing")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'nobody/nothing' is no directory here; as a hub name it is fetched by engine and trainer" in done.stderr


def test_an_error_of_ours_is_one_line(tmp_path: Path) -> None:
    done = art("model", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ConfigError: base model ")
    assert done.stderr.count("\n") == 1


def test_on_demand_with_its_traceback(tmp_path: Path) -> None:
    assert "Traceback" in art("model", str(tmp_path), ART_DEBUG="1").stderr


def test_what_a_library_does_when_the_interpreter_goes_can_not_change_the_exit_code() -> None:
    """Obstore's threads abort a process that takes its interpreter down while one of them still wants it."""
    program = "import atexit, os, sys; from art_core.cli import main; atexit.register(os.abort); main()"
    for arguments, code in (("version",), 0), (("model", "pypi:none"), 2):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=LONGEST_S
        )
        assert done.returncode == code
        assert "art-core" in done.stdout or "unknown" in done.stderr


INTERRUPTED = """
import importlib.abc, os, signal, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)
from art_core.cli import main
main()
"""
"""The program, whose user types Ctrl-C at the moment at which it begins to import a module."""


@pytest.mark.parametrize(
    ("module", "ignored", "code"),
    [
        ("art_core.cli.program", False, 130),
        ("typer.main", False, 130),
        ("art_core.model_source", False, 130),
        ("typer.main", True, 0),
        ("art_core.model_source", True, 0),
    ],
)
def test_ctrl_c_ends_quietly_at_any_moment(module: str, ignored: bool, code: int, tmp_path: Path) -> None:
    """Before the commands are there, and in the midst of one; not where a shell has it ignored, as of ``art &``."""
    (tmp_path / "config.json").write_text("{}")
    program = INTERRUPTED.format(module=module, ignored=ignored)
    done = subprocess.run(
        [sys.executable, "-c", program, "model", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=LONGEST_S,
    )
    assert (done.returncode, done.stdout) == (code, "" if code else f"{tmp_path}\n")
    assert done.stderr.strip() in ("", "Aborted.")


def test_help_names_every_command() -> None:
    done = CliRunner().invoke(program.app, ["--help"])
    assert done.exit_code == 0
    assert all(command in done.stdout for command in ("demo", "doctor", "model", "version", "plugins", "checkpoints"))


@pytest.mark.parametrize("arguments", [("demo", "--steps", "0"), ("demo", "--no-such-option"), ("nothing",)])
def test_a_wrong_use_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = art(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("doctro",), "Did you mean 'doctor'?"),
        (("plugins", "lits"), "Did you mean 'list'?"),
        (("checkpoints", "verfy"), "Did you mean 'verify'?"),
        (("doctor", "--jsn"), "--json"),
    ],
)
def test_a_wrong_word_suggests_the_nearest(arguments: tuple[str, ...], hint: str) -> None:
    done = CliRunner().invoke(program.app, arguments)
    assert done.exit_code == 2
    assert hint in done.output


def test_the_demo_says_before_it_starts_what_the_report_will_need(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pygal", None)
    monkeypatch.setattr(sys, "argv", ["art", "demo", "--path", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        program.run()
    assert end.value.code == 2
    assert "pip install 'art-core[demo]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_can_not_begin_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(program.app, ["demo", "--engine", "torhc"])
    assert isinstance(done.exception, PluginNotFoundError)
    assert list((tmp_path / ".art").iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("a [bold]\nb"), 2), (PluginNotFoundError("a [bold]\nb"), 2), (StaleWeightsError("a [bold]\nb"), 1)],
)
def test_the_exit_code_tells_settings_from_runs(
    error: ArtError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = typer.Typer(pretty_exceptions_enable=False)

    @failing.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(program, "app", failing)
    monkeypatch.setattr(sys, "argv", ["art"])
    with pytest.raises(SystemExit) as end:
        program.run()
    assert end.value.code == code
    assert capsys.readouterr().err == f"{type(error).__name__}: a [bold] b\n"


def test_with_json_an_error_is_a_document_too(tmp_path: Path) -> None:
    done = art("checkpoints", "list", "--path", str(tmp_path), "--json", ART_CACHE=str(tmp_path))
    assert done.returncode == 2 and done.stderr.startswith("ConfigError: there is no run in")
    assert json.loads(done.stdout)["error"] == "ConfigError"
    assert f"ConfigError: {json.loads(done.stdout)['message']}\n" == done.stderr


def test_the_command_line_loads_no_heavy_library() -> None:
    code = "import art_core.cli.program, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert "art_core" in loaded
    assert not loaded & {"numpy", "openai", "pyarrow", "pygal", "gguf", "tokenizers", "torch", "uvicorn"}
