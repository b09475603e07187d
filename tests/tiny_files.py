"""A model folder and a data file so small that whole comparisons run in seconds."""

import csv
import random
from pathlib import Path

WORDS = [f"word{i}" for i in range(40)]


def write_model(folder: Path) -> Path:
    """A random two-layer BERT with a word-level tokenizer, as a Transformers folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast, set_seed

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    set_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return folder


def write_data(path: Path, rows: int = 120) -> Path:
    """Two classes told apart by which half of the words a text uses."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sentence", "verdict"])
        for i in range(rows):
            half = WORDS[:20] if i % 2 else WORDS[20:]
            words = [draw.choice(half if draw.random() < 0.8 else WORDS) for _ in range(draw.randint(4, 12))]
            writer.writerow([f"{' '.join(words)}", "good" if i % 2 else "bad"])
    return path
