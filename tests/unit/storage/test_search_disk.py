"""Input files on a disk are found once each, whatever links lead to them; refusals name the path."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from magbatch.errors import InputError, JobError, StorageError
from magbatch.storage.search import find_input


def below(root: str, path: str) -> list[str]:
    """The files behind a path, relative to the root."""
    return [item.name.removeprefix(f"{root}/") for item in find_input(path).files]


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/**"])
def test_every_real_file_is_found_once_whatever_links_lead_to_it(tmp_path: Path, path: str) -> None:
    """Each file has its name without links. Folders that link to themselves, or up, end."""
    root = tmp_path / "in"
    put(root, "a.parquet", "2026-11-24/b.parquet", "2026-11-24/c.parquet")
    put(tmp_path, "elsewhere/d.parquet")
    (root / "self").symlink_to(".")
    (root / "again").symlink_to(root)
    (root / "0-latest").symlink_to("2026-11-24")
    (root / "0-one.parquet").symlink_to("2026-11-24/b.parquet")
    (root / "0-hard.parquet").hardlink_to(root / "2026-11-24/c.parquet")
    (root / "2026-11-24/up").symlink_to("..")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "out-again").symlink_to(tmp_path / "elsewhere")
    assert below(str(root), f"{root}{path}") == ["0-hard.parquet", "2026-11-24/b.parquet", "a.parquet", "out/d.parquet"]


def test_links_in_circles_have_an_end(tmp_path: Path) -> None:
    """Some 40 links deep, a path is too long; two links in each folder would make that 2 to the 40th paths."""
    put(tmp_path, "a.parquet", "sub/b.parquet")
    for folder in (tmp_path, tmp_path / "sub"):
        for number in range(3):
            (folder / f"circle{number}").symlink_to(tmp_path)
    for path in ("", "/**", "/**/*.parquet", "/**/**/*.parquet"):
        assert below(str(tmp_path), f"{tmp_path}{path}") == ["a.parquet", "sub/b.parquet"]


def test_a_glob_may_name_a_link(tmp_path: Path) -> None:
    put(tmp_path, "2026-11-24/b.parquet")
    (tmp_path / "latest").symlink_to("2026-11-24")
    for path in ("latest", "latest/*.parquet", "lat*/*.parquet", "*/*.parquet", "latest/b.parquet"):
        first = "2026-11-24" if path.startswith("*") else "latest"
        assert below(str(tmp_path), f"{tmp_path}/{path}") == [f"{first}/b.parquet"]


def test_a_link_to_nothing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").symlink_to("gone.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is a link to a file that is not there"):
        find_input(str(tmp_path))


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/**", "/*", "/*/*.parquet", "/deep/*/*.parquet"])
def test_links_that_lead_nowhere_do_not_hide_what_lies_beside_them(tmp_path: Path, path: str) -> None:
    """Links to themselves, to each other or past a file are not folders."""
    put(tmp_path, "a.parquet", "deep/b.parquet", "deep/er/c.parquet")
    for folder in (tmp_path, tmp_path / "deep"):
        (folder / "loop").symlink_to("loop")
        (folder / "ping").symlink_to("pong")
        (folder / "pong").symlink_to("ping")
        (folder / "_hidden").symlink_to("gone")
        (folder / ".hidden.parquet").symlink_to(".hidden.parquet")
    if not path.endswith("*") or path.endswith("parquet"):
        (tmp_path / "gone").symlink_to("nowhere")
        (tmp_path / "long").symlink_to("x" * 300)
        (tmp_path / "past").symlink_to("a.parquet/b")
    found = {
        "/*": ["a.parquet"],
        "/*/*.parquet": ["deep/b.parquet"],
        "/deep/*/*.parquet": ["deep/er/c.parquet"],
    }
    assert below(str(tmp_path), f"{tmp_path}{path}") == found.get(
        path, ["a.parquet", "deep/b.parquet", "deep/er/c.parquet"]
    )


@pytest.mark.parametrize("path", ["", "/*.parquet", "/**"])
def test_a_link_to_itself_by_the_name_of_a_file_is_said(tmp_path: Path, path: str) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet is a link that leads to itself; fix it or remove it"):
        find_input(f"{tmp_path}{path}")


def test_a_link_past_a_file_is_said(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "b.parquet").symlink_to("a.parquet/b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet is a link to a file that is not there"):
        find_input(str(tmp_path))


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, InputError), (errno.EPERM, InputError), (errno.EIO, StorageError), (errno.ESTALE, StorageError)],
)
def test_a_folder_that_cannot_be_read_is_a_mistake_unless_that_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[JobError]
) -> None:
    """The error names the folder. Left out silently, its rows would not be missed."""
    put(tmp_path, "a.parquet", "shut/b.parquet")
    scan = os.scandir

    def refuse(folder: str) -> object:
        if folder.endswith("/shut"):
            raise OSError(number, os.strerror(number), folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match=rf"{tmp_path}/shut.*{os.strerror(number)}") as caught:
        find_input(str(tmp_path))
    assert caught.value.exit_code == (2 if kind is InputError else 3)


@pytest.mark.parametrize("path", ["", "/**/*.parquet", "/*/in/*.parquet", "/*/*.parquet"])
def test_a_link_that_may_not_be_followed_is_said_unless_its_name_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    put(tmp_path, "a/b.parquet", "a/in/c.parquet")
    state = os.stat

    def refuse(name: str, **options: Any) -> os.stat_result:
        if "shut" in os.fsdecode(name):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), name)
        return state(name, **options)

    monkeypatch.setattr(os, "stat", refuse)
    (tmp_path / "_shut").symlink_to("/root")
    assert below(str(tmp_path), f"{tmp_path}{path}")
    (tmp_path / "shut").symlink_to("/root")
    with pytest.raises(InputError, match=rf"{tmp_path}/shut.* cannot be read: Permission denied; give this user"):
        find_input(f"{tmp_path}{path}")


@pytest.mark.parametrize("path", ["", "/*.parquet", "/pipe.parquet"])
def test_only_files_are_input(tmp_path: Path, path: str) -> None:
    """A named pipe would be waited for without an end."""
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(InputError, match=r"pipe\.parquet is neither a file nor a folder"):
        find_input(f"{tmp_path}{path}")
