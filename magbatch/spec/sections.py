"""The sections of a job spec, each with what can be wrong within it alone."""

import math
import re
import warnings
from datetime import UTC, datetime
from fractions import Fraction
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from magbatch.spec.bounded import check_new
from magbatch.spec.schema import checked_schema, is_file, schema_at

MAX_SHARD_ROWS = 256  # a crash costs what was in flight, not a shard; Ray costs 20-50 ms of CPU a shard
MIN_SHARD_ROWS = 4
WHOLE, BOXED = "whole", "boxed"
ACCELERATOR_LABEL, MARKET_LABEL = "ray.io/accelerator-type", "ray.io/market-type"  # as Ray names them
AUTO, NONE = "auto", "none"
SHARE = r"\d{1,3}(\.\d+)?%"
MAX_PRIORITY = 100  # of a job on a cluster; its owner may allow less
NEW = "new"  # in a validation's context: the spec is a user's, not one that an output holds already


class Section(BaseModel):
    """What all sections share: no unknown field, no change once made."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number_is_a_truth(cls, value: Any, info: ValidationInfo) -> Any:
        """An unquoted yes, no, on or off is a bool to YAML, which pydantic would take for 1 or 0."""
        if isinstance(value, bool) and info.field_name is not None:
            types = {
                *get_args(cls.model_fields[info.field_name].annotation),
                cls.model_fields[info.field_name].annotation,
            }
            if bool not in types and not types.isdisjoint({int, float}):
                raise PydanticCustomError("whole_number" if int in types else "number", "write a number")
        return value


def is_remote(path: str) -> bool:
    """Whether a path lies in object storage."""
    return path.startswith("s3://")


def reachable(path: str) -> str:
    """A path that storage can be asked for; raises ValueError where it can be none."""
    if not path:
        raise ValueError("is empty: write a local path or s3://bucket/prefix")
    if is_remote(path) and not path.removeprefix("s3://").partition("/")[0]:
        raise ValueError("names no bucket: write s3://bucket/prefix")
    if "://" in path and not is_remote(path):
        raise ValueError("only local paths and s3:// are known")
    return path


Location = Annotated[str, AfterValidator(reachable)]


class ModelSpec(Section):
    """Which model answers, and in which engine."""

    source: Annotated[str, Field(description="A local directory, `builtin:tiny`, a hub id, or s3://bucket/prefix.")]
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit of a hub model; null takes the newest. A plan freezes it.")
    ] = None
    engine: Annotated[Literal["vllm", "fake"], Field(description="`fake` is scripted: for tests and scale runs.")] = (
        "vllm"
    )
    engine_args: Annotated[
        dict[str, Any],
        Field(description="vLLM's own engine arguments by vLLM's names; what is not set here gets an offline default."),
    ] = {}


class ColumnsSpec(Section):
    """Which input columns play which part."""

    id: Annotated[
        str | None, Field(description="The user's own id: carried to the output; duplicates are counted.")
    ] = None
    prompt: Annotated[str | None, Field(description="The question: a text column.")] = None
    messages: Annotated[
        str | None, Field(description="A chat: a list of {role, content} structs, instead of `prompt`.")
    ] = None
    images: Annotated[
        list[str],
        Field(description="Columns of images: bytes, a path, an s3:// or http(s):// URL, {bytes, path}, or lists."),
    ] = []
    document: Annotated[
        str | None,
        Field(description="A document: PDF, TIFF, image or text, as bytes, path, URL, {bytes, path}, or a list."),
    ] = None
    expected: Annotated[
        str | None,
        Field(description="Right answers, where known: carried; the summary counts the answers equal to them."),
    ] = None
    max_tokens: Annotated[
        str | None,
        Field(description="Tokens that a row may have: a column of whole numbers, sampling.max_tokens at most."),
    ] = None


class DocumentSpec(Section):
    """How a row's document is shown to the model."""

    mode: Annotated[
        Literal["images", "text", "both"],
        Field(
            description="What is shown of a page: `images` its picture, `text` its embedded text, "
            "`both` whichever there are."
        ),
    ] = "both"
    strings: Annotated[
        Literal["reference", "text"],
        Field(
            description="What text in the document column is: `reference` a path or URL, `text` the document itself."
        ),
    ] = "reference"
    overflow: Annotated[
        Literal["error", "truncate", "map_reduce"],
        Field(
            description="More than limits allow in one prompt: `error` a dead letter, "
            "`truncate` the first pages, `map_reduce` in parts."
        ),
    ] = "error"


