"""A chat endpoint that answers what it is told to, over real HTTP, and keeps the requests.

It proves what the client sends and how it takes an answer; nothing of a model, of tokens or of a gateway.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class ChatEndpoint:
    """Where it answers, and what it was asked."""

    base_url: str
    requests: list[Body] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


def completion(*contents: str | None, **message: Any) -> Body:
    """A chat completion of one choice per content."""
    choices = [
        {
            "index": index,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": content, **message},
            "token_ids": [7, index],
        }
        for index, content in enumerate(contents)
    ]
    return {"id": "1", "object": "chat.completion", "created": 0, "model": "agent@4", "choices": choices}


@contextmanager
def chat_endpoint(answer: Callable[[Body], Body | int]) -> Iterator[ChatEndpoint]:
    """Serve for the block.

    Args:
        answer: Request to completion, or to an HTTP status that is answered with an error.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            here.requests.append(request)
            here.headers.append({key.lower(): value for key, value in self.headers.items()})
            given = answer(request)
            status, content = (given, {"error": {"message": "no"}}) if isinstance(given, int) else (200, given)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
