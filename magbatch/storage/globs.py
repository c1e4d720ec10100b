"""Names of input files: which names a path, a folder or a glob selects, on a disk and in a bucket alike.

Names are compared as lists of path components, such as `["in", "day=1", "x.parquet"]`.
"""

import re
from fnmatch import fnmatchcase

WILDCARD = re.compile(r"[*?\[]")


def is_data(relative: str) -> bool:
    """Whether a file below an input folder is read: a `*.parquet` name without hidden components."""
    return relative.endswith(".parquet") and not any(is_hidden(part) for part in relative.split("/"))


def is_hidden(name: str) -> bool:
    """Whether writers hide files of this name, such as `_SUCCESS` or `.crc`."""
    return name.startswith(("_", "."))


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder or lies in it; both absolute, or both URLs."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def listed_prefix(key: str) -> str:
    """Return the longest prefix that all keys selected by a key, or by a glob over keys, have in common.

    >>> listed_prefix("in/2026-*/x.parquet"), listed_prefix("in/")
    ('in/2026-', 'in/')
    """
    wildcard = WILDCARD.search(key)
    return key[: wildcard.start()] if wildcard else key


def matches(name: list[str], pattern: list[str]) -> bool:
    """Whether a glob selects a name. `**` stands for any number of folders; wildcards skip hidden names.

    Args:
        name: Components of the name.
        pattern: Components of the glob.

    >>> matches(["in", "a", "b", "x"], ["in", "**", "x"]), matches(["in", "_tmp", "x"], ["in", "*", "x"])
    (True, False)
    """
    if not name or not pattern:
        return not name and all(part == "**" for part in pattern)
    first, *rest = pattern
    if first == "**" and matches(name, rest):
        return True
    if is_hidden(name[0]) and name[0][0] != first[:1]:
        return False
    if first == "**":
        return matches(name[1:], pattern)
    return fnmatchcase(name[0], first) and matches(name[1:], rest)
