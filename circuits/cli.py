"""The command line. Heavy imports wait until a command needs them: help must be quick."""

import sys

import typer

from circuits import options
from replacement.bundled import DEFAULT_HOST

app = typer.Typer(
    name="circuits",
    help="Attribution graphs: why a language model predicted its next token.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"circuits: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def root(version: options.Version = False) -> None:
    """Attribution graphs: why a language model predicted its next token."""
    if version:
        from importlib.metadata import version as installed

        print(installed("circuits-tracing"))
        raise typer.Exit()


@app.command()
def trace(
    prompt: options.Prompt,
    model: options.Model = DEFAULT_HOST,
    dictionary: options.DictionaryName = None,
    target: options.Targets = None,
    minus: options.Minus = None,
    position: options.Position = -1,
    budget: options.Budget = None,
    nodes: options.NodeShare = 0.8,
    edges: options.EdgeShare = 0.98,
    paths: options.Paths = 5,
    labels: options.LabelFile = None,
    features: options.KnownFeatures = None,
    groups: options.GroupFile = None,
    chat: options.Chat = False,
    device: options.Device = "auto",
    out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:
    """Trace a prompt: the concepts that led to the next token, and how they led there.

    Prints the prompt as tokens, the likely next tokens, how far the graph can be trusted, and the
    strongest paths of the pruned circuit; --out keeps it, with a page to look at.

    Example: circuits trace "the capital of the state containing Dallas is" --out runs/dallas
    """
    from circuits.report import Request, run

    request = Request(
        prompt, model, dictionary, target or [], minus, position, budget, nodes, edges, paths,
        labels, features, groups, chat, device, out,
    )  # fmt: skip
    run(request, as_json)


@app.command()
def show(
    file: options.GraphFile,
    nodes: options.NodeShare = 0.8,
    edges: options.EdgeShare = 0.98,
    labels: options.LabelFile = None,
    groups: options.GroupFile = None,
    out: options.Picture = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a saved graph's circuit as a tree: what was predicted, and what fed it. Needs no model.

    Example: circuits show runs/dallas/graph.safetensors --out dallas.html
    """
    from circuits.showing import Request, run

    run(Request(file, nodes, edges, labels, groups, out), as_json)


@app.command()
def steer(
    prompt: options.Steered,
    feature: options.Changes = None,
    model: options.Model = DEFAULT_HOST,
    dictionary: options.DictionaryName = None,
    at: options.At = None,
    start: options.From = None,
    tokens: options.NewTokens = 20,
    temperature: options.Temperature = 0.0,
    seed: options.SampleSeed = 0,
    chat: options.Chat = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Continue a prompt as it is and with features changed, side by side.

    Example: circuits steer "the capital of the state containing Dallas is" --feature Texas=0
    --feature California=1x --tokens 1
    """
    from circuits.steering import Request, run

    request = Request(
        prompt, model, dictionary, feature or [], at or [], start, tokens, temperature, seed,
        chat, device,
    )  # fmt: skip
    run(request, as_json)


@app.command()
def validate(
    file: options.GraphFile,
    model: options.OwnModel = None,
    dictionary: options.OwnDictionary = None,
    nodes: options.NodeShare = 0.8,
    edges: options.EdgeShare = 0.98,
    groups: options.GroupFile = None,
    factor: options.Factor = 0.0,
    concepts: options.TestedConcepts = 40,
    features: options.TestedFeatures = 200,
    seed: options.DrawSeed = 0,
    device: options.Device = "auto",
    out: options.Portrait = None,
    as_json: options.AsJson = False,
) -> None:
    """Test a saved graph on its model: do interventions do what it predicts?

    Ablates its concepts and random controls, compares predicted with observed changes, runs the
    circuit alone, and stores the figures in the graph's file.

    Example: circuits validate runs/dallas/graph.safetensors --out dallas.html
    """
    from circuits.validating import Request, run

    request = Request(
        file, model, dictionary, nodes, edges, groups, factor, concepts, features, seed, device,
        out,
    )  # fmt: skip
    run(request, as_json)


@app.command()
def evaluate(
    host: options.HostName,
    dictionary: options.Evaluated,
    corpus: options.Corpus,
    prompts: options.Prompts = 100,
    tokens: options.Tokens = 128,
    positions: options.Positions = "all",
    skip_first: options.SkipFirst = 0,
    traces: options.Traces = 8,
    device: options.Device = "auto",
    out: options.OutFile = None,
    as_json: options.AsJson = False,
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
def features(
    host: options.HostName,
    dictionary: options.Evaluated,
    corpus: options.EvidenceCorpus,
    prompts: options.Chunks = 10_000,
    tokens: options.Length = 128,
    skip_first: options.SkipFirst = 0,
    labels: options.LabelFile = None,
    explain: options.Explain = None,
    explain_model: options.ExplainModel = None,
    explain_feature: options.ExplainFeatures = None,
    device: options.Device = "auto",
    out: options.EvidenceFile = None,
    as_json: options.AsJson = False,
) -> None:
    """Gather what a dictionary's features are: names, contexts, and what they promote.

    Writes features.safetensors into the dictionary's folder, where traces find it. Nothing is sent
    anywhere unless --explain names an address; its key is read from CIRCUITS_EXPLAIN_KEY.

    Example: circuits features smollm2 runs/mine/dictionary corpus.txt --skip-first 1
    """
    from circuits.features import Request, run

    request = Request(
        host=host,
        dictionary=dictionary,
        corpus=corpus,
        prompts=prompts,
        tokens=tokens,
        skip_first=skip_first,
        labels=labels,
        explain=explain,
        explain_model=explain_model,
        explain_features=explain_feature or [],
        device=device,
        out=out,
    )
    run(request, as_json)


@app.command()
def train(
    host: options.HostName,
    out: options.RunOut,
    corpus: options.TrainingCorpus = None,
    self_generated: options.SelfMade = False,
    kind: options.Kind = "per-layer",
    features: options.Features = 1024,
    activation: options.ActivationName = "topk",
    k: options.Kept = 32,
    steps: options.Steps = None,
    tokens: options.TokenCount = None,
    batch: options.Batch = 1024,
    learning_rate: options.Rate = None,
    sparsity: options.Sparsity = None,
    even: options.Even = False,
    length: options.Length = 128,
    skip_first: options.SkipFirst = 0,
    buffer: options.BufferSize = 512,
    buffer_on_disk: options.OnDisk = False,
    checkpoint_every: options.Every = 1000,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Train a dictionary for a host: on a corpus, or on text that the host makes itself.

    Several GPUs, or processes: torchrun --nproc_per_node 2 -m circuits.cli train ...

    Example: circuits train smollm2 --self-generated --skip-first 1 --steps 5000 --out runs/mine
    """
    from circuits.training import Request, run

    settings = {
        "kind": kind, "features": features, "activation": activation, "k": k, "steps": steps,
        "tokens": tokens, "batch": batch, "learning_rate": learning_rate, "sparsity": sparsity,
        "even": even, "length": length, "skip_first": skip_first, "seed": seed,
        "checkpoint_every": checkpoint_every, "buffer_bytes": buffer * 2**20,
        "buffer_on_disk": buffer_on_disk,
    }  # fmt: skip
    run(Request(host, corpus, self_generated, settings, device, resume, out), as_json)


if __name__ == "__main__":
    main()