class InputSpec(Section):
    """Where the rows come from."""

    path: Annotated[Location, Field(description="A Parquet file, a directory or a glob; local or s3://.")]
    columns: Annotated[ColumnsSpec, Field(description="Which columns play which part.")] = ColumnsSpec()
    carry: Annotated[list[str], Field(description="Columns copied to the output.")] = []
    incremental: Annotated[
        bool, Field(description="Each run of a schedule takes the files that no earlier run took; false: all files.")
    ] = False
    on_bad_file: Annotated[
        Literal["fail", "dead_letter"],
        Field(
            description="A file that cannot be read: `fail` stops before anything starts, "
            "`dead_letter` records it and runs the rest."
        ),
    ] = "fail"
    shard_rows: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description=f"Rows in a shard; null chooses {MIN_SHARD_ROWS} to {MAX_SHARD_ROWS} by the size of the job; "
            "up to 32 with images, 8 with documents.",
        ),
    ] = None
    group: Annotated[
        str,
        Field(
            min_length=1,
            description="Rows that share a long prefix stand side by side: `auto` finds them; `none`; or by a column.",
        ),
    ] = AUTO
    document: Annotated[DocumentSpec, Field(description="How a row's document is shown to the model.")] = DocumentSpec()
    fetch_from: Annotated[
        list[Location],
        Field(description="Local folders and s3:// prefixes that rows may name in addition to the input itself."),
    ] = []
    fetch_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that fetching all that one row names may take.")
    ] = 30.0
    fetch_private: Annotated[bool, Field(description="Rows may name hosts in private networks.")] = False


class ScheduleSpec(Section):
    """When a job runs by itself."""

    cron: Annotated[
        str, Field(description="When: minute, hour, day of month, month, weekday, as cron has them; `0 6 * * *`.")
    ]
    timezone: Annotated[str, Field(description="Whose clock that is, by its IANA name.")] = "UTC"
    missed: Annotated[
        Literal["catch_up", "skip"],
        Field(description="Ticks that nobody began in time: one run for all of them, or wait for the next tick."),
    ] = "catch_up"

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, value: str) -> str:
        problem = "" if len(value.split()) == 5 else "it has not five fields"
        if not problem:
            try:
                if next(CronSim(value, datetime.now(UTC)), None) is None:
                    problem = "no such day in the next 50 years"
            except CronSimError as error:
                problem = str(error)
        if problem:
            raise ValueError(f"write minute, hour, day of month, month and weekday, such as `0 6 * * *`: {problem}")
        return value

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:  # a name that is none, a path, a folder of names
            raise ValueError("no such time zone: write an IANA name, such as Europe/Paris or UTC") from error
        return value


class PromptSpec(Section):
    """How a row becomes a chat."""

    system: Annotated[
        str, Field(description="`model`: the checkpoint's own SYSTEM_PROMPT.txt; `none`; or the text itself.")
    ] = "model"
    template: Annotated[
        str | None,
        Field(
            min_length=1, description="A Jinja2 template over the row's columns; null takes the prompt column as it is."
        ),
    ] = None


