"""`bench` measures magbatch on this machine."""

from time import monotonic
from typing import Annotated

import typer

from magbatch.cli.errors import errors
from magbatch.cli.show import note
from magbatch.cli.show_bench import print_bench

commands = typer.Typer()


@commands.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="Benchmark to run. Against the other arms: text, tail, image. magbatch alone: occupancy, null, "
            "documents, memory, start, prefix. Every suite: all.",
        ),
    ] = "text",
    rows: Annotated[int | None, typer.Option("--rows", min=1, metavar="N", help="Rows of a suite.")] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, metavar="N", help="Number of times that each arm runs.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Model, as model.source in a spec.")] = "builtin:tiny",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the engine; 0 runs on CPUs.")] = 0,
    engine_args: Annotated[
        list[str] | None,
        typer.Option(
            "--engine-arg", metavar="NAME=VALUE", help="Argument of vLLM, given to every arm; may be repeated."
        ),
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="Arms to run, such as raw,magbatch.")
    ] = None,
    pin: Annotated[
        bool,
        typer.Option(
            "--pin/--no-pin", help="On CPUs: give the engine half of the cores, and everything else the other half."
        ),
    ] = True,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="Keep the files that the arms read and wrote here.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write every run, with settings and versions, here.")
    ] = None,
) -> None:
    """Measure magbatch on this machine, compared with plain vLLM and ray.data.llm."""
    with errors(False):
        from magbatch.bench.run import bench as run_bench

        began = monotonic()

        def say(text: str) -> None:
            minutes, seconds = divmod(round(monotonic() - began), 60)
            note(f"[{minutes:2d}:{seconds:02d}] {text}")

        outcome = run_bench(
            suite, rows=rows, rounds=rounds, model=model, gpus=gpus, engine_args=engine_args or [], pin=pin,
            arms=arms, keep=keep, report=json, say=say,
        )  # fmt: skip
    print_bench(suite, outcome, monotonic() - began, json, keep)
