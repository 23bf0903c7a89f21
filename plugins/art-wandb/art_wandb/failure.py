"""What W&B's errors mean: which pass by themselves, and what to do about the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from wandb.errors import AuthenticationError, CommError, Error, UsageError
from wandb.sdk.lib.service.service_connection import WandbApiFailedError

from art_core.errors import ArtError, StoreError, StoreUnavailableError

_STATUS = re.compile(r"(?:HTTP|status(?: code)?|returned error|response code)[: ]+(\d{3})\b", re.IGNORECASE)
_PASSING = {408, 409, 425, 429}
_DELETED = "previously created and deleted"
_NOBODY = "did not recognize an account"
_LOGIN = "set WANDB_API_KEY, or run `wandb login`, with a key that may write there"


@contextmanager
def wandb_errors(what: str) -> Iterator[None]:
    """Turn the SDK's exceptions inside the block into ours.

    Args:
        what: What was being done, e.g. ``"list team/project/run"``.

    Raises:
        StoreUnavailableError: It may pass by itself: time-outs, 5xx, throttling.
        StoreError: It will not; says what to do.
    """
    try:
        yield
    except ArtError:
        raise
    except (Error, WandbApiFailedError, requests.RequestException, ValueError, TimeoutError) as error:
        status = status_of(error)
        if is_refusal(error):
            raise StoreError(f"can't {what}: {_text(error)}; {_LOGIN}") from error
        if _DELETED in str(error):
            raise StoreError(
                f"can't {what}: that run was deleted in W&B, which gives its id to no other; undelete it there, or "
                f"train under another run name"
            ) from error
        if status is not None and status < 500 and status not in _PASSING:
            raise StoreError(f"can't {what}: {_text(error)}; the server refuses, so mend that first") from error
        raise StoreUnavailableError(f"can't {what} now: {_text(error)}") from error


def is_refusal(error: BaseException | None) -> bool:
    """Whether the server does not know the key, or the key may not do that."""
    return is_unknown_key(error) or status_of(error) == 403


def is_unknown_key(error: BaseException | None) -> bool:
    """Whether the server does not know the key, or there is none.

    The SDK's error of a login says so of every failure, so it is asked what was behind it.
    """
    if isinstance(error, AuthenticationError) and isinstance(error.__cause__, WandbApiFailedError):
        return status_of(error) == 401 or _NOBODY in str(error)
    return isinstance(error, UsageError | AuthenticationError) or status_of(error) == 401


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of the SDK; None where there was no answer, or it can't be told."""
    while error is not None:
        if isinstance(error, WandbApiFailedError) and error.response is not None and error.response.http_status:
            return int(error.response.http_status)
        if isinstance(error, requests.HTTPError) and error.response is not None:
            return error.response.status_code
        if found := _STATUS.search(str(error)):
            return int(found[1])
        error = error.exc if isinstance(error, CommError) and error.exc is not None else error.__cause__
    return None


def _text(error: BaseException) -> str:
    text = str(error).split(" for url: ")[0]  # a file's address is signed: who has it may read the file
    return " ".join(text.split())[:300] or type(error).__name__
