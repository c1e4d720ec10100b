"""The model's files and the pipeline's steps in the driver, found once for a command and handed on."""

from magbatch.model.checkpoint import locate
from magbatch.pipeline.prepare import Steps
from magbatch.plan.plan import Plan
from magbatch.spec import JobSpec


def steps_of(spec: JobSpec, plan: Plan) -> Steps:
    """Make the steps of a job in the driver: errors of model, tokenizer and prompt show before anything is written.

    The model's files are those that the planner found, if this process made the plan. Otherwise they are located.

    Args:
        spec: The job.
        plan: Plan of the job.

    Raises:
        ModelError: The model's files are missing or have another version than the plan's.
        StorageError: Object storage or the hub refuses.
    """
    spec = plan.pinned(spec)
    return Steps.of(spec, plan.checkpoint or locate(spec.model, weights=False))
