"""Output of a sample (`--limit N`): a path of its own, next to the job's output."""

from magbatch.spec import JobSpec


def limited(spec: JobSpec, limit: int | None) -> JobSpec:
    """Spec of a sample: the same job with an output of its own, next to the job's output.

    If the output is the root of a bucket or disk, the sample goes inside it: a name next to it would be another bucket.

    Args:
        spec: Spec of the whole job.
        limit: Rows of the sample; None for the whole job.

    >>> limited(spec, 5).output.path  # of a job whose output.path is s3://acme/november
    's3://acme/november-limit-5'
    >>> limited(spec, 5).output.path  # of a job whose output.path is s3://acme
    's3://acme/limit-5'
    """
    if limit is None:
        return spec
    path = spec.output.path.rstrip("/")
    is_root = not path or (path.startswith("s3://") and "/" not in path.removeprefix("s3://"))
    return spec.with_output(f"{path}{'/' if is_root else '-'}limit-{limit}")
