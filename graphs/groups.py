"""Groups: which nodes of a circuit are one concept, as data and by hand.

A group holds its members by the names that survive tracing again (`Circuit.names`: layer,
position, feature), so a file of groups fits the same prompt traced anew. A node is in one group
at most; one that is in none is a concept of its own.
"""

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphs.store import whole_file

if TYPE_CHECKING:
    from graphs.circuit import Circuit

FORMAT, VERSION = "circuit-groups", "1"
BY_HAND = "hand"


@dataclass(frozen=True)
class Group:
    """One concept: its label, its members' names, how it was found and how well they agree.

    `cohesion` is the mean agreement of two members' attribution profiles, from 0 to 1; see
    `graphs.supernodes`. A pinned group is shown whatever a picture leaves out.
    """

    label: str
    members: tuple[str, ...]
    method: str = BY_HAND
    cohesion: float = 1.0
    pinned: bool = False


def joined(circuit: "Circuit", members: Iterable[str], label: str) -> "Circuit":
    """One group of these nodes, given by name or by label; they leave the groups they were in."""
    if not label.strip():
        raise ValueError("the group's label is empty; give it a name to be found by.")
    named = [name for member in members for name in named_nodes(circuit, member)]
    chosen = tuple(dict.fromkeys(named))
    if not chosen:
        raise ValueError(f"the group {label!r} has no members; name at least one node.")
    rest = (_without(group, set(chosen)) for group in circuit.groups)
    kept = [group for group in rest if group.members]
    return with_groups(circuit, [*kept, Group(label, chosen)])


def split(circuit: "Circuit", label: str) -> "Circuit":
    """Without the groups of this label: their members stand for themselves again."""
    gone = _labelled(circuit, label)
    return with_groups(circuit, [group for group in circuit.groups if group not in gone])


def renamed(circuit: "Circuit", old: str, new: str) -> "Circuit":
    """Those groups under another label, from now on as if made by hand."""
    if not new.strip():
        raise ValueError("the group's new label is empty; give it a name to be found by.")
    chosen = _labelled(circuit, old)
    changed = [replace(g, label=new, method=BY_HAND) if g in chosen else g for g in circuit.groups]
    return with_groups(circuit, changed)


def pinned(circuit: "Circuit", label: str) -> "Circuit":
    """Those groups pinned: shown whatever a picture leaves out."""
    chosen = _labelled(circuit, label)
    return with_groups(
        circuit, [replace(g, pinned=True) if g in chosen else g for g in circuit.groups]
    )


def with_groups(circuit: "Circuit", groups: Sequence[Group]) -> "Circuit":
    """The circuit with these groups, their members checked and their cohesion measured."""
    from graphs.supernodes import cohesion, profiles

    known = set(circuit.names().values())
    seen: dict[str, str] = {}
    for group in groups:
        for member in group.members:
            if member not in known:
                raise ValueError(f"group {group.label!r}: {_unknown(member, known)}")
            if member in seen:
                raise ValueError(
                    f"{member} is in the groups {seen[member]!r} and {group.label!r}; "
                    "a node can be in one."
                )
            seen[member] = group.label
    table = profiles(circuit)
    measured = [replace(g, cohesion=cohesion(circuit, table, g.members)) for g in groups]
    return replace(circuit, groups=tuple(measured))


def save_groups(circuit: "Circuit", path: str | os.PathLike[str]) -> Path:
    """Write the groups as JSON."""
    kept = [
        {"label": g.label, "members": list(g.members), "method": g.method, "pinned": g.pinned}
        for g in circuit.groups
    ]
    prompt = str(circuit.settings.get("prompt", ""))
    whole = {"format": FORMAT, "version": VERSION, "prompt": prompt, "groups": kept}
    with whole_file(path) as file:
        json.dump(whole, file, ensure_ascii=False, indent=1)
    return Path(path)


def load_groups(circuit: "Circuit", path: str | os.PathLike[str]) -> "Circuit":
    """The circuit with the groups of a file; members that this circuit lacks are left out."""
    known = set(circuit.names().values())
    found = [_without(group, set(group.members) - known) for group in read_groups(path)]
    return with_groups(circuit, [group for group in found if group.members])


def read_groups(path: str | os.PathLike[str]) -> list[Group]:
    """The groups of a file that `save_groups` wrote, or that was written by hand alike."""
    if not Path(path).is_file():
        raise ValueError(f"there is no file of groups {path}; circuit.save_groups writes one.")
    try:
        whole = json.loads(Path(path).read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(whole, Mapping) or whole.get("format") != FORMAT:
        raise ValueError(f"{path} is not a file of groups; circuit.save_groups writes one.")
    if whole.get("version") != VERSION:
        raise ValueError(
            f"{path} has format version {whole.get('version')} and this version reads {VERSION}."
        )
    return [_group(entry, path) for entry in whole.get("groups", ())]


def named_nodes(circuit: "Circuit", wanted: str) -> list[str]:
    """The names of the nodes that a name or a label stands for."""
    names, labels = circuit.names(), circuit.labels()
    found = [name for node, name in names.items() if wanted in (name, labels[node])]
    if not found:
        raise ValueError(_unknown(wanted, {*names.values(), *labels.values()}))
    return found


def _group(entry: Any, path: Any) -> Group:
    members = entry.get("members") if isinstance(entry, Mapping) else None
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(label, str) or not label.strip() or not isinstance(members, list):
        raise ValueError(f"{path}: a group needs a label and a list of members, not {entry!r}.")
    method, held = str(entry.get("method", BY_HAND)), bool(entry.get("pinned", False))
    return Group(label, tuple(map(str, members)), method, pinned=held)


def _labelled(circuit: "Circuit", label: str) -> list[Group]:
    found = [group for group in circuit.groups if group.label == label]
    if not found:
        raise ValueError(_unknown(label, {group.label for group in circuit.groups}))
    return found


def _without(group: Group, members: set[str]) -> Group:
    return replace(group, members=tuple(m for m in group.members if m not in members))


def _unknown(wanted: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wanted, sorted(known), n=3, cutoff=0.5)
    hint = f"the nearest are {', '.join(map(repr, near))}." if near else "see circuit.groups."
    return f"{wanted!r} names nothing in this circuit; {hint}"
