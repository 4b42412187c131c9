"""What `circuits train` does: open the host, train with a bar of the run's figures, and report."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import replacement
from circuits.report import check_device, silence
from replacement.training import SelfGenerated, Settings, train
from replacement.training.trainer import Metrics

_INTERRUPTED = 130  # the shell's status for a command stopped by Ctrl-C


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line; `options` are fields of `Settings`."""

    host: str
    corpus: str | None
    self_generated: bool
    options: Mapping[str, Any]
    device: str
    resume: bool
    out: Path

    def source(self) -> str | SelfGenerated:
        """The corpus, of the two that can be asked for."""
        if self.self_generated == (self.corpus is not None):
            raise ValueError("give a CORPUS or --self-generated, and not both.")
        return SelfGenerated() if self.corpus is None else self.corpus


def run(request: Request, as_json: bool) -> None:
    """Check, open, train and report."""
    corpus, settings = request.source(), Settings(**request.options)
    silence()
    messages = Console(stderr=True, highlight=False, quiet=not _first())
    with messages.status(f"opening {escape(request.host)}"):
        host = replacement.Host.open(request.host, device=_place(request.device))
    seen: dict[str, Metrics] = {}
    try:
        with _bar(messages, settings.total) as show:

            def progress(metrics: Metrics) -> None:
                seen["last"] = metrics
                show(metrics)

            train(host, corpus, settings, request.out, progress, request.resume)
    except KeyboardInterrupt:
        messages.print("interrupted; the same command with --resume goes on")
        sys.exit(_INTERRUPTED)
    if _first():
        _report(request, settings, seen.get("last"), as_json)


def _first() -> bool:
    """Whether this is the one process, or torchrun's first, which does the talking."""
    return os.environ.get("RANK", "0") == "0"


def _place(device: str) -> str:
    """Under torchrun each process takes the GPU of its own number."""
    import torch

    check_device(device)
    own = os.environ.get("LOCAL_RANK")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    return f"cuda:{own}" if own is not None and on_gpu else device


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Any]:
    """A bar on stderr with the figures of the last step."""
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"),
        TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("steps", total=total, figures="")
        yield lambda m: bar.update(task, completed=m.step + 1, figures=_figures(m))


def _figures(metrics: Metrics) -> str:
    return (
        f"loss {metrics.loss:.4f}  FVU {metrics.fvu:.4f}  L0 {metrics.l0:.1f}  "
        f"dead {metrics.dead:.1%}"
    )


def _report(request: Request, settings: Settings, last: Metrics | None, as_json: bool) -> None:
    """The last step's figures and the files; a finished run that is resumed has no last step."""
    files = [str(request.out / name) for name in ("dictionary", "training.jsonl")]
    figures = None if last is None else asdict(last)
    if as_json:
        summary = {"steps": settings.total, "last": figures, "files": files}
        print(json.dumps(summary, ensure_ascii=False, allow_nan=False))
        return
    console = Console(highlight=False)
    what = f"{settings.kind} {settings.activation}, {settings.features} features a layer"
    console.print(f"[bold]Trained[/]  {what}, {settings.total} steps of {settings.batch} positions")
    if last is not None:
        console.print(f"[bold]Last[/]     {_figures(last)}")
    for file in files:
        console.print(f"[dim]wrote {escape(file)}[/]", soft_wrap=True)
