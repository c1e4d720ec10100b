"""The job spec: one YAML file says everything that a job is.

A wrong spec gets one clear message with the path of the field and what would be right, before
anything starts. Nothing here knows a credential: access comes from the standard AWS chain.
"""

import difflib
import functools
import importlib
import os
import re
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from magbatch.errors import SpecError
from magbatch.rows import RESERVED_COLUMNS

MAX_SHARD_ROWS = 128  # a crash costs at most what was in flight; Ray costs 20-50 ms a shard
MIN_SHARD_ROWS = 4
ANSWER_COLUMNS = frozenset({"extracted", "vote"})
WHOLE, BOXED = "whole", "boxed"
SHARDS_PER_REPLICA = 32  # enough that replicas stay even when one shard is slow


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_remote(path: str) -> bool:
    """Whether a path lies in object storage."""
    return path.startswith("s3://")


def _reachable(path: str) -> str:
    if not path:
        raise ValueError("is empty: write a local path or s3://bucket/prefix")
    if is_remote(path) and not path.removeprefix("s3://").partition("/")[0]:
        raise ValueError("names no bucket: write s3://bucket/prefix")
    if "://" in path and not is_remote(path):
        raise ValueError("only local paths and s3:// are known")
    return path


Location = Annotated[str, AfterValidator(_reachable)]


class ModelSpec(_Part):
    """Which model answers, and in which engine."""

    source: Annotated[str, Field(description="A local directory, `builtin:tiny`, a hub id, or s3://bucket/prefix.")]
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit of a hub model; null takes the newest.")
    ] = None
    engine: Annotated[Literal["vllm", "fake"], Field(description="`fake` is scripted: for tests and scale runs.")] = (
        "vllm"
    )
    engine_args: Annotated[
        dict[str, Any],
        Field(description="vLLM's own engine arguments by vLLM's names; what is not set here gets an offline default."),
    ] = {}


class ColumnsSpec(_Part):
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
    expected: Annotated[
        str | None,
        Field(description="Right answers, where known: carried; the summary counts the answers equal to them."),
    ] = None


class InputSpec(_Part):
    """Where the rows come from."""

    path: Annotated[Location, Field(description="A Parquet file, a directory or a glob; local or s3://.")]
    columns: Annotated[ColumnsSpec, Field(description="Which columns play which part.")] = ColumnsSpec()
    carry: Annotated[list[str], Field(description="Columns copied to the output.")] = []
    on_bad_file: Annotated[
        Literal["fail", "dead_letter"],
        Field(description="A file that cannot be read: stop before anything starts, or record it and run the rest."),
    ] = "fail"
    shard_rows: Annotated[
        int | None,
        Field(
            ge=1,
            le=100_000,
            description=f"Rows in a shard; null chooses {MIN_SHARD_ROWS} to {MAX_SHARD_ROWS} by the size of the job.",
        ),
    ] = None
    fetch_timeout_s: Annotated[float, Field(gt=0, description="Seconds that fetching one image URL may take.")] = 30.0


class PromptSpec(_Part):
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


class ReasoningSpec(_Part):
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

    class AnswerSpec(_Part):
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

        @field_validator("schema", mode="before")
        @classmethod
        def _found(cls, value: Any) -> Any:
            found = _schema_at(value) if isinstance(value, str) else value
            return _checked_schema(found) if isinstance(found, dict) else found

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


def _schema_at(place: str) -> dict[str, Any]:
    """The JSON Schema that a text names: a file, or a pydantic model."""
    path = Path(place).expanduser()
    if path.suffix in (".json", ".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{place} is no schema file that can be read: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{place} holds {type(found).__name__}, not a JSON Schema")
        return found
    module, _, name = place.partition(":")
    try:
        model = functools.reduce(getattr, name.split("."), importlib.import_module(module)) if name else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{place}: {error}") from error
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise ValueError(f"{place} is neither a .json or .yaml file nor a pydantic model as package.module:Model")
    return model.model_json_schema()


def _checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}") from error
    return schema


