"""The command line. Heavy imports wait until a command needs them: help must be quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="circuits",
    help="Attribution graphs: why a language model predicted its next token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Prompt = Annotated[str, typer.Argument(help="The text whose next token is to be explained.")]
Model = Annotated[
    str, typer.Option(help="A bundled name (smollm2), a folder, a GGUF file or a hub name.")
]
DictionaryName = Annotated[
    str, typer.Option(help="What stands in for the MLPs: neurons, the host's own.")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(help="A token to explain, instead of the likely ones; may be repeated."),
]
Minus = Annotated[str | None, typer.Option(help="Explain the one --target less this token.")]
Position = Annotated[
    int, typer.Option(help="The position whose next token is explained; -1 is the last.")
]
Budget = Annotated[
    int | None, typer.Option(help="How many features get a row of their own (4096).")
]
NodeShare = Annotated[float, typer.Option(help="Share of the influence that nodes keep.")]
EdgeShare = Annotated[float, typer.Option(help="Share of the influence that edges keep.")]
Paths = Annotated[int, typer.Option(help="How many of the strongest paths to print.")]
Chat = Annotated[bool, typer.Option("--chat", help="Apply the model's chat template.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for graph, tables (CSV), GraphML and Neuronpedia JSON.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Version = Annotated[bool, typer.Option("--version", help="Print the version and stop.")]


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"circuits: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def root(version: Version = False) -> None:
    """Attribution graphs: why a language model predicted its next token."""
    if version:
        from importlib.metadata import version as installed

        print(installed("circuits-tracing"))
        raise typer.Exit()


@app.command()
def trace(
    prompt: Prompt,
    model: Model = "smollm2",
    dictionary: DictionaryName = "neurons",
    target: Targets = None,
    minus: Minus = None,
    position: Position = -1,
    budget: Budget = None,
    nodes: NodeShare = 0.8,
    edges: EdgeShare = 0.98,
    paths: Paths = 5,
    chat: Chat = False,
    device: Device = "auto",
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Trace a prompt: the features that led to the next token, and how they led there.

    Prints the prompt as tokens, the likely next tokens, how far the graph can be trusted, and the
    strongest paths of the pruned circuit.

    Example: circuits trace "The capital of France is" --target " Paris" --out runs/paris
    """
    from circuits.report import Request, run

    request = Request(
        prompt=prompt,
        model=model,
        dictionary=dictionary,
        targets=target or [],
        minus=minus,
        position=position,
        budget=budget,
        nodes=nodes,
        edges=edges,
        paths=paths,
        chat=chat,
        device=device,
        out=out,
    )
    run(request, as_json)


if __name__ == "__main__":
    main()
