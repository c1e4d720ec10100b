"""Fixtures that the tests of the steps share."""

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from magbatch.spec import JobSpec, parse


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., JobSpec]:
    """A spec from its sections; what is not given asks the column `question` of the tiny model."""

    def make(**sections: Any) -> JobSpec:
        whole: dict[str, Any] = {
            "name": "test",
            "model": {"source": "builtin:tiny"},
            "input": {"path": "/nowhere", "columns": {"prompt": "question"}},
            "output": {"path": "/nowhere/out"},
            "replicas": {"gpus": 0},
        }
        return parse(yaml.safe_dump(whole | sections))

    return make