class ReasoningSpec(Section):
    """How much a row may think."""

    budget_tokens: Annotated[
        int | None,
        Field(ge=1, description="Tokens of thinking, then it is closed and the row answers; null sets no budget."),
    ] = None
    effort: Annotated[
        Literal["none", "high"] | None,
        Field(description="`none`: no thinking; `high`: for models whose tokenizer takes an effort; null: as trained."),
    ] = None

    @model_validator(mode="after")
    def _a_budget_is_for_thinking(self) -> Self:
        if self.effort == "none" and self.budget_tokens is not None:
            raise ValueError("effort: none leaves nothing for budget_tokens; set one of them")
        return self


with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message='Field name "schema"')  # of pydantic's older days; nothing here uses it

    class AnswerSpec(Section):
        """What is made of an answer."""

        schema: Annotated[
            dict[str, Any] | None,
            Field(
                description="A JSON Schema, or where one is: a .json or .yaml file, or package.module:PydanticModel."
            ),
        ] = None  # type: ignore[assignment]
        extract: Annotated[
            str | None,
            Field(
                description=r"Column `extracted`: `whole`, `boxed` (the last \boxed{…}), or a regex with (?P<answer>…)."
            ),
        ] = None
        vote: Annotated[
            Literal["majority"] | None,
            Field(description="Column `vote`: the answer that most of sampling.n samples agree on, and its share."),
        ] = None

        @property
        def may_refuse(self) -> bool:
            """Whether an answer can be one that is not accepted."""
            return self.schema is not None or self.extract not in (None, WHOLE, BOXED)

        @field_validator("schema", mode="before")
        @classmethod
        def _found(cls, value: Any, info: ValidationInfo) -> Any:
            found = schema_at(value) if isinstance(value, str) else value
            if not isinstance(found, dict):
                return found
            if info.context is None or not info.context.get(NEW):
                return checked_schema(found)
            check_new(found, written=not isinstance(value, str) or is_file(value))
            return found

        @field_validator("extract")
        @classmethod
        def _names_a_group(cls, value: str | None) -> str | None:
            if value in (None, WHOLE, BOXED):
                return value
            try:
                groups = re.compile(value).groupindex
            except re.error as error:
                raise ValueError(f"is not a regular expression: {error}") from error
            if "answer" not in groups:
                raise ValueError(f"write {WHOLE}, {BOXED}, or a regular expression with a group (?P<answer>…)")
            return value


class SamplingSpec(Section):
    """Sampling parameters, by vLLM's names."""

    temperature: Annotated[float, Field(ge=0, le=2, description="0 is greedy.")] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1, description="Nucleus sampling.")] = 0.95
    top_k: Annotated[int, Field(ge=0, description="0 considers every token.")] = 0
    min_p: Annotated[float, Field(ge=0, le=1, description="Least probability, relative to the likeliest token.")] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2, description="Penalty on tokens that have appeared.")] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2, description="Penalty by how often a token appeared.")] = 0.0
    repetition_penalty: Annotated[float, Field(gt=0, description="1 is none.")] = 1.0
    max_tokens: Annotated[
        int, Field(ge=1, description="Tokens a sample may have, thinking included; cut to what the context leaves.")
    ] = 32768
    min_tokens: Annotated[int, Field(ge=0, description="Tokens before the model may stop.")] = 0
    ignore_eos: Annotated[bool, Field(description="Go on to max_tokens; for benchmarks.")] = False
    n: Annotated[int, Field(ge=1, le=64, description="Samples a row: n output records each.")] = 1
    seed: Annotated[
        int | None,
        Field(description="Makes each row's sampling depend on this and the row id alone, not on order or resume."),
    ] = None

    @model_validator(mode="after")
    def _greedy_has_one_sample(self) -> Self:
        if self.temperature == 0 and self.n > 1:
            raise ValueError("n > 1 needs temperature > 0: greedy samples would all be the same")
        return self


