"""The order of module names that breaks ties: numbers by value, so `layer.2` stands before `layer.10`."""

import re

Natural = tuple[tuple[str | int, ...], str]
"""What `natural` returns: text and numbers in turn, then the name itself."""


def natural(name: str) -> Natural:
    """Sort key of a dotted name; different names have different keys.

    Text and whole numbers alternate, text first, so any two keys compare part by part.
    """
    parts = re.split(r"(\d+)", name)
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), name
