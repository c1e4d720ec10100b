"""`python -m magbatch` is the `magbatch` command."""

import signal
import sys

from magbatch import environment, guard

STARTS_RAY = (["run"], ["retry"], ["schedule", "tick"])


def main() -> None:
    """Entry point of the `magbatch` command."""
    for number in (signal.SIGINT, signal.SIGTERM, guard.STOP):  # set before the slow imports
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, guard.interrupt)
    environment.steady()
    words = sys.argv[1:]
    if any(words[: len(names)] == names for names in STARTS_RAY) and "--help" not in words:
        guard.enter()
    try:
        from magbatch.cli.app import main as command
    except BaseException:  # an import may turn a KeyboardInterrupt into any exception
        if not guard.was_interrupted():
            raise
        guard.leave_interrupted()
    command()


if __name__ == "__main__":
    main()
