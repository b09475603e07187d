"""One JSON-lines file per set of package versions; never in the way: a bad or unwritable cache is only a warning."""

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CACHE_VARIABLE = "RANKWISE_CACHE"


def cache_folder() -> Path:
    """`$RANKWISE_CACHE`, or `rankwise` in the platform's folder for caches."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "rankwise" / "Cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "rankwise"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rankwise"


def cache_path(builder: str, versions: Mapping[str, str]) -> Path:
    """The file for these package versions and this builder."""
    key = hashlib.sha256(json.dumps([builder, dict(versions)]).encode()).hexdigest()[:16]
    return cache_folder() / f"docstrings-{key}.jsonl"


def read_cache(builder: str, versions: Mapping[str, str]) -> dict[str, Any] | None:
    """What `write_cache` wrote, or None where there is no sound file (a damaged one is warned about)."""
    path = cache_path(builder, versions)
    try:
        head, _, body = path.read_text(encoding="utf-8").partition("\n")
        header = json.loads(head)
        if header["sha256"] != hashlib.sha256(body.encode()).hexdigest():
            raise ValueError("its content does not match its checksum")
        rows = [json.loads(line) for line in body.splitlines()]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        warnings.warn(f"cache file {path} is unusable and will be rebuilt: {error}", stacklevel=3)
        return None
    splits = {split: [tuple(row[1:]) for row in rows if row[0] == split] for split in ("train", "validation")}
    return {**splits, "removed": header["removed"]}


def write_cache(builder: str, versions: Mapping[str, str], content: Mapping[str, Any]) -> None:
    """Write the file whole or not at all; warns where the folder cannot be written.

    `content` has the rows (label, text, file) of `train` and `validation`, and the counts `removed`.
    """
    path = cache_path(builder, versions)
    rows = [[split, *row] for split in ("train", "validation") for row in content[split]]
    body = "".join(json.dumps(row) + "\n" for row in rows)
    header = {
        "builder": builder,
        "versions": dict(versions),
        "removed": dict(content["removed"]),
        "sha256": hashlib.sha256(body.encode()).hexdigest(),
    }
    partial: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".part", delete=False) as file:
            partial = file.name
            file.write(json.dumps(header) + "\n" + body)
        os.replace(partial, path)
    except OSError as error:
        warnings.warn(f"the docstrings task could not be cached in {path.parent}: {error}", stacklevel=3)
        if partial is not None:
            Path(partial).unlink(missing_ok=True)
