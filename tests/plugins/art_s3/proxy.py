"""A loopback HTTP proxy between a store and its server, that spoils what it is told to.

It passes requests on to the real server; what it spoils is what real servers and networks do, in their own words.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

ERROR = '<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>no</Message></Error>'


@dataclass
class Spoil:
    """What is done to a request; None: it is passed on."""

    answer: Callable[[str, str], tuple[int, str] | None] = lambda method, path: None
    """Method and path to a status and an S3 error code to answer with."""
    drop_headers: tuple[str, ...] = ()
    cut: Callable[[str, str], int | None] = lambda method, path: None
    """Method and path to the bytes after which an answer breaks off; None: it is whole."""
    stall: bool = False
    """What breaks off stays open, and nothing more comes."""
    hang: threading.Event = field(default_factory=threading.Event)
    """Set: an answer of status 0 is never given."""
    seen: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def proxy(target: str, spoil: Spoil) -> Iterator[str]:
    """The address of a proxy to a server."""
    host = urlsplit(target).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            spoil.seen.append((self.command, self.path))
            if (given := spoil.answer(self.command, self.path)) is not None:
                if given[0] == 0:
                    spoil.hang.wait()
                    self.close_connection = True
                    return
                self.reply(given[0], {"content-type": "application/xml"}, ERROR.format(code=given[1]).encode())
                return
            connection = http.client.HTTPConnection(host, timeout=30)
            headers = {key: value for key, value in self.headers.items() if key.lower() not in spoil.drop_headers}
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            self.reply(response.status, dict(response.getheaders()), response.read())
            connection.close()

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for key, value in headers.items():
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            self.send_header("content-length", length or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                cut = spoil.cut(self.command, self.path)
                self.wfile.write(body[:cut])
                if cut is not None and spoil.stall:
                    spoil.hang.wait()
                self.close_connection |= cut is not None

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        spoil.hang.set()
        server.shutdown()
        server.server_close()
