"""The final report of a job: `report.json`, and the summary that ends the command.

Numbers of rows and tokens are recomputed from the committed objects. Only the speed is that of the last run.
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Self

from magbatch.counts import counted
from magbatch.engines.base import EngineArgs
from magbatch.replica.board import Slot
from magbatch.report.history import Point
from magbatch.report.runs import PastRun
from magbatch.report.usage import JobUsage
from magbatch.report.wrong import WrongAnswer
from magbatch.spec import JobSpec
from magbatch.spec.secrets import shown
from magbatch.totals import Totals, known_fields
from magbatch.versions import versions

SAMPLE_CHARS = 100  # longest question or answer in the summary: one line of a wide terminal


@dataclass(slots=True)
class Run:
    """The run that completed a job.

    Attributes:
        seconds: Seconds from the start of the command to its end.
        serving_s: Seconds from when the first replica served to the last commit.
        rows: Rows that the run committed.
        tokens: Reasoning and answer tokens of these rows.
        engine_deaths: Engines that died in the run.
        versions: Package to version, of all nodes of the run.
    """

    seconds: float = 0.0
    serving_s: float = 0.0
    rows: int = 0
    tokens: int = 0
    engine_deaths: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second while the engine served."""
        return self.tokens / self.serving_s if self.serving_s > 0 else 0.0


@dataclass(slots=True)
class SlotUsage:
    """Usage of one slot of the fleet in the run that completed the job.

    Attributes:
        number: Number of the slot, from 0.
        rows: Rows committed by its replicas.
        tokens: Reasoning and answer tokens of these rows.
        seconds: Seconds for which replicas held the slot, including engine starts.
        short_s: Seconds in which the engine had free request slots.
        joins: Replicas that have held the slot, one after the other.
    """

    number: int
    rows: int
    tokens: int
    seconds: float
    short_s: float
    joins: int

    @classmethod
    def of(cls, slot: Slot) -> Self:
        """Return the usage of a slot."""
        return cls(
            slot.number, slot.done.rows, slot.done.generated_tokens, slot.seconds, slot.usage.short_s, slot.joins
        )


@dataclass(slots=True)
class Report:
    """Report of a complete job.

    Attributes:
        job: Name of the job.
        output: Path or URL of the output.
        planned: Input rows of the job.
        totals: Sums over the committed objects.
        duplicate_ids: Rows whose user id an earlier row already has; None if the job has no id column.
        run: Run that completed the job.
        settings: Spec with the engine arguments that were used.
        spent: Resources used by all runs of the job.
        history: Points of the job over time.
        replicas: Usage of each slot in the run that completed the job.
        slowest: Rows with the longest latency, with the user's id.
        cost: Cost of the devices; None without a price.
        currency: Currency of the cost.
        retries_counted: Number of the last retry whose usage is included in `spent`, `history` and `cost`.
        began: Start of the first run (Unix time, s); None if an older version wrote the report.
        ended: Time at which the job was complete (Unix time, s); None if an older version wrote the report.
        letters: Examples of dead letters for each error code: `code`, `row_id`, `message`.
        wrong: Examples of answers that differ from the expected ones.
        runs: Newest runs of the job, the one that completed it included.
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
    replicas: list[SlotUsage] = field(default_factory=list)
    slowest: list[dict[str, Any]] = field(default_factory=list)
    cost: float | None = None
    currency: str = ""
    retries_counted: int = 0
    began: float | None = None
    ended: float | None = None
    letters: list[dict[str, str]] = field(default_factory=list)
    wrong: list[WrongAnswer] = field(default_factory=list)
    runs: list[PastRun] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `report.json`."""
        return asdict(self) | {"versions": self.versions}

    @property
    def versions(self) -> dict[str, str]:
        """Versions by package, of this process and of the nodes of the run that completed the job."""
        return versions() | self.run.versions

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Read a report that any version wrote with `to_dict`."""
        totals = Totals.of_manifest(data["totals"])
        spent = data.get("spent", {"use": {}})
        if "generated_tokens" not in spent:  # an older version: take the tokens of the current answers
            spent = spent | {"prompt_tokens": totals.prompt_tokens, "generated_tokens": totals.generated_tokens}
        records = {
            "totals": totals,
            "settings": shown(data.get("settings", {})),  # an older version may have stored secrets
            "run": Run(**known_fields(Run, data["run"])),
            "spent": JobUsage.from_dict(spent),
            "history": [Point(*point[: len(Point._fields)]) for point in data.get("history", [])],
            "wrong": [WrongAnswer.from_dict(one) for one in data.get("wrong", [])],
            "runs": [PastRun(**known_fields(PastRun, one)) for one in data.get("runs", [])],
            "replicas": [SlotUsage(**known_fields(SlotUsage, replica)) for replica in data.get("replicas", [])],
        }
        return cls(**known_fields(cls, data) | records)

    def lines(self, *, already: bool = False) -> list[str]:
        """Return the lines of the summary that ends the command.

        Args:
            already: Whether the job was complete before the command; then there is no run to describe.
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
            lines.append(
                f"documents: {totals.documents_truncated:,} of {totals.answered:,} were truncated for the model"
            )
        if totals.graded:
            share = 100 * totals.right / totals.graded
            lines.append(f"right answers: {totals.right:,} of {totals.graded:,} ({share:.1f}%)")
        if self.duplicate_ids:
            lines.append(
                f"{counted(self.duplicate_ids, 'row has', 'rows have')} the user id of an earlier row; "
                "each was answered"
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
    """Shorten a question, reasoning or answer to one printable line; `-` for None."""
    if text is None:
        return "-"
    flat = " ".join(text.split())
    flat = "".join(char if char.isprintable() else "·" for char in flat)
    return flat if len(flat) <= SAMPLE_CHARS else f"{flat[: SAMPLE_CHARS - 1]}…"


def settings(spec: JobSpec, resolved: EngineArgs) -> dict[str, Any]:
    """Return the spec as plain values, without secrets, and with the engine arguments that were used.

    Args:
        spec: Spec of the job.
        resolved: Engine arguments, including those that the spec leaves open.
    """
    data = spec.model_dump(mode="json")
    data["model"]["engine_args"] = resolved.to_dict()
    return shown(data)
