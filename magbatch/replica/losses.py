"""Records of replicas that ended while rows were left to answer: the node, the reason, the log."""

import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from magbatch.errors import one_line
from magbatch.totals import known_fields

MOST_LOSSES = 20  # losses that a job keeps, the last ones: bounds its report; all losses are counted
WHY_CHARS = 300  # length of a reason: one readable line


_ROWS_OPEN = "its open rows go to another replica"


class LossReason(StrEnum):
    """The reason why a replica ended; the value is its sentence, with `{}` for the detail."""

    NODE_GOES = "its node is about to go; finished rows are committed"
    NODE_GONE = f"its process or node is gone; {_ROWS_OPEN}"
    KILLED = f"its process was killed, as by a kernel that is short of memory; {_ROWS_OPEN}"
    SILENT = f"no report for {{}}, so the driver ended it; {_ROWS_OPEN}"
    ENGINE_DIED = f"its engine died: {{}}; {_ROWS_OPEN}"
    ENGINE_HUNG = f"its engine hung: no row got a token for {{}}; {_ROWS_OPEN}"
    DEFECT = "a defect in magbatch, its log has the traceback: {}"

    def sentence(self, detail: str = "") -> str:
        """The reason in words.

        Args:
            detail: Duration or error that the sentence names.

        Example:
            >>> LossReason.DEFECT.sentence("KeyError: 'x'")
            "a defect in magbatch, its log has the traceback: KeyError: 'x'"
        """
        return self.value.replace("{}", detail)


@dataclass(frozen=True, slots=True)
class Home:
    """Node and log of a replica's process.

    Attributes:
        node: Host and address, for people.
        log: Path on that node of the log of the replica and its engine; empty if it is unknown.
    """

    node: str = ""
    log: str = ""

    def logs(self) -> str:
        """The path of the log, in words."""
        path = self.log or "in Ray's folder of logs"
        return f"log: {path} on {self.node}" if self.node else f"log: {path}"


@dataclass(frozen=True, slots=True)
class Loss:
    """A replica that ended and is replaced.

    Attributes:
        at: Time of the loss (Unix time, s).
        replica: Number of the replica's slot.
        node: Host and address of its node.
        why: Reason in words, one line.
        log: Path of its log on that node.
    """

    at: float
    replica: int
    node: str
    why: str
    log: str

    @classmethod
    def of(cls, at: float, replica: int, home: Home, reason: LossReason, detail: str = "") -> Self:
        """Make a record.

        Args:
            at: Time of the loss (Unix time, s).
            replica: Number of the replica's slot.
            home: Node and log of the replica.
            reason: Reason of the end.
            detail: Duration or error that the reason's sentence names; any text, which becomes one clean line.
        """
        return cls(at, replica, home.node, one_line(reason.sentence(detail), WHY_CHARS), home.log)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a record that this version or another has written; unknown fields are ignored."""
        return cls(**known_fields(cls, data))

    def line(self) -> str:
        """The loss in words, on one line."""
        where = f" on {self.node}" if self.node else ""
        return f"replica {self.replica}{where} is replaced: {self.why}; {Home(log=self.log).logs()}"


def own_log() -> str:
    """Path of the file behind this process's stderr; empty if stderr is not a file."""
    with suppress(OSError):
        if stat.S_ISREG(os.fstat(2).st_mode):
            path = os.readlink("/proc/self/fd/2")
            return path if os.path.exists(path) else ""
    return ""
