"""A running Ray cluster, through its job API: submit, list, follow, cancel, resume.

The driver of a job runs on the cluster, so that it outlives the machine that submits. What travels is this package
as it is here, and the spec with every field written out. A job that is cancelled commits what it has finished first,
and is resumed by its id: the spec is kept with the job.
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
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import magbatch
from magbatch import guard
from magbatch.errors import ClusterAccessError, ClusterError, SpecError
from magbatch.fleet.ray_auth import Token, refused, token_at_hand, wanted
from magbatch.spec import JobSpec, parse
from magbatch.spec.secrets import without_secrets

SPEC_FILE = "spec.yaml"
# Ray's own 3 s would end a driver before its replicas have committed; a run gives them 30 s, and Ray some to end.
STOP_WAIT_S = 90
POLL_S = 1.0
ANSWER_TIMEOUT_S = 60.0  # of the dashboard, for each request; Ray's client would wait for ever
# Of what a job carries for `jobs`, `status` and `resume`. Ray keeps it with the job.
NAME, OUTPUT, SPEC, VERSION = "magbatch.name", "magbatch.output", "magbatch.spec", "magbatch.version"
# What reading an answer of another shape than Ray's raises; a ValidationError of pydantic is a ValueError as well.
_MISREAD = (
    ValidationError, InvalidVersion, UnicodeError, KeyError, TypeError, AttributeError, OverflowError, RecursionError,
)  # fmt: skip
ENDED = frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED})


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A job of a cluster, as Ray's job API knows it.

    Attributes:
        id: Ray's submission id.
        name: The spec's.
        state: `pending`, `running`, `stopped`, `succeeded` or `failed`.
        output: The spec's output.path.
        version: Of magbatch.
        started: When Ray took it (UTC); None where Ray does not say.
        ended: When it ended; None while it runs.
        message: Ray's own words.
        exit_code: Of the command; None while it runs.
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
        """What Ray tells of a job."""
        metadata = details.metadata or {}
        for text in (details.submission_id, details.message, *metadata.values()):
            (text or "").encode()  # half a pair of surrogates, which JSON can hold, cannot be printed
        return cls(
            details.submission_id or "", metadata.get(NAME, ""), str(details.status.value).lower(),
            metadata.get(OUTPUT, ""), metadata.get(VERSION, ""), _time(details.start_time), _time(details.end_time),
            details.message or "", details.driver_exit_code,
        )  # fmt: skip

    @property
    def is_over(self) -> bool:
        """Whether it has ended, however."""
        return self.state in {status.value.lower() for status in ENDED}

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: times as ISO 8601 texts."""
        times = {"started": self.started, "ended": self.ended}
        return asdict(self) | {name: value.isoformat() if value else None for name, value in times.items()}


