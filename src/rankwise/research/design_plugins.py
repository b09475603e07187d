"""Methods of the user's own: Python files that register a method, named on the command line.

A plug-in is code that runs in this process, so it comes from a person's command line alone: never out of a hypothesis,
a record or a model's answer. It is copied into the project with its digest, and loaded from there by later commands.
"""

import hashlib
import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

from rankwise import __version__
from rankwise.errors import ConfigError, Finding, OutputError
from rankwise.experiments.schema import method_registry
from rankwise.research.artefacts import Artefact
from rankwise.research.project import Made, Project

PLUGINS = "plugins.json"
FOLDER = "plugins"


class Plugin(Artefact):
    """A file, its digest, and the methods that it registers."""

    file: str
    sha256: str
    methods: tuple[str, ...]


class Plugins(Artefact):
    """The plug-ins of a project."""

    plugins: tuple[Plugin, ...] = ()


_LOADED: set[str] = set()
"""Digests of files that this process has loaded: a method can be registered once."""


def add_plugins(project: Project, files: Sequence[Path]) -> None:
    """Load the project's plug-ins, and add these.

    Raises:
        ConfigError: a file is not there, fails, registers nothing, or was changed since it was added.
        OutputError: the project has another file of that name.
    """
    known = list(project.read(PLUGINS, Plugins).plugins) if project.has(PLUGINS) else []
    for plugin in known:
        path = project.path(plugin.file)
        if not path.is_file() or _digest(path) != plugin.sha256:
            message = f"is missing or was changed since it was added (sha256 {plugin.sha256[:12]}…)"
            raise ConfigError(str(path), [Finding("", message)])
        _load(path, plugin.sha256)
    added = [_added(project, Path(file), known) for file in files]
    new = [plugin for plugin in added if plugin not in known]
    if new:
        content = Plugins(plugins=(*known, *new))
        project.write(PLUGINS, content, Made(by="hand", version=__version__), again=True)


def _added(project: Project, file: Path, known: Sequence[Plugin]) -> Plugin:
    """Copy a file into the project and load it from there."""
    if not file.is_file():
        raise ConfigError("--plugin", [Finding(str(file), "no such file")])
    digest, name = _digest(file), f"{FOLDER}/{file.name}"
    same = next((plugin for plugin in known if plugin.file == name and plugin.sha256 == digest), None)
    if same is not None:
        return same
    target = project.path(name)
    if any(plugin.file == name for plugin in known):  # a copy that nobody knows is left of a plug-in that failed
        raise OutputError(f"{target} is another plug-in of that name; rename the file")
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.resolve() != target:
        shutil.copyfile(file, target)
    methods = _load(target, digest)
    if not methods:
        message = "registers no method; see METHODS.register in rankwise.adapters.contract"
        raise ConfigError("--plugin", [Finding(str(file), message)])
    return Plugin(file=name, sha256=digest, methods=methods)


def _load(path: Path, digest: str) -> tuple[str, ...]:
    """Import a file once per process; returns the names that it registered."""
    before = set(method_registry())
    if digest in _LOADED:
        return tuple(name for name in method_registry() if _file_of(name) == str(path)) or ("loaded before",)
    spec = importlib.util.spec_from_file_location(f"rankwise_plugin_{digest[:12]}", path)
    if spec is None or spec.loader is None:
        raise ConfigError("--plugin", [Finding(str(path), "is no Python file")])
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError("--plugin", [Finding(str(path), f"fails: {type(error).__name__}: {error}")]) from error
    _LOADED.add(digest)
    return tuple(name for name in method_registry() if name not in before)


def _file_of(name: str) -> str:
    import inspect

    try:
        return inspect.getfile(method_registry()[name])
    except (TypeError, OSError):
        return ""


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
