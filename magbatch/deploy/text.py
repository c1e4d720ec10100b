"""Manifests as YAML that a person can read."""

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """Dumper that writes texts of several lines as blocks, and repeats repeated values instead of using aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def to_yaml(manifest: dict[str, Any]) -> str:
    """Return a manifest as a YAML document."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
