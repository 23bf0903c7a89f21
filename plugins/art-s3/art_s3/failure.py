"""What S3's errors mean: which pass by themselves, and what to do about the others."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError, ClientError
from obstore.exceptions import BaseError, NotSupportedError

from art_core.errors import ArtError, CapabilityError, StoreError, StoreUnavailableError

FINAL = {
    "AccessDenied": "give these credentials permission to read, write, list and delete below the prefix",
    "AllAccessDisabled": "enable the account",
    "InvalidAccessKeyId": "give credentials that the server knows",
    "SignatureDoesNotMatch": "give the right secret key, and the region that the server expects",
    "NoSuchBucket": "create the bucket, or name another one",
    "InvalidBucketName": "name another bucket",
    "AuthorizationHeaderMalformed": "give the bucket's region",
    "PermanentRedirect": "give the bucket's region or endpoint",
    "EntityTooLarge": "raise the server's limit for one object",
    "QuotaExceeded": "raise the quota, or delete checkpoints",
}
"""S3 error code to the next step to take. Any code that is not here may pass by itself."""

NO_CREDENTIALS = (
    "the AWS chain has no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, or run where "
    "there is a role"
)
"""What stands in obstore's error when its asking for credentials has failed so: it keeps an error's text only."""

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"status (\d{3})|(\d{3}) [A-Z][\w ]+(?=:|\))")


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn the libraries' exceptions inside the block into ours.

    Args:
        what: What was being done, e.g. ``"write s3://bucket/key"``.

    Raises:
        StoreUnavailableError: It may pass by itself: time-outs, 5xx, throttling, clocks that differ, expired tokens.
        StoreError: It will not; says what to do.
        CapabilityError: The server does not know the call.
    """
    try:
        yield
    except ArtError:
        raise
    except NotSupportedError as error:
        raise CapabilityError(f"can't {what}: the server does not know that call: {_text(error)}") from error
    except ClientError as error:
        raise _error(what, error.response.get("Error", {}).get("Code", ""), str(error)) from error
    except (BaseError, BotoCoreError, OSError) as error:
        if NO_CREDENTIALS in str(error):
            raise StoreError(f"can't {what}: {NO_CREDENTIALS}") from error
        found = _CODE.search(str(error))
        raise _error(what, found[1] if found else "", _text(error)) from error


def _error(what: str, code: str, text: str) -> StoreError:
    if code in FINAL:
        return StoreError(f"can't {what}: {code}; {FINAL[code]}")
    return StoreUnavailableError(f"can't {what} now: {f'{code}: ' if code else ''}{text}")


def _text(error: BaseException) -> str:
    """One line of a library's message; obstore's goes on with a dump of its own structures."""
    return " ".join(str(error).split("Debug source:")[0].split())[:300]
