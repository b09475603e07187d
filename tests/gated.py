"""Tiny models with CoGaLoRA adapters whose gates really differ between examples, made by PEFT's own functions."""

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tiny import COMMON, CONFIGS, WORDS
from torch import Tensor
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from rankwise.adapters.conditional import CogaloraPeftConfig
from rankwise.adapters.conditional.context import Context, context_of

CAUSAL = {"llama": LlamaForCausalLM, "gpt2": GPT2LMHeadModel}
TARGETS = {
    "bert": ["query", "value", "intermediate.dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def causal_model(family: str = "llama", *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random two-layer language model of hidden size 32."""
    torch.manual_seed(seed)
    _, config_class, sizes = CONFIGS[family]
    common = {"vocab_size": WORDS, "pad_token_id": 0}
    assert common.keys() <= COMMON.keys()
    return CAUSAL[family](config_class(**(common | sizes | NO_DROPOUT[family] | overrides))).eval()


def gated_config(family: str = "bert", **fields: object) -> CogaloraPeftConfig:
    """Rank 3 on some matrices of a tiny model."""
    return CogaloraPeftConfig(**({"r": 3, "lora_alpha": 6, "target_modules": TARGETS[family]} | fields))


def gated(model: PreTrainedModel, config: CogaloraPeftConfig, *, adapter: str = "default", seed: int = 0) -> PeftModel:
    """`get_peft_model`, then `fill`."""
    found = get_peft_model(model, config, adapter_name=adapter).eval()
    fill(found, adapter, seed=seed)
    return found


@torch.no_grad()
def fill(model: torch.nn.Module, adapter: str = "default", *, seed: int = 0) -> None:
    """Factors that matter and routers that tell inputs apart: as good as trained."""
    generator = torch.Generator().manual_seed(seed)
    for layer in (m for m in model.modules() if isinstance(m, LoraLayer) and adapter in m.lora_B):
        b = layer.lora_B[adapter].weight
        b.copy_(torch.randn(b.shape, generator=generator) * 0.3)
        routers = getattr(layer, "lora_router", {})
        if adapter in routers:
            router = routers[adapter]
            router.down.copy_(torch.randn(router.down.shape, generator=generator))
            up = torch.randn(router.up.shape, generator=generator)
            router.up.copy_(up - up.mean(1, keepdim=True))
            router.up_bias.zero_()


def context(model: PeftModel | PreTrainedModel) -> Context:
    """Of a PEFT model or of its base model."""
    return context_of(model.base_model.model if isinstance(model, PeftModel) else model)


def decisions(model: PeftModel | PreTrainedModel) -> dict[tuple[str, str], Tensor]:
    """Copies of the gates of the last pass in inference."""
    return {key: gates.clone() for key, gates in context(model).kept.items()}


def tokens(rows: int = 6, length: int = 9, *, seed: int = 1) -> dict[str, Tensor]:
    """Random token ids and a mask of ones."""
    ids = torch.randint(3, WORDS, (rows, length), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(inputs: dict[str, Tensor], count: int, *, left: bool = False) -> dict[str, Tensor]:
    """The same with `count` more tokens of padding on one side."""
    sides = (count, 0) if left else (0, count)
    return {name: torch.nn.functional.pad(value, sides) for name, value in inputs.items()}


def rows_of(inputs: dict[str, Tensor], index: object) -> dict[str, Tensor]:
    """Some examples."""
    return {name: value[index] for name, value in inputs.items()}
