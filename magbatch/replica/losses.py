"""Replicas that ended while rows were to be answered: which, where, why in words, and where their logs are."""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from magbatch.errors import one_line
from magbatch.totals import known_fields

MOST_LOSSES = 20  # that are kept of a job: the last ones; all are counted
WHY_CHARS = 300  # of a reason: a line that a person reads


@dataclass(frozen=True, slots=True)
class Home:
    """Where the process of a replica runs.

    Attributes:
        node: Host and address, for people.
        log: Path on that node of the file that holds what the replica and its engine print; empty if it is unknown.
    """

    node: str = ""
    log: str = ""

    def logs(self) -> str:
        """Where the log is, in words."""
        path = self.log or "in Ray's folder of logs"
        return f"log: {path} on {self.node}" if self.node else f"log: {path}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A replica that ended, and that another takes the place of.

    Attributes:
        at: Time of it (Unix time, s).
        replica: Number of its place in the fleet.
        node: Host and address where it ran.
        why: Reason in words, one line.
        log: Path of its log on that node.
    """

    at: float
    replica: int
    node: str
    why: str
    log: str

    @classmethod
    def of(cls, at: float, replica: int, home: Home, why: str) -> Self:
        """Of a replica with this home; its reason becomes one clean line."""
        return cls(at, replica, home.node, one_line(why, WHY_CHARS), home.log)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Of a record of this version or another."""
        return cls(**known_fields(cls, data))

    def line(self) -> str:
        """For a person, on one line."""
        where = f" on {self.node}" if self.node else ""
        return f"replica {self.replica}{where} is replaced: {self.why}; {Home(log=self.log).logs()}"


def own_log() -> str:
    """The file that this process's stderr goes to; empty where that is no file."""
    with suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            path = os.readlink("/proc/self/fd/2")
            return path if os.path.exists(path) else ""
    return ""
