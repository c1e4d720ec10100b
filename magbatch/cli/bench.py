"""`bench`: magbatch measured on this machine."""

import sys
from typing import Annotated

import typer

from magbatch.cli.show import command, errors

commands = typer.Typer()


@commands.command()
def bench(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="text, tail or image (all arms); occupancy, null, documents, memory, start or prefix; all.",
        ),
    ] = "text",
    rows: Annotated[int | None, typer.Option("--rows", min=1, metavar="N", help="Rows of a suite.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, metavar="N", help="How often each arm runs.")] = None,
    model: Annotated[str, typer.Option("--model", help="As model.source in a spec.")] = "builtin:tiny",
    gpus: Annotated[int, typer.Option("--gpus", min=0, help="GPUs of the engine; 0 runs on CPUs.")] = 0,
    engine_args: Annotated[
        list[str] | None,
        typer.Option("--engine-arg", metavar="NAME=VALUE", help="vLLM's own, given to every arm; may be repeated."),
    ] = None,
    arms: Annotated[str | None, typer.Option("--arms", metavar="A,B", help="Only these, such as raw,magbatch.")] = None,
    pin: Annotated[
        bool, typer.Option("--pin/--no-pin", help="On CPUs: the engine on half of the cores, all else on the others.")
    ] = True,
    keep: Annotated[
        str | None, typer.Option("--keep", metavar="DIR", help="Keep what the arms read and wrote here.")
    ] = None,
    json: Annotated[
        str | None, typer.Option("--json", metavar="PATH", help="Write every run, settings and versions here.")
    ] = None,
) -> None:
    """Measure magbatch on this machine against vLLM by itself and ray.data.llm."""
    with errors(False):
        from time import monotonic

        from magbatch.bench.run import bench as run_bench

        began = monotonic()

        def say(text: str) -> None:
            minutes, seconds = divmod(round(monotonic() - began), 60)
            print(f"[{minutes:2d}:{seconds:02d}] {text}", file=sys.stderr, flush=True)

        outcome = run_bench(
            suite, rows=rows, rounds=rounds, model=model, gpus=gpus, engine_args=engine_args or [], pin=pin,
            arms=arms, keep=keep, report=json, say=say,
        )  # fmt: skip
    print(outcome.markdown)
    made = sum(target["bound"] is not None for target in outcome.document["targets"])
    print(
        f"\nbench {suite}: {made - outcome.missed} of {made} targets met, in {(monotonic() - began) / 60:.0f} minutes"
    )
    if json is not None:
        print(f"  every run: {json}")
    if keep is not None:
        print(f"  what the arms read and wrote: {keep}")
    print(f"Next: {command('bench', 'all' if suite != 'all' else 'SUITE', '--json', 'bench.json')}")
