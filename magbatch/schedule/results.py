"""Results of a scheduler: runs that ended, and problems of specs or outputs."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from magbatch.errors import DefectError, JobError, SpecError


@dataclass(frozen=True, slots=True)
class EndedRun:
    """Run of a tick that ended.

    Attributes:
        job: Name of the job.
        tick: The tick (UTC).
        exit_code: Exit code of its process; for a signal, its negative number.
    """

    job: str
    tick: datetime
    exit_code: int

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"job": self.job, "tick": self.tick.isoformat(), "exit_code": self.exit_code}


@dataclass(frozen=True, slots=True)
class Problem:
    """Spec that cannot be read, or output that cannot be looked at.

    Attributes:
        spec: File of the spec.
        problem: Description of the problem, in one line.
        exit_code: Exit code that a command with this problem would end with.
    """

    spec: str
    problem: str
    exit_code: int

    @classmethod
    def of(cls, spec: str, error: BaseException) -> "Problem":
        """Problem of a spec that an error describes."""
        return cls(spec, one_line(error), error.exit_code if isinstance(error, JobError) else SpecError.exit_code)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {"spec": self.spec, "problem": self.problem, "exit_code": self.exit_code}


Result = EndedRun | Problem


def worst(results: Iterable[Result]) -> int:
    """Exit code of a scheduler: the highest of its results. A crash or a signal counts as a defect.

    >>> worst([EndedRun("daily", tick, 1), EndedRun("daily", tick, -9)])
    4
    """
    codes = (result.exit_code for result in results)
    return max((code if 0 <= code <= DefectError.exit_code else DefectError.exit_code for code in codes), default=0)


def one_line(error: BaseException) -> str:
    """An error in one line. An error that is not a job's is shown with its type."""
    return str(error) if isinstance(error, JobError) else " ".join(f"{type(error).__name__}: {error}".split())
