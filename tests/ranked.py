"""Tiny models with RAD-LoRA adapters whose gates and ranks really differ between examples, made by PEFT's functions."""

import torch
from gated import TARGETS, context, fill
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from rankwise.adapters.conditional import RadloraPeftConfig
from rankwise.adapters.conditional.rad_bank import BANKS
from rankwise.adapters.conditional.rad_hyper import HYPER
from rankwise.adapters.conditional.rad_layer import Decision

KINDS = {
    "bank": {"generator": "bank"},
    "hyper": {"generator": "hyper"},
    "factorised": {"generator": "hyper", "generator_rank": 2},
}
"""Fields of a config by the way factors come about."""


def ranked_config(kind: str = "bank", family: str = "bert", **fields: object) -> RadloraPeftConfig:
    """Rank 4 at most on some matrices of a tiny model."""
    return RadloraPeftConfig(**({"r": 4, "lora_alpha": 8, "target_modules": TARGETS[family]} | KINDS[kind] | fields))


def ranked(model: PreTrainedModel, config: RadloraPeftConfig, *, adapter: str = "default", seed: int = 0) -> PeftModel:
    """`get_peft_model`, then `enrich`."""
    found = get_peft_model(model, config, adapter_name=adapter).eval()
    enrich(found, adapter, seed=seed)
    return found


@torch.no_grad()
def enrich(model: torch.nn.Module, adapter: str = "default", *, seed: int = 0) -> None:
    """Random routers, banks and generators: as good as trained."""
    fill(model, adapter, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for layer in (m for m in model.modules() if isinstance(m, LoraLayer)):
        for container in (*BANKS.values(), HYPER):
            if adapter in getattr(layer, container, {}):
                for p in getattr(layer, container)[adapter].parameters():
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.3)


def made(model: PeftModel | PreTrainedModel) -> dict[tuple[str, str], Decision]:
    """Decisions of the last pass in inference."""
    return dict(context(model).kept)


def ranks(model: PeftModel | PreTrainedModel) -> Tensor:
    """(examples, layers), components used in the last pass in inference."""
    return torch.stack([decision.ranks for decision in made(model).values()], 1)


@torch.no_grad()
def out(model: torch.nn.Module, inputs: dict[str, Tensor], **kwargs: object) -> Tensor:
    """Logits in inference."""
    return model.eval()(**inputs, **kwargs).logits
