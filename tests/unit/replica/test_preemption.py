"""SIGTERM reaches a replica even while the main thread runs no Python."""

import subprocess
import sys

# A lock's acquire in C: a handler in Python would run only once it returns, which a lock without a timeout never does.
CODE = """
import os, signal, threading
from magbatch.replica import preemption

signal.signal(signal.SIGTERM, lambda *_: None)
preemption.listen(lambda: os._exit(9))
assert not preemption.notice.is_set()
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()

def report():
    heard = preemption.notice.wait(10)
    print("heard" if heard else "deaf", flush=True)
    os._exit(0)

threading.Thread(target=report).start()
threading.Event().wait()
"""


def test_sigterm_sets_the_notice() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "heard"), done.stderr