def resolve(reference: str, root: dict[str, Any]) -> Any:
    """What a `#/…` reference of a JSON Schema stands for; None where it leads nowhere."""
    node: Any = root
    for name in reference.removeprefix("#").strip("/").split("/"):
        node = node.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(node, dict) else None
    return node


def properties(schema: dict[str, Any]) -> dict[str, Any]:
    """The named properties of an object's schema, a reference at its top followed."""
    top = resolve(schema["$ref"], schema) if schema.get("$ref", "").startswith("#") else schema
    found = top.get("properties", {}) if isinstance(top, dict) else {}
    return found if isinstance(found, dict) else {}


class SamplingSpec(_Part):
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


class OutputSpec(_Part):
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


class ReplicasSpec(_Part):
    """How many engines, and what each one holds."""

    min: Annotated[int, Field(ge=1, description="Replicas to start with.")] = 1
    max: Annotated[int, Field(ge=1, description="Replicas to grow to while rows wait.")] = 1
    gpus: Annotated[
        int,
        Field(ge=0, description="GPUs of one replica (tensor_parallel_size x pipeline_parallel_size); 0 runs on CPUs."),
    ] = 1
    cpus: Annotated[float, Field(gt=0, description="CPUs that one replica reserves in Ray.")] = 1.0
    start_timeout_s: Annotated[
        float, Field(gt=0, description="Seconds that an engine may take to start, once its replica has its place.")
    ] = 1800.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class LimitsSpec(_Part):
    """What a row may cost, and how much may fail."""

    max_prompt_tokens: Annotated[int, Field(ge=1, description="A longer prompt becomes a dead letter.")] = 40_000
    max_images: Annotated[int, Field(ge=0, description="Images in one row.")] = 10
    max_image_pixels: Annotated[int, Field(ge=1, description="Pixels of one image, checked before it is decoded.")] = (
        50_000_000
    )
    max_image_bytes: Annotated[int, Field(ge=1, description="Bytes of one fetched image file.")] = 100_000_000
    row_timeout_s: Annotated[
        float | None,
        Field(gt=0, description="Seconds without a new token after which a row, or an engine, hangs; null waits on."),
    ] = 600.0
    repetition_tokens: Annotated[
        int | None,
        Field(ge=64, description="Tokens of pure repetition after which a sample is ended; null lets it go on."),
    ] = 2048
    max_failed_rows: Annotated[
        int | None,
        Field(ge=0, description="More dead letters than this end the command with exit code 1; null sets no limit."),
    ] = None


# What may change between two runs of one job: none of it changes what an answer would be.
FREE_FIELDS = frozenset(
    {"name", "replicas", "output.commit_interval_s", "output.commit_rows", "output.patience_s"}
    | {"limits.max_failed_rows", "limits.row_timeout_s", "input.fetch_timeout_s"}
    | {"input.shard_rows", "input.on_bad_file"}  # both are frozen in the plan
    | {f"model.engine_args.{name}" for name in (
        "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "kv_cache_memory_bytes", "enforce_eager",
        "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "enable_prefix_caching",
        "mm_processor_cache_gb", "disable_log_stats", "compilation_config",
    )}
)  # fmt: skip


