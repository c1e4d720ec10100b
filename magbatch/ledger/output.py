"""The output of one job: its storage, and the files that define the job.

The plan is written before the spec, so an output that has a spec always has its plan. The manifest is written last.
"""

import io
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.errors import OutputError, SpecChangedError, StorageError
from magbatch.ledger.layout import MANIFEST, PAGE, PLAN, RECORD, REPORT, SPEC
from magbatch.ledger.manifest import Manifest
from magbatch.ledger.objects import damaged
from magbatch.plan.plan import PLAN_ID_KEY, Plan
from magbatch.schema import ERRORS, RESULTS, SCHEMA_VERSION, ObjectName
from magbatch.spec import JobSpec, differences, parse
from magbatch.storage import Store, open_store
from magbatch.storage.patience import PatientStore

PLAN_FOOTER_BYTES = 1 << 16  # end of a stored plan that is read first; most footers are shorter


class Output:
    """The output of one job.

    Args:
        path: Local directory or s3:// prefix.
        patience_s: Seconds that the storage may refuse a request, or be away, before an error is raised.
        on_wait: Function that is called with each refusal that is waited out.
        plan_id: Id of the job's plan, if known; otherwise the id is read from the stored plan.

    Attributes:
        path: Path without a trailing slash.
        store: Storage of the output, a disk or S3.
        refusals: Number of refusals that were waited out.
    """

    def __init__(
        self,
        path: str,
        patience_s: float = 0.0,
        on_wait: Callable[[StorageError], None] | None = None,
        plan_id: str | None = None,
    ) -> None:
        self.path = path.rstrip("/")
        self.refusals = 0

        def wait(error: StorageError) -> None:
            self.refusals += 1
            if on_wait is not None:
                on_wait(error)

        if plan_id is not None:
            self.plan_id = plan_id
        store = open_store(self.path)
        self.store: Store = PatientStore(store, patience_s, wait) if patience_s else store

    def load(self, name: str) -> bytes | None:
        """Content of one of the job's own files; None if there is no such file."""
        try:
            return self.store.read(name)
        except FileNotFoundError:
            return None

    def spec(self) -> JobSpec | None:
        """The stored spec; None if no job has started here."""
        data = self.load(SPEC)
        return None if data is None else parse(data.decode(errors="replace"), origin=f"{self.path}/{SPEC}")

    def plan(self) -> Plan | None:
        """The frozen plan; None if no job has started here."""
        data = self.load(PLAN)
        plan = None if data is None else Plan.from_bytes(data)
        self.plan_id = None if plan is None else plan.id
        return plan

    @cached_property
    def plan_id(self) -> str | None:
        """Id of the frozen plan; None if there is no plan, or an older version wrote it.

        Only objects of this plan count.
        """
        return read_plan_id(self.store)

    def manifest(self) -> Manifest | None:
        """The manifest; None while the job is not complete.

        Raises:
            OutputError: The manifest is damaged, or was changed after it was written.
        """
        data = self.load(MANIFEST)
        return None if data is None else Manifest.from_json(data, f"{self.path}/{MANIFEST}")

    def open_job(self) -> tuple[JobSpec, Plan]:
        """Load the spec and the plan of the job.

        Raises:
            OutputError: There is no job here.
        """
        try:
            spec, plan = self.spec(), self.plan()
        except StorageError as error:
            if self.store.patience_s or not error.wrong_at_first:
                raise  # the job may exist: its storage is away
            raise OutputError(str(error)) from error
        if spec is None or plan is None:
            raise self.no_job()
        return spec, plan

    def no_job(self) -> OutputError:
        """The error for an output without a job."""
        return OutputError(f"{self.path}: no magbatch job here (no {SPEC}); give the output.path of a job that was run")

    def complete_job(self) -> tuple[JobSpec, Plan, Manifest]:
        """Load spec, plan and manifest of a complete job, and check the first two against the manifest.

        Raises:
            OutputError: There is no job, the job is not complete, its spec or plan was changed, or its objects have
                the columns of another version.
        """
        (spec, plan), manifest = self.open_job(), self.manifest()
        if manifest is None:
            first = "run its spec" if "://" in self.path else f"magbatch run {shlex.quote(f'{self.path}/{SPEC}')}"
            raise OutputError(f"{self.path}: the job is not complete; first: {first}")
        if manifest.schema_version != SCHEMA_VERSION:
            raise OutputError(
                f"{self.path}: its objects have the columns of schema version {manifest.schema_version}, and this "
                f"magbatch writes version {SCHEMA_VERSION}; use the magbatch version that ran the job"
            )
        plan_bytes = self.load(PLAN) or b""
        if not manifest.vouches_for(SPEC, self.load(SPEC)):
            raise damaged(self.store, f"{SPEC}: its checksum differs from the manifest's")
        # A manifest of any version has the plan's checksum.
        if sha256(plan_bytes).hexdigest() != manifest.plan_sha256 or not manifest.vouches_for(PLAN, plan_bytes):
            raise damaged(self.store, f"{PLAN}: its checksum differs from the manifest's")
        return spec, plan, manifest

    def begin(self, spec: JobSpec, plan: Plan) -> Plan:
        """Freeze a new job: write the plan, then the spec.

        Files of an earlier job that answered nothing are deleted first. Its spec must not remain with the new plan,
        and its costs and its end do not belong to this job.

        Returns:
            The plan with its id.
        """
        plan = plan.begun()
        for name in (SPEC, RECORD, REPORT, PAGE):
            self.store.delete(name)
        self.store.write(PLAN, plan.to_bytes())
        self.store.write(SPEC, spec.to_yaml().encode())
        self.plan_id = plan.id
        return plan

    def has_objects(self) -> bool:
        """Whether `results/` or `errors/` holds anything except objects of another plan, or the job is complete."""
        plan_id = read_plan_id(self.store)  # read again: another run may have started another job here
        names = (ObjectName.parse(item.name) for kind in (RESULTS, ERRORS) for item in self.store.list(f"{kind}/"))
        return any(name is None or not name.is_foreign(plan_id) for name in names) or self.load(MANIFEST) is not None

    def check_same(self, spec: JobSpec) -> bool:
        """Whether this job has started here already.

        Raises:
            SpecChangedError: The job here has another spec; the message shows the difference.
        """
        old = self.spec()
        if old is None:
            return False
        changed = differences(old, spec)
        if changed:
            listed = "\n".join(f"  {line}" for line in changed)
            raise SpecChangedError(
                f"{self.path} holds answers to another spec; what differs:\n{listed}\n"
                "Set output.path to a new folder, or restore the old values to resume the job."
            )
        return True


def read_plan_id(store: Store) -> str | None:
    """Id of the stored plan; None if there is no plan, it is damaged, or an older version wrote it.

    If the plan's footer is short, nothing else is read.
    """
    with suppress(pa.ArrowException, ValueError, OSError):
        try:
            found = pq.read_metadata(io.BytesIO(store.read_end(PLAN, PLAN_FOOTER_BYTES))).metadata
        except (pa.ArrowException, ValueError):  # the footer is longer than PLAN_FOOTER_BYTES
            found = pq.read_metadata(io.BytesIO(store.read(PLAN))).metadata
        plan_id = (found or {}).get(PLAN_ID_KEY.encode())
        return None if plan_id is None else plan_id.decode()
    return None