class _Client(JobSubmissionClient):
    """Ray's own client, which sends a token to a cluster that has asked for one, and to no other.

    Args:
        address: The dashboard, with its scheme.
        say: Shows one line to a person.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        self._say = say
        self._mine: dict[str, str] = {}  # headers; with the token, once the cluster has asked
        self._origin: Token | None = None
        super().__init__(address)

    def _do_request(self, method: str, endpoint: str, **more: Any) -> requests.Response:
        """One request; the first that needs a token is sent once more, with it."""
        more.setdefault("timeout", ANSWER_TIMEOUT_S)
        self._headers = dict(self._mine)  # RAY_AUTH_MODE=token would have Ray's client send its token to any host
        try:
            answer: requests.Response = super()._do_request(method, endpoint, **more)
            return answer
        except ray.exceptions.AuthenticationError as error:
            if self._origin is not None:
                raise refused(self._address, self._origin) from error
            self._origin = token_at_hand()
            if self._origin is None:
                raise wanted(self._address) from error
        if _is_open(self._address):
            self._say(f"note: the token of {self._origin.origin} goes to {self._address} unencrypted")
        self._mine = {"Authorization": f"Bearer {self._origin.text}"}
        return self._do_request(method, endpoint, **more)


def _is_open(address: str) -> bool:
    """Whether what is sent there can be read on the way: not within this machine, and not encrypted."""
    parts = urlsplit(address)
    try:
        here = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        here = parts.hostname == "localhost"
    return parts.scheme == "http" and not here


class Cluster:
    """A cluster's job API.

    Args:
        address: `http://head:8265`, the address of its dashboard.
        say: Shows one line to a person.

    Raises:
        ClusterAccessError: It cannot be reached, is no Ray cluster, refuses the token, or has another version of Ray.
        ClusterError: It breaks down right now.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
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
            self._client = _Client(self.address, say)
            version = self._client._server_ray_version  # asked for by the line before; nothing public tells it
        if version != ray.__version__:
            raise ClusterAccessError(
                f"{self.address} runs Ray {version}, this is Ray {ray.__version__}: "
                "use an image of the cluster with the same version"
            )
        self._met = True

    def submit(self, spec: JobSpec) -> str:
        """Send a job; returns its id.

        Raises:
            ClusterError: The cluster does not take it, or a job with the same output is under way there.
            SpecError: It is incremental: its schedule runs it.
        """
        if spec.input.incremental:
            raise SpecError(
                "input.incremental: such a job runs by its schedule: magbatch schedule run, or a RayCronJob"
            )
        busy = next((job for job in self.jobs() if job.output == spec.output.path and not job.is_over), None)
        if busy is not None:
            raise ClusterError(f"{spec.output.path}: job {busy.id} is working on it; cancel it first, or wait for it")
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
        """The jobs of magbatch that the cluster knows, the newest first."""
        with self._asked():
            found = [ClusterJob.of(details) for details in self._client.list_jobs() if _is_ours(details)]
        return sorted(found, key=lambda job: job.started or datetime.now(UTC), reverse=True)

    def job(self, job_id: str) -> ClusterJob:
        """One job.

        Raises:
            ClusterAccessError: The cluster has none by this id.
        """
        return self._known(job_id)[1]

    def cancel(self, job_id: str, wait: Callable[[float], None]) -> ClusterJob:
        """End a job once what it has finished is committed.

        Args:
            job_id: Its id.
            wait: Is called about every second with the seconds waited so far.

        Returns:
            The job after its end; one that had ended before is left as it is.
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
        """Submit the spec of a job that has ended once more: it goes on where it was. Returns the new id."""
        metadata, job = self._known(job_id)
        if not job.is_over:
            raise ClusterAccessError(
                f"job {job_id} is {job.state}: nothing to resume; magbatch logs -f {job_id} shows what it does"
            )
        return self.submit(parse(metadata[SPEC], origin=f"job {job_id}", new=True))

    def logs(self, job_id: str) -> str:
        """What a job has printed so far."""
        self._known(job_id)
        with self._asked():
            text: Any = self._client.get_job_logs(job_id)
            if not isinstance(text, str):
                raise TypeError(f"the logs of job {job_id} are no text")
            return text.encode(errors="replace").decode()  # half a pair of surrogates in JSON cannot be printed

    def follow(self, job_id: str) -> Iterator[str]:
        """What a job has printed, and then what it prints, until it ends."""
        self._known(job_id)
        tail: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        with asyncio.Runner() as runner, self._asked():
            while True:
                try:
                    yield runner.run(anext(tail))  # type: ignore[arg-type]
                except StopAsyncIteration:
                    return

    def _known(self, job_id: str) -> tuple[dict[str, str], ClusterJob]:
        """What a job carries, and the job."""
        with self._asked():
            found = next((one for one in self._client.list_jobs() if one.submission_id == job_id), None)
            job = ClusterJob.of(found) if found is not None else None
        if found is None or job is None:
            raise ClusterAccessError(f"{self.address} knows no job {job_id}; magbatch jobs shows those that it knows")
        if not _is_ours(found):
            raise ClusterAccessError(f"{self.address}: job {job_id} is not one of magbatch")
        return found.metadata or {}, job

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """What Ray's client raises, as one clear line.

        It reads an answer without a look at its shape. So what Python raises there is an answer that no Ray gives.
        """
        try:
            yield
        except (*_MISREAD, requests.exceptions.JSONDecodeError, aiohttp.WSServerHandshakeError) as error:
            if isinstance(error, aiohttp.WSServerHandshakeError) and error.status >= http.HTTPStatus.BAD_REQUEST:
                raise ClusterError(f"{self.address} does not answer as it should: {_first_line(error)}") from error
            raise ClusterAccessError(
                f"{self.address} is no Ray cluster: an answer is not one of Ray's job API "
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
        except (RuntimeError, ValueError) as error:  # of Ray's client, or of the package that it sends
            kind = ClusterError if self._met else ClusterAccessError
            raise kind(f"{self.address}: {_first_line(error)}") from error


def environment(folder: str) -> dict[str, Any]:
    """What a job that is submitted runs in: the spec's folder, this magbatch, and nobody at the command."""
    return {
        "working_dir": folder,
        "py_modules": [str(Path(magbatch.__file__).parent)],
        "excludes": ["__pycache__"],
        "env_vars": {
            guard.UNATTENDED: "1",
            "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        },
    }


def local_paths(spec: JobSpec) -> list[str]:
    """The places of a spec that lie on a disk: all machines of a cluster must have it by that path."""
    return [path for path in (spec.model.source, spec.input.path, spec.output.path) if path.startswith(os.sep)]


def _is_ours(details: JobDetails) -> bool:
    return SPEC in (details.metadata or {})


def _time(milliseconds: int | None) -> datetime | None:
    """A time of Ray's.

    Raises:
        OverflowError: It is beyond what a date can be.
    """
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
    except (ValueError, OSError) as error:
        raise OverflowError(f"{milliseconds} ms is no time: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
