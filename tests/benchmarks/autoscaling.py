"""Share of the replicas' time with useful work, on nodes that come for a job and go: Ray's real autoscaler.

    uv run --no-sync python tests/benchmarks/autoscaling.py

A job runs from no node to three and back, with replicas {min: 0, max: 3} on the scripted engine. 1% of its rows are
16 times as long. The script prints the seconds for which replicas held devices, for each replica's slot and in all. It
also prints the share of these seconds in which every slot of the engine was taken.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.autoscaling_cluster import autoscaling_cluster
from support.magbatch_cli import JobFiles, magbatch

LONG_EVERY = 100
TOKEN_S = 0.02


def main() -> None:
    """Run it once and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--max-replicas", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mb-", dir="/tmp", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        job = JobFiles(folder)
        rows = range(arguments.rows)
        questions = [f"What is {i}?{' LONG' if i % LONG_EVERY == 0 else ''}" for i in rows]
        job.write_input(arguments.rows, question=questions)
        job.engine |= {"max_num_seqs": 4, "token_s": TOKEN_S, "script": [{"contains": "LONG", "tokens": 350}]}
        spec = job.write_spec(replicas={"min": 0, "max": arguments.max_replicas, "gpus": 1, "cpus": 0.5})
        (folder / "ray").mkdir()
        with autoscaling_cluster(folder / "ray", max_workers=arguments.max_replicas) as cluster:
            done: subprocess.CompletedProcess[str] = magbatch("run", spec, "--json", RAY_ADDRESS=cluster.address)
        if done.returncode:
            sys.exit(done.stderr)
        places = json.loads(done.stdout)["replicas"]
    print("| place | rows | held (s) | full (s) | share |\n|---|---|---|---|---|")
    for place in places:
        held, full = place["seconds"], place["seconds"] - place["short_s"]
        print(f"| {place['number']} | {place['rows']} | {held:.0f} | {full:.0f} | {full / held:.2f} |")
    held = sum(place["seconds"] for place in places)
    full = held - sum(place["short_s"] for place in places)
    print(
        f"\nuseful share of replica-seconds: {full / held:.2f} (engine starts count as useful here: the fake has none)"
    )


if __name__ == "__main__":
    main()
