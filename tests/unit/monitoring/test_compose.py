"""docker-compose.yml mounts what is there, and Grafana is provisioned with what is mounted."""

from pathlib import Path, PurePosixPath

import yaml

MONITORING = Path(__file__).parents[3] / "monitoring"
COMPOSE = yaml.safe_load((MONITORING / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]


def mounts(service: str) -> dict[str, str]:
    """Source of each mount of a service by its path in the container."""
    pairs = (volume.split(":")[:2] for volume in SERVICES[service].get("volumes", []))
    return {inside: outside for outside, inside in pairs}


def outside(service: str, inside: str) -> Path:
    """The file or folder of the checkout that a path in a container is."""
    for where, what in mounts(service).items():
        if PurePosixPath(inside).is_relative_to(where) and what.startswith("."):
            return MONITORING / what / PurePosixPath(inside).relative_to(where)
    raise AssertionError(f"nothing of the checkout is at {inside}")


def test_the_four_services_are_of_a_version_and_on_this_machine_alone() -> None:
    assert set(SERVICES) == {"prometheus", "alertmanager", "pushgateway", "grafana"}
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert any(char.isdigit() for char in tag), f"{name}: {service['image']}"
        assert service["network_mode"] == "host"
        listens = [*service.get("command", []), *map("=".join, service.get("environment", {}).items())]
        assert any("127.0.0.1" in item for item in listens), f"{name} would listen to everybody"


def test_everything_that_is_mounted_is_there() -> None:
    for name in SERVICES:
        for what in mounts(name).values():
            if what.startswith("."):
                assert (MONITORING / what).exists(), f"{name}: {what}"
            else:
                assert what in COMPOSE["volumes"]


def test_configurations_are_found_where_the_commands_say() -> None:
    for name in ("prometheus", "alertmanager"):
        (path,) = (item.partition("=")[2] for item in SERVICES[name]["command"] if item.startswith("--config.file="))
        assert outside(name, path).is_file()
    folder = PurePosixPath("/etc/prometheus")
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    for rules in config["rule_files"]:
        assert outside("prometheus", str(folder / rules)).is_file()
    (targets,) = (
        files
        for job in config["scrape_configs"]
        for discovery in job.get("file_sd_configs", [])
        for files in discovery["files"]
    )
    assert outside("prometheus", str((folder / targets).parent)).is_dir()


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    provisioning = outside("grafana", "/etc/grafana/provisioning")
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in SERVICES["prometheus"]["command"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/magbatch.yml").read_text())["providers"]
    assert (outside("grafana", provider["options"]["path"]) / "magbatch.json").is_file()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert outside("grafana", home).is_file()
