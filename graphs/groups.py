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
    known = _by_text(circuit)
    named = [name for member in members for name in _found(known, member)]
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
    """What bears this label under another, from now on as if made by hand."""
    if not new.strip():
        raise ValueError("the group's new label is empty; give it a name to be found by.")
    circuit = _singles_too(circuit, old)
    chosen = _labelled(circuit, old)
    changed = [replace(g, label=new, method=BY_HAND) if g in chosen else g for g in circuit.groups]
    return with_groups(circuit, changed)


def pinned(circuit: "Circuit", label: str) -> "Circuit":
    """What bears this label pinned: shown whatever a picture leaves out."""
    circuit = _singles_too(circuit, label)
    chosen = _labelled(circuit, label)
    return with_groups(
        circuit, [replace(g, pinned=True) if g in chosen else g for g in circuit.groups]
    )


def with_groups(circuit: "Circuit", groups: Sequence[Group]) -> "Circuit":
    """The circuit with these groups, their members checked and their cohesion measured."""
    from graphs.supernodes import cohesion, profiles

    known = dict.fromkeys(circuit.names().values())  # in the order of the node table
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
    if not groups:  # and no profiles of what may be half a million edges
        return replace(circuit, groups=())
    table, row = profiles(circuit), {name: n for n, name in enumerate(known)}
    agreed = [cohesion(table[[row[member] for member in g.members]]) for g in groups]
    pairs = zip(groups, agreed, strict=True)
    return replace(circuit, groups=tuple(replace(g, cohesion=c) for g, c in pairs))


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
    """The circuit with a file's groups and no others; members that it lacks are left out."""
    known, groups = set(circuit.names().values()), read_groups(path)
    found = [_without(group, set(group.members) - known) for group in groups]
    fitting = [group for group in found if group.members]
    if groups and not fitting:
        raise ValueError(
            f"{path} has no group with a member in this circuit; it was made for another prompt, "
            "or prune less."
        )
    return with_groups(circuit, fitting)


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
    if str(whole.get("version")) != VERSION:
        raise ValueError(
            f"{path} has format version {whole.get('version')} and this version reads {VERSION}."
        )
    groups = whole.get("groups")
    if not isinstance(groups, list):
        raise ValueError(f"{path}: groups must be a list, not {groups!r}.")
    return [_group(entry, path) for entry in groups]


def named_nodes(circuit: "Circuit", wanted: str) -> list[str]:
    """The names of the nodes that a name or a label stands for."""
    return _found(_by_text(circuit), wanted)


def _by_text(circuit: "Circuit") -> dict[str, list[str]]:
    """Names and labels -> the names of the nodes that bear them."""
    found: dict[str, list[str]] = {}
    labels = circuit.labels()
    for node, name in circuit.names().items():
        for text in {name, labels[node]}:
            found.setdefault(text, []).append(name)
    return found


def _found(known: Mapping[str, list[str]], wanted: str) -> list[str]:
    if wanted not in known:
        raise ValueError(_unknown(wanted, known))
    return known[wanted]


def _group(entry: Any, path: Any) -> Group:
    members = entry.get("members") if isinstance(entry, Mapping) else None
    label = entry.get("label") if isinstance(entry, Mapping) else None
    if not isinstance(label, str) or not label.strip() or not isinstance(members, list):
        raise ValueError(f"{path}: a group needs a label and a list of members, not {entry!r}.")
    held = entry.get("pinned", False)
    if not isinstance(held, bool):
        raise ValueError(f"{path}: pinned of {label!r} must be true or false, not {held!r}.")
    return Group(label, tuple(map(str, members)), str(entry.get("method", BY_HAND)), pinned=held)


def _singles_too(circuit: "Circuit", label: str) -> "Circuit":
    """The circuit with a group of its own for each single feature of this label."""
    labels, names = circuit.labels(), circuit.names()
    taken = {member for group in circuit.groups for member in group.members}
    features = circuit.nodes.loc[circuit.nodes["kind"] == "feature", "node"]
    alone = [names[n] for n in features if labels[n] == label and names[n] not in taken]
    return with_groups(circuit, [*circuit.groups, *(Group(label, (name,)) for name in alone)])


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
