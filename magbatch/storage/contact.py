"""Tell a wrong setting from a store that is away, by whether the store has answered this command before.

- Until an endpoint has answered, an address that does not resolve or refuses connections counts as wrong.
- Until a bucket has granted a read (or a write), refused credentials count as wrong.
- After that, requests are repeated in spite of the same refusals.

A command that a program started (`MAGBATCH_UNATTENDED`) has no mistyped address: a silent endpoint is away from the
start. Workers start in the middle of a job: for them no setting counts as wrong.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from magbatch import guard

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from mypy_boto3_s3 import S3Client

# Tries at an endpoint that has never answered; more than one, since a new container's network may take a second.
FIRST_ATTEMPTS = 3
_KEYS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN, if the keys are temporary), or AWS_PROFILE"
)
_NEW_KEYS = "renew AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or log in again (AWS_PROFILE)"
_REGION = "set AWS_REGION (and AWS_DEFAULT_REGION) to the region of the bucket"
_ACCESS = (
    "the credentials come from the standard AWS chain (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role): allow them "
    "s3:ListBucket, s3:GetObject and, for an output, s3:PutObject and s3:DeleteObject here"
)
# Instructions by error code. Other codes below 500 need none: they pass by themselves, or no setting helps.
_MEND = {
    **dict.fromkeys(("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidSecurity"), f"the keys are wrong: {_KEYS}"),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"),
        f"the credentials have expired, or are wrong: {_NEW_KEYS}",
    ),
    **dict.fromkeys(("AccessDenied", "403", "AllAccessDisabled", "AccountProblem"), _ACCESS),
    **dict.fromkeys(("400",), f"the credentials may have expired: {_NEW_KEYS}"),
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "PermanentRedirect", "301", "IllegalLocationConstraintException"), _REGION
    ),
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "NoSuchBucket": "",
}

_is_command = False
_endpoints = set[str]()  # URLs of endpoints that have answered
_buckets = set[tuple[str, bool]]()  # bucket, and whether it granted a write (True) or a read (False)


@contextmanager
def command() -> Iterator[None]:
    """Treat this process as a person's command within the block: a store never reached may be a wrong setting."""
    global _is_command
    before, _is_command = _is_command, True
    try:
        yield
    finally:
        _is_command = before


def is_unattended() -> bool:
    """Whether a program started this command, and starts it again after exit code 3."""
    return bool(os.environ.get(guard.UNATTENDED))


def has_answered(bucket: str, *, writing: bool) -> None:
    """Record that a bucket granted a request.

    Args:
        bucket: Name of the bucket.
        writing: Whether the request was a write.
    """
    _buckets.add((bucket, writing))


def watch(client: "S3Client") -> None:
    """Record the answers of a client's endpoint, and end its retries early if the endpoint has never answered.

    Args:
        client: Client whose retries are watched.
    """
    endpoint = client.meta.endpoint_url

    def look(response: object, caught_exception: Exception | None, attempts: int, **_: Any) -> None:
        if response is not None:
            _endpoints.add(endpoint)
            return
        is_first = _is_command and endpoint not in _endpoints
        if is_first and attempts >= FIRST_ATTEMPTS and caught_exception and _is_no_address(caught_exception):
            raise caught_exception

    client.meta.events.register_first("needs-retry.s3", look)


def mend_refusal(error: "ClientError", client: "S3Client", bucket: str, *, writing: bool) -> str | None:
    """Tell a person which setting to fix after a refusal.

    Args:
        error: Answer of the store.
        client: Client that received it.
        bucket: Name of the bucket.
        writing: Whether the request was a write.

    Returns:
        An instruction, empty if none is known; None if the refusal may pass by itself.
    """
    if not _is_command or (bucket, writing) in _buckets:
        return None
    code = error.response.get("Error", {}).get("Code", "")
    if not code or code == str(HTTPStatus.NOT_FOUND.value):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _no_store(client) if status < HTTPStatus.INTERNAL_SERVER_ERROR else None
    return _MEND.get(code)


def what_to_do(code: str) -> str:
    """Return an instruction for an error code, even if the refusal may pass by itself; empty if none is known."""
    return _MEND.get(code, "")


def mend_silence(error: Exception, client: "S3Client", bucket: str) -> str | None:
    """Tell a person which setting to fix if the store does not answer.

    Args:
        error: Error of botocore.
        client: Client that raised it.
        bucket: Name of the bucket.

    Returns:
        An instruction; None if the silence may pass by itself.
    """
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    if not _is_command or (bucket, False) in _buckets or (bucket, True) in _buckets:
        return None
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return f"this machine has no credentials of AWS: {_KEYS}"
    if isinstance(error, exceptions.TokenRetrievalError | exceptions.UnauthorizedSSOTokenError):
        return f"log in again: {_NEW_KEYS}"
    if isinstance(error, ResponseParserError):
        return _no_store(client)
    if client.meta.endpoint_url in _endpoints or not _is_no_address(error):
        return None
    where, variable = client.meta.endpoint_url, _endpoint_variable()
    if isinstance(error, exceptions.SSLError):
        named = f"{variable}={where}" if variable is not None else where
        return f"{named}: the server there does not speak TLS: write http:// for a store without TLS"
    if is_unattended():
        return None
    if variable is not None:
        wrong = f"{variable}={where}: no server answers there: set it to the store's address"
    else:
        wrong = f"{where} cannot be reached: check AWS_REGION and the network of this machine"
    return f"{wrong}; if the store is only away for now, run the same command again later"


def _no_store(client: "S3Client") -> str | None:
    """Tell a person that the endpoint is not a store. None for AWS, where a proxy answered, which may recover."""
    variable = _endpoint_variable()
    if variable is None:
        return None
    return f"{variable}={client.meta.endpoint_url}: the server there does not speak S3: set it to the store's address"


def _endpoint_variable() -> str | None:
    return next((name for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") if os.environ.get(name)), None)


def _is_no_address(error: "Exception | BotoCoreError") -> bool:
    from botocore import exceptions

    return isinstance(
        error,
        exceptions.EndpointConnectionError  # the connection was refused, or the name does not resolve
        | exceptions.ConnectTimeoutError
        | exceptions.SSLError
        | exceptions.ProxyConnectionError,
    )


def settings_mend(error: Exception) -> str:
    """Tell a person which AWS settings to fix, after no client could be made with them."""
    named = {
        "AWS_PROFILE": os.environ.get("AWS_PROFILE"),
        _endpoint_variable() or "": os.environ.get(_endpoint_variable() or ""),
        "AWS_REGION": os.environ.get("AWS_REGION"),
        "AWS_DEFAULT_REGION": os.environ.get("AWS_DEFAULT_REGION"),
    }
    wrong = [f"{name}={value}" for name, value in named.items() if name and value and value in str(error)]
    return f"fix {', '.join(wrong) or 'AWS_PROFILE, AWS_REGION, AWS_ENDPOINT_URL, or the files of ~/.aws'}"


def forget() -> None:
    """Forget all answers, as in a new process. Tests call this."""
    _endpoints.clear()
    _buckets.clear()