class JobSpec(_Part):
    """One job."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="A short name for people and metrics.")
    ]
    model: Annotated[ModelSpec, Field(description="Which model answers, and in which engine.")]
    input: Annotated[InputSpec, Field(description="Where the rows come from.")]
    prompt: Annotated[PromptSpec, Field(description="How a row becomes a chat.")] = PromptSpec()
    reasoning: Annotated[ReasoningSpec, Field(description="How much a row may think.")] = ReasoningSpec()
    answer: Annotated[AnswerSpec, Field(description="What is made of an answer.")] = AnswerSpec()
    sampling: Annotated[SamplingSpec, Field(description="Sampling parameters, by vLLM's names.")] = SamplingSpec()
    output: Annotated[OutputSpec, Field(description="Where the answers go.")]
    replicas: Annotated[ReplicasSpec, Field(description="How many engines.")] = ReplicasSpec()
    limits: Annotated[LimitsSpec, Field(description="What a row may cost, and how much may fail.")] = LimitsSpec()

    @field_validator("input")
    @classmethod
    def _input_is_asked_something(cls, value: InputSpec) -> InputSpec:
        columns = value.columns
        if columns.messages and columns.prompt:
            raise ValueError("columns: set `prompt` or `messages`, not both")
        duplicates = {name for name in value.carry if value.carry.count(name) > 1}
        if duplicates:
            raise ValueError(f"carry names {sorted(duplicates)} twice")
        reserved = sorted(RESERVED_COLUMNS & set(carried_columns(value)))
        if reserved:
            raise ValueError(
                f"{reserved} cannot be carried: the output has columns of its own by these names; rename the input's"
            )
        return value

    @model_validator(mode="after")
    def _a_question_exists(self) -> Self:
        columns = self.input.columns
        if not (columns.prompt or columns.messages or self.prompt.template):
            raise ValueError("nothing to ask: set input.columns.prompt, input.columns.messages or prompt.template")
        budget = self.reasoning.budget_tokens
        if budget is not None and budget >= self.sampling.max_tokens:
            raise ValueError(
                f"reasoning.budget_tokens ({budget}) leaves nothing of sampling.max_tokens "
                f"({self.sampling.max_tokens}) for the answer"
            )
        own = {*RESERVED_COLUMNS, *carried_columns(self.input), *ANSWER_COLUMNS}
        taken = sorted(own & set(properties(self.answer.schema or {})))
        if taken:
            raise ValueError(f"answer.schema: {taken} are columns of the output already; rename these properties")
        if self.answer.schema is not None and not properties(self.answer.schema):
            raise ValueError("answer.schema: describe an object with named properties: each becomes a column")
        if self.answer.vote is not None and self.sampling.n < 2:
            raise ValueError("answer.vote needs samples to count: set sampling.n to 2 or more")
        if columns.messages and self.prompt.template:
            raise ValueError("prompt.template cannot be used with input.columns.messages: a chat is taken as it is")
        sizes = {}
        for name in ("tensor_parallel_size", "pipeline_parallel_size"):
            size = sizes[name] = self.model.engine_args.get(name)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"model.engine_args.{name} is a whole number of 1 or more, not {size!r}")
        gpus, stages = self.replicas.gpus, sizes["pipeline_parallel_size"] or 1
        devices = (sizes["tensor_parallel_size"] or max(1, gpus // stages)) * stages
        if self.model.engine == "vllm" and gpus and devices != gpus:
            raise ValueError(
                f"model.engine_args asks for {devices} devices a replica, replicas.gpus for {gpus}: make them equal"
            )
        return self

    def shard_rows(self, total_rows: int) -> int:
        """Rows in a shard of a job with this many rows.

        Small enough that every replica gets many shards, large enough that Ray's cost for each
        (20-50 ms of CPU) does not count.
        """
        if self.input.shard_rows is not None:
            return self.input.shard_rows
        share = total_rows // (self.replicas.max * SHARDS_PER_REPLICA)
        return max(MIN_SHARD_ROWS, min(MAX_SHARD_ROWS, share))

    def to_yaml(self) -> str:
        """The spec as it is stored beside the output: every field, defaults included."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def with_output(self, path: str) -> "JobSpec":
        """The same job into another output."""
        return self.model_copy(update={"output": self.output.model_copy(update={"path": path})})


def carried_columns(spec: InputSpec) -> list[str]:
    """The columns copied to the output, each once: the user's id, then `carry`, then the expected answers."""
    names = [spec.columns.id, *spec.carry, spec.columns.expected]
    return list(dict.fromkeys(name for name in names if name))


