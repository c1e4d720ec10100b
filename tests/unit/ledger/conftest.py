import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from support.book import Book
from support.small_job import SmallJob

from magbatch.jobs.run import run


@pytest.fixture
def book(job: SmallJob) -> Book:
    """A frozen job without objects."""
    return Book(job)


@pytest.fixture
def either_book(either_job: SmallJob) -> Book:
    """A frozen job without objects, on a disk and in object storage."""
    return Book(either_job)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    """A complete job of 10 rows in 3 shards; one row is a dead letter."""
    job = SmallJob(tmp_path_factory.mktemp("made"))
    job.ask(10, question=[None if row == 4 else f"What is {row}?" for row in range(10)])
    job.set("input", shard_rows=4)
    job.answer()
    run(job.spec(), Console(file=io.StringIO()))
    return job


@pytest.fixture
def out(made: SmallJob, tmp_path: Path) -> Path:
    """A copy of the complete job's output, to be spoiled."""
    shutil.copytree(made.output, tmp_path / "out")
    return tmp_path / "out"
