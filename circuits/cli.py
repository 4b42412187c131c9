"""The command line. Heavy imports wait until a command needs them: help must be quick."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from replacement.bundled import DEFAULT_HOST

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
    str, typer.Option(help="A bundled name (atlas, smollm2), a folder, a GGUF file or a hub name.")
]
DictionaryName = Annotated[
    str | None,
    typer.Option(
        help="What stands in for the MLPs: neurons (the host's own), a saved dictionary's folder, "
        "or for atlas per-layer (its default) or cross-layer; other hosts take neurons.",
    ),
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

HostName = Annotated[
    str,
    typer.Argument(help="A bundled name (atlas, smollm2), a folder, a GGUF file or a hub name."),
]
Evaluated = Annotated[
    str,
    typer.Argument(help="A saved dictionary's folder, neurons, or atlas's cross-layer, per-layer."),
]
Corpus = Annotated[
    Path, typer.Argument(help='A text file, one prompt a line, or JSON lines with a field "text".')
]
Prompts = Annotated[int, typer.Option(help="How many prompts to read, from the first on.")]
Tokens = Annotated[int, typer.Option(help="Longer prompts are cut to this many tokens.")]
Positions = Annotated[str, typer.Option(help="What counts: all positions, or each prompt's last.")]
SkipFirst = Annotated[
    int, typer.Option(help="Positions at each prompt's start that do not count: often outliers.")
]
Traces = Annotated[int, typer.Option(help="How many of the prompts to trace for their scores.")]
OutFile = Annotated[Path | None, typer.Option(help="JSON file for the report.")]

TrainingCorpus = Annotated[
    str | None,
    typer.Argument(help="A text file, JSON lines with a field text, or a Hugging Face dataset."),
]
SelfMade = Annotated[
    bool, typer.Option("--self-generated", help="Train on text sampled from the host: no corpus.")
]
Kind = Annotated[str, typer.Option(help="per-layer, skip or cross-layer.")]
Features = Annotated[int, typer.Option(help="Features a layer.")]
ActivationName = Annotated[str, typer.Option(help="topk, batchtopk, jumprelu or relu.")]
Kept = Annotated[int, typer.Option(help="Active features a position, for topk and batchtopk.")]
Steps = Annotated[int | None, typer.Option(help="How many steps to train; or give --tokens.")]
TokenCount = Annotated[int | None, typer.Option(help="How many positions to train on.")]
Batch = Annotated[int, typer.Option(help="Positions a step.")]
Rate = Annotated[float | None, typer.Option(help="Highest learning rate (0.03 / sqrt(width)).")]
Sparsity = Annotated[float | None, typer.Option(help="Weight of the penalty, for jumprelu, relu.")]
Even = Annotated[bool, typer.Option("--even", help="Draw positions evenly over token types.")]
Length = Annotated[int, typer.Option(help="Tokens a prompt; longer documents are cut in pieces.")]
BufferSize = Annotated[int, typer.Option(help="MiB of activations held for shuffling.")]
OnDisk = Annotated[
    bool,
    typer.Option("--buffer-on-disk", help="Keep them on disk, in --out, instead of in memory."),
]
Every = Annotated[int, typer.Option(help="Steps from checkpoint to checkpoint.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same dictionary.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")
]
RunOut = Annotated[Path, typer.Option(help="Folder for the dictionary, its log and checkpoints.")]


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
    model: Model = DEFAULT_HOST,
    dictionary: DictionaryName = None,
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

    Example: circuits trace "the capital of the state containing Dallas is" --out runs/dallas
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


@app.command()
def evaluate(
    host: HostName,
    dictionary: Evaluated,
    corpus: Corpus,
    prompts: Prompts = 100,
    tokens: Tokens = 128,
    positions: Positions = "all",
    skip_first: SkipFirst = 0,
    traces: Traces = 8,
    device: Device = "auto",
    out: OutFile = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a dictionary: how faithful a host's replacement is on a corpus of prompts.

    Prints per layer the variance unexplained (FVU), the active features a position (L0) and the
    dead features; how the model fares with every MLP replaced; and the mean scores of traces.

    Example: circuits evaluate atlas cross-layer prompts.txt --out runs/report.json
    """
    from circuits.evaluation import Request, run

    request = Request(
        host=host,
        dictionary=dictionary,
        corpus=corpus,
        prompts=prompts,
        tokens=tokens,
        positions=positions,
        skip_first=skip_first,
        traces=traces,
        device=device,
        out=out,
    )
    run(request, as_json)


@app.command()
def train(
    host: HostName,
    out: RunOut,
    corpus: TrainingCorpus = None,
    self_generated: SelfMade = False,
    kind: Kind = "per-layer",
    features: Features = 1024,
    activation: ActivationName = "topk",
    k: Kept = 32,
    steps: Steps = None,
    tokens: TokenCount = None,
    batch: Batch = 1024,
    learning_rate: Rate = None,
    sparsity: Sparsity = None,
    even: Even = False,
    length: Length = 128,
    skip_first: SkipFirst = 0,
    buffer: BufferSize = 512,
    buffer_on_disk: OnDisk = False,
    checkpoint_every: Every = 1000,
    seed: Seed = 0,
    resume: Resume = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a dictionary for a host: on a corpus, or on text that the host makes itself.

    Several GPUs, or processes: torchrun --nproc_per_node 2 -m circuits.cli train ...

    Example: circuits train smollm2 --self-generated --skip-first 1 --steps 5000 --out runs/mine
    """
    from circuits.training import Request, run

    options = {
        "kind": kind, "features": features, "activation": activation, "k": k, "steps": steps,
        "tokens": tokens, "batch": batch, "learning_rate": learning_rate, "sparsity": sparsity,
        "even": even, "length": length, "skip_first": skip_first, "seed": seed,
        "checkpoint_every": checkpoint_every, "buffer_bytes": buffer * 2**20,
        "buffer_on_disk": buffer_on_disk,
    }  # fmt: skip
    run(Request(host, corpus, self_generated, options, device, resume, out), as_json)


if __name__ == "__main__":
    main()
