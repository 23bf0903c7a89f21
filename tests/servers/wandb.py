"""A small W&B server for tests, on loopback: runs, files and artifacts, as far as the unmodified `wandb` SDK asks.

What it does not prove: that W&B's own servers answer alike. It knows one entity, believes every API key of the right
length that was not revoked, checks no permission and no quota, and keeps all in memory. Version numbers are given out
at the commit, an artifact whose digest stands already is not made again, ``latest`` moves to the newest version: as
W&B's documentation has it, tried on no server of theirs. A field that it does not know is an error that names it
(`unknown`).
"""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.servers.graphql import execute
from tests.servers.wandb_api import Api
from tests.servers.wandb_record import ENTITY, Artifact, Record

Fault = Callable[[str, str], int | float | None]
"""Method and what is asked (an operation's name, or a path) to a status to answer with (an int), seconds to wait before
the answer (a float), or None."""


class WandbServer:
    """The server, in a thread of this process."""

    def __init__(self) -> None:
        self.record = Record()
        self.unknown: list[str] = []
        """Fields that were asked for and are not known."""
        self.asked: list[str] = []
        """Every operation and path, in order."""
        self.fault: Fault | None = None
        """Asked before every request is answered."""
        self.words = "as the test asks"
        """What a fault's answer says."""
        self.done: Callable[[str, str], None] | None = None
        """Told after every request has had its effect, before it is answered."""
        self.revoked: set[str] = set()
        """Keys that are answered with 401."""
        self.cut_bytes: int | None = None
        """Downloads break off after so many bytes."""
        self.closing = threading.Event()
        self._http = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": self}))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.api = Api(self.record, self.url)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the SDK finds this server and no other."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": "a" * 40, "WANDB_ENTITY": ENTITY}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer a GraphQL request."""
        with self.record.lock:
            try:
                return {"data": execute(query, variables, self.api.root)}
            except KeyError as error:
                self.unknown.append(str(error))
                return {"errors": [{"message": str(error)}], "data": None}
            except PermissionError as error:
                return {"errors": [{"message": str(error)}], "data": None}


class ArtifactObjects(MutableMapping[str, bytes]):
    """Every file of every whole version, and what stands in its metadata under a key, past whoever wrote it.

    Args:
        server: Whose.
        key: Of the metadata; it is shown as a file of that name.
    """

    def __init__(self, server: WandbServer, key: str) -> None:
        self._record = server.record
        self._key = key

    def __getitem__(self, key: str) -> bytes:
        artifact, name = self._find(key)
        if name == self._key:
            return str(json.loads(artifact.metadata)[name]).encode(errors="surrogateescape")
        return artifact.files[name]

    def __setitem__(self, key: str, value: bytes) -> None:
        artifact, name = self._find(key)
        if name == self._key:
            text = value.decode(errors="surrogateescape")
            artifact.metadata = json.dumps({**json.loads(artifact.metadata), name: text})
        else:
            artifact.files[name] = value

    def __delitem__(self, key: str) -> None:
        artifact, name = self._find(key)
        if name == self._key:
            artifact.metadata = json.dumps({k: v for k, v in json.loads(artifact.metadata).items() if k != name})
        else:
            del artifact.files[name]

    def __iter__(self) -> Iterator[str]:
        for artifact in list(self._record.artifacts.values()):
            if artifact.state == "COMMITTED":
                extra = [self._key] if self._key in json.loads(artifact.metadata) else []
                yield from (f"{artifact.place}/{name}" for name in [*artifact.files, *extra])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _find(self, key: str) -> tuple[Artifact, str]:
        place, _, name = key.rpartition("/")
        for artifact in list(self._record.artifacts.values()):  # a client's request may go on in another thread
            if artifact.state == "COMMITTED" and artifact.place == place:
                return artifact, name
        raise KeyError(key)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server_state: WandbServer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self._body()
        if self.path == "/graphql":
            request = json.loads(body)
            query, variables = request["query"], request.get("variables") or {}
            asked = query.split("(")[0].split("{")[0].strip()
            if not self._faulty(asked):
                answer = self.server_state.answer(query, variables)
                self._done(asked)
                self._answer(200, answer)
        elif not self._faulty(self.path):
            if self.path.endswith("/file_stream"):
                self.server_state.record.stream(self.path, json.loads(body))
            self._answer(200, {"exitcode": None, "limits": {}})

    def do_PUT(self) -> None:
        body = self._body()
        if self._faulty(self.path):
            return
        with self.server_state.record.lock:
            self.server_state.record.uploads[self.path.removeprefix("/storage/")](body)
        self._done(self.path)
        self._answer(200, {})

    def do_GET(self) -> None:
        if self._faulty(self.path):
            return
        found = self.server_state.record.download(self.path.removeprefix("/storage/"))
        if found is None:
            self._answer(404, {"error": "no such object"})
        else:
            self._send(200, found, self.server_state.cut_bytes)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _key(self) -> str:
        _, _, given = self.headers.get("Authorization", "").partition(" ")
        return base64.b64decode(given).decode().removeprefix("api:")

    def _faulty(self, asked: str) -> bool:
        state = self.server_state
        state.asked.append(asked)
        fault = state.fault(self.command, asked) if state.fault else None
        if self._key() in state.revoked:
            fault = 401
        if isinstance(fault, float):
            state.closing.wait(fault)
        if isinstance(fault, int):
            self._answer(fault, {"errors": [{"message": state.words}], "data": None})
        return isinstance(fault, int)

    def _done(self, asked: str) -> None:
        if self.server_state.done:
            self.server_state.done(self.command, asked)

    def _answer(self, status: int, data: Any) -> None:
        self._send(status, json.dumps(data).encode())

    def _send(self, status: int, data: bytes, cut_bytes: int | None = None) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:cut_bytes])
            self.wfile.flush()
            self.close_connection |= cut_bytes is not None
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed, or its time was up
