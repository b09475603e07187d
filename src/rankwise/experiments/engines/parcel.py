"""A run as bytes: its shard and its checkpoint, for workers that share no folder with whoever wants the run."""

import io
import shutil
import zipfile
from pathlib import Path

from rankwise.errors import DataError
from rankwise.experiments.runner import CHECKPOINTS
from rankwise.experiments.store_merge import Shard

MOST_BYTES = 256 * 2**20
"""A larger checkpoint stays in the worker's run folder, which then has to be shared (a value holds 1 GB at most)."""

_STORE = "shard.sqlite"


def pack(shard: Shard) -> bytes:
    """The parcel of a run that has ended. The shard must be closed: then SQLite has everything in the one file."""
    folder = shard.output / CHECKPOINTS / shard.run_id
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []
    if sum(path.stat().st_size for path in files) > MOST_BYTES:
        files = []
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as parcel:
        parcel.write(shard.path, _STORE)
        for path in files:
            parcel.write(path, f"{CHECKPOINTS}/{path.relative_to(folder).as_posix()}")
    return buffer.getvalue()


def unpack(content: bytes, shard: Shard) -> None:
    """Put a parcel's shard and checkpoint where a worker in this run folder would have put them.

    Raises:
        DataError: it is no parcel, or names files elsewhere.
    """
    from rankwise.adapters.export import new_directory

    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parcel:
            names = [name for name in parcel.namelist() if name != _STORE]
            for name in names:
                parts = Path(name).parts
                if parts[0] != CHECKPOINTS or len(parts) < 2 or ".." in parts or Path(name).is_absolute():
                    raise DataError(f"run {shard.run_id} came back with a file at '{name}'; it was not unpacked")
            if names:
                folder = shard.output / CHECKPOINTS / shard.run_id
                shutil.rmtree(folder, ignore_errors=True)
                with new_directory(folder) as new:
                    for name in names:
                        target = new / Path(*Path(name).parts[1:])
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(parcel.read(name))
            shard.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = shard.path.with_suffix(".new")
            temporary.write_bytes(parcel.read(_STORE))
            temporary.replace(shard.path)
    except (zipfile.BadZipFile, KeyError) as error:
        raise DataError(f"run {shard.run_id} came back damaged: {error}") from error


def forget(shard: Shard, parcel: bytes) -> None:
    """Remove what a worker has handed in; a checkpoint that did not fit into the parcel stays."""
    with zipfile.ZipFile(io.BytesIO(parcel)) as content:
        whole = len(content.namelist()) > 1
    if whole:
        shutil.rmtree(shard.output / CHECKPOINTS / shard.run_id, ignore_errors=True)
    shard.remove()
