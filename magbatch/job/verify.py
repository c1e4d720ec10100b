"""The proof of an output, from its objects alone: everything that its manifest says is counted again."""

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from magbatch.grading import RULE
from magbatch.job.ledger import MANIFEST, PLAN, Ledger, grading_of, narrow_columns
from magbatch.rows import ERRORS, RESULTS, PartName
from magbatch.totals import Totals


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` found.

    Attributes:
        planned: Input rows of the job.
        answered: Rows with an answer, in sound objects.
        failed: Dead letters in sound objects.
        open: Planned rows that are in no sound object.
        objects: Committed objects that are there.
        complete: The job has a manifest.
        problems: What is wrong, one line each. Open rows of a job that is not complete are none.
        notes: What a person should know, one line each, though nothing is wrong.
    """

    planned: int
    answered: int
    failed: int
    open: int
    objects: int
    complete: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether the job is complete, and every row of it is there once and as it was written."""
        return self.complete and not self.problems


def verify(ledger: Ledger) -> Verification:
    """Recompute everything from the objects alone.

    Raises:
        OutputError: There is no job here.
    """
    spec, plan = ledger.open_job()
    grading, more = grading_of(spec, plan), narrow_columns(spec, plan)
    manifest = ledger.manifest()
    expected: dict[str, dict[str, Any]] = {entry["name"]: entry for entry in (manifest or {"parts": []})["parts"]}
    problems = list[str]()
    if manifest and manifest["plan_sha256"] != hashlib.sha256(ledger.store.read(PLAN)).hexdigest():
        problems.append(f"{PLAN} is not the plan that the manifest was made for")
    problems += _strangers(ledger)
    totals, seen, missing = Totals(), set[str](), 0
    for audit in ledger.audit(plan, more):
        problems += audit.problems
        missing += len(audit.missing)
        if manifest and audit.missing:
            where = f"shard {audit.shards[0]}" + (f" to {audit.shards[-1]}" if len(audit.shards) > 1 else "")
            problems.append(
                f"gap: {len(audit.missing)} planned rows of {where} are in no object: {audit.missing[0]}, …"
            )
        problems += [f"not planned: {where}" for where in audit.unplanned]
        if manifest:
            problems += [f"duplicate: {name} repeats rows of other objects" for name in audit.superseded]
        seen.update(str(name) for name in audit.names)
        for part, _ in audit.keep:
            totals.add(part.name.kind, part.table, grading)
            entry = expected.get(str(part.name))
            if manifest and entry is None:
                problems.append(f"{part.name}: not in the manifest")
            elif entry is not None and entry["sha256"] != part.sha256:
                problems.append(f"{part.name}: its checksum is not the manifest's")
    problems += [f"{name}: in the manifest, but not there" for name in expected.keys() - seen]
    if manifest and not problems:
        problems += [
            f"{MANIFEST} says {name} {manifest[name]}, the objects give {count}"
            for name, count in asdict(totals).items()
            if name in manifest
            and manifest[name] != count
            and (name not in ("graded", "right") or manifest.get("graded_by") == RULE)  # it was counted by another rule
        ]
    return Verification(
        plan.rows, totals.answered, totals.failed, missing, len(seen), manifest is not None, tuple(problems)
    )


def _strangers(ledger: Ledger) -> list[str]:
    """Objects in the folders that users glob which are none of this job's."""
    names = (item.name for kind in (RESULTS, ERRORS) for item in ledger.store.list(f"{kind}/"))
    return [f"{name}: not an object of this job" for name in names if PartName.parse(name) is None]
