"""Random kills of whole lives: one victim after the other, each going on where the last one was killed.

    python -m tests.faults.campaign [--parts small|copying|torch] [--kills 1000] [--seed N]

Every victim is forked from this warm process and killed by SIGKILL: before or after a call that changes a file, on
entering or leaving a stage of a step or a part of a publication, or at a random instant. The kinds of points are chosen
alike, so that rare calls are struck as often as frequent ones. After every kill:

- the store lists no torn checkpoint: every byte of every listed step is that of a run that was never killed;
- every step that was said to be served is listed, and besides at most the one that was being made;
- the lock is free, and opening the run removes what the victim was writing;
- state, history and logged trajectories are whole;
- no process of the victim's is left, and nothing in the directory of temporary files;
- the next victim resumes at the newest listed step.

With ``--parts copying`` every step is also copied to a store while the next ones are made. The store holds no torn step
either, none that is not here, and all of them once the last victim of a run has ended by itself.

With ``--parts torch`` engine and trainer are the real ones on a tiny model, in processes of their own, and a kill may
strike these too: then the victim must go on by itself. The seed is printed; the last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from art_core.checkpoint import verify
from art_core.file_store import FileStore
from art_core.local_store import LocalStore
from art_core.run import RunDirectory, run_path
from art_core.run_key import RunKey
from art_core.testing.condition import LONGEST_S
from tests.faults.kill import Call, deadline, in_fork, reap
from tests.faults.life import COPIES, LORA, PROJECT, RUN, SMALL_BASE, Life, copying_life, real_life, small_life, teller
from tests.faults.strike import CLIENT, INSTANT, Arms, Strike, Told
from tests.faults.warm import forked_children

STEPS_A_LIFE = 3
LIVES_A_RUN = 12
LIFE_S = GONE_S = LONGEST_S
"""Of a life, and until a process whose owner is dead must be gone; how long that took is among the figures."""

Points = Mapping[str, Counter[str]]
"""Role to kind to how often it occurs in a life."""


@dataclass(frozen=True)
class Victim:
    """What is killed."""

    life: Life
    base_model: str
    calls: Sequence[Call] = ()
    """Points besides those of every victim."""
    roles: Mapping[str, str] = field(default_factory=dict)
    """Module of a child process to its role."""
    copies: bool = False
    """Whether steps are copied to a store."""


class Campaign:
    """Victims of one kind, in directories below one."""

    def __init__(self, victim: Victim, root: Path, seed: int) -> None:
        self._victim = victim
        self._root = root
        self._random = random.Random(seed)
        self._temporary = root / "tmp"
        self._temporary.mkdir()
        self._reference: list[Mapping[str, str]] = []
        self._points: dict[bool, Points] = {}
        self._life_s = 0.0
        self.kills: Counter[str] = Counter()
        self.figures: Counter[str] = Counter()
        self.slowest_end_s = 0.0
        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: orphans become ours
        os.environ["TMPDIR"] = tempfile.tempdir = str(self._temporary)

    def learn(self) -> None:
        """Live without a kill: which points there are, how long a life takes, and what every step's files must be."""
        path, start = self._root / "reference", time.monotonic()
        self._points[True] = self._live(path, STEPS_A_LIFE, None).points
        self._life_s = time.monotonic() - start
        self._points[False] = self._live(path, STEPS_A_LIFE, None).points
        steps = STEPS_A_LIFE * LIVES_A_RUN
        told = self._live(path, steps - STEPS_A_LIFE, Strike(CLIENT, "never"))
        assert told.served == steps + STEPS_A_LIFE, told
        self._reference = [files for _, files in self._listed(path)]
        assert len(self._reference) == steps + STEPS_A_LIFE + 1

    def run(self, kills: int) -> None:
        """Kill so many, each checked."""
        while True:
            path, newest = self._root / f"run{self.figures['runs']}", None
            self.figures["runs"] += 1
            for _ in range(LIVES_A_RUN):
                newest = self._kill(path, newest)
                if self.kills.total() == kills:
                    break
            self._end(path, newest)
            shutil.rmtree(path)
            if self.kills.total() == kills:
                return

    def _kill(self, path: Path, before: int | None) -> int | None:
        strike = self._choose(self._points[before is None])
        try:
            told = self._live(path, STEPS_A_LIFE, strike)
            newest = self._check(path, before, told, killed=told.struck_s is not None and strike.role == CLIENT)
        except BaseException:
            print(f"after {self.kills.total()} kills, {strike} on {path}, newest step before: {before}", flush=True)
            raise
        if told.struck_s is None:
            self.figures["lives that ended before their point"] += 1
        else:
            self.kills[f"{strike.role}: {strike.kind}"] += 1
        self.figures["steps"] += (newest or 0) - (before or 0)
        self.figures["errors answered"] += len(told.errors)
        return newest

    def _end(self, path: Path, newest: int | None) -> None:
        """The last victim ends by itself; then nothing is left but what there should be."""
        self._check(path, newest, self._live(path, STEPS_A_LIFE, Strike(CLIENT, "never")), killed=False)
        if self._victim.copies:
            asyncio.run(FileStore(path / COPIES).sweep(RunKey(PROJECT, RUN), 0))
        assert list(path.rglob(".*")) == []

    def _choose(self, points: Points) -> Strike:
        role = self._random.choice(sorted(points))
        kind = self._random.choice([*sorted(points[role]), INSTANT, INSTANT])
        if kind == INSTANT:
            return Strike(role, kind, after_s=self._random.uniform(0, self._life_s))
        return Strike(role, kind, self._random.randint(1, points[role][kind]))

    def _live(self, path: Path, steps: int, strike: Strike | None) -> Told:
        """A victim from birth to death, its family's included."""
        read_fd, write_fd = os.pipe()
        arms = Arms(strike, teller(write_fd), self._victim.calls)
        victim = in_fork(lambda: self._work(path, steps, arms, write_fd))
        os.close(write_fd)
        told = Told()
        with deadline(LIFE_S, "a life, or a process of a dead victim's, goes on"), os.fdopen(read_fd) as lines:
            for line in lines:  # ends when the last process that holds the pipe has ended
                told.take(line.rstrip("\n"))
        _, status = os.waitpid(victim, 0)
        killed = told.struck_s is not None and strike is not None and strike.role == CLIENT
        if killed and status == 0:  # its life was over in the moment between the word and the blow
            killed, told.struck_s = False, None
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGKILL if killed else 0), told
        with deadline(GONE_S, "a process of a dead victim's is left"):
            reap()
        if killed and told.struck_s is not None:
            self.slowest_end_s = max(self.slowest_end_s, time.monotonic() - told.struck_s)
        return told

    def _work(self, path: Path, steps: int, arms: Arms, pipe_fd: int) -> None:
        def begun(module: str) -> None:
            arms.begin(self._victim.roles[module])

        arms.begin(CLIENT)
        with arms.ready(), forked_children(begun, pipe_fd):
            asyncio.run(self._victim.life(path, steps, teller(pipe_fd)))

    def _listed(self, path: Path) -> list[tuple[int, Mapping[str, str]]]:
        """Number and files of the listed steps, every byte of each verified."""
        found = asyncio.run(LocalStore().list(run_path(path, PROJECT, RUN)))
        for stored in found:
            assert verify(stored.directory, stored.manifest) == stored.manifest
        return [(stored.step, {name: file.sha256 for name, file in stored.manifest.files.items()}) for stored in found]

    def _check(self, path: Path, before: int | None, told: Told, *, killed: bool) -> int | None:
        listed = self._listed(path)
        newest = len(listed) - 1 if listed else None
        assert [step for step, _ in listed] == list(range(len(listed)))
        for step, files in listed:
            assert files == self._reference[step], f"step {step} differs from that of a run that was never killed"
        assert told.opened in (None, before if before is not None else 0), told
        least, most = told.served or told.opened or before or 0, told.training or told.opened or before or 0
        assert (newest is None and told.opened is None and before is None) or least <= (newest or 0) <= most, told
        assert killed or told.served == (before or 0) + STEPS_A_LIFE, told
        run = RunDirectory.create_or_open(path, PROJECT, RUN, self._victim.base_model, LORA)
        run.close()
        self._check_log(run, most)
        assert (left := list((path / PROJECT).rglob(".*"))) == [], left
        assert (left := list(self._temporary.rglob("*"))) == [], left
        if self._victim.copies:
            copied = self._listed(path / COPIES)
            assert copied == listed[: len(copied)]
            assert killed or copied == listed
        return newest

    def _check_log(self, run: RunDirectory, most: int) -> None:
        steps = [line["step"] for line in run.history()]
        assert steps == sorted(set(steps)) and all(step <= most for step in steps)
        assert run.read_state().get("step", 0) <= most
        for file in run.path.glob("trajectories/train/*.parquet"):
            data = file.read_bytes()
            assert data[:4] == data[-4:] == b"PAR1", file