class OutputSpec(Section):
    """Where the answers go, and how often."""

    path: Annotated[Location, Field(description="A directory, local or s3://. One job owns one output.")]
    commit_interval_s: Annotated[float, Field(gt=0, description="Seconds a finished row may wait to be committed.")] = (
        5.0
    )
    commit_rows: Annotated[
        int, Field(ge=1, description="Finished rows of a shard that are committed without waiting.")
    ] = 256
    patience_s: Annotated[
        float, Field(ge=0, description="Seconds that the output's storage may refuse before the job stops.")
    ] = 300.0


class ShapeSpec(Section):
    """Nodes that a replica may be on, by the labels that Ray gives them."""

    accelerator: Annotated[
        str | None, Field(min_length=1, description="The GPU, as Ray names it: H100, A100, L4 and so on.")
    ] = None
    market: Annotated[
        Literal["spot", "on-demand"] | None, Field(description="How the node is paid for: spot or on-demand.")
    ] = None
    labels: Annotated[dict[str, str], Field(description="Any other labels of Ray's nodes.")] = {}

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if not self.selector:
            raise ValueError("name an accelerator, a market or labels")
        twice = sorted(self.labels.keys() & {ACCELERATOR_LABEL, MARKET_LABEL})
        if twice:
            raise ValueError(f"labels: {twice} are what `accelerator` and `market` are for")
        return self

    @property
    def selector(self) -> dict[str, str]:
        """The labels of such nodes."""
        own = {ACCELERATOR_LABEL: self.accelerator, MARKET_LABEL: self.market}
        return {name: value for name, value in own.items() if value is not None} | self.labels

    def __str__(self) -> str:
        more = [f"{name}={value}" for name, value in self.labels.items()]
        return " ".join([*filter(None, [self.market, self.accelerator]), *more])


