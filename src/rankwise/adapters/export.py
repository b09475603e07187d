"""From a trained method to a plain PEFT LoRA checkpoint that stock PEFT and the usual servers load.

The `compact` form folds the scaling into `lora_B` and writes r = alpha = largest rank with equal rank and alpha
patterns: every module's scale is then 1, also for servers that ignore patterns. Modules of rank 0 are left out of
`target_modules`.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from peft import LoraConfig, PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.patterns import set_patterns
from rankwise.errors import AllocationError, OutputError


@dataclass(frozen=True)
class Pair:
    """One module's adapter with its scale folded in: delta_weight (out, in) = `b` (out, rank) @ `a` (rank, in)."""

    a: Tensor
    b: Tensor


def lora_pairs(model: PeftModel) -> dict[str, Pair]:
    """The live LoRA factors by module name, scaling folded into B."""
    return {
        name: Pair(
            layer.lora_A[ADAPTER].weight.detach(), layer.lora_B[ADAPTER].weight.detach() * layer.scaling[ADAPTER]
        )
        for name, layer in adapted_layers(model).items()
    }


def write_compact(model: PeftModel, pairs: Mapping[str, Pair], directory: Path) -> Path:
    """Write `pairs` and the model's trained head as a plain LoRA checkpoint.

    Raises:
        OutputError: the folder exists and is not empty, or cannot be written.
        AllocationError: no module has any rank left, which PEFT cannot express.
    """
    live = {name: pair for name, pair in pairs.items() if pair.a.shape[0] > 0}
    if not live:
        raise AllocationError("every module ended at rank 0: there is no adapter to write")
    source = model.peft_config[ADAPTER]
    config = LoraConfig(
        task_type=source.task_type,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        modules_to_save=source.modules_to_save,
        fan_in_fan_out=source.fan_in_fan_out,
        lora_dropout=source.lora_dropout,
        inference_mode=True,
    )
    ranks = {name: pair.a.shape[0] for name, pair in live.items()}
    set_patterns(config, ranks, ranks, default=max(ranks.values()))
    tensors = {f"base_model.model.{n}.lora_A.weight": pair.a for n, pair in live.items()}
    tensors |= {f"base_model.model.{n}.lora_B.weight": pair.b for n, pair in live.items()}
    tensors |= _head_tensors(model)
    with new_directory(directory) as folder:
        config.save_pretrained(str(folder))
        ready = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        save_file(ready, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    return directory


def _head_tensors(model: PeftModel) -> dict[str, Tensor]:
    """The modules trained whole, by PEFT's key. PEFT's own collector is not asked: for AdaLoRA it edits the config."""
    return {
        f"base_model.model.{name}.{key}": value
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
