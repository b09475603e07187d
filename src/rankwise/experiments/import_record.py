"""Run configs out of a record of an automated-research pipeline.

A record is a prompt followed by `Output:` and an answer, or the answer alone. The answer is one JSON object, several
one after the other, a fenced block, or what Python prints for a dict; somewhere in it `run_configs` is a list of
`{"run_id": …, "run_config_yaml": …}`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rankwise.errors import ConfigError, Finding, OutputError
from rankwise.experiments.text_objects import objects

MAX_BYTES = 50_000_000


def read_run_configs(path: str | Path) -> dict[str, str]:
    """The YAML text of every run config in a record, by run id, in the record's order.

    Raises:
        ConfigError: the file cannot be read, holds no run configs, or one is incomplete or given twice differently.
    """
    path = Path(path)
    answer = _answer(_text(path))
    return run_configs_of((parsed.value for parsed in objects(answer, limit_bytes=MAX_BYTES)), str(path))


def run_configs_of(answers: Iterable[Mapping[str, Any]], source: str) -> dict[str, str]:
    """The YAML text of every run config in the objects of an answer, by run id. `source` names the answer in errors.

    Raises:
        ConfigError: there are none, or one is incomplete or given twice differently.
    """
    entries = [entry for answer in answers for entry in _entries(answer)]
    if not entries:
        message = "holds no `run_configs` list of objects with `run_id` and `run_config_yaml`"
        raise ConfigError(source, [Finding("", message)])
    configs: dict[str, str] = {}
    findings: list[Finding] = []
    for index, entry in enumerate(entries):
        where = f"run_configs[{index}]"
        run_id, text = entry.get("run_id"), entry.get("run_config_yaml")
        if not isinstance(run_id, str) or not run_id.strip():
            findings.append(Finding(f"{where}.run_id", f"{run_id!r} must be text that names the run"))
        elif not isinstance(text, str) or not text.strip():
            findings.append(Finding(f"{where}.run_config_yaml", f"{text!r} must be the YAML text of {run_id}"))
        elif configs.setdefault(run_id, text) != text:
            findings.append(Finding(where, f"'{run_id}' is there twice with different text"))
    if findings:
        raise ConfigError(source, findings)
    return configs


def write_run_configs(path: str | Path, directory: str | Path) -> list[Path]:
    """Write every run config of a record as `<run_id>.yaml` and return the files.

    A file that is there already with the same text is left as it is. Nothing is written if one file is in the way.

    Raises:
        ConfigError: as `read_run_configs`.
        OutputError: another file is in the way, or the folder cannot be written.
    """
    configs, folder = read_run_configs(path), Path(directory)
    files: dict[Path, str] = {}
    for run_id, text in configs.items():
        file = folder / f"{safe_name(run_id)}.yaml"
        if files.setdefault(file, text) != text:
            raise OutputError(f"{path}: '{run_id}' and another run would both be written to {file}")
    try:
        for file, text in files.items():
            if file.exists() and file.read_bytes() != text.encode("utf-8"):
                raise OutputError(f"{file} exists and differs from the record; remove it or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            file.write_bytes(text.encode("utf-8"))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write run configs to {folder}: {error.strerror or error}") from error
    return list(files)


def safe_name(run_id: str) -> str:
    """`run_id` as a file name: letters, digits, `.`, `_` and `-`, neither hidden nor a path."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run_id.strip()).lstrip(".-").rstrip(".-")[:200]
    return name or "run"


def _problem(path: Path, where: str, message: str) -> ConfigError:
    return ConfigError(str(path), [Finding(where, message)])


def _text(path: Path) -> str:
    if path.is_dir():
        raise _problem(path, "", "is a folder; name a record in it")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _problem(path, "", f"is larger than {MAX_BYTES:,} bytes; that is no record")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _problem(path, "", "no such file") from None
    except UnicodeDecodeError as error:
        raise _problem(path, "", f"byte {error.start} is not UTF-8 text") from None
    except OSError as error:
        raise _problem(path, "", f"cannot be read: {error.strerror}") from error


def _answer(text: str) -> str:
    """What follows the last line that is just `Output:`; the prompt before it may hold such objects as examples."""
    marks = list(re.finditer(r"^\s*Output:[ \t]*", text, re.M))
    return text[marks[-1].end() :] if marks else text


def _entries(value: object) -> Iterator[Mapping[str, Any]]:
    """The run configs in one object, at its top or further in."""
    if not isinstance(value, dict):
        return
    listed = value.get("run_configs")
    if isinstance(listed, list):
        yield from (entry if isinstance(entry, dict) else {"run_id": None} for entry in listed)
    elif "run_config_yaml" in value:
        yield value
    else:
        for inner in value.values():
            yield from _entries(inner)
