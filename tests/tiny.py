"""Tiny random models, a tokenizer and data, built from config: no downloads, milliseconds per step."""

import dataclasses
from functools import cache
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

import rankwise.adapters.methods  # noqa: F401 - registers them
from rankwise.adapters.contract import METHODS, AdapterConfig, Method
from rankwise.training.callback import RankwiseCallback
from rankwise.training.fit import FitSettings, training_arguments
from rankwise.training.trainer import RankwiseTrainer

WORDS = 60
COMMON = {"vocab_size": WORDS, "pad_token_id": 0, "num_labels": 3, "problem_type": "single_label_classification"}
ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}

CONFIGS = {
    "bert": (BertForSequenceClassification, BertConfig, ENCODER | {"max_position_embeddings": 64}),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, ENCODER | {"max_position_embeddings": 80}),
    "deberta": (
        DebertaV2ForSequenceClassification,
        DebertaV2Config,
        ENCODER | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
    ),
    "llama": (LlamaForSequenceClassification, LlamaConfig, ENCODER | {"num_key_value_heads": 1}),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config,
        {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 2, "eos_token_id": 2},
    ),
    "opt": (
        OPTForSequenceClassification,
        OPTConfig,
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 16},
    ),
    "t5": (
        T5ForSequenceClassification,
        T5Config,
        {"d_model": 32, "d_kv": 16, "num_layers": 2, "num_heads": 2, "d_ff": 64, "decoder_start_token_id": 0},
    ),
}


def tiny_model(family: str = "bert", *, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A random two-layer classifier of hidden size 32; `overrides` go to its config."""
    torch.manual_seed(seed)
    model_class, config_class, settings = CONFIGS[family]
    return model_class(config_class(**(COMMON | settings | overrides)))


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Words `w0` … `w59`, split at spaces; `w0` pads."""
    core = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w1"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", unk_token="w1", eos_token="w2")


def tiny_data(count: int = 40, *, seed: int = 0, regression: bool = False, length: int | None = None) -> Dataset:
    """Encoded examples of 3 to 14 words (or exactly `length`); the label depends on the words."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        size = length or int(torch.randint(3, 15, (1,), generator=generator))
        ids = torch.randint(3, WORDS, (size,), generator=generator).tolist()
        label = sum(ids) / size / WORDS if regression else ids[0] % 3
        rows.append({"input_ids": ids, "attention_mask": [1] * size, "labels": label, "length": size})
    return Dataset.from_list(rows)


SETTINGS = FitSettings(
    total_steps=12,
    batch_size=4,
    gradient_accumulation_steps=1,
    learning_rate=5e-3,
    weight_decay=0.01,
    warmup=2,
    schedule="linear",
    max_grad_norm=1.0,
    gradient_checkpointing=False,
    precision="fp32",
    evaluation_batch_size=8,
    seed=0,
)


def settings(**changes: object) -> FitSettings:
    """`SETTINGS` with changes."""
    return dataclasses.replace(SETTINGS, **changes)


def build(name: str, model: torch.nn.Module | None = None, *, total_steps: int = 12, seed: int = 0, **fields) -> Method:
    """Any registered method on a tiny model (BERT unless given), budget r=2 where there is one."""
    config_class = METHODS[name]
    if issubclass(config_class, AdapterConfig):
        fields = {"budget": "r=2"} | fields
    return config_class(**fields).build(model or tiny_model(), total_steps=total_steps, seed=seed)


def batch(count: int = 4, *, seed: int = 7, length: int = 9) -> dict[str, torch.Tensor]:
    """One padded-free batch as a model takes it."""
    data = tiny_data(count, seed=seed, length=length)
    columns = ("input_ids", "attention_mask", "labels")
    return {name: torch.tensor(data[name][:]) for name in columns}


@torch.no_grad()
def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """Logits in evaluation mode."""
    training = model.training
    model.eval()
    result = model(**(inputs or batch())).logits
    model.train(training)
    return result


def trainer_for(
    method: Method, folder: Path, changes: FitSettings = SETTINGS, *, data: Dataset | None = None, **kwargs
) -> RankwiseTrainer:
    """A `RankwiseTrainer` with the driving callback, as `fit` makes it."""
    driver = kwargs.pop("driver", None) or RankwiseCallback(method, total_steps=changes.total_steps, seed=changes.seed)
    return RankwiseTrainer(
        method=method,
        args=training_arguments(changes, folder),
        train_dataset=tiny_data(20) if data is None else data,
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        callbacks=[driver, *kwargs.pop("callbacks", [])],
        **kwargs,
    )
