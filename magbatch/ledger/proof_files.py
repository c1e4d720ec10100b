"""Proof of a job's own files: spec, plan, report and page, each checked against the manifest.

A file that the manifest does not vouch for is not parsed. The proof reports only that it was changed.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from magbatch.errors import JobError, OutputError, StorageError
from magbatch.ledger.findings import Findings
from magbatch.ledger.layout import MANIFEST, NAMED_FILES, PAGE, PLAN, REPORT, SPEC, STAGED
from magbatch.ledger.manifest import Manifest, StoredFile
from magbatch.ledger.output import Output
from magbatch.ledger.staging import is_staged
from magbatch.plan.plan import Plan
from magbatch.spec import JobSpec, parse

SETTLING_S = (0.05, 0.1, 0.2)  # waits (seconds) for a command that is about to give a file its final name
REWRITES = "magbatch run SPEC writes it again"


class FileProof:
    """Checks of a job's own files.

    Args:
        output: Output whose files are checked.
        findings: Collector of problems.

    Attributes:
        stored: Content of the manifest; None if there is none or it cannot be read.
        manifest: The parsed manifest; None if there is none or it is damaged.
        complete: Whether the job has a manifest, even a damaged one.
    """

    def __init__(self, output: Output, findings: Findings) -> None:
        self._output, self._findings = output, findings
        self.stored = self.load(MANIFEST)
        self.complete = self.stored is not None or bool(findings.problems)
        self.manifest: Manifest | None = None
        if self.stored is not None:
            try:
                self.manifest = Manifest.from_json(self.stored, edited_too=True)
            except OutputError as error:
                findings.problems.append(str(error))

    def load(self, name: str) -> bytes | None:
        """Content of a file; None if there is no such file, or it cannot be read, which is a problem.

        Raises:
            OutputError: The bucket does not exist, or the credentials are wrong.
            StorageError: The storage is away.
        """
        try:
            return self._output.load(name)
        except StorageError as error:
            if error.mistake or error.missing_root:
                raise OutputError(str(error)) from error
            if error.passing:
                raise
            self._findings.problems.append(f"{name}: cannot be read: {error}")
            return None

    def job(self) -> tuple[JobSpec, Plan] | None:
        """Check the job's own files and parse spec and plan; None if one of the two was changed or is missing.

        Raises:
            OutputError: There is no job here.
        """
        data = {name: self.load(name) for name in NAMED_FILES}
        if self.stored is None and (data[SPEC] is None or data[PLAN] is None):
            raise self._output.no_job()
        vouched = {} if self.manifest is None else self._check(self.manifest, data)
        spec = self._parsed(SPEC, data[SPEC], lambda data: parse(data.decode(errors="replace"), origin=SPEC), vouched)
        plan = self._parsed(PLAN, data[PLAN], Plan.from_bytes, vouched)
        return None if spec is None or plan is None else (spec, plan)

    def _check(self, manifest: Manifest, data: dict[str, bytes | None]) -> dict[str, bool]:
        """Compare the job's own files with the manifest.

        Args:
            manifest: Manifest of the job, undamaged.
            data: Content of each file; a file that is about to get its final name is read again.

        Returns:
            Whether the manifest vouches for the content, for each file that it names.
        """
        named = {file.name: file for file in manifest.files}
        if manifest.version == 1:
            self._findings.notes.append(
                f"{MANIFEST} is of an older version: it has no checksums of {SPEC} and {REPORT}"
            )
            named[PLAN] = StoredFile(PLAN, len(data[PLAN] or b""), manifest.plan_sha256)
        for name in (REPORT, PAGE) if manifest.version > 1 else ():
            file = named.get(name)
            if file is None:
                self._findings.mendable(f"{name}: not in the manifest; {REWRITES}")
            elif not file.fits(data[name]):
                data[name] = self._settled(file)
        for name, file in named.items():
            if not file.fits(data[name]):
                self._note_difference(file, there=data[name] is not None)
        self._check_report(manifest, data[REPORT])
        return {name: file.fits(data[name]) for name, file in named.items()}

    def _settled(self, file: StoredFile) -> bytes | None:
        """Wait until the command that wrote the manifest has moved a staged file to its final name, in a moment."""
        for wait_s in SETTLING_S:
            data = self.load(file.name)
            if file.fits(data):
                return data
            if not is_staged(self._output.store, file):
                break
            time.sleep(wait_s)
        return self.load(file.name)

    def _note_difference(self, file: StoredFile, *, there: bool) -> None:
        what = "its checksum differs from the manifest's" if there else "in the manifest, but missing"
        if file.name not in {REPORT, PAGE}:
            self._findings.problems.append(f"{file.name}: {what}")
        elif is_staged(self._output.store, file):
            self._findings.mendable(
                f"{file.name}: an interrupted run left it in {STAGED}; magbatch run SPEC moves it to its place"
            )
        else:
            self._findings.mendable(f"{file.name}: {what}; {REWRITES}")

    def _check_report(self, manifest: Manifest, data: bytes | None) -> None:
        """Compare the report's account of the job's end with the manifest."""
        try:
            said = json.loads(data or b"")
            written_by_this = "letters" in said  # no earlier version wrote this field
            counted = int(said.get("retries_counted", 0))
        except (ValueError, TypeError, AttributeError):
            if manifest.version == 1:
                self._findings.mendable(f"{REPORT}: missing or damaged; {REWRITES}")
            return
        if manifest.version == 1 and written_by_this:
            self._findings.problems.append(f"{MANIFEST} has version 1, but a later version wrote {REPORT}")
        if manifest.version > 1 and counted != len(manifest.retries):
            self._findings.problems.append(
                f"{MANIFEST} has {len(manifest.retries)} retries, {REPORT} has counted {counted}"
            )

    def _parsed(self, name: str, data: bytes | None, read: Callable[[bytes], Any], vouched: dict[str, bool]) -> Any:
        """A file's parsed content; None if the file is missing, changed or damaged."""
        if data is None:
            if name not in vouched:  # otherwise the problem is noted already
                self._findings.problems.append(f"{name}: missing")
            return None
        if not vouched.get(name, True):
            return None
        try:
            return read(data)
        except JobError as error:
            if vouched.get(name):
                raise  # the file is as it was written: this machine lacks something that it names
            self._findings.problems.append(f"{name}: cannot be read: {error}")
            return None
