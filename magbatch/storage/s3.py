"""S3: the store below a prefix of a bucket, the process's clients, and the meaning of S3's errors."""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from magbatch.errors import AwsSettingsError, NoBucketError, RefusedError, StorageError, ThrottledError
from magbatch.storage import contact
from magbatch.storage.base import ObjectInfo

if TYPE_CHECKING:
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.loaders import Loader
    from mypy_boto3_s3 import S3Client

S3_ATTEMPTS = 8  # tries of a request in botocore's standard mode, whose waits grow to 20 s, with jitter
S3_CONNECTIONS = 32  # connections that a client keeps open for reuse
S3_CONNECT_TIMEOUT_S = 10
S3_READ_TIMEOUT_S = 60  # longest wait for a byte
QUICK_ATTEMPTS = 2
QUICK_TIMEOUT_S = 5  # longest wait for a connection, and for a byte
# Operations on one object: their code NoSuchKey means that the object is missing. A 404 without a code comes from a
# proxy, so the store is away. (A reply to HEAD never carries a code, only its number.)
_OF_ONE_OBJECT = frozenset({"GetObject", "CopyObject", "DeleteObject"})
# Refusals below 500 that pass once credentials are renewed: new ones take a while to reach all servers. "400" and
# "403" are replies to HEAD, which carry only their number.
_CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
    | {"SignatureDoesNotMatch", "AccessDenied", "RequestExpired", "400", "403"}
)
# Codes of a store that is overloaded, and of a request that was damaged or delayed on its way.
_PASSING = _CREDENTIALS | frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "OperationAborted", "RequestTimeout"}
    | {"RequestTimeTooSkewed", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "ConditionalRequestConflict"}
)
_THROTTLED = frozenset({"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "503"})
_TAKEN = frozenset({"PreconditionFailed", "412"})
_RENEWING = threading.Lock()


@functools.cache
def _descriptions() -> "Loader":
    """Return botocore's description of S3, loaded once per process, because that takes most of a client's start."""
    import botocore.session

    loader: Loader = botocore.session.get_session().get_component("data_loader")
    return loader


def _new_client(attempts: int, connect_timeout_s: float, read_timeout_s: float) -> "S3Client":
    import botocore.session
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": attempts},
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        max_pool_connections=S3_CONNECTIONS,
        # Stores other than AWS refuse the trailing checksums that newer clients add by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # boto3's default session reads a credentials file only once. This session ends with its client, see `_renew`.
    session = botocore.session.get_session()
    session.register_component("data_loader", _descriptions())
    client = Session(botocore_session=session).client("s3", config=config)
    contact.watch(client)
    return client


@functools.cache
def s3_client() -> "S3Client":
    """Return the process's client. boto3's clients may be shared between threads."""
    return _new_client(S3_ATTEMPTS, S3_CONNECT_TIMEOUT_S, S3_READ_TIMEOUT_S)


@functools.cache
def quick_s3_client() -> "S3Client":
    """Return the process's client for requests that must be answered within seconds, such as heartbeats."""
    return _new_client(QUICK_ATTEMPTS, QUICK_TIMEOUT_S, QUICK_TIMEOUT_S)


def _renew(client: "S3Client") -> None:
    """Drop a client and its credentials. The next client reads them again: their file may have been replaced."""
    with _RENEWING:
        if client in (s3_client(), quick_s3_client()):
            for made in (s3_client, quick_s3_client):
                made.cache_clear()


@contextmanager
def s3_errors(path: str, made: "Callable[[], S3Client] | None" = None, *, writing: bool = False) -> Iterator[None]:
    """Raise S3's errors within the block as `StorageError`, and a missing object as `FileNotFoundError`.

    Args:
        path: s3:// URL of the request, for messages.
        made: Callable that returns the client of the block; None takes `s3_client`.
        writing: Whether the request writes.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    client, bucket = _made(path, made or s3_client), split_url(path)[0]
    try:
        yield
    except ClientError as error:
        if _is_gone(error):
            contact.has_answered(bucket, writing=writing)
            raise FileNotFoundError(path) from error
        raise _refusal(path, error, client, contact.mend_refusal(error, client, bucket, writing=writing)) from error
    except (BotoCoreError, ResponseParserError) as error:
        if _is_no_bucket(error, bucket):
            text = f"{path}: {bucket!r} is not a bucket name: write s3://bucket/prefix"
            raise StorageError(text, mistake=True) from error
        # ResponseParserError: the answer is not XML, so a proxy and not the store sent it.
        mend = contact.mend_silence(error, client, bucket)
        passing = isinstance(error, ResponseParserError) or _may_pass(error)
        hint = f"; {mend}" if mend else ""
        raise StorageError(f"{path}: {error}{hint}", passing=passing, mistake=mend is not None) from error
    contact.has_answered(bucket, writing=writing)


def _refusal(path: str, error: "ClientError", client: "S3Client", mend: str | None) -> StorageError:
    """Make the error for a refusal of the store.

    Args:
        path: s3:// URL of the request.
        error: Answer of the store.
        client: Client that received it.
        mend: Instruction for a person if a setting is wrong; None if the refusal may pass by itself.
    """
    code = error.response.get("Error", {}).get("Code", "")
    if code == "NoSuchBucket":
        return NoBucketError(
            f"s3://{split_url(path)[0]}: there is no such bucket", passing=True, mistake=mend is not None
        )
    if code in _CREDENTIALS:
        _renew(client)
    refused = code in {"403", "AccessDenied"}
    hint = mend or contact.what_to_do(code)  # shown by a job that waits too: a person can end the wait
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    # An answer without one of S3's codes comes from a proxy before the store.
    unknown = not code or code == str(HTTPStatus.NOT_FOUND.value)
    passing = unknown or code in _PASSING or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED)
    kind = RefusedError if refused else ThrottledError if code in _THROTTLED else StorageError
    text = f"{path}: {error}; {hint}" if hint else f"{path}: {error}"
    return kind(text, passing=passing, mistake=mend is not None)


def _made(path: str, make: "Callable[[], S3Client]") -> "S3Client":
    """Make a client.

    Raises:
        AwsSettingsError: The AWS settings of this machine are wrong.
    """
    from botocore.exceptions import BotoCoreError

    try:
        return make()
    except (BotoCoreError, ValueError) as error:  # ValueError: AWS_ENDPOINT_URL is not a URL
        raise AwsSettingsError(
            f"{path}: the AWS settings of this machine cannot be used: {error}; {contact.settings_mend(error)}",
            mistake=True,
        ) from error


def _is_gone(error: "ClientError") -> bool:
    """Whether the store itself answers that the object does not exist."""
    code = error.response.get("Error", {}).get("Code", "")
    if error.operation_name.startswith("Head"):
        return code in {"404", "NoSuchKey"}
    return code == "NoSuchKey" and error.operation_name in _OF_ONE_OBJECT


def _is_no_bucket(error: Exception, bucket: str) -> bool:
    """Whether the client refused the request because no bucket can have this name."""
    from botocore.exceptions import ParamValidationError
    from botocore.handlers import VALID_BUCKET

    return isinstance(error, ParamValidationError) and VALID_BUCKET.search(bucket) is None


def _may_pass(error: "BotoCoreError") -> bool:
    """Whether a request without a reply may get one later."""
    from botocore import exceptions

    # The service that hands out credentials can be away too.
    return isinstance(
        error,
        exceptions.ConnectionError
        | exceptions.HTTPClientError
        | exceptions.IncompleteReadError
        | exceptions.CredentialRetrievalError
        | exceptions.MetadataRetrievalError
        | exceptions.NoCredentialsError
        | exceptions.TokenRetrievalError,
    )


def split_url(url: str) -> tuple[str, str]:
    """Split an s3:// URL into bucket and key."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


class S3Store:
    """Objects below a prefix of a bucket.

    Args:
        root: URL s3://bucket/prefix.
        quick: Whether requests give up within seconds; see `quick_s3_client`.
    """

    patience_s = 0.0

    def __init__(self, root: str, *, quick: bool = False) -> None:
        self.root = f"s3://{root.removeprefix('s3://').rstrip('/')}"
        self._client = quick_s3_client if quick else s3_client
        self._bucket, key = split_url(self.root)
        self._prefix = f"{key}/" if key else ""

    def _where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """Return a whole object; see `Store.read`."""
        with s3_errors(self._where(name), self._client):
            return self._client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()

    def read_end(self, name: str, size: int) -> bytes:
        """Return the end of an object; see `Store.read_end`."""
        with s3_errors(self._where(name), self._client):
            answer = self._client().get_object(Bucket=self._bucket, Key=self._prefix + name, Range=f"bytes=-{size}")
            return answer["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        """Make an object visible; see `Store.write`."""
        with s3_errors(self._where(name), self._client, writing=True):
            self._client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def create(self, name: str, data: bytes) -> bool:
        """Make an object visible unless its name is taken; see `Store.create`."""
        for _ in range(S3_ATTEMPTS):
            with s3_errors(self._where(name), self._client, writing=True):
                client = self._client()
                try:
                    client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*")
                except client.exceptions.ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code == "ConditionalRequestConflict":  # another write is under way: ask again
                        continue
                    if code not in _TAKEN:
                        raise
                    with suppress(FileNotFoundError):
                        return self.read(name) == data  # a retry finds its own first write
                    return False
                return True
        raise StorageError(f"{self._where(name)}: {S3_ATTEMPTS} tries met writes of other processes", passing=True)

    def replace(self, name: str, data: bytes, old: bytes) -> bool:
        """Replace an object with known content; see `Store.replace`."""
        with s3_errors(self._where(name), self._client, writing=True):
            client = self._client()
            for unquote in (False, True):  # RFC 9110 quotes the tag; Ceph's RGW wants it without quotes
                try:
                    found = client.get_object(Bucket=self._bucket, Key=self._prefix + name)
                except client.exceptions.NoSuchKey:
                    return False
                content, tag = found["Body"].read(), found["ETag"]
                if content != old:
                    return content == data  # a retry finds its own first write
                tag = tag.strip('"') if unquote else tag
                try:
                    client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, IfMatch=tag)
                except client.exceptions.ClientError as error:
                    if error.response.get("Error", {}).get("Code") not in _TAKEN:
                        raise
                    continue
                return True
            return self.read(name) == data

    def keeps_conditions(self, name: str, data: bytes) -> bool:
        """Test the headers `If-Match` and `If-None-Match`, which some stores ignore; see `Store.keeps_conditions`."""
        return self._refuses(name, data, IfNoneMatch="*") and self._refuses(name, data, IfMatch=f'"{"0" * 32}"')

    def _refuses(self, name: str, data: bytes, **condition: str) -> bool:
        with s3_errors(self._where(name), self._client, writing=True):
            client = self._client()
            try:
                client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, **condition)  # type: ignore[arg-type]
            except client.exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") not in {*_TAKEN, "ConditionalRequestConflict"}:
                    raise
                return True
        return False

    def list(self, prefix: str, after: str = "") -> Iterator[ObjectInfo]:
        """List objects; see `Store.list`."""
        start = {"StartAfter": self._prefix + after} if after else {}
        with s3_errors(self._where(prefix), self._client):
            pages = self._client().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **start):  # type: ignore[arg-type]
                contact.has_answered(self._bucket, writing=False)  # noted for each page: a caller may stop early
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][len(self._prefix) :], item["Size"], item["ETag"].strip('"'))

    def move(self, name: str, target: str) -> None:
        """Rename an object; see `Store.move`."""
        source = {"Bucket": self._bucket, "Key": self._prefix + name}
        with s3_errors(self._where(name), self._client, writing=True):
            try:
                self._client().copy_object(Bucket=self._bucket, Key=self._prefix + target, CopySource=source)  # type: ignore[arg-type]
            except self._client().exceptions.ClientError as error:
                if _is_gone(error):
                    return
                raise
        self.delete(name)

    def delete(self, name: str) -> None:
        """Remove an object; see `Store.delete`."""
        with s3_errors(self._where(name), self._client, writing=True):
            self._client().delete_object(Bucket=self._bucket, Key=self._prefix + name)
