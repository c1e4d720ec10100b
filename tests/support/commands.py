"""Commands run in this process or in a fresh one, and what they print."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from magbatch.cli.app import app
from support.small_job import SmallJob


def spec_file(job: SmallJob, **sections: Any) -> str:
    """The job's spec as a YAML file."""
    path = Path(job.root, "job.yaml")
    path.write_text(job.spec(**sections).to_yaml(), encoding="utf-8")
    return str(path)


def command(*args: str) -> Result:
    """Run the command in this process; an exception that is none of its own exits fails the test."""
    result = CliRunner().invoke(app, list(args))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result) -> str:
    """The one message of a command that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("magbatch: ") == 1
    assert result.stderr.startswith("magbatch: ")
    return result.stderr.removeprefix("magbatch: ").rstrip("\n")


def loaded_by(*args: str) -> set[str]:
    """The top-level modules in a fresh process after it ran the command."""
    program = (
        "import atexit, json, runpy, sys\n"
        "atexit.register(lambda: print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules}))))\n"
        f"sys.argv = ['magbatch', *{list(args)!r}]\n"
        "runpy.run_module('magbatch', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))
