"""A real S3 server for tests: Ceph's RGW with one monitor and one store in memory, on loopback.

    python -m tests.servers.rgw COMMAND...

Starts it, runs the command with ``ART_TEST_S3`` and AWS credentials in its environment, stops it, and ends with the
command's status. Needs ceph-mon, ceph-osd and radosgw (Debian packages of these names).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_S = 120.0
KEY, SECRET = "artkey", "artsecret"

CONFIG = """\
[global]
fsid = {fsid}
mon_host = v2:127.0.0.1:{mon_port}
mon_initial_members = a
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
mon_max_pg_per_osd = 1000
osd_objectstore = memstore
memstore_device_bytes = 4294967296
run_dir = {root}
admin_socket = {root}/$name.asok
pid_file = {root}/$name.pid
log_file = {root}/$name.log
keyring = {root}/keyring
public_addr = 127.0.0.1
[mon.a]
mon_data = {root}/mon
[osd.0]
osd_data = {root}/osd
keyring = {root}/osd/keyring
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_data = {root}/rgw
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def rgw() -> Iterator[str]:
    """The address of a running server; everything is stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="art-rgw-") as directory:
        root, port = Path(directory), free_port()
        fsid = str(uuid.uuid4())
        config = CONFIG.format(fsid=fsid, root=root, mon_port=free_port(), port=port)
        (root / "ceph.conf").write_text(config)
        for name in ("mon", "osd", "rgw"):
            (root / name).mkdir()
        daemons: list[subprocess.Popen[bytes]] = []
        try:
            _start(root, fsid, config.split("v2:", 1)[1].split("\n", 1)[0], daemons)
            _wait_for(port, daemons)
            _run(root, "radosgw-admin", "user", "create", "--uid=art", "--display-name=art", f"--access-key={KEY}",
                 f"--secret-key={SECRET}")  # fmt: skip
            yield f"http://127.0.0.1:{port}"
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                try:
                    daemon.wait(10)
                except subprocess.TimeoutExpired:
                    daemon.kill()
                    daemon.wait()


def _start(root: Path, fsid: str, monitor: str, daemons: list[subprocess.Popen[bytes]]) -> None:
    every = ("--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *")
    keyring, osd = str(root / "keyring"), str(uuid.uuid4())
    _run(root, "ceph-authtool", "-C", keyring, "--gen-key", "-n", "client.admin", *every)
    _run(root, "ceph-authtool", keyring, "--gen-key", "-n", "client.rgw", *every)
    _run(root, "ceph-authtool", "-C", f"{root}/mon.keyring", "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
    _run(root, "ceph-authtool", f"{root}/mon.keyring", "--import-keyring", keyring)
    _run(root, "ceph-authtool", "-C", f"{root}/osd/keyring", "--gen-key", "-n", "osd.0")
    _run(root, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:{monitor}]", f"{root}/monmap")
    _run(root, "ceph-mon", "-i", "a", "--mkfs", "--monmap", f"{root}/monmap", "--keyring", f"{root}/mon.keyring")
    daemons.append(_daemon(root, "ceph-mon", "-i", "a", "-f"))
    _run(root, "ceph", "osd", "new", osd)
    caps = ("osd", "allow *", "mon", "allow profile osd", "mgr", "allow profile osd")
    _run(root, "ceph", "auth", "add", "osd.0", *caps, "-i", f"{root}/osd/keyring")
    _run(root, "ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
    daemons.append(_daemon(root, "ceph-osd", "-i", "0", "-f"))
    daemons.append(_daemon(root, "radosgw", "-n", "client.rgw", "-f"))


def _run(root: Path, *command: str) -> None:
    done = subprocess.run([*command, "-c", f"{root}/ceph.conf"] if "ceph-authtool" not in command[0] and "monmap"
                          not in command[0] else command, capture_output=True, text=True, check=False,
                          timeout=START_S)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")


def _daemon(root: Path, *command: str) -> subprocess.Popen[bytes]:
    output = (root / f"{command[0]}.out").open("wb")
    return subprocess.Popen([*command, "-c", f"{root}/ceph.conf"], stdout=output, stderr=output)


def _wait_for(port: int, daemons: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if ended := [daemon.args for daemon in daemons if daemon.poll() is not None]:
            raise RuntimeError(f"ended at once: {ended}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"RGW did not answer within {START_S:g} s")


def main() -> int:
    """Run the command against the server."""
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        print(f"not installed: {', '.join(missing)}; on Debian: apt-get install --no-install-recommends "
              "radosgw ceph-mon ceph-osd ceph-common", file=sys.stderr)  # fmt: skip
        return 1
    with rgw() as address:
        keys = {"ART_TEST_S3": address, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        return subprocess.run(sys.argv[1:], env={**os.environ, **keys}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
