"""The context of a job knows which columns rows carry."""

from collections.abc import Callable

import pyarrow as pa

from magbatch.pipeline.context import JobContext
from magbatch.spec import JobSpec
from magbatch.storage.columns import written_as


def test_carried_columns_have_the_names_of_the_output(make_spec: Callable[..., JobSpec]) -> None:
    columns = {"prompt": "question", "id": "key"}
    spec = make_spec(input={"path": "/nowhere", "columns": columns, "carry": ["price"]})
    schema = pa.schema(
        [
            pa.field("question", pa.string()),
            written_as(pa.field("key", pa.int64()), "number"),
            pa.field("price", pa.float64()),
        ]
    )
    carry = JobContext(spec, schema).carry
    assert dict(zip(carry.names, carry.types, strict=True)) == {"number": pa.int64(), "price": pa.float64()}