def load(path: str, overrides: list[str] | None = None) -> JobSpec:
    """Read and check a spec file.

    Args:
        path: The YAML file.
        overrides: `key.path=value` items; values are read as YAML.

    Raises:
        SpecError: With the path of each wrong field and what would be right.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot read the spec: {error}") from error
    return parse(text, overrides, origin=path)


def parse(text: str, overrides: list[str] | None = None, origin: str = "spec") -> JobSpec:
    """The spec that a YAML text holds; raises as `load` does."""
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: what looks like a date and is none
        raise SpecError(f"{origin}: not YAML: {error}") from error
    if not isinstance(data, dict):
        raise SpecError(f"{origin}: a spec is a mapping that begins with `name:`, not {type(data).__name__}")
    for item in overrides or []:
        _override(data, item)
    try:
        spec = JobSpec.model_validate(data)
    except ValidationError as error:
        raise SpecError(_explain(origin, error)) from error
    return _absolute(spec)


def _override(data: dict[str, Any], item: str) -> None:
    key, separator, raw = item.partition("=")
    if not separator or not key:
        raise SpecError(f"--set {item}: write key.path=value, such as --set sampling.temperature=0")
    *path, last = key.split(".")
    try:
        value = yaml.safe_load(raw)
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"--set {item}: the value is not YAML; put text in quotes: {error}") from error
    node = data
    for name in path:
        if node.get(name) is None:  # not there, or a group whose fields are all left out
            node[name] = {}
        child = node[name]
        if not isinstance(child, dict):
            raise SpecError(f"--set {item}: {name} is a value, not a group of fields")
        node = child
    node[last] = value


def _explain(origin: str, error: ValidationError) -> str:
    lines = [f"{origin}: {error.error_count()} wrong field(s)"]
    for problem in error.errors(include_url=False):
        path = ".".join(str(part) for part in problem["loc"]) or "(spec)"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = f"no such field; {_nearest(problem['loc'])}"
        elif problem["type"] == "missing":
            message = f"is missing: {_described(problem['loc'])}"
        elif problem["loc"] and not isinstance(problem["input"], dict | list):
            message += f" (it is {problem['input']!r})"
        lines.append(f"  {path}: {message}")
    return "\n".join(lines)


def _fields(location: tuple[int | str, ...]) -> dict[str, FieldInfo]:
    """The fields of the part that holds a location."""
    node: type[BaseModel] = JobSpec
    for name in location[:-1]:
        part = node.model_fields[str(name)].annotation
        assert isinstance(part, type), "only parts have fields that can be missing or too many"
        assert issubclass(part, BaseModel)
        node = part
    return node.model_fields


def _nearest(location: tuple[int | str, ...]) -> str:
    fields = _fields(location)
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    return f"did you mean `{close[0]}`?" if close else f"the fields here are {', '.join(fields)}"


def _described(location: tuple[int | str, ...]) -> str:
    return _fields(location)[str(location[-1])].description or ""


def _absolute(spec: JobSpec) -> JobSpec:
    """Local paths made absolute: replicas do not run in the directory of the command."""

    def fix(path: str) -> str:
        return path if is_remote(path) else os.path.abspath(os.path.expanduser(path))

    source = spec.model.source
    if source.startswith((".", "~", "/")) or (not source.startswith(("s3://", "builtin:")) and os.path.isdir(source)):
        source = os.path.abspath(os.path.expanduser(source))
    return spec.model_copy(
        update={
            "model": spec.model.model_copy(update={"source": source}),
            "input": spec.input.model_copy(update={"path": fix(spec.input.path)}),
            "output": spec.output.model_copy(update={"path": fix(spec.output.path).rstrip("/")}),
        }
    )


def differences(old: JobSpec, new: JobSpec) -> list[str]:
    """What makes two specs different jobs: `field: old -> new` lines, empty where a resume is right."""

    def flat(node: Any, path: str) -> dict[str, Any]:
        if path in FREE_FIELDS:
            return {}
        if not isinstance(node, dict):
            return {path: node}
        leaves: dict[str, Any] = {}
        for name, child in node.items():
            leaves |= flat(child, f"{path}.{name}" if path else name)
        return leaves

    before, after = flat(old.model_dump(mode="json"), ""), flat(new.model_dump(mode="json"), "")
    return [
        f"{path}: {before.get(path)!r} -> {after.get(path)!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
