"""Leave blocks out for every input: the control that skipping blocks per input (`depth: block`) has to beat.

Run it with `python examples/fewer_blocks.py FOLDER`, then `rankwise compare --model FOLDER`. It writes the embedded
MiniLM (extra `demo`) without its fourth and fifth block; the last one stays, because what reads the hidden states has
learned to read its. For other models change the path to the list of blocks.
"""

import sys
from pathlib import Path

from torch import nn
from transformers import AutoModel, AutoTokenizer

from rankwise.training.models import resolve_model

KEPT = (0, 1, 2, 5)


def main(folder: Path) -> None:
    """Write the shortened model."""
    source = resolve_model("minilm")
    model = AutoModel.from_pretrained(source)
    blocks = model.encoder.layer
    model.encoder.layer = nn.ModuleList(blocks[i] for i in KEPT)
    model.config.num_hidden_layers = len(KEPT)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    print(f"{folder}: {len(KEPT)} of {len(blocks)} blocks")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "four-blocks"))
