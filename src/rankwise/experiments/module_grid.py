"""Where a module sits in a model, read off its name: which layer, and which matrix of that layer.

`bert.encoder.layer.3.attention.output.dense` is matrix `o` of layer 3, `model.layers.10.mlp.up_proj` is `up` of
layer 10. Names of unknown matrices stay as they are, so a new architecture still gets a readable grid.
"""

from collections.abc import Iterable
from dataclasses import dataclass

# What the usual architectures call the matrices of a block. The order is the order of the columns.
_KINDS = {
    "q": ("q", "query", "q_proj", "q_lin", "query_proj", "wq"),
    "k": ("k", "key", "k_proj", "k_lin", "key_proj", "wk"),
    "v": ("v", "value", "v_proj", "v_lin", "value_proj", "wv"),
    "qkv": ("qkv", "c_attn", "query_key_value", "qkv_proj", "wqkv", "in_proj"),
    "o": (),
    "gate": ("gate_proj", "wi_0", "w1"),
    "up": ("up_proj", "fc1", "lin1", "c_fc", "wi", "wi_1", "w3", "dense_h_to_4h", "ffn"),
    "gate+up": ("gate_up_proj",),
    "down": ("down_proj", "fc2", "lin2", "w2", "dense_4h_to_h", "ffn_output"),
}
_KIND_OF = {word: kind for kind, words in _KINDS.items() for word in words}
_OUTPUTS = ("dense", "out_proj", "o_proj", "out_lin", "c_proj", "wo", "o", "proj")
"""Matrices that leave a sub-block: `o` in attention, `down` in the feed-forward part."""


@dataclass(frozen=True)
class Place:
    """`stack` is what stands before the layer's number (`encoder.layer`); `layer` is None outside the layers."""

    stack: str
    layer: int | None
    kind: str


@dataclass(frozen=True)
class Grid:
    """Rows are layers, then one row for each module outside the layers; columns are kinds of matrix.

    `cells` maps a module's name to (row, column); column None means the whole row.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: dict[str, tuple[int, int | None]]


def place_of(name: str) -> Place:
    """Stack, layer and kind of the module with that full name."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
    if number is None:
        return Place("", None, ".".join(parts[-2:]))
    inside = [part for part in parts[number + 1 :] if not part.isdecimal()]  # numbered sub-layers and experts
    return Place(".".join(parts[:number]), int(parts[number]), _kind(inside or parts[:number]))


def _kind(inside: list[str]) -> str:
    words = [word.lower() for word in inside]
    leaf, around = words[-1], words[:-1]
    attention = any("att" in word for word in around)
    if leaf in _OUTPUTS and attention:
        kind = "o"
    elif leaf == "dense" and "intermediate" in around:
        kind = "up"
    elif leaf in _OUTPUTS and (leaf != "dense" or "output" in around):
        kind = "down"
    else:
        kind = _KIND_OF.get(leaf, ".".join(inside[-2:]))
    cross = any("cross" in word or "encdec" in word or word == "encoder_attn" for word in around)
    return f"cross {kind}" if cross else kind


def module_grid(names: Iterable[str]) -> Grid:
    """The grid that holds all these modules; several of one kind in one layer (experts) share a cell."""
    places = {name: place_of(name) for name in names}
    stacks = list(dict.fromkeys(p.stack for p in places.values() if p.layer is not None))
    numbered = {(p.stack, p.layer) for p in places.values() if p.layer is not None}
    layers = sorted(numbered, key=lambda layer: (stacks.index(layer[0]), layer[1]))
    outside = list(dict.fromkeys(p.kind for p in places.values() if p.layer is None))
    kinds = {p.kind for p in places.values() if p.layer is not None}
    known = [prefix + kind for prefix in ("", "cross ") for kind in _KINDS]
    columns = [kind for kind in known if kind in kinds] + sorted(kinds.difference(known))
    short = _short_stacks(stacks)
    labels = [f"{short[stack]} {layer}".strip() for stack, layer in layers] + outside
    row_of_layer = {layer: row for row, layer in enumerate(layers)}
    cells: dict[str, tuple[int, int | None]] = {}
    for name, place in places.items():
        if place.layer is None:
            cells[name] = (len(layers) + outside.index(place.kind), None)
        else:
            cells[name] = (row_of_layer[place.stack, place.layer], columns.index(place.kind))
    return Grid(tuple(labels), tuple(columns) or ("",), cells)


def _short_stacks(stacks: list[str]) -> dict[str, str]:
    """Stack to the part of its name that tells it from the others: nothing if it is the only one."""
    parts = {stack: stack.split(".") for stack in stacks}
    short = {}
    for stack, own in parts.items():
        others = [other for name, other in parts.items() if name != stack]
        telling = [part for part in own if any(part not in other for other in others)]
        short[stack] = telling[0] if telling else stack if others else ""
    return short
