"""Arithmetic that rules share: sizes of a Transformer's matrices, steps, standard errors. No torch, nothing loaded."""

import math
from dataclasses import dataclass

from rankwise.experiments.model_facts import ModelFacts, model_facts
from rankwise.research.checks.registry import Subject
from rankwise.tasks.glue import OFFICIAL_TRAIN_ROWS

VALIDATION_ROWS = {
    "glue/mnli": 9_815, "glue/sst2": 872, "glue/rte": 277, "glue/cola": 1_043, "glue/mrpc": 408, "glue/stsb": 1_500,
    "glue/qnli": 5_463, "glue/qqp": 40_430,
}  # fmt: skip
"""Public validation examples (MNLI: the matched set), as GLUE's own files have them (Wang et al. 2018)."""

TAKEN_NAMES = {
    "glora": "Generalized LoRA (arXiv 2306.07967), and PEFT's type GLORA",
    "adalora": "AdaLoRA (arXiv 2303.10512)",
    "dora": "weight-decomposed LoRA (arXiv 2402.09353)",
    "vera": "vector-based random matrix adaptation (arXiv 2310.11454), and PEFT's type VERA",
    "loha": "PEFT's type LOHA",
    "lokr": "PEFT's type LOKR",
    "pissa": "principal singular values adaptation (arXiv 2404.02948)",
    "ia3": "PEFT's type IA3",
    "xlora": "PEFT's type XLORA",
    "randlora": "PEFT's type RANDLORA",
    "delora": "PEFT's type DELORA",
    "gralora": "PEFT's type GRALORA",
    "tinylora": "PEFT's type TINYLORA",
    "shira": "sparse high rank adapters, and PEFT's type SHIRA",
    "qlora": "quantized LoRA (arXiv 2305.14314)",
    "rslora": "rank-stabilised LoRA (arXiv 2312.03732)",
    "dylora": "DyLoRA (arXiv 2210.07558)",
    "sora": "sparse low-rank adaptation (arXiv 2311.11696)",
}
"""Short names of methods that exist, in lower case without hyphens."""

USUAL_ACCURACY = 0.9
"""Taken for a standard error where a text predicts no accuracy."""


@dataclass(frozen=True)
class Targets:
    """A choice of matrices that adapters sit on: `r_cost` parameters per rank, `weights` of the matrices themselves."""

    words: str
    matrices: int
    rank_cost: int
    weights: int


def facts_of(subject: Subject) -> ModelFacts | None:
    """Sizes of the base model that the setup names, if our table knows it; of several, if they are of one size."""
    known = known_models(subject)
    same = len({(one.layers, one.hidden_size, one.matrices) for one in known}) == 1
    return known[0] if same else None


def known_models(subject: Subject) -> list[ModelFacts]:
    """Sizes of every base model that the setup names and our table knows."""
    return [facts for name in subject.settings.models if (facts := model_facts(name)) is not None]


def targets(facts: ModelFacts) -> tuple[Targets, ...]:
    """What is commonly adapted: query and value (PEFT's default), and every linear layer of the blocks.

    A block has four square matrices and two that are four times as wide on one side (Devlin et al. 2019).
    """
    width, layers = facts.hidden_size, facts.layers
    return (
        Targets("query and value", 2 * layers, 2 * layers * 2 * width, 2 * layers * width**2),
        Targets("all linear layers", 6 * layers, layers * 18 * width, layers * 12 * width**2),
    )


def adapter_share(width: int, rank: int) -> float:
    """Adapters' FLOPs over those of a block's linear layers: r (4 · 2w + 2 · 5w) / 12w² = 1.5 r / w.

    The same as `costs.formulas.adapter_share` of a block of BERT, without loading torch; a test compares them.
    """
    return 1.5 * rank / width


def steps_per_epoch(task: str, batch: int) -> int | None:
    """Optimizer steps in one pass over the official training examples."""
    rows = OFFICIAL_TRAIN_ROWS.get(task)
    return math.ceil(rows / batch) if rows and batch > 0 else None


def standard_error(accuracy: float, examples: int) -> float:
    """Of a share: √(p (1 - p) / n)."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / examples)


def task_words(name: str) -> str:
    """`glue/sst2` as people say it."""
    words = {"sst2": "SST-2", "stsb": "STS-B", "cola": "CoLA"}
    key = name.removeprefix("glue/")
    return words.get(key, key.upper() if name.startswith("glue/") else key)
