"""A child process: announced, stopped, noticed when it dies, and never left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from art_core.disk import remove_directory
from art_core.process import Child, ProcessDiedError, ProcessError, ProcessTimeoutError
from art_core.testing.condition import LONGEST_S, until

PREAMBLE = "import os, signal, subprocess, sys, time\nfrom art_core.process import announce, attach_owner\n"
WAIT = "threading_wait = __import__('threading').Event().wait; threading_wait()"

OWNER = f"""
import asyncio, sys, threading
from pathlib import Path
from art_core.process import Child

async def main():
    child = await Child.launch([sys.executable, "-c", sys.argv[1]], log_path=Path(sys.argv[2]))
    print(child.pid, (await child.ready(600))["grandchild"], flush=True)

thread = threading.Thread(target=lambda: asyncio.run(main()))
thread.start(); thread.join()
print("thread ended", flush=True)
{WAIT}
"""
FAMILY = PREAMBLE + (
    "attach_owner()\n"
    "grandchild = subprocess.Popen([sys.executable, '-c', 'import signal\\nsignal.pause()'])\n"
    f"announce({{'grandchild': grandchild.pid}})\n{WAIT}"
)


async def launch(tmp_path: Path, code: str, **kwargs: object) -> Child:
    return await Child.launch(
        [sys.executable, "-c", PREAMBLE + code], log_path=tmp_path / "logs" / "child.log", **kwargs
    )


async def gone(pid: int) -> None:
    """Wait until no process of that id runs (a zombie that nobody reaps counts as ended)."""
    await until(lambda: ended(pid), f"process {pid} ends")


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_announces_its_data_and_stops(tmp_path: Path) -> None:
    child = await launch(tmp_path, f"attach_owner(); print('hello'); announce({{'port': 7, 'é': [1.5]}})\n{WAIT}")
    assert await child.ready(LONGEST_S) == {"port": 7, "é": [1.5]}
    assert child.alive
    assert await child.stop(10) == -signal.SIGTERM
    assert not child.alive
    assert await child.stop(10) == -signal.SIGTERM
    assert not psutil.pid_exists(child.pid)


async def test_environment_is_added_to_and_the_own_one_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ART_TEST_INHERITED", "yes")
    before = dict(os.environ)
    code = (
        "attach_owner(); announce({'fds': os.environ.get('ART_OWNER_FDS'), 'stdin': sys.stdin.read(),"
        " **{k: os.environ[k] for k in ('ART_TEST_INHERITED', 'ADDED')}})"
    )
    child = await launch(tmp_path, code, env={"ADDED": "too"})
    assert await child.ready(LONGEST_S) == {"fds": None, "stdin": "", "ART_TEST_INHERITED": "yes", "ADDED": "too"}
    assert await child.exited() == 0
    assert dict(os.environ) == before


async def test_death_before_ready_carries_status_and_log(tmp_path: Path) -> None:
    child = await launch(tmp_path, "attach_owner(); print('no such model', file=sys.stderr); sys.exit(3)")
    with pytest.raises(ProcessDiedError, match=r"ended with exit status 3; last lines of .*\nno such model") as caught:
        await child.ready(LONGEST_S)
    assert caught.value.status == 3


async def test_death_by_signal_is_named(tmp_path: Path) -> None:
    child = await launch(tmp_path, "attach_owner(); os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(ProcessDiedError, match="was killed by SIGSEGV"):
        await child.ready(LONGEST_S)


async def test_late_child_is_a_timeout_and_still_runs(tmp_path: Path) -> None:
    child = await launch(tmp_path, f"attach_owner(); print('loading', flush=True)\n{WAIT}")
    await until(lambda: "loading" in child.log_tail(), "the child loads")
    with pytest.raises(ProcessTimeoutError, match=r"not ready within 0.01 s; last lines of .*\nloading"):
        await child.ready(0.01)
    assert child.alive
    await child.stop(10)


async def test_a_child_that_closes_the_ready_pipe_unannounced_is_a_timeout(tmp_path: Path) -> None:
    child = await launch(tmp_path, f"attach_owner(); os.closerange(3, 100)\n{WAIT}")
    with pytest.raises(ProcessError):
        await child.ready(1)
    await child.stop(10)


async def test_unknown_command_is_named(tmp_path: Path) -> None:
    before = psutil.Process().num_fds()
    with pytest.raises(ProcessError, match="/no/such/program can't be started"):
        await Child.launch(["/no/such/program"], log_path=tmp_path / "log")
    assert psutil.Process().num_fds() <= before


async def test_log_is_appended_and_the_tail_is_this_childs(tmp_path: Path) -> None:
    for word in ("first", "second"):
        child = await launch(tmp_path, f"print({word!r})")
        await child.exited()
        assert child.log_tail() == word
    assert (tmp_path / "logs" / "child.log").read_text() == "first\nsecond\n"
    assert child.log_tail(lines=1) == "second"


async def test_stop_kills_what_ignores_sigterm_and_its_children(tmp_path: Path) -> None:
    code = (
        "attach_owner(); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "grandchild = subprocess.Popen([sys.executable, '-c', 'import signal\\nsignal.pause()'])\n"
        f"announce({{'grandchild': grandchild.pid}})\n{WAIT}"
    )
    child = await launch(tmp_path, code)
    grandchild = (await child.ready(LONGEST_S))["grandchild"]
    assert await child.stop(0.1) == -signal.SIGKILL
    await gone(grandchild)


async def test_a_child_that_dies_takes_its_children_along(tmp_path: Path) -> None:
    child = await launch(tmp_path, FAMILY.removeprefix(PREAMBLE))
    grandchild = (await child.ready(LONGEST_S))["grandchild"]
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(LONGEST_S):
        assert await child.exited() == -signal.SIGKILL
    await gone(grandchild)


async def test_a_cancelled_stop_kills_at_once(tmp_path: Path) -> None:
    child = await launch(
        tmp_path, f"attach_owner(); signal.signal(signal.SIGTERM, signal.SIG_IGN); announce({{}})\n{WAIT}"
    )
    await child.ready(LONGEST_S)
    stopping = asyncio.create_task(child.stop(3600))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    async with asyncio.timeout(LONGEST_S):
        assert await child.exited() == -signal.SIGKILL


async def test_a_cancelled_waiter_leaves_the_others_waiting(tmp_path: Path) -> None:
    child = await launch(tmp_path, f"attach_owner(); announce({{}})\n{WAIT}")
    await child.ready(LONGEST_S)
    first, second = asyncio.create_task(child.exited()), asyncio.create_task(child.exited())
    await asyncio.sleep(0)
    first.cancel()
    await child.stop(10)
    assert await second == -signal.SIGTERM
    assert first.cancelled()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_nothing_survives_the_owner(tmp_path: Path, number: signal.Signals) -> None:
    """The owner launches from a thread that ends first: a parent-death signal would have fired then."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, FAMILY, tmp_path / "log"], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    assert owner.stdout.readline() == "thread ended\n"
    assert len(pids) == 2
    assert all(psutil.Process(pid).is_running() for pid in pids)
    owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    for pid in pids:
        await gone(pid)


