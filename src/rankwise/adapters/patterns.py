"""PEFT's rank and alpha patterns, kept true.

Pattern keys are regular expressions matched against the end of a module's name, the first match wins, and saving sorts
them: only full, escaped names behind a `^` are safe (`layers.0.q` would match `vision.layers.0.q` too). A rank pattern
without an alpha pattern would change the scaling.
"""

import re
from collections.abc import Mapping

from peft import LoraConfig, PeftModel

from rankwise.adapters.attach import ADAPTER, adapted_layers


def set_patterns(
    config: LoraConfig, ranks: Mapping[str, int], alphas: Mapping[str, float], *, default: int | None = None
) -> None:
    """Describe exactly these modules in `config`; those of rank `default` (or the commonest) need no entry."""
    counts = list(ranks.values())
    config.r = default or max(set(counts), key=lambda r: (counts.count(r), -r))
    config.lora_alpha = next(alphas[name] for name, rank in ranks.items() if rank == config.r)
    others = [name for name in ranks if (ranks[name], alphas[name]) != (config.r, config.lora_alpha)]
    config.rank_pattern = {f"^{re.escape(name)}": ranks[name] for name in others}
    config.alpha_pattern = {f"^{re.escape(name)}": alphas[name] for name in others}
    config.target_modules = list(ranks)


def write_patterns(model: PeftModel) -> None:
    """Make the model's own PEFT config describe its live ranks, so that `save_pretrained` and reload agree."""
    layers = adapted_layers(model)
    if not layers:
        return
    config = model.peft_config[ADAPTER]
    set_patterns(
        config,
        {name: layer.r[ADAPTER] for name, layer in layers.items()},
        {name: layer.lora_alpha[ADAPTER] for name, layer in layers.items()},
    )
    config.target_modules = set(layers)  # a living PEFT config has a set; a saved one keeps the order of our list
