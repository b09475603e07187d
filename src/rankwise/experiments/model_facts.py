"""Sizes of a few base models, for checking what a config says about them without loading anything.

Counted from the architectures (no task head): `parameters` with embeddings, `backbone` without them, `matrices` the
linear layers of the blocks (query, key, value, attention output, two in the feed-forward part; per block).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelFacts:
    """A model's sizes."""

    layers: int
    hidden_size: int
    matrices: int
    parameters: int
    backbone: int


_FACTS = {
    "deberta-v3-base": ModelFacts(12, 768, 72, 183_831_552, 85_449_216),
    "bert-base-uncased": ModelFacts(12, 768, 72, 109_482_240, 85_645_056),
    "roberta-base": ModelFacts(12, 768, 72, 124_645_632, 85_645_056),
    "minilm": ModelFacts(6, 384, 36, 22_713_216, 10_794_624),
}


def model_facts(name: object) -> ModelFacts | None:
    """Facts about a model by id or path ending (`microsoft/deberta-v3-base`); None if it is not in the table."""
    return _FACTS.get(str(name).rstrip("/").rpartition("/")[2].lower())
