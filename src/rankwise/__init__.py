"""Adaptive-budget LoRA fine-tuning, measured honestly.

`import rankwise` also lets PEFT load the adapters that decide per input, however early or late PEFT is imported. It
imports neither PEFT nor torch itself: a finder waits for PEFT, and adds the types when it has been imported.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

_TYPES = "rankwise.adapters.conditional"
"""Importing this registers the PEFT types."""


class _AfterPeft(MetaPathFinder):
    """Finds PEFT as the other finders do, and has it register the types once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See `importlib.abc.MetaPathFinder`."""
        if fullname != "peft":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(fullname, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            importlib.import_module(_TYPES)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module(_TYPES)
else:
    sys.meta_path.insert(0, _AfterPeft())