def small(root: Path) -> Victim:
    """Engine and trainer in the victim's own process."""
    import_module("pyarrow.parquet")  # what `write_log` imports late
    return Victim(small_life, SMALL_BASE)


def copying(root: Path) -> Victim:
    """As small, and every step is copied."""
    return replace(small(root), life=copying_life, copies=True)


def torch(root: Path) -> Victim:
    """A user's program on the torch engine and trainer, with a tiny model."""
    import_module("pyarrow.parquet")
    from art_torch import trainer
    from art_torch.serve import adapter_table, lora_slot, server

    from art_core import worker_server
    from tests.tiny_model import write_tiny_model

    model = root / "model"
    _, status = os.waitpid(in_fork(lambda: write_tiny_model(model)), 0)
    assert status == 0
    calls: list[Call] = [(Path, "write_bytes"), (worker_server, "announce"), (server, "announce")]
    calls += [(trainer.TorchTrainer, name) for name in ("start", "step", "save")]
    calls += [(adapter_table.AdapterTable, "load"), (lora_slot.LoRASlots, "write")]
    roles = {worker_server.__name__: "trainer", server.__name__: "engine"}
    return Victim(real_life(model), str(model), calls, roles)


PARTS: Mapping[str, Callable[[Path], Victim]] = {"small": small, "copying": copying, "torch": torch}


def main() -> None:
    """Parse, kill, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", choices=PARTS, default="small")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as root:
        campaign = Campaign(PARTS[arguments.parts](Path(root)), Path(root), arguments.seed)
        campaign.learn()
        campaign.run(arguments.kills)
    figures: dict[str, Any] = {
        "parts": arguments.parts,
        "seed": arguments.seed,
        "kills": campaign.kills.total(),
        "kinds": len(campaign.kills),
        **campaign.figures,
        "slowest_end_s": round(campaign.slowest_end_s, 3),
        "wall_s": round(time.monotonic() - start, 1),
        "kills_by_kind": dict(sorted(campaign.kills.items())),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    sys.exit(main())
