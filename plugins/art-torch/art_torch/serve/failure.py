"""What goes wrong, and as what it is reported: to HTTP clients by the server, to ART by the engine.

| in the server                                | HTTP                         | in the client process            |
|----------------------------------------------|------------------------------|----------------------------------|
| a request's parameter is wrong               | 400 invalid_request_error    | (requests go through the gateway)|
| no or another key                            | 401 authentication_error     |                                  |
| model name not loaded (NoRouteError)         | 404 model_not_found          | NoRouteError                     |
| adapter files don't fit                      | 422, error as `to_wire`      | CheckpointCorruptError           |
| name taken, no slot (EngineError)            | 409, error as `to_wire`      | EngineError                      |
| anything else on an admin route              | 500, error as `to_wire`      | EngineError                      |
| a forward pass fails                         | 500 server_error             | EngineError (score)              |
| process dead, connection refused or cut      |                              | EngineUnavailableError           |
| time-out                                     |                              | EngineUnavailableError           |
"""

from __future__ import annotations

from typing import Any

from art_core.errors import ArtError, CheckpointCorruptError, EngineError, NoRouteError, to_wire

_ADMIN_STATUS: tuple[tuple[type[ArtError], int], ...] = (
    (NoRouteError, 404),
    (CheckpointCorruptError, 422),
    (EngineError, 409),
)


class RequestError(Exception):
    """A request that can't be answered, with the HTTP answer that says so."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        kinds = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}
        self.body = {
            "error": {
                "message": message,
                "type": kinds.get(status, "invalid_request_error"),
                "param": param,
                "code": code,
            }
        }


def bad_parameter(name: str, value: object, allowed: str) -> RequestError:
    """400: names the parameter, the value seen and what is allowed."""
    seen = repr(value)
    seen = seen if len(seen) <= 200 else f"{seen[:200]}…"
    return RequestError(400, f"parameter {name!r} is {seen}; allowed: {allowed}", param=name, code="invalid_value")


def unknown_model(error: NoRouteError) -> RequestError:
    """404 for a model name that is not served."""
    return RequestError(404, str(error), param="model", code="model_not_found")


def admin_status(error: BaseException) -> int:
    """HTTP status of an error on an admin route."""
    return next((status for kind, status in _ADMIN_STATUS if isinstance(error, kind)), 500)


def admin_body(error: BaseException) -> dict[str, Any]:
    """Body of an error on an admin route."""
    return {"error": to_wire(error)}
