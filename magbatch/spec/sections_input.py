"""Sections about the question: input files and their columns, documents, and the prompt."""

from typing import Annotated, Literal

from pydantic import Field

from magbatch.spec.section import Location, Section

# Bounds of a shard's size, in rows. A Ray task costs 20-50 ms of CPU on two cores, so tiny shards are waste.
# The upper bound keeps the number of shards per replica high.
MIN_SHARD_ROWS, MAX_SHARD_ROWS = 4, 256
AUTO = "auto"


class ColumnsSpec(Section):
    """Names of the input columns, by role."""

    id: Annotated[
        str | None,
        Field(
            description="Column with your own row id. The id is copied to the output, and duplicate ids are counted. "
            "null: rows have only magbatch's `row_id`."
        ),
    ] = None
    prompt: Annotated[
        str | None, Field(description="Text column with the question. null: use `messages` or `prompt.template`.")
    ] = None
    messages: Annotated[
        str | None,
        Field(
            description="Column with a chat: a list of `{role, content}` structs. Use it instead of `prompt`. "
            "null: no chat."
        ),
    ] = None
    images: list[str] = Field(
        default=[],
        description="Columns with images. A value is bytes, a path, an `s3://` or `http(s)://` URL, "
        "`{bytes, path}`, or a list of these.",
    )
    document: Annotated[
        str | None,
        Field(
            description="Column with a document: PDF, TIFF, image or text. A value is bytes, a path, a URL, "
            "`{bytes, path}`, or a list of these. null: no documents."
        ),
    ] = None
    expected: Annotated[
        str | None,
        Field(
            description="Column with the right answer, if known. It is copied to the output, and the summary counts "
            "how many answers equal it. null: nothing is graded."
        ),
    ] = None
    max_tokens: Annotated[
        str | None,
        Field(
            description="Column of whole numbers: token limit of each row. `sampling.max_tokens` stays the upper bound "
            "and serves rows without a number. null: no limit per row."
        ),
    ] = None


class DocumentSpec(Section):
    """Presentation of a row's document to the model."""

    mode: Annotated[
        Literal["images", "text", "both"],
        Field(
            description="Content shown for each page. `images`: the page as an image. `text`: the text embedded in "
            "the page. `both`: image and text, whichever exist."
        ),
    ] = "both"
    strings: Annotated[
        Literal["reference", "text"],
        Field(
            description="Meaning of text in the document column. `reference`: a path or URL. `text`: the document "
            "itself."
        ),
    ] = "reference"
    overflow: Annotated[
        Literal["error", "truncate", "map_reduce"],
        Field(
            description="Handling of a document above the limits of one prompt. `error`: dead letter. `truncate`: the "
            "first pages only. `map_reduce`: the model reads the document in page groups, and combines their answers."
        ),
    ] = "error"


class InputSpec(Section):
    """Input rows: their files, columns and shards."""

    path: Annotated[
        Location, Field(description="Parquet file, directory of Parquet files, or glob; a local path or `s3://`.")
    ]
    columns: Annotated[ColumnsSpec, Field(description="Input columns by role.")] = ColumnsSpec()
    carry: list[str] = Field(default=[], description="Input columns to copy to the output.")
    incremental: Annotated[
        bool,
        Field(
            description="true: each scheduled run takes only the files that no earlier run took. false: every run "
            "takes all files."
        ),
    ] = False
    on_bad_file: Annotated[
        Literal["fail", "dead_letter"],
        Field(
            description="Handling of an input file that cannot be read. `fail`: stop before anything starts. "
            "`dead_letter`: record the file as a dead letter and answer the other files."
        ),
    ] = "fail"
    shard_rows: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description=f"Rows per shard. null: {MIN_SHARD_ROWS} to {MAX_SHARD_ROWS}, chosen by the job's size; at "
            "most 32 with images and 8 with documents.",
        ),
    ] = None
    group: Annotated[
        str,
        Field(
            min_length=1,
            description="Grouping of rows whose prompts share a long prefix, so that the engine computes the prefix "
            "once. `auto`: find such rows. `none`: keep the input's order. Any other text: group by this column.",
        ),
    ] = AUTO
    document: Annotated[DocumentSpec, Field(description="Presentation of documents to the model.")] = DocumentSpec()
    fetch_from: list[Location] = Field(
        default=[],
        description="Local folders and `s3://` prefixes from which rows may name files, in addition to the "
        "input's own location.",
    )
    fetch_timeout_s: Annotated[
        float, Field(gt=0, description="Time limit for fetching all files that one row names, in seconds.")
    ] = 30.0
    fetch_private: Annotated[
        bool, Field(description="true: rows may name hosts in private networks. false: such a URL is a dead letter.")
    ] = False


class PromptSpec(Section):
    """Chat built from each row."""

    system: Annotated[
        str,
        Field(
            description="System prompt. `model`: the checkpoint's own `SYSTEM_PROMPT.txt`. `none`: no system prompt. "
            "Any other text: the system prompt itself."
        ),
    ] = "model"
    template: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Jinja2 template of the question, filled with the row's columns. null: the prompt column "
            "unchanged.",
        ),
    ] = None
