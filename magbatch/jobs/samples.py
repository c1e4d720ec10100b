"""A few answered rows of a complete job, for a person to read."""

import io
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from magbatch.errors import StorageError
from magbatch.ledger.ledger import Ledger
from magbatch.pipeline.read import ShardReader
from magbatch.pipeline.render import Renderer
from magbatch.plan.plan import Plan
from magbatch.report.report import sample_line
from magbatch.rows import Shard
from magbatch.schema import RESULTS
from magbatch.spec import JobSpec
from magbatch.spec.columns import rendered_columns

SAMPLE_ROWS = 3
_COLUMNS = ["row_id", "sample", "reasoning", "answer"]


@dataclass(frozen=True, slots=True)
class RowSample:
    """An answered row; each text is shortened to one line.

    Attributes:
        question: Question of the row, without its system prompt.
        reasoning: Reasoning of the first answer.
        answer: First answer of the row.
    """

    question: str
    reasoning: str
    answer: str


def row_samples(spec: JobSpec, ledger: Ledger, plan: Plan) -> tuple[RowSample, ...]:
    """The first answered rows, `SAMPLE_ROWS` at most.

    Samples are for show only. If they cannot be read, the result is empty.

    Args:
        spec: Spec of the job, for the question's columns.
        ledger: Output of the job.
        plan: Plan of the job, for the input rows.
    """
    try:
        return tuple(_read_samples(spec, ledger, plan))
    except (StorageError, OSError, pa.ArrowException):
        return ()


def _read_samples(spec: JobSpec, ledger: Ledger, plan: Plan) -> list[RowSample]:
    found = list[RowSample]()
    for name in ledger.objects(RESULTS):
        if name.rows:
            table = pq.read_table(io.BytesIO(ledger.store.read(str(name))), columns=_COLUMNS)
            first = table.filter(pa.compute.equal(table.column("sample"), pa.scalar(0)))
            first = first.slice(0, SAMPLE_ROWS - len(found))
            found += [
                RowSample(
                    sample_line(_question(spec, plan, name.shards, row["row_id"])),
                    sample_line(row["reasoning"]),
                    sample_line(row["answer"]),
                )
                for row in first.to_pylist()
            ]
        if len(found) == SAMPLE_ROWS:
            break
    return found


def _question(spec: JobSpec, plan: Plan, shards: range, row_id: str) -> str:
    """Question of a row, read from the input again."""
    key, _, position = row_id.rpartition("-")
    shard, segment = next(
        (shard, segment)
        for shard in shards
        for segment in plan.shard(shard).segments
        if segment.key == key and segment.start <= int(position) < segment.start + segment.rows
    )
    read = ShardReader(plan.columns)(Shard(shard, (replace(segment, start=int(position), rows=1),)))
    if not read.row_ids:
        return f"(no longer readable: {read.failed[0][1].message})"
    # Carried columns stay out: they may hold values that Python cannot represent.
    used = read.table.select(rendered_columns(spec))
    values = {name: value for name, value in used.to_pylist()[0].items() if value is not None}
    if spec.input.columns.messages:
        users = [message for message in values[spec.input.columns.messages] if message["role"] == "user"]
        return str(users[-1]["content"]) if users else ""
    return Renderer(spec, None).question(values)
