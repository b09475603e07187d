"""`rankwise cost` on real run folders and on checkpoints of stock PEFT."""

import json
import re

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer
from transformers import AutoModelForSequenceClassification

from rankwise import cli
from rankwise.adapters.conditional import CogaloraPeftConfig, RadloraPeftConfig
from rankwise.costs.activity import observe
from rankwise.costs.flops import count_flops
from rankwise.costs.memory import Peak
from rankwise.errors import ConfigError, DataError, ModelError, UnknownNameError
from rankwise.experiments import cost_measure, cost_plot
from rankwise.experiments.adapter_source import Choice
from rankwise.experiments.commands import CompareOptions, compare
from rankwise.experiments.cost_commands import CostOptions, batch_sizes, cost, find_sources
from rankwise.experiments.cost_inputs import Wanted
from rankwise.experiments.cost_plot import plot_latency, points
from rankwise.experiments.cost_subject import Loader, load_subject, load_variant
from rankwise.experiments.store import Store

pytestmark = pytest.mark.filterwarnings("ignore")
TARGETS = ["query", "value", "intermediate.dense"]
QUICK = {"batch_sizes": "1,3", "rounds": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder, data_file):
    """A run folder of `compare` with six runs."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    options = CompareOptions(
        methods="lora,cogalora,full",
        task=str(data_file),
        model=str(model_folder),
        budget="r=8",
        seeds="0,1",
        steps=12,
        batch_size=4,
        text="sentence",
        label="verdict",
    )
    compare(options, output=folder, store=None, command="rankwise compare")
    return folder


@pytest.fixture
def no_processes(monkeypatch):
    """Memory is measured in other processes, which takes seconds; here their answers are made up."""
    seen = []

    def peak(load, batches):
        assert isinstance(load(), torch.nn.Module)
        seen.append(load.args[2])
        return Peak(3 * 2**20, 2**20)

    monkeypatch.setattr(cost_measure, "peak_of_process", peak)
    return seen


def asked(source, **fields):
    return CostOptions(str(source), **(QUICK | fields))


def foreign(folder, config):
    """A checkpoint that stock PEFT saved, its base model beside it."""
    tiny_model(num_labels=2).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    config.task_type = "SEQ_CLS"
    base = AutoModelForSequenceClassification.from_pretrained(folder / "base")
    get_peft_model(base, config).save_pretrained(folder / "adapter")
    return folder / "adapter"


# --- what is measured ------------------------------------------------------------------------------------------------


def test_costs_of_a_gated_run(runs, data_file, model_folder, no_processes):
    answer = cost(asked(runs, choice=Choice(method="cogalora", seed=1)))
    data = json.loads(json.dumps(answer.data))
    with Store(runs / "store.sqlite") as store:
        record = next(r for r in store.runs() if (r.method, r.seed) == ("cogalora", 1))
    assert data["run_id"] == record.run_id
    assert data["kind"] == "CoGaLoRA"
    assert data["inputs"]["what"] == f"12 texts of files:{data_file} (the run's evaluation data)"
    assert data["parameters"]["adapter"] == record.parameters
    assert list(data["latency"][0]["variants"]) == ["base", "lora", "lora_fused", "lora_merged", "adapter"]
    assert [at["batch_size"] for at in data["latency"]] == [1, 3]
    assert data["latency"][0]["variants"]["lora_merged"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert all(row["p95"] >= row["p50"] > 0 for at in data["latency"] for row in at["variants"].values())
    assert (data["served"], data["reference"]) == ("adapter", "lora_merged")
    assert no_processes == ["base", "lora", "lora_merged", "adapter"]
    assert data["memory"]["variants"]["adapter"]["passes"] == 2**21
    assert data["memory"]["batch_size"] == 3
    assert data["flops"]["served_to_merged"] == data["flops"]["to_merged"] > 1
    assert any("decide per input" in note for note in data["notes"])


def test_flops_are_those_of_the_loaded_checkpoint_on_these_texts(runs, model_folder, no_processes):
    """Against the checkpoint loaded by PEFT and the run's validation texts, tokenised here."""
    data = cost(asked(runs, choice=Choice(method="cogalora", seed=1))).data
    (source,) = find_sources(str(runs), Choice(method="cogalora", seed=1))
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    model = PeftModel.from_pretrained(base, source.folder).eval()
    from transformers import AutoTokenizer

    from rankwise.experiments.runner import load_task
    from rankwise.experiments.schema import RunConfig

    split = next(iter(load_task(RunConfig.model_validate(source.record.config).task).validation.values()))
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    batches = [dict(tokenizer([text], return_tensors="pt")) for text in split["text"]]
    flops, activity = count_flops(model, batches), observe(model, batches)
    assert data["flops"]["total"] == flops.total / len(split)
    assert data["flops"]["adapters"] == flops.adapters / len(split) == data["flops"]["adapters_by_formula"]
    assert data["flops"]["routing"] == flops.routing / len(split) > 0
    assert data["activity"]["share"] == activity.share
    assert data["flops"]["base"] == data["flops"]["base_alone"]
    assert data["flops"]["to_merged"] == pytest.approx(flops.total / flops.base)


