"""A circuit as a tree for terminals: what was predicted, and under each concept what fed it."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.markup import escape
from rich.tree import Tree

if TYPE_CHECKING:
    from graphs.circuit import Circuit

LEAST, MOST = 0.01, 6  # share of the influence that a branch must carry, and branches at most


def tree(circuit: "Circuit") -> Tree:
    """Outputs, strongest first; under each what it reads, down to the words of the prompt.

    The share beside a branch is that of all influence which runs over it; a minus says that it
    works against what it feeds. Branches that carry less than a hundredth are left out.
    """
    view = circuit.concepts()
    about = view.nodes.set_index("name").to_dict("index")
    feeds = {name: part for name, part in view.edges.groupby("target", sort=False)}
    words = [str(token).strip() for token in circuit.settings.get("tokens", [])]
    root = Tree(escape(str(circuit.settings.get("prompt", ""))), guide_style="dim")
    outputs = view.nodes.loc[view.nodes["weight"] > 0].sort_values("weight", ascending=False)
    for row in outputs.itertuples():
        branch = root.add(f"[bold]{escape(str(row.label))}[/]")
        _grow(branch, str(row.name), float(row.weight), feeds, about, words, (str(row.name),))
    return root


def _grow(
    branch: Tree,
    target: str,
    share: float,
    feeds: dict[Any, pd.DataFrame],
    about: dict[Any, dict[str, Any]],
    words: list[str],
    above: tuple[str, ...],
) -> None:
    """Add what feeds a concept, the strongest first, and what feeds that."""
    if target not in feeds:
        return
    strongest = feeds[target].nlargest(MOST, "direct")
    columns = (strongest[name] for name in ("source", "direct", "weight"))
    for source, direct, weight in zip(*columns, strict=True):
        carried = share * direct
        if carried < LEAST or source in above:
            continue
        sign = "[green]+[/]" if weight > 0 else "[red]-[/]"
        text = f"{sign} {carried:.1%} {_described(about[source], words)}"
        grown = branch.add(text)
        _grow(grown, source, carried, feeds, about, words, (*above, source))


def _described(concept: dict[str, Any], words: list[str]) -> str:
    """A concept in one line: its label, and where it is if that is not said already."""
    label = escape(concept["label"])
    if concept["kind"] == "token":
        return f"[cyan]{label}[/]"
    if concept["kind"] != "feature":
        return f"[dim]{label}[/]"
    place = concept["position"]
    word = words[place] if 0 <= place < len(words) else str(place)
    low, top, count = concept["layer"], concept["top"], len(concept["members"])
    layers = f"layer {low}" if low == top else f"layers {low}-{top}"
    many = f", {count} features" if count > 1 else ""
    return f"[bold]{label}[/] [dim]at {escape(word)}, {layers}{many}[/]"
