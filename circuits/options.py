"""The arguments and options of the command line: their types and their help."""

from pathlib import Path
from typing import Annotated

import typer

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
    Path | None,
    typer.Option(
        help="Folder for the graph, its page (HTML), tables (CSV), GraphML and Neuronpedia JSON."
    ),
]
LabelFile = Annotated[
    Path | None,
    typer.Option(
        "--labels", help='Your labels: CSV (layer,feature,label) or JSON ({"L2/F472": "Texas"}).'
    ),
]
KnownFeatures = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="What `circuits features` found, unless it is in the dictionary's folder.",
    ),
]
GroupFile = Annotated[
    Path | None, typer.Option("--groups", help="Concepts made by hand: a file of save_groups.")
]
GraphFile = Annotated[
    Path,
    typer.Argument(help="A graph that was saved: graph.safetensors of `circuits trace --out`."),
]
Picture = Annotated[
    Path | None, typer.Option(help="Draw it: an .html page, or .svg, .pdf, .png for papers.")
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

EvidenceCorpus = Annotated[
    str,
    typer.Argument(help="A text file, JSON lines with a field text, or a Hugging Face dataset."),
]
Chunks = Annotated[int, typer.Option(help="How many prompts to read at most, from the first on.")]
Explain = Annotated[
    str | None,
    typer.Option(
        help="Ask for labels too: the address of an OpenAI-compatible service, as in "
        "http://localhost:8000/v1, or a language model's folder or hub name, to be run here.",
    ),
]
ExplainModel = Annotated[
    str | None, typer.Option(help="Which of the service's models, where --explain is an address.")
]
ExplainFeatures = Annotated[
    list[str] | None,
    typer.Option(help="A feature to explain, as in L2/F472, instead of all; may be repeated."),
]
EvidenceFile = Annotated[
    Path | None,
    typer.Option(help="The file, unless it is to be features.safetensors beside the dictionary."),
]

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

OwnModel = Annotated[
    str | None, typer.Option("--model", help="The graph's model, unless its name finds it.")
]
OwnDictionary = Annotated[
    str | None, typer.Option("--dictionary", help="Its dictionary, unless its name finds it.")
]
Factor = Annotated[float, typer.Option(help="What concepts are multiplied by; 0 ablates them.")]
TestedConcepts = Annotated[
    int, typer.Option("--concepts", help="How many concepts to test, the most influential first.")
]
TestedFeatures = Annotated[
    int, typer.Option("--features", help="How many features to ablate one by one, at random.")
]
DrawSeed = Annotated[int, typer.Option(help="The same seed draws the same controls.")]
Portrait = Annotated[Path | None, typer.Option(help="HTML file for the figure.")]

Steered = Annotated[str, typer.Argument(help="The text to be continued.")]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--feature",
        help="A change: WHAT=NUMBER sets, WHAT=NUMBERx multiplies, WHAT+=NUMBER adds; WHAT is a "
        "concept or L2/F472. May be repeated. Where a concept is not active on the prompt, "
        "NUMBERx is so many times its features' largest recorded activation.",
    ),
]
At = Annotated[
    list[int] | None,
    typer.Option("--at", help="Only at this position; may be repeated. Else everywhere."),
]
From = Annotated[
    int | None, typer.Option("--from", help="From this position on; -1 is the prompt's last.")
]
NewTokens = Annotated[int, typer.Option("--tokens", help="How many tokens to write.")]
Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token; 1 draws.")]
SampleSeed = Annotated[int, typer.Option(help="The same seed draws the same tokens.")]
