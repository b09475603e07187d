"""Rules on sketches: shapes of tensors, followed as far as the code says them."""

import ast
from collections.abc import Iterator

from rankwise.research.artefacts import Defect
from rankwise.research.checks.registry import Subject, defect, rule
from rankwise.research.checks.sketch import DEEPEST, FUNCTIONS, Sketch, called, names, parse, source
from rankwise.research.checks.sketch_peft import WHERE

_TENSORS = ("multinomial", "argmax", "rand_like", "sigmoid", "softmax", "squeeze", "view", "gather", "sum", "mean")
_SHAPING = ("unsqueeze", "squeeze", "view", "reshape", "expand", "transpose", "shape")


def _assigned(sketch: Sketch) -> Iterator[tuple[str, ast.expr]]:
    """Single names and what is assigned to them, in order of lines; also both of a line `a = …; b = …`."""
    nodes = [node for node in sketch.walk() if isinstance(node, ast.Assign)]
    for node in sorted(nodes, key=lambda one: (one.lineno, one.col_offset)):
        if len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def _dimensions(sketch: Sketch) -> dict[str, int]:
    """Numbers of dimensions of names, as their last assignment in the sketch has them."""
    known: dict[str, int] = {}
    for name, value in _assigned(sketch):
        if (count := _count(value, known, 0)) is not None:
            known[name] = count
        elif name in known and name not in names(value):
            del known[name]
    return known


def _count(node: ast.AST, known: dict[str, int], depth: int) -> int | None:
    """Dimensions of an expression; None if the code does not say."""
    if depth > DEEPEST:
        return None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return None
    before = _count(node.func.value, known, depth + 1)
    if node.func.attr in ("view", "reshape"):
        return len(node.args)
    if before is None:
        return None
    change = {"squeeze": -1 if node.args else None, "unsqueeze": 1, "gather": 0, "expand": 0, "transpose": 0}
    step = change.get(node.func.attr)
    return None if step is None else before + step


@rule("static_smoke", "hypothesis", 72)
def one_row(subject: Subject) -> Iterator[Defect]:
    """The first k rows are a slice or a mask; gathering one index picks one row."""
    sketch = parse(subject.code)
    for node in sketch.calls("gather"):
        if len(node.args) < 2 or not isinstance(node.args[1], ast.Call) or called(node.args[1]) != "expand":
            continue
        inside = sketch.inside(node, FUNCTIONS) or sketch.tree or node
        if not {"rank", "ranks", "r_max", "max_rank", "lora_A", "lora_B"} & names(inside):
            continue  # picking one token, say, is what gather is for
        sizes = node.args[1].args
        if len(sizes) == 3 and isinstance(sizes[1], ast.Constant) and sizes[1].value == 1:
            text = (
                f"`{source(node)}` picks one row, number k, and not the first k; k = 0 picks row 0 instead of nothing, "
            )
            yield defect(f"{text}and k equal to the number of rows is out of range", 72, where=WHERE)


@rule("static_smoke", "hypothesis", 73, 75)
def dimensions(subject: Subject) -> Iterator[Defect]:
    """Operations fit the number of dimensions; F.linear takes one weight matrix, not one per example."""
    sketch = parse(subject.code)
    known = _dimensions(sketch)
    batched: set[str] = set()
    for node in sketch.walk():
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        axes = [one.value for one in node.args if isinstance(one, ast.Constant) and isinstance(one.value, int)]
        count = _count(node.func.value, known, 0)
        if node.func.attr == "transpose" and count is not None and axes and max(axes) >= count:
            text = (
                f"`{source(node)}`: {source(node.func.value)} has {count} dimensions there, so axis {max(axes)} raises "
                "IndexError"
            )
            yield defect(text, 73, where=WHERE)
    for name, value in _assigned(sketch):
        if any(
            isinstance(one, ast.Call) and called(one) in ("transpose", "bmm") and source(one).endswith("(1, 2)")
            for one in ast.walk(value)
        ) and (
            any(isinstance(one, ast.BinOp) and isinstance(one.op, ast.MatMult) for one in ast.walk(value))
            or called_bmm(value)
        ):
            batched.add(name)
    for node in sketch.calls("linear"):
        if len(node.args) > 1 and isinstance(node.args[1], ast.Name) and node.args[1].id in batched:
            text = (
                f"`{source(node)}`: {node.args[1].id} is one matrix per example (3 dimensions); F.linear takes two at "
            )
            yield defect(f"{text}most and raises RuntimeError; use torch.bmm or two products", 75, where=WHERE)


def called_bmm(value: ast.AST) -> bool:
    """Is it a batched product of matrices?"""
    return any(isinstance(one, ast.Call) and called(one) == "bmm" for one in ast.walk(value))


@rule("static_smoke", "hypothesis", 74)
def builtin_of_tensor(subject: Subject) -> Iterator[Defect]:
    """Python's max and min compare two values; a tensor with several is neither true nor false."""
    sketch = parse(subject.code)
    tensors = {name for name, value in _assigned(sketch) if _per_example(value)}
    shaped = {
        node.value.id
        for node in sketch.walk()
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in _SHAPING
    }
    for node in sketch.walk():
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Call):
            from_module = source(node.value.func).startswith("self.")
            named = {one.id for one in node.targets[0].elts if isinstance(one, ast.Name)}
            tensors |= named & shaped if from_module else set()
    for name in ("max", "min"):
        for node in sketch.calls(name):
            held = [one.id for one in node.args if isinstance(one, ast.Name) and one.id in tensors]
            if isinstance(node.func, ast.Name) and len(node.args) == 2 and held:
                text = f"`{source(node)}`: {held[0]} is a tensor with a value per example; Python's {name} raises "
                yield defect(f"{text}RuntimeError. Use .clamp", 74, where=WHERE)


def _per_example(value: ast.expr) -> bool:
    """Does an expression end in a call that gives a tensor with several values?"""
    return isinstance(value, ast.Call) and (called(value) in _TENSORS and bool(value.args or value.keywords))
