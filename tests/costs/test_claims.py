"""The claims' arithmetic by other means, and docs/costs.md against its generator.

After a new results file: RANKWISE_UPDATE_DOCS=1 pytest tests/costs/test_claims.py
"""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from rankwise.adapters.attach import attach_lora, find_matrices
from rankwise.costs.claims import (
    MISSING,
    claims,
    generating_over_using,
    generator_parameters,
    share,
    static_parameters,
)
from rankwise.costs.formulas import bert_block
from rankwise.costs.parameters import parameters_of
from rankwise.experiments.cost_markdown import claims_markdown, latency_markdown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/costs.md"


def results(name):
    path = ROOT / f"benchmarks/results/{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def test_page_is_what_the_generator_writes():
    tables = {
        "claims": claims_markdown(results("conditional"), results("overhead")),
        "latency": latency_markdown(results("conditional")),
    }
    text = made = PAGE.read_text(encoding="utf-8")
    for mark, table in tables.items():
        block = f"<!-- {mark} -->\n{table}\n<!-- /{mark} -->"
        made, count = re.subn(f"<!-- {mark} -->.*<!-- /{mark} -->", lambda _, block=block: block, made, flags=re.S)
        assert count == 1
    if os.environ.get("RANKWISE_UPDATE_DOCS"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made
    assert text.count("\n\n\n") == 0


def test_adapters_of_bert_base_on_the_model_itself():
    with torch.device("meta"):
        model = BertModel(BertConfig())
        matrices = find_matrices(model)
        assert len(matrices) == 72
        dense = sum(m.in_features * m.out_features for m in matrices.values())
        wrapped = attach_lora(model, matrices, config=LoraConfig(r=8), seed=0)
    assert parameters_of(wrapped).factors == static_parameters() == 1_327_104
    assert share() == static_parameters() / dense == 0.015625


def test_generators_of_the_record():
    """226M as the text has them, 1.02G as the code has them, and 24 and 6 times the compute of the adapters."""
    text, code = generator_parameters()
    with torch.device("meta"):
        built = [nn.Linear(768, 8 * (m.in_features + m.out_features), bias=False) for m in bert_block(768)] * 12
    assert code == sum(layer.weight.numel() for layer in built) == 1_019_215_872
    assert text == 12 * nn.Linear(768, 4 * 8 * 768, bias=False, device="meta").weight.numel() == 226_492_416
    for tokens, times in ((32, 24), (128, 6)):
        a, b, x = torch.empty(8, 768), torch.empty(3072, 8), torch.empty(tokens, 768)
        with FlopCounterMode(display=False) as using:
            (x @ a.t()) @ b.t()
        with FlopCounterMode(display=False) as generating:
            torch.empty(1, 768, device="meta") @ torch.empty(768, 8 * (768 + 3072), device="meta")
        assert generating_over_using(tokens) == times == generating.get_total_flops() / using.get_total_flops()


FLOPS = {"adapter_share": 0.0151, "to_unmerged": 0.99, "to_merged": 1.006, "active": 0.2, "routing_share": 0.001}
ROW = {"median": 1.03, "low": 1.01, "high": 1.05}
LATENCY = {"p50_ms": 12.3, "p95_ms": 45.6, "to_lora_merged": ROW, "to_lora_fused": ROW | {"median": 0.99}}
VARIANTS = ("base", "lora", "lora_fused", "lora_merged", "cogalora_module", "cogalora_shared")
MEASURED = {
    "models": {
        "minilm": {
            "layers": 6,
            "width": 384,
            "flops": dict.fromkeys(("lora", "cogalora_module", "cogalora_shared"), FLOPS),
            "latency": {"8": dict.fromkeys(VARIANTS, LATENCY)},
        }
    },
    "hypernetwork": {"parameters": 1000, "static": 10, "flops_per_example": 6.4e9},
    "settings": {"rank": 8, "active": 0.2, "tokens": 64, "rounds": 9, "threads": 1, "note": ""},
    "machine": {"cores": 2, "processor": "chip"},
}


def test_bounds_need_no_measurement():
    rows = claims(None, None)
    assert {row.measured for row in rows} == {MISSING}
    bounds = " ".join(row.bound for row in rows)
    for number in ("1.56%", "1.54%", "1.23%", "2.34%", "24 times", "6 times", "226M", "1.02G", "1.33M"):
        assert number in bounds
    said = " ".join(row.says for row in rows)
    for number in ("60 %", "55 %", "15 %", "5 %", "95 %", "25 %"):
        assert number in said


def test_measured_column_is_the_files():
    table = claims_markdown(MEASURED, {"rows": [{"method": "galora", "ratio_to_lora": 1.021, "spread": 0.03}]})
    assert "1.51% of the total on MiniLM" in table
    assert "-1.00% against unmerged and +0.60% against merged LoRA with 20% open on MiniLM" in table
    assert "+2.1% wall-clock against LoRA (quartiles 3.0% apart)" in table
    assert "100 times the parameters" in table
    assert "6.40 GFLOPs (counted), 5000000 times" in table
    assert table.count(MISSING) == 1  # CoGaLoRA's training time
    changed = json.loads(json.dumps(MEASURED).replace("0.99", "0.95"))
    assert "-5.00% against unmerged" in claims_markdown(changed, None)


def test_latency_table():
    table = latency_markdown(MEASURED)
    assert "| LoRA, merged | 12.3 / 45.6 | 1.030 (1.010 to 1.050) | 0.990 | – |" in table
    assert "| CoGaLoRA, a shared router | 12.3 / 45.6 | 1.030 (1.010 to 1.050) | 0.990 | 1.51%, 0.10% |" in table
    assert "20% of the gates open, 64 tokens, 9 rounds in turn; 1 of 2 cores of chip" in table
    assert latency_markdown(None) == MISSING


@pytest.mark.skipif(results("conditional") is None, reason="benchmarks/conditional.py has not run yet")
def test_routing_is_below_one_percent_and_flops_follow_the_formula():
    for model in results("conditional")["models"].values():
        for key in ("cogalora_module", "cogalora_shared"):
            flops = model["flops"][key]
            assert flops["routing_share"] < 0.01
            assert flops["adapters"] == pytest.approx(flops["by_formula"])
