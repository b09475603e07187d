"""A checkpoint and what it is compared with, as living models."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import transformers
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn

from rankwise.adapters.checkpoint import read_checkpoint, read_config, read_frame, why_not_plain
from rankwise.costs.activity import lora_layers
from rankwise.costs.latency import Variant
from rankwise.costs.twins import UNMERGEABLE, lora_twin, merged, shared_copy, use_fused, use_stock
from rankwise.errors import ModelError
from rankwise.experiments.adapter_base import FAILURES, Base, load_base, reason, tokenizer_of
from rankwise.experiments.adapter_load import load_adapter, quiet
from rankwise.experiments.adapter_source import Source
from rankwise.experiments.exporting import KINDS

BASE, LORA, FUSED, MERGED, OWN, OWN_MERGED = "base", "lora", "lora_fused", "lora_merged", "adapter", "adapter_merged"
NAMES = KINDS | {"COGALORA": "CoGaLoRA", "RADLORA": "RAD-LoRA", "RADBLOCK": "RAD-LoRA in block mode"}
"""PEFT's types for people."""

CACHED = "measured without the adapter's cache of decisions: here the same texts come again and again"


@dataclass(frozen=True)
class Loader:
    """Makes the models around one checkpoint; small enough to be sent to another process.

    Args:
        folder: of the checkpoint.
        override: another name for the base model.
        base_name: of a whole model's base, for its tokenizer.
    """

    folder: Path
    override: str | None = None
    base_name: str | None = None

    @cached_property
    def whole(self) -> bool:
        """Whether it holds a whole model, and no adapter."""
        return not (self.folder / "adapter_config.json").is_file() and (self.folder / "config.json").is_file()

    @cached_property
    def kind(self) -> str:
        """PEFT's type, or `FULL`."""
        return "FULL" if self.whole else str(read_config(self.folder).get("peft_type")).split()[0].upper()

    @cached_property
    def label(self) -> str:
        """For people: `DoRA` and its like are LoRA to PEFT."""
        if self.whole:
            return "fully fine-tuned model"
        config = read_config(self.folder)
        return "DoRA" if config.get("use_dora") else NAMES.get(self.kind, self.kind)

    @cached_property
    def plain(self) -> bool:
        """Whether it is plain LoRA as PEFT computes it."""
        return self.kind == "LORA" and why_not_plain(read_config(self.folder)) is None

    @cached_property
    def caches(self) -> bool:
        """Whether the adapter remembers its decisions; it is measured without, because the same texts come again."""
        return not self.whole and bool(read_config(self.folder).get("cache"))

    def base(self) -> Base:
        """The frozen model with the checkpoint's head.

        Raises:
            ModelError, DataError, ConfigError: see `load_base`.
        """
        return self._whole() if self.whole else load_base(read_frame(self.folder), self.override)

    def own(self, base: nn.Module) -> PeftModel:
        """The checkpoint on `base`, which is wrapped.

        Raises:
            ModelError: PEFT cannot load it, or some of its weights are not in it.
            DataError: some of its weights are not finite.
        """
        return load_adapter(self.folder, base, cache=False) if self.caches else load_adapter(self.folder, base)

    def lora(self, base: nn.Module, ranks: Mapping[str, int]) -> PeftModel:
        """Plain LoRA of `ranks` on `base`: the checkpoint itself if it is that."""
        return self.own(base) if self.plain else lora_twin(base, ranks)

    def ranks(self, own: nn.Module) -> dict[str, int]:
        """Components per module; none where the adapter is not made of low-rank factors."""
        if self.kind in KINDS and why_not_plain(read_config(self.folder)) is None:
            return {name: rank for name, rank in read_checkpoint(self.folder).ranks.items() if rank}
        return {name: rank for name, (_, rank) in lora_layers(own).items()}

    def _whole(self) -> Base:
        try:
            config = transformers.AutoConfig.from_pretrained(self.folder)
            kind = getattr(transformers, (config.architectures or [""])[0])
            model = kind.from_pretrained(self.folder, dtype="auto")
        except (*FAILURES, SafetensorError) as error:
            raise ModelError(f"cannot load the model in {self.folder}: {reason(error)}") from error
        name = self.override or self.base_name
        return Base(model, tokenizer_of(name) if name else tokenizer_of(str(self.folder)))


@dataclass(frozen=True)
class Subject:
    """The models of a checkpoint in one process.

    `variants` are the ways to run it that are compared, by name; `reference` is the one that latencies are divided by;
    `served` the one it would be served as: merged where that can be. `notes` say what could not be made.
    """

    loader: Loader
    base: Base
    own: nn.Module
    ranks: dict[str, int]
    variants: dict[str, Variant]
    reference: str
    served: str
    notes: tuple[str, ...] = ()


def load_subject(source: Source, override: str | None = None) -> Subject:
    """Everything that `source` is compared with.

    Raises:
        ConfigError, DataError, ModelError: a checkpoint or base model that cannot be had, read or run.
    """
    loader = Loader(source.folder, override, source.record.model if source.record else None)
    base = loader.base()
    model = base.model.eval()
    _refuse_sequence_to_sequence(model)
    if loader.whole:
        return Subject(loader, base, model, {}, {BASE: Variant(model)}, BASE, BASE)
    own = loader.own(shared_copy(model))
    ranks = loader.ranks(own)
    variants, notes = {BASE: Variant(model)}, [CACHED] if loader.caches else []
    if ranks:
        lora = own if loader.plain else lora_twin(shared_copy(model), ranks)
        variants |= {LORA: Variant(lora, use_stock(lora)), FUSED: Variant(lora, use_fused(lora))}
        with quiet():
            variants[MERGED] = Variant(merged(lora))
    if not loader.plain:
        variants[OWN] = Variant(own)
        try:
            with quiet():
                variants[OWN_MERGED] = Variant(merged(own))
        except UNMERGEABLE as error:
            notes.append(f"not merged: {str(error).splitlines()[0]}")
    reference = next(name for name in (MERGED, OWN_MERGED, BASE) if name in variants)
    served = MERGED if loader.plain else OWN_MERGED if OWN_MERGED in variants else OWN
    return Subject(loader, base, own, ranks, variants, reference, served, tuple(notes))


def load_variant(loader: Loader, ranks: Mapping[str, int], name: str) -> nn.Module:
    """One of a subject's variants and nothing else, for a process of its own."""
    base: nn.Module = loader.base().model
    if name == BASE:
        return base
    with quiet():
        made: nn.Module = loader.own(base) if name in (OWN, OWN_MERGED) else loader.lora(base, ranks)
        return merged(made) if name in (MERGED, OWN_MERGED) else made


def _refuse_sequence_to_sequence(model: nn.Module) -> None:
    if type(model).__name__.endswith("ForConditionalGeneration"):
        raise ModelError(
            f"{type(model).__name__} reads one text and writes another; costs are measured on models that read one"
        )
