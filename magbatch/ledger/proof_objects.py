"""Proof of a job's objects: each is read, and checked against the plan and the manifest.

An object that the manifest does not vouch for is not parsed. The proof reports only that it was changed.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from magbatch.ledger.audit import Audit, audit_output
from magbatch.ledger.contract import grading_of, narrow_columns
from magbatch.ledger.findings import Findings
from magbatch.ledger.layout import MANIFEST, NAMED_FILES
from magbatch.ledger.ledger import READERS, Ledger
from magbatch.ledger.manifest import Entry, Manifest, StoredFile
from magbatch.ledger.objects import StoredObject
from magbatch.plan.plan import Plan
from magbatch.schema import ERRORS, RESULTS, ObjectName
from magbatch.spec import JobSpec, is_remote
from magbatch.storage.odd_names import odd_names
from magbatch.totals import Totals

Progress = Callable[[int, int], None]  # objects checked so far, objects in all
_FOREIGN = "written for another job, which this one replaced"


class ObjectProof:
    """Checks of a job's objects.

    Args:
        ledger: Output whose objects are checked.
        manifest: The manifest; None if there is none or it is damaged.
        complete: Whether the job has a manifest, even a damaged one.
        findings: Collector of problems.
        load: Function that reads one of the output's files; see `FileProof.load`.
        progress: Function that receives the number of checked objects and of all objects.

    Attributes:
        names: Names of all objects that were seen.
        totals: Sums over the sound objects.
        open: Number of planned rows that are in no sound object.
        versions: Schema versions of the sound objects.
    """

    def __init__(
        self,
        ledger: Ledger,
        manifest: Manifest | None,
        findings: Findings,
        load: Callable[[str], bytes | None],
        progress: Progress,
        *,
        complete: bool,
    ) -> None:
        self.names = set[str]()
        self.totals, self.open, self.versions = Totals(), 0, set[str]()
        self._ledger, self._findings, self._load, self._progress = ledger, findings, load, progress
        self._manifest, self._complete = manifest, complete
        self._entries = {entry.name: entry for entry in manifest.objects} if manifest is not None else {}

    def check_names(self) -> int:
        """Find files that are not objects in the folders that users read.

        Returns:
            Number of objects.
        """
        store, count = self._ledger.store, 0
        for kind in (RESULTS, ERRORS):
            for item in store.list(f"{kind}/"):
                if ObjectName.parse(item.name) is None:
                    self._findings.problems.append(f"{item.name}: not an object of this job")
                else:
                    count += 1
        if not is_remote(self._ledger.path):
            own = (*NAMED_FILES, MANIFEST)
            odd = odd_names(store.root, (RESULTS, ERRORS), own)
            self._findings.problems += [f"{name}: {what}" for name, what in odd]
        return count

    def audit(self, spec: JobSpec, plan: Plan, objects: int) -> None:
        """Read every object, and check it against the plan and the manifest.

        Args:
            spec: Spec of the job.
            plan: Plan of the job, with the ids of all rows.
            objects: Number of objects, for the progress.
        """
        grading, checked = grading_of(spec, plan), 0
        checksums = {name: entry.sha256 for name, entry in self._entries.items()}
        only = None
        if self._manifest is not None:
            only = self._entries.keys()
            self._note_strays(self._ledger.object_names())
        for audit in audit_output(self._ledger, plan, narrow_columns(spec, plan), checksums, only):
            self._note(audit)
            for found, _ in audit.keep:
                self._findings.problems += self._against_manifest(found)
                try:
                    self.totals.add(found.name.kind, found.table, grading)
                except (pa.ArrowException, ValueError, ArithmeticError) as error:
                    self._findings.problems.append(f"{found.name}: its values cannot be counted: {error}")
            checked += len(audit.names)
            self._progress(checked, max(checked, objects))

    def check_bytes(self) -> None:
        """Compare each object with its checksum; this is all that can be checked without a trusted plan."""
        names, checked = self._ledger.object_names(), 0
        self.names.update(str(name) for name in names)
        if self._manifest is None:
            self._findings.problems.append("objects not checked: no manifest and no plan says what they should hold")
            return
        self._note_strays(names)
        entries = [self._entries[name] for name in names if name in self._entries]
        with ThreadPoolExecutor(READERS) as pool:
            for problem in pool.map(self._changed_bytes, entries):
                self._findings.problems += [problem] if problem else []
                checked += 1
                self._progress(checked, len(entries))

    def check_lost(self) -> None:
        """Find objects that the manifest names and no check has seen."""
        lost = sorted({str(name) for name in self._entries} - self.names)
        self._findings.problems += [f"{name}: in the manifest, but missing" for name in lost]

    def _note(self, audit: Audit) -> None:
        self._findings.problems += audit.problems
        self._findings.problems += [f"not planned: {where}" for where in audit.unplanned]
        self.open += len(audit.missing)
        if self._complete:
            self._findings.problems += _gaps_and_repeats(audit)
        else:
            moved = "; the end of the run moves it away"
            self._findings.notes += [f"{name}: {_FOREIGN}{moved}" for name in audit.foreign]
        self.names.update(str(name) for name in audit.names)

    def _against_manifest(self, found: StoredObject) -> Iterator[str]:
        """Differences between a sound object and its entry in the manifest."""
        self.versions.add(found.schema_version)
        entry = self._entries.get(found.name)
        if entry is None:
            return
        now = found.entry()
        for field in ("rows", "records", "bytes"):
            said, counted = getattr(entry, field), getattr(now, field)
            if said != counted:
                yield f"{MANIFEST} says that {found.name} has {said} {field}, it has {counted}"

    def _note_strays(self, names: list[ObjectName]) -> None:
        """Note objects that the manifest does not name; the next command moves them away."""
        strays = [name for name in names if name not in self._entries]
        self.names.update(map(str, strays))
        for name in strays:
            self._findings.mendable(f"{name}: not in the manifest")

    def _changed_bytes(self, entry: Entry) -> str | None:
        name = str(entry.name)
        data = self._load(name)
        fits = StoredFile(name, entry.bytes, entry.sha256).fits(data)
        return None if fits else f"{name}: its checksum differs from the manifest's"


def _gaps_and_repeats(audit: Audit) -> Iterator[str]:
    if audit.missing:
        where = f"shard {audit.shards[0]}" + (f" to {audit.shards[-1]}" if len(audit.shards) > 1 else "")
        yield f"gap: {len(audit.missing)} planned rows of {where} are in no sound object: {audit.missing[0]}, …"
    yield from (f"{name}: {_FOREIGN}" for name in audit.foreign)
    yield from (f"duplicate: {name} repeats rows of other objects" for name in audit.superseded)