async def test_a_private_directory_goes_with_the_child_that_made_it(tmp_path: Path) -> None:
    private = tmp_path / "private"
    code = f"from pathlib import Path; attach_owner(private=Path({str(private)!r})); announce({{'grandchild': 0}})\n"
    child = await launch(tmp_path, code + f"(Path({str(private)!r}) / 'socket').touch()\n{WAIT}")
    await child.ready(LONGEST_S)
    assert private.stat().st_mode & 0o777 == 0o700
    assert await child.stop(10) == -signal.SIGTERM
    assert not private.exists()

    again = PREAMBLE + code + WAIT
    owner = subprocess.Popen([sys.executable, "-c", OWNER, again, tmp_path / "log"], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    pid = int(owner.stdout.readline().split()[0])
    assert private.is_dir()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    await gone(pid)
    assert not private.exists()


async def test_a_private_directory_goes_with_a_child_that_was_killed(tmp_path: Path) -> None:
    """It can't remove it: its owner has, as soon as anybody here can know of the end."""
    private = tmp_path / "private"
    code = f"from pathlib import Path; attach_owner(private=Path({str(private)!r})); announce({{}})\n"
    child = await launch(tmp_path, code + WAIT, private=private)
    await child.ready(LONGEST_S)
    assert private.is_dir()
    os.kill(child.pid, signal.SIGKILL)
    assert await child.exited() == -signal.SIGKILL
    assert not private.exists()


async def test_a_sibling_and_a_fork_do_not_hold_the_lifeline(tmp_path: Path) -> None:
    """A later child and a fork without exec both outlive the owner; the child must not."""
    owner_code = OWNER.replace(
        'print("thread ended", flush=True)',
        "import os, subprocess, time\n"
        "sibling = subprocess.Popen([sys.executable, '-c', 'import signal\\nsignal.pause()'], close_fds=False)\n"
        "fork = os.fork()\n"
        "if fork == 0:\n    import signal\n    signal.pause()\n"
        "print(sibling.pid, fork, flush=True)",
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", owner_code, FAMILY, tmp_path / "log"], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    pids = [int(pid) for pid in owner.stdout.readline().split()]
    others = [int(pid) for pid in owner.stdout.readline().split()]
    try:
        owner.kill()
        owner.wait()
        owner.stdout.close()
        for pid in pids:
            await gone(pid)
        assert all(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in others)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)


async def test_attach_without_an_owner_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + "attach_owner()"], capture_output=True, text=True, check=False
    )
    assert "ART_OWNER_FDS is not set" in done.stderr


async def test_no_descriptor_and_no_thread_is_left(tmp_path: Path) -> None:
    fds, threads = psutil.Process().num_fds(), threading.active_count()
    for _ in range(3):
        child = await launch(tmp_path, f"attach_owner(); announce({{}})\n{WAIT}")
        await child.ready(LONGEST_S)
        await child.stop(10)
    await until(lambda: psutil.Process().num_fds() <= fds, "no descriptor is left")
    await until(lambda: threading.active_count() <= threads, "no thread is left")


def test_a_directory_that_is_filled_while_it_is_removed_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the owner dies while the child binds its socket."""
    directory, rmdir = tmp_path / "private", os.rmdir
    directory.mkdir()
    late = iter([directory / "socket"])

    def filled_first(path: str, **where: int) -> None:
        for each in late:
            each.touch()
        rmdir(path, **where)

    monkeypatch.setattr(os, "rmdir", filled_first)
    remove_directory(directory)
    assert not directory.exists() and not list(late)


def test_a_directory_whose_files_another_removes_meanwhile_is_removed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a process that works there has not ended yet."""
    directory, unlink = tmp_path / "private", os.unlink
    directory.mkdir()
    for name in ("one", "other"):
        (directory / name).touch()

    def too_late(path: str, **where: int) -> None:
        unlink(path, **where)
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", too_late)
    remove_directory(directory)
    assert not directory.exists()
