"""How a model is adapted: the method contract, wrapping through PEFT, resizing, export."""
