"""The real engine on a GPU: the quickstart's rows of text are answered with `replicas.gpus: 1`."""

import json
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.magbatch_cli import ROOT, JobFiles, magbatch, read

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not Path("/dev/nvidia0").exists(), reason="a machine without a GPU"),
]


def test_a_gpu_answers_the_quickstarts_rows_of_text(job: JobFiles, tmp_path: Path) -> None:
    rows = pq.read_table(ROOT / "jobs/data/quickstart.parquet")
    texts = rows.filter(pc.is_null(rows.column("image")))
    job.input.mkdir(exist_ok=True)
    pq.write_table(texts, job.input / "a.parquet")
    output = tmp_path / "answers"
    settings = [f"input.path={job.input}", f"output.path={output}", "replicas.gpus=1"]
    sets = [word for setting in settings for word in ("--set", setting)]
    done = magbatch("run", "jobs/quickstart.yaml", *sets, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    totals = json.loads(done.stdout)["totals"]
    assert (totals["answered"], totals["failed"]) == (texts.num_rows, 0)
    right = sum(row["answer"] == row["expected"] for row in read(output))
    assert right > texts.num_rows / 2, "answers are the model's own"
