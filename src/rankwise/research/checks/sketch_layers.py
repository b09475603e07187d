"""Rules on sketches: layers that adapters are built into, as `static_smoke`."""

import ast
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import FUNCTIONS, Sketch, called, ends_with, names, parse, source
from rankwise.research.checks.sketch_peft import WHERE

_SAVING = r"FLOP|\bskip\w*|\bbypass\w*|latency|\bzero cost\b|\bdormant\b|\bsav(?:e|es|ed|ing|ings)\b|\bfaster\b"


def _lora_classes(sketch: Sketch) -> dict[str, ast.ClassDef]:
    """Classes of the sketch that inherit from PEFT's LoraLayer."""
    return {one.name: one for one in sketch.classes() if any(ends_with(base, "LoraLayer") for base in one.bases)}


@rule("static_smoke", "hypothesis", 55)
def order_of_factors(subject: Subject) -> Iterator[Defect]:
    """A comes first, then B; the result is scaled."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if not (isinstance(node, ast.Call) and _factor(node) == "lora_A"):
            continue
        if any(isinstance(one, ast.Call) and _factor(one) == "lora_B" for arg in node.args for one in ast.walk(arg)):
            text = f"`{source(node)}` applies B before A; A is (rank, in) and B (out, rank), so it is B(A(x))"
            yield defect(text, 55, where=WHERE)
            inside = sketch.inside(node, FUNCTIONS)
            if inside is not None and "scaling" not in names(inside):
                yield defect(f"`{source(node)}` is not multiplied by the scaling alpha / r", 55, where=WHERE)


def _factor(node: ast.Call) -> str:
    target = node.func.value if isinstance(node.func, ast.Subscript) else node.func
    return target.attr if isinstance(target, ast.Attribute) else ""


@rule("static_smoke", "hypothesis", 55, 76)
def residual(subject: Subject) -> Iterator[Defect]:
    """An update is added to the layer's output, not to its input."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.left, ast.Name)):
            continue
        name = node.left.id
        if name not in ("x", "hidden_states", "inputs", "input") or isinstance(sketch.parents.get(node), ast.BinOp):
            continue
        updates = [one for one in ast.walk(node.right) if isinstance(one, ast.Call) and _adapts(one, name)]
        inside = sketch.inside(node, ast.ClassDef)
        later = {"out", "update", "delta", "result"} & names(node.right)
        wrapped = isinstance(inside, ast.ClassDef) and inside.name in _lora_classes(sketch)
        if not updates and not (later and wrapped):
            continue
        item = 55 if wrapped else 76
        text = f"`{source(node)}` adds the update to the layer's input {name} instead of to the frozen layer's output: "
        yield defect(f"{text}W x is lost, and where in and out differ in size it raises", item, where=WHERE)


def _adapts(node: ast.Call, name: str) -> bool:
    return (called(node) in ("linear", "lora_A", "lora_B") or _factor(node) in ("lora_A", "lora_B")) and name in names(
        node
    )


@rule("static_smoke", "hypothesis", 55)
def wrappers(subject: Subject) -> Iterator[Defect]:
    """LoraLayer is a mix-in around an existing layer; replacing layers keeps their weights and spares the head."""
    sketch = parse(subject.code)
    classes = _lora_classes(sketch)
    for name, owner in classes.items():
        for node in ast.walk(owner):
            if isinstance(node, ast.Call) and called(node) == "forward" and "super" in source(node.func):
                text = f"`{source(node)}` in {name}: PEFT's LoraLayer has no forward; lora.Linear has"
                yield defect(text, 55, where=WHERE)
    for node in sketch.walk():
        if (
            isinstance(node, ast.Call)
            and called(node) in classes
            and any(ends_with(a, "in_features", "out_features") for a in node.args)
        ):
            text = (
                f"`{source(node)}`: PEFT's LoraLayer wraps a layer (its first argument is base_layer); sizes build a "
            )
            yield defect(f"{text}layer without the pretrained weights", 55, where=WHERE)
    yield from _replacing(sketch)
    yield from _merging(sketch, classes)


def _replacing(sketch: Sketch) -> Iterator[Defect]:
    for node in sketch.calls("setattr"):
        inside = sketch.inside(node, ast.For)
        if len(node.args) < 2 or not isinstance(inside, ast.For) or "named_modules" not in names(inside.iter):
            continue
        root = isinstance(node.args[0], ast.Name) and node.args[0].id in names(inside.iter)
        if root and "split" in names(node.args[1]):
            text = (
                f"`{source(node)}` sets the last part of the name on the root: the module inside its parent is not "
                "replaced"
            )
            yield defect(text, 55, where=WHERE)
        tests = [one for one in ast.walk(inside) if isinstance(one, ast.If)]
        first = inside.target.elts[0] if isinstance(inside.target, ast.Tuple) and inside.target.elts else inside.target
        filters = {*names(first), "in_features", "out_features"}
        if tests and not any(filters & names(one.test) for one in tests):
            text = f"`{source(tests[0].test)}` is true of the classification head too, which is then adapted and frozen"
            yield defect(text, 55, where=WHERE)


def _merging(sketch: Sketch, classes: dict[str, ast.ClassDef]) -> Iterator[Defect]:
    gated = [name for name, owner in classes.items() if {"gate", "gates"} & names(owner)]
    own = any(isinstance(one, FUNCTIONS) and one.name == "merge" for name in gated for one in classes[name].body)
    for node in sketch.calls("merge"):
        if gated and not own:
            text = (
                f"`{source(node)}` merges B A as PEFT does, without {gated[0]}'s gate: a closed adapter is added in "
                "full"
            )
            yield defect(text, 55, where=WHERE)


@rule("static_smoke", "hypothesis", 55)
def chosen_by_shape(subject: Subject) -> Iterator[Defect]:
    """Parameters are chosen by name, not by shape."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if not isinstance(node, ast.Compare) or not isinstance(sketch.parents.get(node), ast.comprehension):
            continue
        sides = (node.left, *node.comparators)
        size = any("Size" in names(one) or isinstance(one, ast.Tuple | ast.List) for one in sides)
        if size and any(ends_with(one, "shape") for one in sides):
            text = f"`{source(node)}` picks every parameter of that shape, whoever owns it; choose by name"
            yield defect(text, 55, where=WHERE)


@rule("static_smoke", "hypothesis", 57)
def computed_anyway(subject: Subject) -> Iterator[Defect]:
    """A gate that saves compute decides before the adapter is computed, not after."""
    if not re.search(_SAVING, subject.words, re.I):
        return
    sketch = parse(subject.code)
    for function in (one for one in sketch.functions() if one.name == "forward"):
        computed = set(_computed(function))
        gates = {name for name in names(function) if "gate" in name or "bern" in name}
        chooses = any(isinstance(one, ast.If) for one in ast.walk(function))
        if chooses or {"nonzero", "index_select", "masked_select"} & names(function):
            continue
        for node in ast.walk(function):
            product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
            if product and names(node) & computed and names(node) & gates:
                text = f"`{source(node)}`: the adapter was computed for every example before the gate multiplies it, "
                yield defect(f"{text}so a closed gate saves nothing", 57, where=WHERE)
                break


def _computed(function: ast.AST) -> Iterator[str]:
    """Names that hold an adapter's output."""
    for node in ast.walk(function):
        made = node.value if isinstance(node, ast.Assign) else None
        if (
            isinstance(node, ast.Assign)
            and isinstance(made, ast.Call)
            and called(made) in ("forward", "lora_B", "adapter")
        ):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
