"""PEFT knows the types as soon as both packages are imported, in either order; `rankwise` alone imports no PEFT."""

import subprocess
import sys

import pytest
import torch
from gated import gated, gated_config, tokens
from tiny import tiny_model

LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1] + "/base")
model = PeftModel.from_pretrained(base, sys.argv[1] + "/adapter").eval()
with torch.no_grad():
    torch.save(model(**torch.load(sys.argv[1] + "/inputs.pt")).logits, sys.argv[1] + "/out.pt")
"""
ORDERS = {
    "rankwise first": "import rankwise\n" + LOAD,
    "peft first": "import peft\nimport rankwise\n" + LOAD,
    "a part of rankwise that imports peft": "import rankwise.adapters.attach\n" + LOAD,
    "the trainer": "import rankwise.training.trainer\n" + LOAD,
    "a look at peft that imports nothing": (
        "import importlib.util, rankwise\nassert importlib.util.find_spec('peft')\nimport transformers\n" + LOAD
    ),
    "a part of peft": "import rankwise\nfrom peft.tuners.lora import LoraLayer\n" + LOAD,
    "rankwise in the middle": LOAD.replace("from transformers", "import rankwise\nfrom transformers"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base model, an adapter, inputs, and what the adapted model says of them."""
    place = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(place / "base")
    model = gated(tiny_model(), gated_config("bert", task_type="SEQ_CLS"))
    model.save_pretrained(place / "adapter")
    torch.save(tokens(), place / "inputs.pt")
    with torch.no_grad():
        torch.save(model(**tokens()).logits, place / "expected.pt")
    return place


def python(code, *args):
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_either_order_loads(folder, order):
    (folder / "out.pt").unlink(missing_ok=True)
    done = python(ORDERS[order], folder)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(folder / "out.pt"), torch.load(folder / "expected.pt"))


@pytest.mark.slow
def test_without_rankwise_the_error_says_what_to_install(folder):
    done = python(LOAD, folder)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert (
        "COGALORA (needs the package rankwise: `pip install rankwise`, then `import rankwise` before loading)" in last
    )


@pytest.mark.parametrize("module", ["rankwise", "rankwise.cli"])
def test_rankwise_alone_imports_neither_peft_nor_torch(module):
    done = python(f"import sys, {module}; print([m for m in ('torch', 'peft', 'transformers') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_the_finder_is_gone_once_peft_is_there():
    names = "[type(finder).__name__ for finder in sys.meta_path].count('_AfterPeft')"
    assert python(f"import sys, rankwise; print({names}); import peft; print({names})").stdout.split() == ["1", "0"]


def test_without_peft_its_absence_is_told_as_ever(tmp_path):
    code = (
        "import sys, importlib.abc, rankwise\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "try:\n    import peft\nexcept ModuleNotFoundError as error:\n    print(error.name)\n"
    )
    assert python(code).stdout.strip() == "peft"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["rankwise", "peft"])
def test_types_are_registered_once(first):
    second = {"rankwise": "peft", "peft": "rankwise"}[first]
    code = (
        f"import {first}, {second}, importlib\nfrom peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as known\n"
        "from rankwise.adapters.conditional import register\n"
        "importlib.import_module('rankwise.adapters.conditional')\n"
        "print(sum('COGALORA' in str(getattr(key, 'value', key)) for key in known))"
    )
    assert python(code).stdout.strip() == "2"  # its own name, and what checkpoints say
