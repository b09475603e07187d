"""Where and with what a run happened: machine, package versions, the state of this code. Imports no torch by itself."""

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import rankwise

PACKAGES = ("rankwise", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scipy", "scikit-learn")


@cache
def code_state() -> str:
    """A hash of Rankwise's own source: two runs with the same value ran the same code."""
    digest = hashlib.sha256()
    root = Path(rankwise.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide what a run does."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, object]:
    """Processor, cores that may be used and memory of this machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable,
        "memory_bytes": memory,
    }


def with_accelerator() -> dict[str, object]:
    """`machine`, with the name of the accelerator that runs use, if there is one. Imports torch."""
    import torch

    if not torch.accelerator.is_available():
        return machine()
    kind = torch.accelerator.current_accelerator()
    name = torch.cuda.get_device_name() if kind is not None and kind.type == "cuda" else str(kind)
    return machine() | {"accelerator": name}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
