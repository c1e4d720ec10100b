"""Options that several commands share: their names, and the bounds of their values."""

import pytest
import typer
from typer.testing import CliRunner

from magbatch.cli.options import Address, Json, Limit, Overrides, SpecPath

small = typer.Typer()


@small.command()
def show(
    path: SpecPath, overrides: Overrides = None, limit: Limit = None, json: Json = False, address: Address = "local"
) -> None:
    """Print the values."""
    print(path, overrides, limit, json, address)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["job.yaml"], "job.yaml None None False local"),
        (["job.yaml", "--set", "a.b=1", "--set", "c=2"], "job.yaml ['a.b=1', 'c=2'] None False local"),
        (["job.yaml", "--limit", "3", "--json"], "job.yaml None 3 True local"),
        (["job.yaml", "--address", "http://head:8265"], "job.yaml None None False http://head:8265"),
    ],
)
def test_options_reach_their_command(words: list[str], shown: str) -> None:
    assert CliRunner().invoke(small, words).stdout.strip() == shown


def test_the_cluster_may_come_from_the_environment() -> None:
    done = CliRunner().invoke(small, ["job.yaml"], env={"RAY_API_SERVER_ADDRESS": "http://head:8265"})
    assert done.stdout.split()[-1] == "http://head:8265"


@pytest.mark.parametrize("limit", ["0", "-1", "many"])
def test_a_sample_has_a_row_or_more(limit: str) -> None:
    assert CliRunner().invoke(small, ["job.yaml", "--limit", limit]).exit_code == 2
