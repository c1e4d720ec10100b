"""A plan is made from a job spec: the input is listed and inspected once, and frozen."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pyarrow as pa

from magbatch.model.checkpoint import resolve
from magbatch.plan.column_kinds import check_expected, check_kinds, check_max_tokens
from magbatch.plan.columns import check_known, common_types, mixed_note, with_texts
from magbatch.plan.grouping import GroupedFile, GroupingResult, arrange, prefix_column
from magbatch.plan.inputs import PlannedFile, bad_files_error, list_files, read_footers
from magbatch.plan.output_names import renamed_note, with_output_names
from magbatch.plan.plan import Plan
from magbatch.plan.sharding import (
    grouped_records,
    has_pictures,
    plan_in_order,
    row_bytes_of,
    sample,
    shard_limits,
    whole_files,
)
from magbatch.spec import AUTO, NONE, JobSpec
from magbatch.spec.columns import check_names, input_columns
from magbatch.storage import ObjectInfo
from magbatch.storage.search import check_apart


def make_plan(spec: JobSpec, limit: int | None = None, take: Callable[[ObjectInfo], bool] | None = None) -> Plan:
    """Plan a job.

    Args:
        spec: Spec of the job.
        limit: Number of rows to take, spread evenly over the input; None for all rows.
        take: Function that chooses the job's files among those of the input; None for all files. With it, the job may
            have no files, and with `on_bad_file: dead_letter` all its files may be bad. Without it, both are errors.

    Raises:
        InputError: The input has no files, a file is bad under `on_bad_file: fail`, or no file is good.
        SpecError: A column that the spec names is in no file, or input and output lie one inside the other.
        ModelError: The model's files cannot be fetched.
        StorageError: The input cannot be listed.
    """
    check_apart(spec.input.path, spec.output.path)
    check_names(spec)
    plan = _plan_of_rows(spec, limit, take)
    checkpoint = resolve(spec.model)
    return replace(plan, revision=checkpoint.revision, checkpoint=checkpoint)


def _plan_of_rows(spec: JobSpec, limit: int | None, take: Callable[[ObjectInfo], bool] | None) -> Plan:
    """The plan without the model's revision."""
    names, prefix = input_columns(spec), prefix_column(spec) if limit is None else None
    group = [] if spec.input.group in (AUTO, NONE) else [spec.input.group]
    files, notes = list_files(spec, take)
    read_footers(files, names, group, prefix)
    all_may_be_bad = take is not None and spec.input.on_bad_file == "dead_letter"
    if not all_may_be_bad:
        check_known(spec, files, [*names, *group])
    columns = _planned_columns(spec, files, names)
    notes = [*renamed_note(columns), *mixed_note(files, columns), *notes]
    bad = [file for file in files if file.problem is not None]
    if bad and (spec.input.on_bad_file == "fail" or len(bad) == len(files)) and not all_may_be_bad:
        raise bad_files_error(spec.input.path, files)

    row_bytes = row_bytes_of(files)
    if limit is not None:
        return plan_in_order(sample(files, limit), spec, columns, notes=notes, row_bytes=row_bytes)
    segments, found = whole_files(files), GroupingResult()
    if prefix is not None:
        stats = {file.info.name: file.facts.prefix for file in files if file.facts and file.problem is None}
        to_group = [GroupedFile(segment, stats.get(segment.path)) for segment in segments]
        found = arrange(prefix, to_group, *shard_limits(segments, spec, columns))
        notes += _group_notes(found, files, group)
        if found.arrangement is not None:
            records = grouped_records(found.arrangement, segments)
            return Plan.of(records, columns, group=prefix.column, notes=notes)
    hints = engine_hints(spec, columns, distinct=found.distinct)
    return plan_in_order(segments, spec, columns, engine_hints=hints, notes=notes, row_bytes=row_bytes)


def _planned_columns(spec: JobSpec, files: list[PlannedFile], names: list[str]) -> pa.Schema:
    """Types and output names of the columns that the job reads; files that do not fit are marked as bad."""
    columns = with_texts(spec, common_types(files, names))
    check_expected(columns, spec.input.columns.expected)
    check_kinds(spec, columns)
    check_max_tokens(columns, spec.input.columns.max_tokens)
    return with_output_names(spec, columns)


def _group_notes(found: GroupingResult, files: list[PlannedFile], group: list[str]) -> list[str]:
    if group and all(group[0] in file.keys for file in files if file.rows):
        return [f"input.group: {group[0]!r} is in the paths: the rows of a file share it already"]
    return [found.note] if found.note else []


def engine_hints(spec: JobSpec, columns: pa.Schema, *, distinct: bool) -> dict[str, Any]:
    """Engine arguments that suit the input.

    vLLM caches processed images, up to 4 GB. The cache is useless if images hardly repeat and reach the engine once.
    Allocating its memory then cost the engine up to 5% (two CPU cores; bench/NOTES.md), so it is turned off.

    Args:
        spec: Spec of the job.
        columns: Planned input columns, with the types that all files are converted to.
        distinct: Whether the values of the first image or document column hardly repeat.
    """
    given = spec.input.columns
    pictures = [*filter(None, [given.document]), *given.images]  # planning looks only at the first one
    asked_twice = spec.answer.schema is not None or spec.reasoning.budget_tokens is not None
    has_images = bool(given.images) or has_pictures(spec, columns)
    come_once = distinct and has_images and len(pictures) == 1 and not asked_twice
    return {"mm_processor_cache_gb": 0} if come_once and "mm_processor_cache_type" not in spec.model.engine_args else {}


def subset_plan(plan: Plan, row_ids: Iterable[str], spec: JobSpec) -> Plan:
    """The plan of a job that answers some rows of a plan again, with the same ids.

    Files that cannot be read are left out. Engine hints follow the changed spec.
    """
    segments = [segment for _, segment in plan.chosen(row_ids)]
    hints = engine_hints(spec, plan.columns, distinct=bool(plan.engine_hints))
    again = plan_in_order(segments, spec, plan.columns, engine_hints=hints)
    return replace(again, revision=plan.revision)
