"""Output of `deploy render`: the files, or their names and the commands that use them."""

from magbatch.cli.show import print_text, say, say_next
from magbatch.counts import counted


def print_files(files: dict[str, str]) -> None:
    """Print rendered files on standard output.

    Args:
        files: Name to content.
    """
    print_text("---\n".join(f"# {name}\n{text}" for name, text in files.items()))


def print_written(spec: str, target: str, folder: str, names: list[str], following: list[str]) -> None:
    """Print where rendered files were written.

    Args:
        spec: File of the spec.
        target: Platform that the files are for.
        folder: Folder of the files.
        names: Names of the files.
        following: Commands to run next.
    """
    say(f"{spec}: {counted(len(names), 'file')} for {target} in {folder}")
    for name in names:
        say(f"  {name}")
    for command in following:
        say_next(command)
