"""Object storage and disks behind one small surface.

Two promises. An object written through `Store` is whole as soon as it is visible, and never visible
half: a single PUT on S3, write-then-rename on a disk. And local paths and s3:// behave alike.

boto3 speaks S3; of Parquet input, only the ranges that are asked for are fetched. Credentials, region and
endpoint come from the standard AWS chain, `AWS_ENDPOINT_URL` included.

Imports within: base, columns, contact, formats, partitions, sizes < disk, patience, s3 < inputs, odd_names, tables <
input_file, search < parquet, references.
"""

from magbatch.spec import is_remote
from magbatch.storage.base import ObjectInfo, Store
from magbatch.storage.disk import LocalStore
from magbatch.storage.s3 import S3Store

__all__ = ["ObjectInfo", "Store", "open_store"]


def open_store(root: str, *, quick: bool = False) -> Store:
    """The store at a local directory or an s3:// prefix; nothing is created yet.

    Args:
        root: Where it is.
        quick: An object store that does not answer within seconds is an error, not waited for.
    """
    return S3Store(root, quick=quick) if is_remote(root) else LocalStore(root)
