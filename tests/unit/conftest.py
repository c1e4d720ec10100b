"""Jobs to test with: on a disk, and on the disk and in object storage alike."""

from pathlib import Path

import pytest
from support.small_job import SmallJob


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    return SmallJob(tmp_path)


@pytest.fixture(params=["local", "s3"])
def either_job(request: pytest.FixtureRequest, tmp_path: Path) -> SmallJob:
    """The same job, once on a disk and once in object storage."""
    return SmallJob(tmp_path, None if request.param == "local" else f"{request.getfixturevalue('s3')}/job")
