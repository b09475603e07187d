"""From a trained method to a checkpoint that stock PEFT, Transformers and the usual servers load.

Three forms, all with the scaling folded into `lora_B`:

- `compact`: r = alpha = largest rank with equal rank and alpha patterns, so that every module's scale is 1, also for
  servers that ignore patterns. Modules of rank 0 are left out of `target_modules`. The smallest file.
- `uniform`: zero-padded to one rank that servers have kernels for, no patterns, and every layer of a kind of matrix
  present, with zeros where an adapter was dropped: some servers stack a kind over all layers. Read alike everywhere.
- `merged`: the base model with ΔW added to its weights, as a Transformers folder (see `adapters/merge.py`).

Nothing is ever overwritten, and a folder appears under its name only when it is whole.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.adapters.attach import ADAPTER, Matrix, adapted_layers
from rankwise.adapters.contract import Form
from rankwise.adapters.families import family
from rankwise.adapters.merge import merged_copy, save_model
from rankwise.adapters.pairs import Pair, fold
from rankwise.adapters.patterns import set_patterns
from rankwise.errors import AllocationError, ConfigError, Finding, OutputError

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `max_lora_rank` (from 8 on; the other servers take any multiple of 8)."""


@dataclass(frozen=True)
class Frame:
    """What a LoRA checkpoint says beside its factors.

    `extra` holds the tensors that are no factors (the trained head), by their names in the base model;
    `model_class` is (class name, library), which PEFT notes where there is no task type.
    """

    task_type: str | None = None
    base_model: str | None = None
    revision: str | None = None
    fan_in_fan_out: bool = False
    modules_to_save: tuple[str, ...] = ()
    dropout: float = 0.0
    model_class: tuple[str, str] | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)


def lora_pairs(model: PeftModel) -> dict[str, Pair]:
    """The live LoRA factors by module name, scaling folded into B."""
    return {
        name: fold(layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach(), layer.scaling[ADAPTER])
        for name, layer in adapted_layers(model).items()
    }


def frame_of(model: PeftModel) -> Frame:
    """What surrounds our adapter on a living model, its trained head included."""
    source, base = model.peft_config[ADAPTER], model.base_model.model
    known = None if source.task_type else (type(base).__name__, type(base).__module__)
    return Frame(
        task_type=source.task_type,
        base_model=source.base_model_name_or_path,
        revision=source.revision,
        fan_in_fan_out=source.fan_in_fan_out,
        modules_to_save=tuple(source.modules_to_save or ()),
        dropout=source.lora_dropout,
        model_class=known,
        extra=_head_tensors(model),
    )


def export_adapter(model: PeftModel, pairs: Mapping[str, Pair], directory: Path, form: Form = "compact") -> Path:
    """Write a living model's adapter in any form; the model stays as it is.

    Args:
        model: carries the adapter and its head.
        pairs: the adapter as plain LoRA, by module name.
        directory: where to; see `new_directory`.
        form: see this module.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
        AllocationError: no module has any rank left.
        ConfigError: the adapter cannot be written in this form.
    """
    if form == "merged":
        with new_directory(directory) as folder:
            save_model(merged_copy(model, pairs), folder)
        return directory
    return write_lora(frame_of(model), pairs, directory, form, matrices=linear_matrices(model))


