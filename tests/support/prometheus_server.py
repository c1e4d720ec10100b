"""A real Prometheus with the project's own configuration, in a process of its own."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from support.magbatch_cli import ROOT, free_port, wait_until

SCRAPE_INTERVAL = "1s"  # instead of the shipped 15 s: the main job is over in one and a half minutes


class Prometheus:
    """A running Prometheus server.

    Args:
        url: Address of the server.
        targets: Folder in which jobs announce their endpoints.
    """

    def __init__(self, url: str, targets: Path) -> None:
        self.url, self.targets = url, targets

    @classmethod
    @contextmanager
    def running(cls, folder: Path) -> Iterator[Self]:
        """Run the server for the length of a block, on the shipped configuration except for intervals and folders."""
        targets = folder / "targets"
        targets.mkdir()
        config: dict[str, Any] = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL}
        config["rule_files"] = [str(ROOT / "monitoring" / pattern) for pattern in config["rule_files"]]
        config.pop("alerting", None)
        for job in config["scrape_configs"]:
            job.pop("scrape_interval", None)
            job.pop("scrape_timeout", None)
            for group in job.get("static_configs", []):
                group["targets"] = ["127.0.0.1:1"]  # nobody: the default port is any test's
            for discovery in job.get("file_sd_configs", []):
                discovery |= {"files": [f"{targets}/*.json"], "refresh_interval": SCRAPE_INTERVAL}
        file, port = folder / "prometheus.yml", free_port()
        file.write_text(yaml.safe_dump(config))
        command = [
            "prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        server = cls(f"http://127.0.0.1:{port}", targets)
        try:
            wait_until(lambda: process.poll() is not None or server.is_ready(), "Prometheus to be ready", seconds=60)
            assert process.poll() is None, (folder / "log").read_text()
            yield server
        finally:
            process.terminate()
            process.wait()

    def is_ready(self) -> bool:
        """Whether it answers queries."""
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/-/ready", trust_env=False).status_code == httpx.codes.OK
        return False

    def query(self, promql: str, at: float | None = None) -> list[dict[str, Any]]:
        """The series of an instant query.

        Raises:
            AssertionError: The server refuses the query; the message is the server's.
        """
        answer = self._ask("query", query=promql, time=at or time.time())
        return list(answer["result"])

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its state and health."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def _ask(self, what: str, **parameters: Any) -> dict[str, Any]:
        found = httpx.get(f"{self.url}/api/v1/{what}", params=parameters, trust_env=False).json()
        assert found["status"] == "success", f"{parameters}: {found}"
        data: dict[str, Any] = found["data"]
        return data
