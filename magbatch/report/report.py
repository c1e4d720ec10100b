"""What remains of a run for people: the summary, `report.json`, and the preview of a plan.

Every number of rows or tokens is recomputed from the committed objects; only the speed is that of
the run that just ended.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from magbatch.counts import counted
from magbatch.replica.board import Slot
from magbatch.report.progress import JobUsage, Point
from magbatch.report.runs import PastRun
from magbatch.report.wrong import Wrong
from magbatch.spec import JobSpec
from magbatch.spec.secrets import shown
from magbatch.totals import Totals, known_fields
from magbatch.versions import versions

SAMPLE_CHARS = 100


@dataclass(slots=True)
class Run:
    """The run that just ended.

    Attributes:
        seconds: From the command to its end.
        serving_s: From the first replica that served to the last commit.
        rows: Rows that it committed.
        tokens: Reasoning and answer tokens of them.
        engine_deaths: Engines that died in it.
        versions: Package to version, of all its nodes.
    """

    seconds: float = 0.0
    serving_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    engine_deaths: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens a second while replicas served."""
        return self.tokens / self.serving_s if self.serving_s > 0 else 0.0


@dataclass(slots=True)
class ReplicaUse:
    """What one place in the fleet did in the run that ended the job.

    Attributes:
        number: Of the place.
        rows: Committed.
        tokens: Reasoning and answer tokens of them.
        seconds: For which replicas held it, engine starts included.
        short_s: Of those, seconds in which its engine had free slots.
        joins: Replicas that have had it.
    """

    number: int
    rows: int
    tokens: int
    seconds: float
    short_s: float
    joins: int

    @classmethod
    def of(cls, slot: Slot) -> Self:
        """Of the board's."""
        return cls(
            slot.number, slot.done.rows, slot.done.generated_tokens, slot.seconds, slot.usage.short_s, slot.joins
        )


@dataclass(slots=True)
class Report:
    """A completed job.

    Attributes:
        job: Its name.
        output: Where it lies.
        planned: Input rows.
        totals: Sums over the committed objects.
        duplicate_ids: Rows whose user id an earlier row has too; None without an id column.
        run: The run that completed it.
        settings: The spec, and the resolved engine arguments.
        spent: What all runs of the job have used.
        history: The job over time.
        replicas: Of the run that completed it.
        slowest: Rows that took longest, with the user's id.
        cost: Of the devices; None without a price.
        currency: Of the cost.
        retries_counted: Number of the last retry whose use is in `spent`, `history` and `cost`.
        began: When its first run began (Unix time, s); None of a version that did not say.
        ended: When it was complete.
        letters: A few dead letters of each code: `code`, `row_id`, `message`.
        wrong: A few answers that are not the expected ones.
        runs: The job's last runs, the one that completed it included.
    """

    job: str
    output: str
    planned: int
    totals: Totals
    duplicate_ids: int | None
    run: Run
    settings: dict[str, Any] = field(default_factory=dict)
    spent: JobUsage = field(default_factory=JobUsage)
    history: list[Point] = field(default_factory=list)
    replicas: list[ReplicaUse] = field(default_factory=list)
    slowest: list[dict[str, Any]] = field(default_factory=list)
    cost: float | None = None
    currency: str = ""
    retries_counted: int = 0
    began: float | None = None
    ended: float | None = None
    letters: list[dict[str, str]] = field(default_factory=list)
    wrong: list[Wrong] = field(default_factory=list)
    runs: list[PastRun] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As report.json holds it."""
        return asdict(self) | {"versions": self.versions}

    @property
    def versions(self) -> dict[str, str]:
        """Package to version, of this process and of the nodes of the run that completed the job."""
        return versions() | self.run.versions

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read back what `to_dict` gave, in this version or another."""
        totals = Totals.of_manifest(data["totals"])
        spent = data.get("spent", {"use": {}})
        if "generated_tokens" not in spent:  # of a version that did not count them: those of the answers that are there
            spent = spent | {"prompt_tokens": totals.prompt_tokens, "generated_tokens": totals.generated_tokens}
        parts = {
            "totals": totals,
            "settings": shown(data.get("settings", {})),  # of a version that took secrets
            "run": Run(**known_fields(Run, data["run"])),
            "spent": JobUsage.from_dict(spent),
            "history": [Point(*point[: len(Point._fields)]) for point in data.get("history", [])],
            "wrong": [Wrong.from_dict(one) for one in data.get("wrong", [])],
            "runs": [PastRun(**known_fields(PastRun, one)) for one in data.get("runs", [])],
            "replicas": [ReplicaUse(**known_fields(ReplicaUse, replica)) for replica in data.get("replicas", [])],
        }
        return cls(**known_fields(cls, data) | parts)

    def lines(self, *, already: bool = False) -> list[str]:
        """The summary that ends the command.

        Args:
            already: The job was complete before the command, which then has no run of its own.
        """
        totals = self.totals
        lines = [f"{totals.answered:,} of {counted(self.planned, 'row')} answered, {totals.failed:,} failed"]
        if totals.by_code:
            listed = ", ".join(f"{code} {count:,}" for code, count in sorted(totals.by_code.items()))
            lines.append(f"failed by code: {listed}")
        lines.append(
            f"tokens: {totals.prompt_tokens:,} prompt ({totals.cached_tokens:,} cached), "
            f"{totals.reasoning_tokens:,} reasoning, {totals.answer_tokens:,} answer"
        )
        if totals.by_status:
            listed = ", ".join(f"{status} {count:,}" for status, count in sorted(totals.by_status.items()))
            lines.append(f"reasoning: {listed}")
        if totals.documents_truncated:
            lines.append(f"documents: {totals.documents_truncated:,} of {totals.answered:,} were shown in part only")
        if totals.graded:
            share = 100 * totals.right / totals.graded
            lines.append(f"right answers: {totals.right:,} of {totals.graded:,} ({share:.1f}%)")
        if self.duplicate_ids:
            lines.append(
                f"{counted(self.duplicate_ids, 'row has', 'rows have')} a user id that an earlier row has too; "
                "all of them were answered"
            )
        if self.run.rows and not already:
            speed = f"{self.run.tokens_per_s:,.0f} tokens/s"
            lines.append(
                f"this run: {counted(self.run.rows, 'row')} in {self.run.seconds:,.0f} s, "
                f"{speed} while the engine served"
            )
        if self.spent.lost:
            last = f"; the last: {self.spent.losses[-1].line()}" if self.spent.losses else ""
            lines.append(f"replicas replaced in all runs: {self.spent.lost:,}{last}")
        if self.spent.device_s:
            cost = "" if self.cost is None else f", {self.cost:,.2f} {self.currency}"
            lines.append(f"devices: {self.spent.device_s / 3600:,.2f} hours{cost}")
        return lines


def sample_line(text: str | None) -> str:
    """Text for a line of a terminal."""
    if text is None:
        return "-"
    flat = " ".join(text.split())
    flat = "".join(char if char.isprintable() else "·" for char in flat)
    return flat if len(flat) <= SAMPLE_CHARS else f"{flat[: SAMPLE_CHARS - 1]}…"


def settings(spec: JobSpec, resolved: dict[str, Any]) -> dict[str, Any]:
    """The spec with the engine arguments that were really used."""
    data = spec.model_dump(mode="json")
    data["model"]["engine_args"] = resolved
    return shown(data)
