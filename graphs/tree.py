"""A circuit as a tree for terminals: what was predicted, and under each concept what fed it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from rich.markup import escape
from rich.tree import Tree

from graphs.flow import explained, flow, settled

if TYPE_CHECKING:
    from graphs.circuit import Circuit

LEAST, MOST = 0.01, 6  # share of the influence that a branch carries, and branches at most
ALWAYS, DEPTH = 2, 3  # branches that are shown however weak, down to this depth


def tree(circuit: "Circuit") -> Tree:
    """Outputs, strongest first; under each what it reads, down to the words of the prompt.

    The share beside a branch is that of all influence which runs over it, from the word or concept
    there to the output by exactly these steps; a minus says that it works against what it feeds.
    Branches that carry less than a hundredth are left out, but for the strongest two.
    """
    grower = _Grower(circuit)
    root = Tree(escape(str(circuit.settings.get("prompt", ""))), guide_style="dim")
    outputs = [(about["weight"], name) for name, about in grower.about.items()]
    for weight, name in sorted(outputs, key=lambda output: -output[0]):
        if weight > 0:
            branch = root.add(f"[bold]{escape(grower.about[name]['label'])}[/]")
            grower.grow(branch, grower.seeds(name), (name,))
    return root


class _Grower:
    """A circuit's nodes in concepts, and what flows down from each to those that feed it."""

    def __init__(self, circuit: "Circuit") -> None:
        view, owner = circuit.concepts(), circuit.concept_of()
        self.about: dict[str, dict[str, Any]] = view.nodes.set_index("name").to_dict("index")
        pairs = view.edges.set_index(["source", "target"])["weight"]
        self.sign: dict[tuple[str, str], float] = pairs.to_dict()
        self.words = [str(token).strip() for token in circuit.settings.get("tokens", [])]
        found = flow(circuit)
        names = [owner[int(node)] for node in found.nodes]
        self.names = list(dict.fromkeys(names))
        self.of = np.array([self.names.index(name) for name in names])  # of each node
        self.down = found.down
        self.weight = explained(circuit, found)

    def seeds(self, name: str) -> Float[np.ndarray, " nodes"]:
        """What an output starts with: its share of the explanation."""
        return np.where(self.of == self.names.index(name), self.weight, 0.0)

    def grow(
        self, branch: Tree, arrived: Float[np.ndarray, " nodes"], above: tuple[str, ...]
    ) -> None:
        """Add what feeds the last of `above`, the strongest first, and what feeds that."""
        own = self.of == self.names.index(above[-1])
        reached = self.down @ settled(self.down, np.flatnonzero(own), arrived)
        reached[own] = 0
        carried = np.bincount(self.of, reached, minlength=len(self.names))
        for rank, number in enumerate(np.argsort(-carried, kind="stable")[:MOST].tolist()):
            name, share = self.names[number], float(carried[number])
            always = rank < ALWAYS and len(above) < DEPTH
            if share <= 0 or (share < LEAST and not always) or name in above:
                continue
            sign = "[green]+[/]" if self.sign[name, above[-1]] > 0 else "[red]-[/]"
            text = f"{sign} {_percent(share)} {self._described(name)}"
            here = np.where(self.of == number, reached, 0.0)
            self.grow(branch.add(text), here, (*above, name))

    def _described(self, name: str) -> str:
        """A concept in one line: its label, and where it is if that is not said already."""
        concept = self.about[name]
        label = escape(concept["label"])
        if concept["kind"] == "token":
            return f"[cyan]{label}[/]"
        if concept["kind"] != "feature":
            return f"[dim]{label}[/]"
        place = concept["position"]
        word = self.words[place] if 0 <= place < len(self.words) else str(place)
        low, top, count = concept["layer"], concept["top"], len(concept["members"])
        layers = f"layer {low}" if low == top else f"layers {low}-{top}"
        many = f", {count} features" if count > 1 else ""
        return f"[bold]{label}[/] [dim]at {escape(word)}, {layers}{many}[/]"


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else f"{share:.1g}"