def test_tables_say_what_was_measured(runs, no_processes, monkeypatch):
    from rich.console import Console

    answer = cost(asked(runs, choice=Choice(method="cogalora", seed=1)))
    console = Console(width=180, record=True)
    for picture in answer.pictures:
        console.print(picture)
    text = console.export_text()
    share = answer.data["activity"]["share"]
    for words in (
        "routers",
        "share of adapters in use",
        f"{share:.1%}",
        "batch size 3",
        "CoGaLoRA, as saved",
        "merged",
    ):
        assert words in text
    assert "12 texts of" in text
    assert f"{answer.data['flops']['total']:,.0f}" in text
    assert "evaluation data" in answer.lines[-1]


def test_static_run_is_its_own_lora_and_full_run_its_own_base(runs, no_processes):
    lora = cost(asked(runs, choice=Choice(method="lora", seed=0))).data
    assert list(lora["latency"][0]["variants"]) == ["base", "lora", "lora_fused", "lora_merged"]
    assert lora["served"] == "lora_merged"
    assert lora["activity"]["share"] == 1.0
    assert lora["flops"]["routing"] == 0
    assert lora["flops"]["to_unmerged"] == lora["flops"]["served_to_merged"] == 1.0
    full = cost(asked(runs, choice=Choice(method="full", seed=0))).data
    assert list(full["latency"][0]["variants"]) == ["base"]
    assert full["parameters"]["trained"] == full["parameters"]["base"] + full["parameters"]["head"]
    assert full["activity"] is None
    assert full["flops"]["total"] == lora["flops"]["base_alone"]


@pytest.mark.parametrize(
    ("config", "variants"),
    [
        (LoraConfig(r=3, rank_pattern={"value": 9}, target_modules=TARGETS), 4),
        (LoraConfig(r=3, target_modules=TARGETS, use_dora=True), 6),
        pytest.param(
            IA3Config(target_modules=TARGETS, feedforward_modules=["intermediate.dense"]), 3, marks=pytest.mark.slow
        ),
    ],
    ids=["lora", "dora", "ia3"],
)
def test_checkpoints_of_stock_peft(tmp_path, data_file, config, variants, no_processes):
    wanted = Wanted(task=str(data_file), text="sentence", label="verdict", examples=5)
    data = cost(asked(foreign(tmp_path, config), wanted=wanted)).data
    assert len(data["latency"][0]["variants"]) == variants
    assert data["inputs"]["examples"] == 5
    assert "(--task)" in data["inputs"]["what"]
    assert data["parameters"]["factors"] > 0
    assert data["run_id"] is None