class ReplicasSpec(Section):
    """How many engines, and what each one holds."""

    min: Annotated[
        int, Field(ge=0, description="Replicas to start with, and to keep while rows wait; 0 asks for the first then.")
    ] = 1
    max: Annotated[int, Field(ge=1, description="Replicas to grow to while rows wait.")] = 1
    gpus: Annotated[
        int,
        Field(ge=0, description="GPUs of one replica (tensor_parallel_size x pipeline_parallel_size); 0 runs on CPUs."),
    ] = 1
    cpus: Annotated[float, Field(gt=0, description="CPUs that one replica reserves in Ray.")] = 1.0
    prefer: Annotated[
        list[ShapeSpec],
        Field(description="Nodes, best first, [{accelerator: H100, market: spot}, {accelerator: A100}]; empty: any."),
    ] = []
    priority: Annotated[
        int,
        Field(
            description="Among jobs of one cluster, -100 to 100: the higher takes replicas of the lower, down to their "
            "min."
        ),
    ] = 0
    start_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that an engine may take to start, once its replica has its place.")
    ] = 1800.0

    @field_validator("priority")
    @classmethod
    def _is_bounded(cls, value: int, info: ValidationInfo) -> int:
        # A spec that an output holds already may be of a version without bounds; the cluster holds it to them.
        if info.context is not None and info.context.get(NEW) and abs(value) > MAX_PRIORITY:
            raise ValueError(f"write a number from -{MAX_PRIORITY} to {MAX_PRIORITY}")
        return value

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class MetricsSpec(Section):
    """Where the numbers of a running job are shown."""

    enabled: Annotated[bool, Field(description="Serve /metrics and /healthz while the command runs.")] = True
    bind: Annotated[
        str, Field(min_length=1, description="Address to serve on; 0.0.0.0 lets other machines read the numbers.")
    ] = "127.0.0.1"
    port: Annotated[
        int | None,
        Field(ge=0, le=65535, description="null takes 9480, or a free one where that is taken; 0 a free one."),
    ] = None
    linger_s: Annotated[
        float | None,
        Field(
            ge=0, description="Seconds to serve on after the end; null: until a regular scraper has it, 60 s at most."
        ),
    ] = None
    push_gateway: Annotated[
        str | None, Field(description="URL of a Pushgateway that is sent them, now and then and at the end.")
    ] = None
    file_sd: Annotated[
        str | None, Field(description="A folder for a file that tells Prometheus (file_sd) where this job is.")
    ] = None

    @field_validator("push_gateway")
    @classmethod
    def _is_a_url(cls, value: str | None) -> str | None:
        try:
            parts = urlsplit(value or "http://host")
            right = (
                parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
            (parts.hostname or "").encode("idna")
        except ValueError:
            right = False
        if not right:
            raise ValueError("write http://host:9091, the address of the Pushgateway")
        return value

    @field_validator("file_sd")
    @classmethod
    def _is_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (not value or "://" in value):
            raise ValueError("write a folder of this machine, or one that it shares with Prometheus'")
        return value


class CostSpec(Section):
    """What a device costs, for the report and the metrics."""

    device_hour: Annotated[
        float | None, Field(ge=0, description="Price of one GPU (on CPUs, one replica) for an hour; null counts hours.")
    ] = None
    currency: Annotated[str, Field(description="Of that price: USD, EUR and so on.")] = "USD"

    @field_validator("currency")
    @classmethod
    def _is_a_currency(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Z]{3}", value):
            raise ValueError("write three capital letters, such as USD or EUR")
        return value


class LimitsSpec(Section):
    """What a row may cost, and how much may fail."""

    max_prompt_tokens: Annotated[int, Field(ge=1, description="A longer prompt becomes a dead letter.")] = 40_000
    max_images: Annotated[int, Field(ge=0, description="Images in one row.")] = 10
    max_image_pixels: Annotated[int, Field(ge=1, description="Pixels of one image, checked before it is decoded.")] = (
        50_000_000
    )
    max_image_bytes: Annotated[int, Field(ge=1, description="Bytes of one fetched image file.")] = 100_000_000
    image_timeout_s: Annotated[float, Field(gt=0, description="Seconds that decoding one image may take.")] = 20.0
    max_pages: Annotated[
        int, Field(ge=1, description="Pages of one document; a page's picture holds up to 7 MB until it is answered.")
    ] = 200
    max_document_bytes: Annotated[int, Field(ge=1, description="Bytes of one document file.")] = 200_000_000
    document_timeout_s: Annotated[float, Field(gt=0, description="Seconds that rendering one document may take.")] = (
        120.0
    )
    document_memory_mb: Annotated[
        int, Field(ge=256, description="Megabytes of memory that rendering one document may take.")
    ] = 2048
    answer_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that checking one answer (answer.schema, answer.extract) may take.")
    ] = 5.0
    row_timeout_s: Annotated[
        float | None,
        Field(gt=0, description="Seconds without a new token after which a row, or an engine, hangs; null waits on."),
    ] = 600.0
    repetition_tokens: Annotated[
        int | None,
        Field(ge=64, description="Tokens of pure repetition after which a sample is ended; null lets it go on."),
    ] = 2048
    max_failed_rows: Annotated[
        int | str | None,
        Field(
            description="More dead letters, a number or a share of all rows (5%), end the job early with exit code 1."
        ),
    ] = None

    @field_validator("max_failed_rows", mode="before")
    @classmethod
    def _is_a_number_or_a_share(cls, value: Any) -> Any:
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
            return value
        if isinstance(value, str) and re.fullmatch(SHARE, value) and Fraction(value[:-1]) <= 100:
            return value
        raise ValueError("write a whole number, greater than or equal to 0, or a share of all rows such as 5%")

    def failed_allowed(self, planned: int) -> int | None:
        """Dead letters that a job of so many rows may have; None where any number is allowed."""
        if isinstance(self.max_failed_rows, str):
            return math.floor(Fraction(self.max_failed_rows[:-1]) * planned / 100)
        return self.max_failed_rows
