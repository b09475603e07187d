"""What the research records say about FLOPs, memory and time, against arithmetic and measurements.

Arithmetic is for BERT-base (12 blocks of width 768, six matrices each), the records' model, with adapters of rank 8 on
all of them. Measurements are read from results files; nothing here is typed in by hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankwise.costs.formulas import adapter_share, bert_block

BERT_WIDTH, BERT_BLOCKS, RANK = 768, 12, 8
MISSING = "not measured yet"
Results = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One row: `where` is the record and its method."""

    where: str
    says: str
    bound: str
    measured: str


def share() -> float:
    """Adapters' FLOPs over those of the linear layers."""
    return adapter_share(bert_block(BERT_WIDTH), RANK)


def static_parameters() -> int:
    """Of all adapters: Σ r (in + out)."""
    return BERT_BLOCKS * sum(RANK * matrix.cost for matrix in bert_block(BERT_WIDTH))


def generator_parameters() -> tuple[int, int]:
    """Of the record's generators: as its text has them, as its code has them.

    The text: per block one layer from the hidden state to 4 · r · width numbers. The code, read for each of a block's
    matrices: one layer to r · (in + out) numbers.
    """
    text = BERT_BLOCKS * BERT_WIDTH * 4 * RANK * BERT_WIDTH
    return text, BERT_WIDTH * static_parameters()


def generating_over_using(tokens: int) -> float:
    """FLOPs of generating a pair of factors over those of using it on `tokens` tokens: width / tokens, for any pair."""
    return BERT_WIDTH / tokens


def claims(conditional: Results | None, overhead: Results | None) -> list[Claim]:
    """The table.

    Args:
        conditional: what `benchmarks/conditional.py` wrote, if it did.
        overhead: what `benchmarks/overhead.py` wrote, if it did.
    """
    part = share()
    all_of_it = part / (1 + part)
    idle = 0.8 * all_of_it
    steps = 3 * part / 2
    text, code = generator_parameters()
    static = static_parameters()
    return [
        Claim(
            "002, GaLoRA",
            "pruning two thirds of the modules cuts inference FLOPs by 60 %",
            f"adapters are {part:.2%} of the linear layers' FLOPs: without any of them {all_of_it:.2%} less than "
            "unmerged LoRA, 0 % less than merged LoRA",
            _flops(conditional, "lora", "all adapters of unmerged LoRA take"),
        ),
        Claim(
            "002, GaLoRA",
            "closed gates make training 15 % faster",
            f"a closed gate is still computed; without any adapter a step on a frozen model takes {steps:.2%} fewer "
            "FLOPs",
            _time(overhead, "galora"),
        ),
        Claim(
            "002, CoGaLoRA",
            "20 % of the adapters active cuts inference FLOPs by 55 %",
            f"{idle:.2%} less than unmerged LoRA, before routing; more than merged LoRA, by what routers and open "
            "adapters take",
            _gated(conditional),
        ),
        Claim("002, CoGaLoRA", "routers make training 5 % slower", "no bound", _time(overhead, "cogalora")),
        Claim(
            "002, RAD-LoRA",
            "skipping adapters and lowering their rank cuts inference FLOPs by 60 %, under a cap of 25 % of full LoRA",
            f"{all_of_it:.2%} at most, as above; a cut of 60 % would break the record's own cap; generating factors "
            f"takes {generating_over_using(32):.0f} times what using them takes at 32 tokens, "
            f"{generating_over_using(128):.0f} times at 128",
            _generating(conditional),
        ),
        Claim(
            "002, RAD-LoRA",
            "generating factors when they are needed cuts their memory by 95 %",
            f"the generators hold {text / 1e6:.0f}M (as the text has them) to {code / 1e9:.2f}G parameters (as the "
            f"code has them), the adapters that they replace {static / 1e6:.2f}M",
            _generators(conditional),
        ),
        Claim(
            "002, RAD-LoRA",
            "gating alone, without ranks, saves 25 % of the FLOPs",
            f"{all_of_it:.2%} at most, as above",
            _gated(conditional),
        ),
    ]


def _flops(results: Results | None, variant: str, what: str) -> str:
    if not results:
        return MISSING
    rows = {name: model["flops"][variant] for name, model in results["models"].items()}
    return f"{what} " + ", ".join(
        f"{row['adapter_share']:.2%} of the total on {_model(name, results)}" for name, row in rows.items()
    )


def _gated(results: Results | None) -> str:
    if not results:
        return MISSING
    parts = []
    for name, model in results["models"].items():
        row = model["flops"]["cogalora_module"]
        parts.append(
            f"{row['to_unmerged'] - 1:+.2%} against unmerged and {row['to_merged'] - 1:+.2%} against merged LoRA with "
            f"{row['active']:.0%} open on {_model(name, results)}"
        )
    return "; ".join(parts)


def _generating(results: Results | None) -> str:
    if not results:
        return MISSING
    found, tokens = results["hypernetwork"], results["settings"]["tokens"]
    using = 2 * tokens * found["static"]
    return (
        f"generating all factors for one example takes {found['flops_per_example'] / 1e9:.2f} GFLOPs (counted), "
        f"{found['flops_per_example'] / using:.0f} times what they take on {tokens} tokens"
    )


def _generators(results: Results | None) -> str:
    if not results:
        return MISSING
    found = results["hypernetwork"]
    return f"{found['parameters'] / found['static']:.0f} times the parameters (counted, as the code has them)"


def _time(results: Results | None, method: str) -> str:
    row = next((row for row in (results or {}).get("rows", []) if row["method"] == method), None)
    if row is None:
        return MISSING
    return f"{row['ratio_to_lora'] - 1:+.1%} wall-clock against LoRA (quartiles {row['spread']:.1%} apart)"


def _model(name: str, results: Results) -> str:
    model = results["models"][name]
    return "MiniLM" if name == "minilm" else f"{model['layers']} blocks of the width of BERT-base"
