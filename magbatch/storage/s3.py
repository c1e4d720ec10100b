"""Objects below a prefix of a bucket, and the one client that talks to S3."""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

from magbatch.errors import StorageError
from magbatch.storage.base import ObjectInfo

if TYPE_CHECKING:
    import pyarrow.fs as pafs
    from botocore.exceptions import BotoCoreError
    from mypy_boto3_s3 import S3Client

S3_ATTEMPTS = 8  # botocore's standard mode: backoff with jitter, 20 s at most between two
S3_CONNECTIONS = 32
S3_CONNECT_TIMEOUT_S = 10
S3_READ_TIMEOUT_S = 60  # without a byte
_GONE = frozenset({"NoSuchKey", "404"})
# Of the refusals below 500. Credentials that are just being renewed: new ones take a while to be known everywhere, and
# an answer to HEAD has only its number.
_CREDENTIALS = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"}
    | {"SignatureDoesNotMatch", "AccessDenied", "RequestExpired", "400", "403"}
)
# A store that is overloaded, and a request that was damaged or held up on its way.
_PASSING = _CREDENTIALS | frozenset(
    {"SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429", "OperationAborted", "RequestTimeout"}
    | {"RequestTimeTooSkewed", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch", "ConditionalRequestConflict"}
)
_RENEWING = threading.Lock()


@functools.cache
def s3_client() -> "S3Client":
    """One client for this process; boto3's clients may be shared between threads."""
    from boto3.session import Session
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "total_max_attempts": S3_ATTEMPTS},
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        read_timeout=S3_READ_TIMEOUT_S,
        max_pool_connections=S3_CONNECTIONS,
        # Stores other than AWS's own refuse the trailing checksums that newer clients add by default.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # Not boto3's default session, which reads a credentials file once: this one ends with its client.
    return Session().client("s3", config=config)


def _renew(client: "S3Client") -> None:
    """Let the next client look for credentials again: those in a file may have been replaced."""
    with _RENEWING:
        if s3_client() is client:
            s3_client.cache_clear()
            s3_filesystem.cache_clear()


@contextmanager
def s3_errors(path: str) -> Iterator[None]:
    """Raise what S3 refuses about `path` as StorageError, and an object that is not there as FileNotFoundError."""
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    client: S3Client | None = None
    try:
        client = s3_client()
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        if code in _GONE:
            raise FileNotFoundError(path) from error
        if code == "NoSuchBucket":
            raise NoBucketError(f"{path}: there is no such bucket", passing=True) from error
        hint = "; the credentials come from the standard AWS chain" if code in {"403", "AccessDenied"} else ""
        if code in _CREDENTIALS and client is not None:
            _renew(client)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        # No code at all: it was not the store that answered, but something before it.
        passing = not code or code in _PASSING or (status >= 500 and status != HTTPStatus.NOT_IMPLEMENTED)
        raise StorageError(f"{path}: {error}{hint}", passing=passing) from error
    except BotoCoreError as error:
        raise StorageError(f"{path}: {error}", passing=_may_pass(error)) from error
    except ResponseParserError as error:  # no XML: something between here and the store answered
        raise StorageError(f"{path}: {error}", passing=True) from error


def _may_pass(error: "BotoCoreError") -> bool:
    """Whether a request that got no answer may get one later."""
    from botocore import exceptions

    # A service that gives credentials can be away as a store can; a name that S3 does not allow stays one.
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


class NoBucketError(StorageError):
    """Not the same as a missing object: while a bucket is away, finished rows must not look open."""


def split_url(url: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URL."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


class S3Store:
    """Objects below a prefix of a bucket."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._bucket, key = split_url(self.root)
        self._prefix = f"{key}/" if key else ""

    def _where(self, name: str) -> str:
        return f"{self.root}/{name}"

    def read(self, name: str) -> bytes:
        """See `Store.read`."""
        with s3_errors(self._where(name)):
            return s3_client().get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()

    def write(self, name: str, data: bytes) -> None:
        """See `Store.write`."""
        with s3_errors(self._where(name)):
            s3_client().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def create(self, name: str, data: bytes) -> bool:
        """See `Store.create`."""
        client = s3_client()
        for _ in range(S3_ATTEMPTS):
            with s3_errors(self._where(name)):
                try:
                    client.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data, IfNoneMatch="*")
                except client.exceptions.ClientError as error:
                    code = error.response.get("Error", {}).get("Code")
                    if code == "ConditionalRequestConflict":  # another write is under way: see who was first
                        continue
                    if code not in {"PreconditionFailed", "412"}:
                        raise
                    with suppress(FileNotFoundError):
                        return self.read(name) == data  # a retry meets its own first write
                    return False
                return True
        raise StorageError(f"{self._where(name)}: other writes came in between {S3_ATTEMPTS} times", passing=True)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `Store.list`."""
        pages = s3_client().get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix + prefix)
        with suppress(FileNotFoundError), s3_errors(self._where(prefix)):
            for page in pages:
                for item in page.get("Contents", []):
                    yield ObjectInfo(item["Key"][len(self._prefix) :], item["Size"], item["ETag"].strip('"'))

    def move(self, name: str, target: str) -> None:
        """See `Store.move`."""
        source = {"Bucket": self._bucket, "Key": self._prefix + name}
        with s3_errors(self._where(name)):
            try:
                s3_client().copy_object(Bucket=self._bucket, Key=self._prefix + target, CopySource=source)  # type: ignore[arg-type]
            except s3_client().exceptions.ClientError as error:
                if error.response.get("Error", {}).get("Code") in _GONE:
                    return
                raise
        self.delete(name)

    def delete(self, name: str) -> None:
        """See `Store.delete`."""
        with s3_errors(self._where(name)):
            s3_client().delete_object(Bucket=self._bucket, Key=self._prefix + name)


@functools.cache
def s3_filesystem(bucket: str) -> "pafs.FileSystem":
    """pyarrow's filesystem for a bucket: it asks for the ranges of a Parquet file that are needed."""
    import pyarrow.fs as pafs

    client = s3_client()
    try:
        with s3_errors(f"s3://{bucket}"):
            region = client.head_bucket(Bucket=bucket).get("BucketRegion") or client.meta.region_name
    except FileNotFoundError as error:
        raise NoBucketError(f"s3://{bucket}: there is no such bucket", passing=True) from error
    endpoint = client.meta.endpoint_url
    custom = None if endpoint.endswith(".amazonaws.com") else endpoint
    return pafs.S3FileSystem(
        region=region or "us-east-1",
        endpoint_override=custom,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=S3_ATTEMPTS),
        connect_timeout=S3_CONNECT_TIMEOUT_S,
        request_timeout=S3_READ_TIMEOUT_S,
    )
