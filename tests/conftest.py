"""Fixtures of all tests: a tiny checkpoint, and a local S3 server."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from magbatch import environment

if TYPE_CHECKING:
    from magbatch.model.tokenizer import Tokenizer

# Before boto3 and pyarrow are imported, which read some of these then. No test ever meets a real account.
for _name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(_name, None)
os.environ |= {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
    # On a busy machine the processes of a cluster that a test starts take their time.
    "RAY_raylet_start_wait_time_s": "90",
    "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1", "localhost"])),
}


def _holds_a_cache(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


# The tiny checkpoint is built once, below the home directory, or elsewhere where nothing can be written there.
if "MAGBATCH_CACHE" not in os.environ and not _holds_a_cache(Path.home() / ".cache" / "magbatch"):
    os.environ["MAGBATCH_CACHE"] = str(Path(tempfile.gettempdir()) / f"magbatch-tests-{os.getuid()}")

# `uv run pytest` sets it for its children: what a command prints as its next step would begin with `uv run`.
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# Known from the start, since clients are kept for the length of a process; the server itself starts when it is wanted.
S3_PORT = _free_port()
os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{S3_PORT}"
SERVER_START_S = 60


environment.steady()  # `uv run` in another terminal must not take vLLM out under these tests

INTEGRATION = "tests/integration/"
ONE_ENGINE = f"{INTEGRATION}one engine"  # scope of the files that share the main job and its engine
SHARING = ("test_quickstart.py", "test_monitoring.py", "test_answers.py")
LONGEST = ("test_sharing.py", "test_submit.py", "test_vllm.py")  # minutes each: begun first, so that none is last
MOST_WORKERS = 4
STREAMS = 2  # workers that begin with whole jobs, which mostly wait; all other workers begin with unit tests


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Number of workers: three or more for the whole suite; none for named tests, which start immediately."""
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return max(STREAMS + 1, min(MOST_WORKERS, os.cpu_count() or 1)) if whole else 0


class Folders(LoadScopeScheduling):
    """Two workers run whole jobs, and the other workers run unit tests. A worker without work of its kind helps out."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return ONE_ENGINE if file.startswith(INTEGRATION) and file.endswith(SHARING) else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        takes_jobs = self.nodes.index(node) < STREAMS

        def rank(scope: str) -> tuple[bool, bool]:
            return scope.startswith(INTEGRATION) != takes_jobs, not scope.endswith((ONE_ENGINE, *LONGEST))

        self.workqueue.move_to_end(min(self.workqueue, key=rank), last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Folders:
    """Scheduler that decides which test runs in which worker."""
    return Folders(config, log)


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A test's name holds no bytes: what holds the time, as gzip's does, would have another name in each worker."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The directory of the built-in tiny model."""
    from magbatch.tiny.checkpoint import ensure

    return ensure()


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> "Tokenizer":
    """The tiny model's tokenizer, as the steps use it."""
    from magbatch.model.tokenizer import Tokenizer

    return Tokenizer(checkpoint)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server in a process of its own, where AWS_ENDPOINT_URL points; one for the whole session."""
    log = tmp_path_factory.mktemp("moto") / "log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(S3_PORT)], stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + SERVER_START_S
        while not _answers(S3_PORT):
            if server.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the S3 server did not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield os.environ["AWS_ENDPOINT_URL"]
    finally:
        server.kill()
        server.wait()


@pytest.fixture
def s3(s3_endpoint: str) -> str:
    """The URL of a new, empty bucket: `s3://<name>`."""
    from magbatch.storage.s3 import s3_client

    bucket = f"test-{uuid.uuid4().hex[:16]}"
    s3_client().create_bucket(Bucket=bucket)
    return f"s3://{bucket}"


@pytest.fixture(params=["local", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place, on a disk and in object storage: what is tested here behaves alike."""
    if request.param == "local":
        folder = tmp_path / "root"
        folder.mkdir()
        return str(folder)
    return f"{request.getfixturevalue('s3')}/root"
