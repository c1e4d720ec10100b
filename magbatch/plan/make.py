"""A job spec -> its plan: the input is looked at once, in this order, and frozen."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pyarrow as pa

from magbatch.errors import InputError
from magbatch.model.checkpoint import resolve
from magbatch.plan.column_kinds import check_kinds
from magbatch.plan.columns import (
    check_expected,
    check_known,
    check_max_tokens,
    common_types,
    mixed_note,
    renamed_note,
    with_output_names,
    with_texts,
)
from magbatch.plan.grouping import GroupedFile, GroupingResult, arrange, lead_of
from magbatch.plan.inputs import PlannedFile, bad_files_error, read_footers
from magbatch.plan.plan import Plan
from magbatch.plan.sharding import grouped, has_pictures, planned, row_bytes_of, rows_of_a_shard, sample, whole_files
from magbatch.spec import AUTO, NONE, JobSpec
from magbatch.spec.columns import check_names, input_columns
from magbatch.storage import ObjectInfo
from magbatch.storage.search import check_apart, find_input


def make_plan(spec: JobSpec, limit: int | None = None, take: Callable[[ObjectInfo], bool] | None = None) -> Plan:
    """Plan a job.

    Args:
        spec: The job.
        limit: Take only this many rows, spread evenly over the input.
        take: Says which files are the job's. These are a part of the input, so there may be none, and under
            `on_bad_file: dead_letter` all of them may be bad; without it, that is a mistake in the spec.

    Raises:
        InputError: Nothing is there, a file is bad under `on_bad_file: fail`, or no file is good.
        SpecError: A column that the spec names is in none of the files, or input and output are not apart.
        ModelError: The model's files cannot be had.
        StorageError: The input cannot be listed.
    """
    check_apart(spec.input.path, spec.output.path)
    check_names(spec)
    return replace(_plan_of_rows(spec, limit, take), revision=resolve(spec.model))


def _plan_of_rows(spec: JobSpec, limit: int | None, take: Callable[[ObjectInfo], bool] | None) -> Plan:
    names, lead = input_columns(spec), lead_of(spec) if limit is None else None
    root = _root(spec.input.path)
    given = find_input(spec.input.path, may_be_none=take is not None)
    infos = [info for info in given.files if take is None or take(info)]
    unnamed = [info.name for info in infos if any("\ud800" <= char <= "\udfff" for char in info.name)]
    if unnamed:
        raise InputError(f"input.path {spec.input.path}: a file's name is no valid text: {unnamed[0]!r}; rename it")
    files = [PlannedFile(info, sha256(os.fsencode(_below(root, info.name))).hexdigest()[:12]) for info in infos]
    keys = {file.key for file in files}  # a hash of 48 bits: two files of one input never share it in practice
    if len(keys) < len(files):
        raise InputError(f"input.path {spec.input.path}: it yields the same file twice")
    group = [] if spec.input.group in (AUTO, NONE) else [spec.input.group]
    read_footers(files, names, group, lead)
    all_may_be_bad = take is not None and spec.input.on_bad_file == "dead_letter"
    if not all_may_be_bad:
        check_known(spec, files, [*names, *group])
    columns = with_texts(spec, common_types(files, names))
    check_expected(columns, spec.input.columns.expected)
    check_kinds(spec, columns)
    check_max_tokens(columns, spec.input.columns.max_tokens)
    columns = with_output_names(spec, columns)
    notes = [*renamed_note(columns), *mixed_note(files, columns), *given.notes]
    bad = [file for file in files if file.problem is not None]
    if bad and (spec.input.on_bad_file == "fail" or len(bad) == len(files)) and not all_may_be_bad:
        raise bad_files_error(spec.input.path, files)

    if limit is not None:
        return planned(sample(files, limit), spec, columns, notes=notes, row_bytes=row_bytes_of(files))
    segments, found = whole_files(files), GroupingResult()
    if lead is not None:
        footers = {file.info.name: file.facts.lead for file in files if file.facts and file.problem is None}
        sources = [GroupedFile(segment, footers.get(segment.path)) for segment in segments]
        found = arrange(lead, sources, *rows_of_a_shard(segments, spec, columns))
        notes += _group_notes(found, files, group)
        if found.arranged is not None:
            return Plan.of(grouped(found.arranged, segments), columns, group=lead.column, notes=notes)
    return planned(
        segments,
        spec,
        columns,
        engine_hints=_engine_hints(spec, columns, found),
        notes=notes,
        row_bytes=row_bytes_of(files),
    )


def _group_notes(found: GroupingResult, files: list[PlannedFile], group: list[str]) -> list[str]:
    if group and all(group[0] in file.keys for file in files if file.rows):
        return [f"input.group: {group[0]!r} stands in the paths: the rows of a file share it already"]
    return [found.note] if found.note else []


def _root(path: str) -> str:
    """What row ids do not depend on: the directory of the input, up to a glob's first wildcard."""
    fixed = path
    for wildcard in "*?[":
        fixed = fixed.partition(wildcard)[0]
    if fixed == path and not path.endswith(".parquet"):
        return path.rstrip("/") + "/"
    return fixed.rpartition("/")[0] + "/"


def _below(root: str, name: str) -> str:
    return name[len(root) :] if name.startswith(root) else os.path.basename(name)


def _engine_hints(spec: JobSpec, columns: pa.Schema, found: GroupingResult) -> dict[str, Any]:
    """Engine arguments that suit what the input was found to be.

    vLLM caches processed images in up to 4 GB. For a job whose images hardly repeat, and come to the engine once, each
    lies in fresh memory for nobody: taking that from the kernel cost the engine up to 5% (two CPU cores;
    bench/NOTES.md).
    """
    given = spec.input.columns
    pictures = [*filter(None, [given.document]), *given.images]  # the first of these is what planning looks at
    asked_twice = spec.answer.schema is not None or spec.reasoning.budget_tokens is not None
    has_images = bool(given.images) or has_pictures(spec, columns)
    come_once = found.distinct and has_images and len(pictures) == 1 and not asked_twice
    return {"mm_processor_cache_gb": 0} if come_once and "mm_processor_cache_type" not in spec.model.engine_args else {}


def subset_plan(plan: Plan, row_ids: Iterable[str], spec: JobSpec) -> Plan:
    """The plan of a job that asks only some rows, by the same ids; files that cannot be read stay behind."""
    segments = [segment for _, segment in plan.chosen(row_ids)]
    return replace(planned(segments, spec, plan.columns, engine_hints=plan.engine_hints), revision=plan.revision)
