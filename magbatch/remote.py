"""A running Ray cluster, through its job API: submit, list, follow, cancel, resume.

The driver of a job runs on the cluster, so that it outlives the machine that submits. This installed package travels
with the job, and so does the spec with every field written out. A cancelled job first commits its finished rows. The
cluster keeps the spec with the job, so a job is resumed by its id.
"""

import asyncio
import http
import ipaddress
import logging
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from packaging.version import InvalidVersion
from pydantic import ValidationError
from ray.job_submission import JobDetails, JobStatus

import magbatch
from magbatch import guard
from magbatch.errors import ClusterAccessError, ClusterError, SpecError
from magbatch.fleet.ray_auth import Token, refused, token_at_hand, wanted
from magbatch.fleet.ray_private import JOB_API, Request, check, job_client, server_version
from magbatch.fleet.ray_settings import GPUS_VISIBLE, NO_UV, STOP_WAIT, STOP_WAIT_S
from magbatch.spec import JobSpec, parse
from magbatch.spec.secrets import without_secrets

SPEC_FILE = "spec.yaml"
POLL_S = 1.0
ANSWER_TIMEOUT_S = 60.0  # longest wait for an answer of the dashboard; Ray's client would wait for ever
# Keys of the metadata that Ray keeps with a job, for `jobs`, `status` and `resume`.
NAME, OUTPUT, SPEC, VERSION = "magbatch.name", "magbatch.output", "magbatch.spec", "magbatch.version"
# Errors raised when an answer does not have the shape of Ray's. A ValidationError of pydantic is a ValueError too.
_MISREAD = (
    ValidationError, InvalidVersion, UnicodeError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job of a cluster, as Ray's job API describes it.

    Attributes:
        id: Ray's submission id.
        name: The spec's name.
        state: `pending`, `running`, `stopped`, `succeeded` or `failed`.
        output: The spec's output.path.
        version: Version of magbatch that the job was sent with.
        started: Time when Ray took the job (UTC); None if Ray does not give it.
        ended: Time when the job ended (UTC); None while it runs.
        message: Ray's message about the state.
        exit_code: Exit code of the command; None while it runs.
    """

    id: str
    name: str
    state: str
    output: str
    version: str
    started: datetime | None
    ended: datetime | None
    message: str
    exit_code: int | None

    @classmethod
    def of(cls, details: JobDetails) -> Self:
        """Read a job from the answer of Ray's job API.

        Raises:
            UnicodeError: A text has half of a surrogate pair, which JSON can hold but no terminal can print.
            OverflowError: A time is beyond what a date can be.
        """
        metadata = details.metadata or {}
        for text in (details.submission_id, details.message, *metadata.values()):
            (text or "").encode()
        return cls(
            details.submission_id or "", metadata.get(NAME, ""), str(details.status.value).lower(),
            metadata.get(OUTPUT, ""), metadata.get(VERSION, ""), _time(details.start_time), _time(details.end_time),
            details.message or "", details.driver_exit_code,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        """Whether the job has ended, well or not."""
        return self.state in {status.value.lower() for status in ENDED}

    def to_dict(self) -> dict[str, Any]:
        """The fields for `--json`, with times as ISO 8601 texts."""
        times = {"started": self.started, "ended": self.ended}
        return asdict(self) | {name: value.isoformat() if value else None for name, value in times.items()}


class _Sender:
    """Sends the requests of Ray's client. The token goes only to a cluster that has asked for one.

    Args:
        address: URL of the dashboard.
        say: Shows one line to a person.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._address, self._say = address, say
        self._headers: dict[str, str] = {}  # with the token, once the cluster has asked
        self._token: Token | None = None

    def __call__(self, request: Request) -> requests.Response:
        """Send a request; the first request that needs a token is sent once more, with the token.

        Raises:
            ClusterAccessError: The cluster asks for a token and none is set, or it refuses the token that is set.
        """
        try:
            # Instead of Ray's own headers, which under RAY_AUTH_MODE=token hold the token for any host.
            return request(dict(self._headers))
        except ray.exceptions.AuthenticationError as error:
            if self._token is not None:
                raise refused(self._address, self._token) from error
            self._token = token_at_hand()
            if self._token is None:
                raise wanted(self._address) from error
        if _is_open(self._address):
            self._say(f"note: the token of {self._token.origin} goes to {self._address} unencrypted")
        self._headers = {"Authorization": f"Bearer {self._token.text}"}
        return self(request)


def _is_open(address: str) -> bool:
    """Whether a third party could read requests to an address: another machine, reached without encryption."""
    parts = urlsplit(address)
    try:
        here = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        here = parts.hostname == "localhost"
    return parts.scheme == "http" and not here


class Cluster:
    """A cluster's job API.

    Args:
        address: URL of the dashboard: `http://head:8265`.
        say: Shows one line to a person.

    Raises:
        ClusterAccessError: The address cannot be reached, is not a Ray cluster's, refuses the token, or has another
            version of Ray.
        ClusterError: The cluster answered before, and fails now.
        SettingsError: The installed version of Ray lacks a private name that magbatch uses.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        check(JOB_API)
        if "://" not in address:
            address = f"http://{address}"
        try:
            parts = urlsplit(address)
            right = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            right = False
        if not right or parts.username is not None or parts.password is not None:
            raise ClusterAccessError(
                f"--address {without_secrets(address)}: write the cluster's dashboard, http://head:8265"
            )
        self.address = address.rstrip("/")
        self._met = False
        for quiet in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(quiet).setLevel(logging.ERROR)
        with self._asked():
            self._client = job_client(self.address, _Sender(self.address, say), ANSWER_TIMEOUT_S)
            version = server_version(self._client)
        if version != ray.__version__:
            raise ClusterAccessError(
                f"{self.address} runs Ray {version}, this is Ray {ray.__version__}: "
                "use an image of the cluster with the same version"
            )
        self._met = True

    def submit(self, spec: JobSpec) -> str:
        """Send a job to the cluster.

        Returns:
            The id of the job.

        Raises:
            ClusterError: The cluster does not take the job, or runs another job with the same output.
            SpecError: The job is incremental: only its schedule runs it.
        """
        if spec.input.incremental:
            raise SpecError(
                "input.incremental: an incremental job is run by its schedule only: magbatch schedule run, or a "
                "RayCronJob"
            )
        busy = next((job for job in self.jobs() if job.output == spec.output.path and not job.is_over), None)
        if busy is not None:
            raise ClusterError(
                f"output.path {spec.output.path}: job {busy.id} writes there; cancel that job first, or wait for it"
            )
        job_id = f"{spec.name}-{uuid.uuid4().hex[:8]}"
        with tempfile.TemporaryDirectory(prefix="magbatch-") as folder:
            text = spec.to_yaml()
            (Path(folder) / SPEC_FILE).write_text(text, encoding="utf-8")
            metadata = {NAME: spec.name, OUTPUT: spec.output.path, SPEC: text, VERSION: magbatch.__version__}
            with self._asked():
                return str(
                    self._client.submit_job(
                        entrypoint=f"exec python -m magbatch run {SPEC_FILE}",
                        submission_id=job_id,
                        runtime_env=environment(folder),
                        metadata=metadata,
                    )
                )

    def jobs(self) -> list[ClusterJob]:
        """The cluster's jobs of magbatch, the newest first."""
        with self._asked():
            found = [ClusterJob.of(details) for details in self._client.list_jobs() if _is_ours(details)]
        return sorted(found, key=lambda job: job.started or datetime.now(UTC), reverse=True)

    def job(self, job_id: str) -> ClusterJob:
        """The job with an id.

        Raises:
            ClusterAccessError: The cluster has no such job.
        """
        return self._known(job_id)[1]

    def cancel(self, job_id: str, wait: Callable[[float], None]) -> ClusterJob:
        """End a job, which first commits its finished rows.

        Args:
            job_id: Id of the job.
            wait: Called about every second with the seconds waited so far.

        Returns:
            The job after its end; a job that had ended before is left alone.

        Raises:
            ClusterAccessError: The cluster has no such job.
            ClusterError: The job has not ended within twice the time that Ray gives it.
        """
        job = self.job(job_id)
        if job.is_over:
            return job
        with self._asked():
            self._client.stop_job(job_id)
        began = time.monotonic()
        while not (job := self.job(job_id)).is_over:
            waited = time.monotonic() - began
            if waited > 2 * STOP_WAIT_S:
                raise ClusterError(f"job {job_id} has not ended within {waited:,.0f} s; see magbatch logs {job_id}")
            wait(waited)
            time.sleep(POLL_S)
        return job

    def resume(self, job_id: str) -> str:
        """Submit the spec of an ended job again: the new job answers the rows that are still open.

        Returns:
            The id of the new job.

        Raises:
            ClusterAccessError: The cluster has no such job, or the job has not ended.
            ClusterError: See `submit`.
        """
        metadata, job = self._known(job_id)
        if not job.is_over:
            raise ClusterAccessError(
                f"job {job_id} is {job.state}: nothing to resume; magbatch logs -f {job_id} shows what it does"
            )
        return self.submit(parse(metadata[SPEC], origin=f"job {job_id}", new=True))

    def logs(self, job_id: str) -> str:
        """The text that a job has printed so far."""
        self._known(job_id)
        with self._asked():
            text: Any = self._client.get_job_logs(job_id)
            if not isinstance(text, str):
                raise TypeError(f"the logs of job {job_id} are not text")
            return text.encode(errors="replace").decode()  # half of a surrogate pair cannot be printed

    def follow(self, job_id: str) -> Iterator[str]:
        """The text that a job has printed, then what it prints until it ends, piece by piece."""
        self._known(job_id)
        tail: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        with asyncio.Runner() as runner, self._asked():
            while True:
                try:
                    yield runner.run(anext(tail))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return

    def _known(self, job_id: str) -> tuple[dict[str, str], ClusterJob]:
        """The metadata of a job, and the job."""
        with self._asked():
            found = next((one for one in self._client.list_jobs() if one.submission_id == job_id), None)
            job = ClusterJob.of(found) if found is not None else None
        if found is None or job is None:
            raise ClusterAccessError(f"job {job_id} is not known at {self.address}; magbatch jobs lists the known jobs")
        if not _is_ours(found):
            raise ClusterAccessError(f"job {job_id} at {self.address} was not submitted by magbatch")
        return found.metadata or {}, job

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Raise the errors of Ray's client as one clear line.

        Ray's client does not check the shape of an answer. So a TypeError or KeyError there means that the answer is
        not one of Ray's.
        """
        try:
            yield
        except (*_MISREAD, requests.exceptions.JSONDecodeError, aiohttp.WSServerHandshakeError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status >= http.HTTPStatus.BAD_REQUEST:
                raise ClusterError(f"{self.address} does not answer as it should: {_first_line(error)}") from error
            raise ClusterAccessError(
                f"{self.address} is not a Ray cluster: an answer is not one of Ray's job API "
                f"({type(error).__name__}: {_first_line(error)}); give the dashboard, http://head:8265"
            ) from error
        except (requests.RequestException, ConnectionError, aiohttp.ClientError, OSError) as error:
            response = getattr(error, "response", None)
            status = 0 if response is None else response.status_code
            if self._met or status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
                raise ClusterError(f"{self.address} does not answer as it should: {_first_line(error)}") from error
            raise ClusterAccessError(
                f"{self.address} cannot be reached: {_first_line(error)}; is it the dashboard of a Ray cluster "
                "(http://head:8265), and is its port forwarded?"
            ) from error
        except (RuntimeError, ValueError) as error:  # from Ray's client, or from packing what it sends
            kind = ClusterError if self._met else ClusterAccessError
            raise kind(f"{self.address}: {_first_line(error)}") from error


def environment(folder: str) -> dict[str, Any]:
    """The runtime environment of a submitted job: the spec's folder, this package, and no person at the command.

    Args:
        folder: Folder that holds the spec.
    """
    return {
        "working_dir": folder,
        "py_modules": [str(Path(magbatch.__file__).parent)],
        "excludes": ["__pycache__"],
        "env_vars": {
            guard.UNATTENDED: "1",
            **STOP_WAIT,
            **NO_UV,
            **GPUS_VISIBLE,
        },
    }


def local_paths(spec: JobSpec) -> list[str]:
    """Local paths of a spec, which every machine of the cluster must have."""
    return [path for path in (spec.model.source, spec.input.path, spec.output.path) if path.startswith(os.sep)]


def _is_ours(details: JobDetails) -> bool:
    return SPEC in (details.metadata or {})


def _time(milliseconds: int | None) -> datetime | None:
    """A time of Ray's (ms since 1970), as a date; None for 0 and None.

    Raises:
        OverflowError: The time is beyond what a date can be.
    """
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
    except (ValueError, OSError) as error:
        raise OverflowError(f"{milliseconds} ms is not a time: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