def test_models_in_other_processes_are_those_of_this_one(runs, monkeypatch):
    (source,) = find_sources(str(runs), Choice(method="cogalora", seed=1))
    subject = load_subject(source)
    inputs = {"input_ids": torch.arange(5, 15).view(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    with torch.no_grad():
        for name, variant in subject.variants.items():
            other = load_variant(Loader(source.folder, None, source.record.model), subject.ranks, name).eval()
            torch.testing.assert_close(other(**inputs).logits, variant.model(**inputs).logits)


@pytest.mark.slow
def test_peak_memory_of_a_run(runs):
    data = cost(asked(runs, choice=Choice(method="lora", seed=0))).data
    assert all(row["peak"] > row["weights"] > 0 for row in data["memory"]["variants"].values())


# --- run folders and pictures ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_folder_gives_a_row_and_points_for_each_of_its_runs(runs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(cost_plot, "save_figure", lambda figure, path: drawn.append(figure) or path)
    answer = cost(asked(runs, plot=tmp_path / "plot.png"))
    assert [one["run_id"] for one in answer.data["runs"]] == [
        s.record.run_id for s in find_sources(str(runs), Choice())
    ]
    assert all("memory" not in one for one in answer.data["runs"])
    assert answer.data["plot"] == str(tmp_path / "plot.png")
    assert len(answer.pictures) == 1
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == ["batch size 1", "batch size 3"]
    assert figure.axes[0].get_ylabel() == "accuracy"
    labels = {text.get_text() for text in figure.axes[-1].get_legend().get_texts()}
    assert {"lora", "cogalora", "full"} <= labels
    assert "[6/6]" in capsys.readouterr().err


def test_points_are_medians_over_seeds(runs):
    def data(served, other):
        rows = {"lora_merged": {"ratio": {"median": served}}, "lora": {"ratio": {"median": other}}}
        return {"served": "lora_merged", "latency": [{"variants": rows}]}

    each = [(None, data(1.0, other)) for other in (1.2, 1.1, 1.6)]
    assert points(each, 0) == {"served": (1.0, 1.0, 1.0), "adapter": (1.2, 1.1, 1.6)}
    gated = {"served": "adapter", "latency": [{"variants": {"adapter": {"ratio": {"median": 1.3}}, "lora": {}}}]}
    assert points([(None, gated)], 0) == {"served": (1.3, 1.3, 1.3)}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_picture_is_a_file(runs, tmp_path, suffix):
    (source,) = find_sources(str(runs), Choice(method="lora", seed=0))
    ratio = {"ratio": {"median": 1.0}}
    data = {"served": "lora_merged", "latency": [{"batch_size": 8, "variants": {"lora_merged": ratio, "lora": ratio}}]}
    path = plot_latency([(source.record, data)], tmp_path / f"new/plot.{suffix}", "accuracy")
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")


# --- wrong use -------------------------------------------------------------------------------------------------------


def test_batch_sizes():
    assert batch_sizes(" 8,1, 8") == (8, 1)
    for text in ("", "1,", "0", "-1", "2.5", "a", "99999", "²"):
        with pytest.raises(ConfigError, match="is no batch size; write whole numbers from 1 to 4096"):
            batch_sizes(text)


def test_wrong_use(runs, tmp_path, data_file):
    gated = Choice(method="cogalora", seed=1)
    with pytest.raises(ModelError, match="does not exist"):
        cost(asked(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match="none of them is the one asked for"):
        cost(asked(runs, choice=Choice(method="glora")))
    with pytest.raises(DataError, match=r"cannot draw a '.pdf' file"):
        cost(asked(runs, choice=gated, plot=tmp_path / "plot.pdf"))
    with pytest.raises(UnknownNameError, match="glue/rte"):
        cost(asked(runs, choice=gated, wanted=Wanted(task="glue/rtee")))
    with pytest.raises(ConfigError, match="say which with --task"):
        cost(asked(runs, choice=gated, wanted=Wanted(text="sentence")))
    with pytest.raises(ModelError, match="/nowhere"):
        cost(asked(runs, choice=gated, model="/nowhere"))


def test_no_picture_without_an_accuracy(tmp_path):
    folder = foreign(tmp_path, LoraConfig(r=3, target_modules=TARGETS))
    with pytest.raises(ConfigError, match="nothing is known of the accuracy"):
        cost(asked(folder, plot=tmp_path / "plot.png"))


def test_texts_need_a_tokenizer(tmp_path):
    folder = foreign(tmp_path, LoraConfig(r=3, target_modules=TARGETS))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "base" / name).unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        cost(asked(folder))


def edited(folder, config=None, tensors=None):
    """The checkpoint with these fields and tensors."""
    path, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
    if tensors:
        save_file(tensors(load_file(weights)), weights)
    return folder


def load(folder):
    (source,) = find_sources(str(folder), Choice())
    return load_subject(source)


GATED = {"module": CogaloraPeftConfig, "shared": CogaloraPeftConfig, "bank": RadloraPeftConfig}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("module", {"threshold": "abc"}, "threshold is 'abc'; it is a probability"),
        ("module", {"rank_pattern": {"query": "4"}}, "rank_pattern of query is '4'"),
        ("module", {"target_modules": 5}, "PEFT cannot load"),
        ("module", {"exclude_modules": 5}, "PEFT cannot load"),
        ("module", {"router_hidden": 5}, "Error.* in loading state_dict for .*: size mismatch for .*router"),
        ("shared", {"routed": 5}, "routed is 5; it is a list of modules, or left out"),
        ("shared", {"routed": [5]}, "routed is .5."),
        ("shared", {"routed": ["nope"]}, "routed has 'nope', which target_modules do not match"),
        ("bank", {"temperature": "x"}, "temperature is 'x'"),
        ("bank", {"cache": "x"}, "cache is 'x'"),
        ("bank", {"rank_price": None}, "rank_price is None"),
        (
            "bank",
            {"windows": {"bert.encoder.layer.0.attention.self.query": [10**6, 0]}},
            "the window of .* is .1000000",
        ),
    ],
)
def test_edited_configs(tmp_path, kind, fields, message):
    extra = {"router": kind} if kind != "bank" else {}
    folder = foreign(tmp_path, GATED[kind](r=3, target_modules=TARGETS, **extra))
    assert load(folder).own is not None
    with pytest.raises(ModelError, match=message) as caught:
        load(edited(folder, fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", GATED)
def test_what_a_file_lacks_is_not_measured_at_random(tmp_path, kind):
    extra = {"router": kind} if kind != "bank" else {}
    folder = foreign(tmp_path, GATED[kind](r=3, target_modules=TARGETS, **extra))
    edited(folder, tensors=lambda tensors: {name: t for name, t in tensors.items() if "router" not in name})
    with pytest.raises(ModelError, match=r"missing adapter keys.*lora_router"):
        load(folder)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("config", [LoraConfig, CogaloraPeftConfig, RadloraPeftConfig])
def test_weights_that_are_not_finite_are_refused(tmp_path, config, number):
    folder = foreign(tmp_path, config(r=3, target_modules=TARGETS))
    name = sorted(name for name in load_file(folder / "adapter_model.safetensors") if "lora_" in name)[-1]

    def poison(tensors):
        tensors[name].view(-1)[-1] = number
        return tensors

    edited(folder, tensors=poison)
    with pytest.raises(DataError, match=rf"{re.escape(name.rpartition('.')[0])}.* not finite"):
        load(folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch-sizes", "1,x"], "'x' in '1,x' is no batch size"),
        (["--plot", "costs.pdf"], "cannot draw a '.pdf' file"),
        ([], "checkpoint ./nowhere does not exist"),
        (["--rounds", "0"], "--rounds"),
    ],
)
def test_command_line_says_what_is_wrong(words, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rankwise", "cost", "./nowhere", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
