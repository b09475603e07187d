"""Adaptive-budget LoRA fine-tuning, measured honestly."""

__version__ = "0.1.0"
