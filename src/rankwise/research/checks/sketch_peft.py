"""Rules on sketches: what PEFT's and torch's objects have and have not, as `static_smoke`.

The facts about PEFT 0.21 and torch are held by a test against the installed packages.
"""

import ast
import re
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, listed, rule
from rankwise.research.checks.sketch import FUNCTIONS, Sketch, called, ends_with, names, parse, source

FACTORS = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
"""Attributes of a PEFT LoRA layer that are a ModuleDict (or ParameterDict) from adapter name to module."""
UPDATE_LAYER = ("adapter_name", "r", "lora_alpha", "config")
"""What PEFT's `update_layer` cannot do without."""
WHERE = "experimental_code"
_CALLED_BY_OTHERS = ("Callback", "Trainer", "Module", "Layer", "Optimizer", "Scheduler", "LightningModule")


@rule("static_smoke", "hypothesis")
def parses(subject: Subject) -> Iterator[Defect]:
    """A sketch is Python."""
    sketch = parse(subject.code)
    if sketch.problem:
        yield defect(f"the sketch {sketch.problem}", where=WHERE, level="warning")


@rule("static_smoke", "hypothesis", 24, 25, 27)
def factors(subject: Subject) -> Iterator[Defect]:
    """What is done with `lora_A` and `lora_B`, which are dictionaries of layers; B is (out, rank)."""
    sketch = parse(subject.code)
    if _own_factors(sketch):
        return
    for node in sketch.walk():
        if isinstance(node, ast.Attribute) and ends_with(node.value, *FACTORS):
            if node.attr == "register_hook":
                text = f"`{source(node)}`: PEFT's {_last(node.value)} is a ModuleDict, which has no register_hook; a "
                yield defect(f"{text}tensor has one: `….{_last(node.value)}['default'].weight`", 24, where=WHERE)
            elif node.attr in ("weight", "data", "grad"):
                text = f"`{source(node)}`: PEFT's {_last(node.value)} is a ModuleDict without .{node.attr}; name the "
                yield defect(f"{text}adapter: `….{_last(node.value)}['default'].weight`", 25, where=WHERE)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and _of_b(node.value):
            text = f"`{source(node)}` slices rows; B is (out, rank), so components are its columns: `B[:, :k]`"
            yield defect(text, 27, where=WHERE)


def _own_factors(sketch: Sketch) -> bool:
    """Does the sketch make the factors itself, so that they are whatever it makes?"""
    targets = (one for node in sketch.walk() if isinstance(node, ast.Assign) for one in node.targets)
    return any(isinstance(one, ast.Attribute) and one.attr in FACTORS for one in targets)


def _last(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _of_b(node: ast.AST) -> bool:
    """`….lora_B…weight` (…`.data`)."""
    return isinstance(node, ast.Attribute) and node.attr in ("weight", "data") and "lora_B" in names(node)


@rule("static_smoke", "hypothesis", 26)
def update_layer(subject: Subject) -> Iterator[Defect]:
    """`update_layer` gets what PEFT's needs."""
    if any(one.name == "update_layer" for one in parse(subject.code).functions()):
        return
    for node in parse(subject.code).calls("update_layer"):
        if any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords):
            continue
        given = {*UPDATE_LAYER[: len(node.args)], *(one.arg for one in node.keywords)}
        if absent := [name for name in UPDATE_LAYER if name not in given]:
            text = f"`{source(node)}` lacks {listed(absent)}: PEFT's update_layer({', '.join(UPDATE_LAYER)}) raises "
            yield defect(f"{text}TypeError", 26, where=WHERE)


@rule("static_smoke", "hypothesis", 28, 31)
def lora_config(subject: Subject) -> Iterator[Defect]:
    """A LoraConfig says what is adapted, how strongly, and for which kind of task."""
    for node in parse(subject.code).calls("LoraConfig"):
        if any(one.arg is None for one in node.keywords):
            continue
        given = {one.arg for one in node.keywords}
        decoder = re.search(r"causal", subject.words + subject.code, re.I)
        if "task_type" not in given and "modules_to_save" not in given and not decoder:
            text = f"`{source(node)}` has no task_type, so PEFT freezes the new classification head: it stays random"
            yield defect(text, 28, where=WHERE)
        absent = [name for name in ("target_modules", "lora_alpha", "lora_dropout") if name not in given]
        if absent:
            text = f"`{source(node)}` leaves {listed(absent)} to defaults; arms differ in them without saying so"
            yield defect(text, 31, where=WHERE, level="warning")


@rule("static_smoke", "hypothesis", 29)
def devices(subject: Subject) -> Iterator[Defect]:
    """Tensors that outlive a step move with the model."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        made = next((one for one in node.value.keywords if one.arg == "device"), None)
        inside = sketch.inside(node, FUNCTIONS)
        kept = any(isinstance(one, ast.Attribute) for one in node.targets)
        if (
            made
            and kept
            and isinstance(inside, FUNCTIONS)
            and inside.name == "__init__"
            and ends_with(made.value, "device")
        ):
            text = f"`{source(node)}` stays on the device that the model is on at that moment; a model moved later "
            yield defect(
                f"{text}meets it on another one. Make it a buffer, or where it is used",
                29,
                where=WHERE,
                level="warning",
            )


@rule("static_smoke", "hypothesis", 30)
def hooks(subject: Subject) -> Iterator[Defect]:
    """Hooks are removed, and methods that something depends on are called."""
    sketch = parse(subject.code)
    for node in sketch.walk():
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Call)
            and called(node.value).startswith("register_")
        ):
            name = called(node.value)
            if "hook" in name and "remove" not in names(sketch.tree or node):
                text = f"`{source(node.value)}`: its handle is dropped, so the hook can never be removed and runs in "
                yield defect(f"{text}every later step", 30, where=WHERE, level="warning")
    used = {called(node) for node in sketch.walk() if isinstance(node, ast.Call)} | _referred(sketch)
    for owner in sketch.classes():
        if any(word in source(base) for base in owner.bases for word in _CALLED_BY_OTHERS):
            continue
        for method in owner.body:
            known = not isinstance(method, FUNCTIONS) or method.name.startswith("_") or method.name in used
            if isinstance(method, FUNCTIONS) and not known and re.search(r"step|callback", method.name):
                text = (
                    f"nothing in the sketch calls `{owner.name}.{method.name}`, and no trainer knows it: it never runs"
                )
                yield defect(text, 30, where=WHERE, level="warning")


def _referred(sketch: Sketch) -> set[str]:
    """Methods that are handed on without being called."""
    return {node.attr for node in sketch.walk() if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}


@rule("static_smoke", "hypothesis", 14)
def optimizer(subject: Subject) -> Iterator[Defect]:
    """Parameters that are made during training reach the optimizer."""
    sketch = parse(subject.code)
    for function in sketch.functions():
        if function.name == "__init__" or not any(
            word in function.name for word in ("step", "realloc", "resize", "prune", "grow", "callback")
        ):
            continue
        made = [
            one
            for one in ast.walk(function)
            if isinstance(one, ast.Call) and called(one) in ("update_layer", "Parameter")
        ]
        known = any("optim" in name or name in ("add_param_group", "param_groups", "opt") for name in names(function))
        if made and not known:
            text = f"`{source(made[0])}` makes new parameters in `{function.name}`, and nothing gives them to the "
            yield defect(
                f"{text}optimizer: they are never trained, and AdamW's moments of the old ones are lost",
                14,
                where=WHERE,
            )
