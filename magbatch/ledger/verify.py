"""The proof of an output: every statement of its manifest is computed again from the objects and compared."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from magbatch.answers.grading import RULE
from magbatch.errors import short_message
from magbatch.ledger.findings import Findings
from magbatch.ledger.holder import holder_of
from magbatch.ledger.layout import MANIFEST, PLAN
from magbatch.ledger.ledger import Ledger
from magbatch.ledger.manifest import Manifest, is_as_written
from magbatch.ledger.proof_files import FileProof
from magbatch.ledger.proof_objects import ObjectProof, Progress
from magbatch.plan.plan import Plan
from magbatch.spec import JobSpec
from magbatch.totals import Totals

TRIES = 5  # proofs in a row, if a retry or a compaction replaces the manifest during each
MAX_SHOWN_CHARS = 60  # longest value in the text of a problem, in characters


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`.

    Attributes:
        planned: Number of input rows of the job.
        answered: Number of rows with an answer, in sound objects.
        failed: Number of dead letters, in sound objects.
        open: Number of planned rows that are in no sound object.
        objects: Number of committed objects.
        complete: Whether the job has a manifest.
        problems: Everything that is wrong, one line each. Open rows are a problem only in a complete job.
        notes: Facts that a person should know although nothing is wrong, one line each.
        run_mends: Whether `magbatch run` repairs every problem; it touches no row.
    """

    planned: int
    answered: int
    failed: int
    open: int
    objects: int
    complete: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    run_mends: bool = False

    @property
    def verified(self) -> bool:
        """Whether the job is complete, and each of its rows is there once and unchanged."""
        return self.complete and not self.problems


def verify(ledger: Ledger, progress: Progress = lambda done, objects: None) -> Verification:
    """Compute every statement of a manifest again from the objects, and compare.

    Args:
        ledger: Output to prove.
        progress: Function that receives the number of checked objects and of all objects.

    Raises:
        OutputError: There is no job here.
        StorageError: The storage is away.
    """
    for _ in range(TRIES):
        holder = _holder(ledger)
        findings = Findings()
        files = FileProof(ledger, findings)
        result = _proof(ledger, files, findings, progress)
        # A command that worked in the meantime may have caused the problems: prove its result instead.
        if not findings.problems or (files.load(MANIFEST) == files.stored and _holder(ledger) == holder):
            break
    return result


def _proof(ledger: Ledger, files: FileProof, findings: Findings, progress: Progress) -> Verification:
    """Check the files, then the objects, then the manifest's sums."""
    job, manifest = files.job(), files.manifest
    objects = ObjectProof(ledger, manifest, findings, files.load, progress, complete=files.complete)
    count = objects.check_names()
    if job is not None:
        objects.audit(*job, count)
        if manifest is not None and files.stored is not None:
            findings.problems += _differences(manifest, files.stored, *job, objects, findings)
    else:
        objects.check_bytes()
    objects.check_lost()
    return Verification(
        planned=job[1].rows if job is not None else manifest.planned_rows if manifest else 0,
        answered=objects.totals.answered,
        failed=objects.totals.failed,
        open=objects.open,
        objects=len(objects.names),
        complete=files.complete,
        problems=tuple(short_message(line) for line in findings.problems),
        notes=tuple(findings.notes),
        run_mends=bool(findings.problems) and findings.only_mendable(),
    )


def _differences(
    manifest: Manifest, stored: bytes, spec: JobSpec, plan: Plan, objects: ObjectProof, findings: Findings
) -> list[str]:
    """Compare a manifest with the spec, the plan and the objects."""
    compared: list[tuple[str, Any, Any, str]] = [
        ("job", manifest.job, spec.name, "the spec gives"),
        ("planned_rows", manifest.planned_rows, plan.rows, "the plan gives"),
        ("model_revision", manifest.model_revision, plan.revision, "the plan gives"),
    ]
    if manifest.version > 1:
        compared.append(("graded_by", manifest.graded_by, RULE, "its version has"))
    if objects.versions and manifest.schema_version not in objects.versions:
        versions = ", ".join(sorted(objects.versions))
        compared.append(("schema_version", manifest.schema_version, versions, "the objects give"))
    plan_file = manifest.file(PLAN)
    if plan_file is not None:
        compared.append(("plan_sha256", manifest.plan_sha256, plan_file.sha256, "the plan gives"))
    if findings.only_mendable():  # otherwise different sums follow from the problems found already
        compared += [
            (name, getattr(manifest.totals, name), count, "the objects give")
            for name, count in _sums(manifest, objects.totals)
        ]
    different = [
        f"{MANIFEST} says {name} {_shown(was)}, {source} {_shown(now)}"
        for name, was, now, source in compared
        if was != now
    ]
    if manifest.version > 1 and not different and not is_as_written(stored):
        return [f"{MANIFEST}: it was changed after it was written: its manifest_sha256 does not fit"]
    return different


def _sums(manifest: Manifest, totals: Totals) -> Iterator[tuple[str, Any]]:
    """Name and value of each sum over the objects that the manifest has too, counted by the same rule."""
    skipped = set(manifest.unknown_sums)
    if manifest.graded_by != RULE:
        skipped |= {"graded", "right"}
    return ((field.name, getattr(totals, field.name)) for field in fields(Totals) if field.name not in skipped)


def _holder(ledger: Ledger) -> tuple[Any, ...] | None:
    """The command that works on an output, or worked on it last, and whether it has ended."""
    holder = holder_of(ledger.store)
    return None if holder is None else (holder.command, holder.host, holder.pid, holder.released)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[: MAX_SHOWN_CHARS - 1]}…"
