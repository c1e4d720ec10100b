"""Arguments and options that several commands share."""

from typing import Annotated

import typer

SpecPath = Annotated[str, typer.Argument(metavar="SPEC", help="The job's YAML file.")]
SpecOrOutput = Annotated[
    str, typer.Argument(metavar="SPEC|OUTPUT", help="The job's YAML file, or its output.path, local or s3://.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a field of the spec; may be repeated."),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, metavar="N", help="Run a sample of N rows, spread evenly, with an output of its own."
    ),
]
SpecOverrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY.PATH=VALUE", help="With a spec: the overrides that the job was run with; may be repeated."
    ),
]
SpecLimit = Annotated[
    int | None, typer.Option("--limit", min=1, metavar="N", help="With a spec: the sample of N rows that was run.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document for a program on standard output.")]
Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", metavar="URL", help="The cluster's dashboard, http://head:8265."
    ),
]
