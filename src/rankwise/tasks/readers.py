"""Reading a user's own table: a local file or a hub dataset, as columns of plain Python values."""

import codecs
import csv
import glob
import gzip
import re
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rankwise.errors import DataError
from rankwise.tasks.data import load_hub, quiet_datasets

if TYPE_CHECKING:
    from datasets import Dataset

FORMATS: Mapping[str, str] = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File ending -> the reader of `datasets`; all but parquet may also end in `.gz`."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

Columns = dict[str, Sequence[Any]]


def is_file_name(path: str) -> bool:
    """Whether the name ends like a table we read."""
    return ending(Path(path)) in FORMATS


def is_hub_id(path: str) -> bool:
    """Whether `path` can be a hub dataset: `owner/name`, not an existing path, no table's ending."""
    return bool(_HUB_ID.fullmatch(path)) and not is_file_name(path) and not Path(path).exists()


def ending(path: Path) -> str:
    """The file ending in lower case, without `.gz`."""
    name = path.name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_table(path: Path) -> Columns:
    """Every column of a local file. Cells of CSV and TSV files stay text, exactly as written.

    Raises:
        DataError: no such file, an unknown ending, bytes that are not UTF-8, or a malformed file.
    """
    if not path.is_file():
        raise DataError(f"no such file: '{path}'")
    if (suffix := ending(path)) not in FORMATS:
        allowed = ", ".join([*FORMATS, *(f"{key}.gz" for key in FORMATS if key != ".parquet")])
        raise DataError(f"'{path}' ends in '{suffix}', which is not a known table; allowed: {allowed}")
    filled = _parquet_rows(path) if suffix == ".parquet" else _filled_lines(path) - (FORMATS[suffix] == "csv")
    if filled <= 0:
        raise DataError(f"'{path}' is empty: it has no rows")
    options = _csv_options(path, suffix) if FORMATS[suffix] == "csv" else {}
    table = _load(path, FORMATS[suffix], options)
    return {name: table[name] for name in table}


def read_hub(repository: str) -> dict[str, "Dataset"]:
    """Split name -> dataset of a hub repository.

    Raises:
        DataError: no such dataset, or no network.
    """
    hint = "Check the id and the network, or give the path of a local file."
    return dict(load_hub(repository, None, hint))


def _parquet_rows(path: Path) -> int:
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        rows: int = pyarrow.parquet.read_metadata(path).num_rows
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"'{path}' cannot be read as parquet: {error}") from error
    return rows


def _filled_lines(path: Path) -> int:
    """Lines that are not blank; refuses a file at its first byte that is not UTF-8, saying where that is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    filled = 0
    try:
        with _open(path) as file:
            for chunk in file:
                decoder.decode(chunk)
                line += 1
                filled += bool(chunk.strip())
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = f"0x{error.object[error.start]:02x}"
        raise DataError(f"'{path}' is not UTF-8 text: byte {byte} in line {line}; save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{path}' cannot be read: {error}") from error
    return filled


def _open(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _csv_options(path: Path, suffix: str) -> dict[str, Any]:
    """Read every cell as text: '007' stays '007', and 'NA' or 'None' are words, not gaps."""
    from datasets import Features, Value

    delimiter = "\t" if suffix == ".tsv" else ","
    with _open(path) as file:
        header = next(csv.reader([file.readline().decode("utf-8-sig")], delimiter=delimiter), [])
    if not header:
        raise DataError(f"'{path}' is empty: expected a first line with the names of the columns")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"'{path}' names the column '{twice[0]}' more than once")
    return {
        "sep": delimiter,
        "encoding": "utf-8-sig",
        "keep_default_na": False,
        "features": Features({name: Value("string") for name in header}),
    }


def _load(path: Path, builder: str, options: Mapping[str, Any]) -> Columns:
    """The file through `datasets`, without leaving anything in the user's cache of it."""
    import datasets

    with quiet_datasets(), tempfile.TemporaryDirectory(prefix="rankwise-") as folder:
        try:
            table = datasets.load_dataset(
                builder,
                data_files=glob.escape(str(path)),
                split="train",
                cache_dir=folder,
                keep_in_memory=True,
                **options,
            )
            return {name: table[name][:] for name in table.column_names}
        # `datasets` wraps whatever its parsers raise; the innermost message is the one that says where.
        except Exception as error:
            cause: BaseException = error
            while (deeper := cause.__cause__ or cause.__context__) is not None:
                cause = deeper
            raise DataError(f"'{path}' cannot be read as {ending(path)[1:]}: {' '.join(str(cause).split())}") from error
