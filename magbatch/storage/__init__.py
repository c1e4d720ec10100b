"""Disks and S3 behind one small protocol, and input files that stay the planned ones while they are read.

An object written through `Store` is visible whole or not at all: one PUT on S3, write-then-rename on a disk. Local
paths and s3:// URLs behave alike.

boto3 speaks S3. Only the ranges of an input file that a reader needs are fetched. Credentials, region and endpoint
come from the standard AWS chain, `AWS_ENDPOINT_URL` included.

Imports within: base, columns, contact, formats, globs, partitions, sizes < disk, patience, s3 < inputs, odd_names,
tables < input_file, search_bucket, search_disk < parquet, search < references.
"""

from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo, Store
from magbatch.storage.disk import LocalStore
from magbatch.storage.s3 import S3Store

__all__ = ["ObjectInfo", "Store", "open_store"]


def open_store(root: str, *, quick: bool = False) -> Store:
    """Return the store at a local directory or an s3:// prefix. Nothing is created or contacted yet.

    Args:
        root: Local directory or s3://bucket/prefix.
        quick: Whether S3 requests give up after 2 attempts of 5 s each, instead of 8 with growing waits.
    """
    return S3Store(root, quick=quick) if is_remote(root) else LocalStore(root)
