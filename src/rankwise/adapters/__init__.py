"""How a model is adapted: the method contract, wrapping through PEFT, resizing, export."""

import rankwise.adapters.conditional  # noqa: F401 - first of all: it registers PEFT types, wherever PEFT is imported
