"""Outputs that version 0.1.0 wrote, in the bucket in which it wrote them.

`tests/data/outputs-0.1.0.zip` holds the bucket `magbatch-before`: 24 rows below `input/`, a spec next to each output.
`complete` has two dead letters, `compacted` was merged after its run, `retried` had its two dead letters answered, and
`half` was stopped by SIGTERM after 6 rows. An ETag is a hash of the content, so the plans find their input unchanged.
"""

import zipfile
from contextlib import suppress
from pathlib import Path

from magbatch.storage.s3 import s3_client

BUCKET = "magbatch-before"
ARCHIVE = Path(__file__).parents[1] / "data" / "outputs-0.1.0.zip"
ROWS = 24


def put_older_outputs(specs: Path) -> None:
    """Put the outputs into the object store as they were, and their specs into a folder.

    Args:
        specs: Folder for the specs: complete.yaml, compacted.yaml, retried.yaml and half.yaml.
    """
    client = s3_client()
    with suppress(client.exceptions.BucketAlreadyOwnedByYou):
        client.create_bucket(Bucket=BUCKET)
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
    with zipfile.ZipFile(ARCHIVE) as archive:
        for name in archive.namelist():
            if name.endswith("/"):
                continue
            if name.endswith(".yaml") and "/" not in name:
                (specs / name).write_bytes(archive.read(name))
            else:
                client.put_object(Bucket=BUCKET, Key=name, Body=archive.read(name))
