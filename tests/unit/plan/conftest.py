import pytest
from support.grouped_rows import FIRST, ask_about, shuffled
from support.small_job import SmallJob


@pytest.fixture
def texts(job: SmallJob) -> SmallJob:
    """80 rows over 10 texts, in no order, and a template that begins with the text."""
    job.set("prompt", template=FIRST)
    job.set("input", columns={"id": "id"})
    job.set("limits", max_prompt_tokens=4000)
    ask_about(job, shuffled(80, 10))
    return job
