"""The only way to open a planned input file as Parquet: planner and readers must see the same types and errors."""

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from magbatch.storage.input_file import InputFile

READ_BUFFER_BYTES = 1 << 20  # bytes read at once of each column; chunks of gigabytes are streamed


def open_parquet(file: InputFile, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file for streaming.

    Args:
        file: Opened input file.
        **options: Other arguments of pyarrow's `ParquetFile`.
    """
    return pq.ParquetFile(
        pa.PythonFile(file, mode="r"),
        buffer_size=READ_BUFFER_BYTES,
        pre_buffer=False,
        page_checksum_verification=True,  # checked if the file has checksums: damage must not pass as text
        coerce_int96_timestamp_unit="us",  # nanoseconds overflow after the year 2262
        **options,
    )
