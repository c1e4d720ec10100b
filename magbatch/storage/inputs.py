"""Look up an input file, and download the files of a checkpoint from S3."""

import os
import re
from pathlib import Path

from magbatch.errors import ModelError, NoBucketError
from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo
from magbatch.storage.disk import local_errors
from magbatch.storage.s3 import S3Store, s3_client, s3_errors, split_url


def stat_input(path: str) -> ObjectInfo:
    """Return the size and tag that an input file has now.

    Args:
        path: Local path or s3:// URL.

    Raises:
        FileNotFoundError: The file does not exist.
        StorageError: The storage refuses, or does not answer.
    """
    if is_remote(path):
        bucket, key = split_url(path)
        try:
            with s3_errors(path):
                head = s3_client().head_object(Bucket=bucket, Key=key)
                size, tag = head["ContentLength"], head["ETag"]
        except FileNotFoundError:
            # A reply to HEAD has no body; only a GET tells a missing object from a missing bucket.
            with s3_errors(path):
                found = s3_client().get_object(Bucket=bucket, Key=key)
                found["Body"].close()
                size, tag = found["ContentLength"], found["ETag"]
        return ObjectInfo(path, size, tag.strip('"'))
    with local_errors(path):
        stat = os.stat(path)
    return ObjectInfo(path, stat.st_size, str(stat.st_mtime_ns))


def fetch_prefix(url: str, target: Path, wanted: "re.Pattern[str]") -> None:
    """Download the objects directly below an s3:// prefix whose names match.

    Args:
        url: s3:// prefix.
        target: Local folder for the files.
        wanted: Pattern for the whole name below the prefix.

    Raises:
        ModelError: The bucket does not exist.
        StorageError: The store refuses, or does not answer.
    """
    store = S3Store(url)
    try:
        found = list(store.list(""))
    except NoBucketError as error:
        raise ModelError(f"model.source {url}: there is no such bucket") from error
    for item in found:
        if wanted.fullmatch(item.name):
            bucket, key = split_url(f"{store.root}/{item.name}")
            with s3_errors(f"{store.root}/{item.name}"):
                s3_client().download_file(bucket, key, str(target / item.name))
