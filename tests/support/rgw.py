"""A real S3 server: Ceph's RADOS Gateway on a monitor and one disk of its own, all on loopback.

What it has acknowledged outlives a kill -9 of all its processes, as it does in production.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

PACKAGES = ("ceph-mon", "ceph-osd", "ceph-common", "radosgw")
NEEDED = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
START_S = 120
ASK_S = 60
CONF = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
public network = 127.0.0.0/8
cluster network = 127.0.0.0/8
auth allow insecure global id reclaim = false
keyring = {folder}/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name.log
log to stderr = false
err to stderr = true
[mon]
paxos propose interval = 0.02
paxos min wait = 0.02
mon data = {folder}/mon
mon data avail warn = 1
mon data avail crit = 1
mon initial members = a
mon cluster log file = {folder}/log/cluster.log
mon osd min down reporters = 1
[mon.a]
mon addr = v1:127.0.0.1:{mon_port}
host = localhost
[osd]
osd data = {folder}/osd
osd objectstore = bluestore
bluestore block size = 10737418240
bluestore block create = true
bluestore cache autotune = false
bluestore cache size = 67108864
osd memory target = 939524096
osd class update on start = false
osd crush update on start = false
osd client watch timeout = 2
osd op num shards = 2
osd op num threads per shard = 1
[client.rgw]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{port} tcp_nodelay=1
rgw thread pool size = 64
rgw num control oids = 1
rgw run sync thread = false
rgw enable usage log = false
rgw enable ops log = false
"""
KEYS = {
    "mon.": ["--cap", "mon", "allow *"],
    "client.admin": ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"],
    "client.rgw": ["--cap", "mon", "allow rw", "--cap", "osd", "allow rwx"],
    "osd.0": ["--cap", "mon", "allow profile osd", "--cap", "osd", "allow *"],
}


def missing() -> str | None:
    """Why RGW cannot run here; None where it can."""
    lacking = [name for name in NEEDED if shutil.which(name) is None]
    return f"needs the Debian packages {' '.join(PACKAGES)} (no {', '.join(lacking)})" if lacking else None


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Rgw:
    """A server, not started yet.

    Args:
        folder: Folder of its configuration, logs and disk; a short path, because sockets lie in it.
        access_key: Access key of its only user.
        secret_key: Secret key of that user.
    """

    def __init__(self, folder: Path, access_key: str, secret_key: str) -> None:
        self._folder = folder
        self._user = ["--uid=test", "--display-name=test", f"--access-key={access_key}", f"--secret-key={secret_key}"]
        self._fsid = str(uuid.uuid4())
        self._port, self._mon_port = _free_ports(2)
        self._environment = os.environ | {"CEPH_CONF": str(folder / "ceph.conf")}
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._made = False
        self.endpoint = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start what there is, or make it first; back when it answers."""
        if not self._made:
            self._make()
        self._spawn("ceph-mon", "-i", "a", "-f")
        if self._made:
            self._ask("ceph", "osd", "down", "0")  # or the monitor would believe in the dead one for a while
        else:
            disk = str(uuid.uuid4())
            self._ask("ceph", "osd", "new", disk)
            self._ask("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
            self._ask("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
        self._spawn("ceph-osd", "-i", "0", "-f")
        if not self._made:
            self._ask("radosgw-admin", "user", "create", *self._user)
            self._made = True
        deadline = time.monotonic() + START_S
        while " 1 up" not in self._ask("ceph", "osd", "stat"):
            self._check(deadline)
        self._spawn("radosgw", "-f", "-n", "client.rgw")
        while not self._answers():
            self._check(deadline)

    def crash(self) -> None:
        """kill -9 of every daemon, at once."""
        for daemon in self._daemons:
            daemon.kill()
        for daemon in self._daemons:
            daemon.wait()
        self._daemons = []

    def _make(self) -> None:
        for name in ("mon", "osd", "rgw", "run", "log"):
            (self._folder / name).mkdir()
        conf = CONF.format(fsid=self._fsid, mon_port=self._mon_port, port=self._port, folder=self._folder)
        (self._folder / "ceph.conf").write_text(conf)
        keyring, monmap = str(self._folder / "keyring"), str(self._folder / "monmap")
        (self._folder / "keyring").touch(0o600)
        for name, caps in KEYS.items():
            self._ask("ceph-authtool", keyring, "--gen-key", "-n", name, *caps)
        self._ask(
            "monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"v1:127.0.0.1:{self._mon_port}", monmap
        )
        self._ask("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)

    def _spawn(self, *command: str) -> None:
        with (self._folder / "log" / f"{command[0]}.out").open("ab") as said:
            self._daemons.append(subprocess.Popen(command, env=self._environment, stdout=said, stderr=said))

    def _ask(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=ASK_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}{self._said()}")
        return done.stdout

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.endpoint, timeout=5):
                return True
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    def _check(self, deadline: float) -> None:
        ended = [str(daemon.args) for daemon in self._daemons if daemon.poll() is not None]
        if ended or time.monotonic() > deadline:
            raise RuntimeError(f"RGW did not start; ended: {ended or 'nothing'}{self._said()}")
        time.sleep(0.1)

    def _said(self) -> str:
        logs = sorted((self._folder / "log").glob("*"))
        return "".join(f"\n{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in logs)