def write_lora(
    frame: Frame,
    pairs: Mapping[str, Pair],
    directory: Path,
    form: Form = "compact",
    *,
    matrices: Mapping[str, Matrix] | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Write a plain LoRA checkpoint in the compact or uniform form.

    Args:
        frame: what the checkpoint says beside its factors.
        pairs: module -> factors, rank 0 allowed.
        directory: where to; see `new_directory`.
        form: `compact` or `uniform`.
        matrices: every linear layer of the base model, for `uniform`; without it only modules in `pairs` are known.
        files: further text files by name (a model card).

    Raises:
        OutputError, AllocationError, ConfigError: see `export_adapter`.
    """
    live = {name: pair for name, pair in pairs.items() if pair.rank > 0}
    if not live:
        raise AllocationError("every module ended at rank 0: there is no adapter to write")
    if form == "merged":
        raise ConfigError("export", [Finding("form", "'merged' needs the base model; LoRA is 'compact' or 'uniform'")])
    if form == "uniform":
        live = padded(pairs, matrices or {})
    config = _config(frame, {name: pair.rank for name, pair in live.items()})
    tensors = {f"base_model.model.{n}.lora_A.weight": pair.a for n, pair in live.items()}
    tensors |= {f"base_model.model.{n}.lora_B.weight": pair.b for n, pair in live.items()}
    tensors |= {f"base_model.model.{n}": value for n, value in frame.extra.items()}
    mapping = frame.model_class and dict(zip(("base_model_class", "parent_library"), frame.model_class, strict=True))
    with new_directory(directory) as folder:
        config.save_pretrained(str(folder), auto_mapping_dict=mapping)
        ready = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(ready, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        for name, text in (files or {}).items():
            (folder / name).write_text(text, encoding="utf-8")
    return directory


def padded(pairs: Mapping[str, Pair], matrices: Mapping[str, Matrix]) -> dict[str, Pair]:
    """`pairs` at one rank, and zeros on every further layer of the kinds of matrix that are adapted anywhere.

    Raises:
        ConfigError: the largest rank is above what servers take.
    """
    largest = max(pair.rank for pair in pairs.values())
    rank = next((served for served in SERVED_RANKS if served >= largest), None)
    if rank is None:
        message = f"'uniform' goes up to rank {SERVED_RANKS[-1]}, this adapter has {largest}; use 'compact' or 'merged'"
        raise ConfigError("export", [Finding("form", message)])
    like = next(pair for pair in pairs.values() if pair.rank == largest)
    kinds = {family(name) for name, pair in pairs.items() if pair.rank}
    sizes = {name: (m.in_features, m.out_features) for name, m in matrices.items()}
    sizes |= {name: (pair.a.shape[1], pair.b.shape[0]) for name, pair in pairs.items()}
    wide = {}
    for name, (in_features, out_features) in sizes.items():
        if family(name) in kinds:
            pair = pairs.get(name) or Pair(like.a.new_zeros(0, in_features), like.b.new_zeros(out_features, 0))
            missing = rank - pair.rank
            a = torch.cat([pair.a, pair.a.new_zeros(missing, in_features)])
            wide[name] = Pair(a, torch.cat([pair.b, pair.b.new_zeros(out_features, missing)], 1))
    return wide


def linear_matrices(model: nn.Module) -> dict[str, Matrix]:
    """Every linear layer of a model by its name in the base model, adapted or not; trained heads left out."""
    root = model.base_model.model if isinstance(model, PeftModel) else model
    found: dict[str, Matrix] = {}
    inside: list[str] = []  # adapted layers and heads hold linear layers of their own
    for name, module in root.named_modules():
        if name.startswith(tuple(inside)):
            continue
        if isinstance(module, LoraLayer):
            found[name] = Matrix(name, module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            found[name] = Matrix(name, module.nx, module.nf)
        elif isinstance(module, nn.Linear):
            found[name] = Matrix(name, module.in_features, module.out_features)
        if isinstance(module, LoraLayer | ModulesToSaveWrapper):
            inside.append(f"{name}.")
    return found


def _config(frame: Frame, ranks: Mapping[str, int]) -> LoraConfig:
    # PEFT appends its usual head names to `modules_to_save`, there or not, and again whenever it is loaded.
    heads = [name for name in dict.fromkeys(frame.modules_to_save) if any(_inside(key, name) for key in frame.extra)]
    config = LoraConfig(
        task_type=frame.task_type,
        base_model_name_or_path=frame.base_model,
        revision=frame.revision,
        modules_to_save=heads or None,
        fan_in_fan_out=frame.fan_in_fan_out,
        lora_dropout=frame.dropout,
        inference_mode=True,
    )
    set_patterns(config, ranks, ranks, default=max(ranks.values()))
    return config


def _inside(key: str, module: str) -> bool:
    return f".{module}." in f".{key}"


def _head_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The modules trained whole, by their names. PEFT's own collector is not asked: for AdaLoRA it edits the config."""
    return {
        f"{name}.{key}": value
        for name, module in model.base_model.model.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
        for key, value in module.modules_to_save[ADAPTER].state_dict().items()
    }


@contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A temporary folder that becomes `directory` in one rename if the block succeeds.

    Raises:
        OutputError: `directory` exists and is not empty, or cannot be written (the reason is given).
    """
    directory = Path(directory)
    try:
        if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
            raise OutputError(f"{directory} exists and is not empty; choose another folder or remove it first")
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {directory}: {error.strerror or error}") from error
    try:
        yield temporary
        temporary.chmod(0o755)
        if directory.exists():
            directory.rmdir()
        temporary.replace(directory)
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {directory}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
