"""A planned input file as Parquet: opened the same way by whoever reads it."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.storage.input_file import InputFile

READ_BUFFER_BYTES = 1 << 20  # a column chunk is streamed, not loaded: row groups can be gigabytes


def open_parquet(file: InputFile, **options: Any) -> pq.ParquetFile:
    """A Parquet file, to be streamed; options as of pyarrow's ParquetFile."""
    return pq.ParquetFile(
        pa.PythonFile(file, mode="r"),
        buffer_size=READ_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # where the file has them: damage must not pass as text
        coerce_int96_timestamp_unit="us",  # in nanoseconds, years past 2262 come out as others
        **options,
    )
