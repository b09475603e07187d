import math
import resource
import struct
import threading
from dataclasses import replace

import numpy as np
import pytest

from rankwise.errors import DataError, OutputError
from rankwise.experiments import plots
from rankwise.experiments.module_grid import Place, module_grid, place_of
from rankwise.experiments.plots import plot_metric_against_parameters, plot_rank_heatmap
from rankwise.experiments.records import RunRecord
from rankwise.tasks.base import MetricValue

KINDS = ("attention.self.query", "attention.self.key", "attention.output.dense", "intermediate.dense", "output.dense")


def run(method="lora", seed=0, **changes):
    names = [f"encoder.layer.{layer}.{kind}" for layer in range(3) for kind in KINDS]
    rng = np.random.default_rng(seed)
    values = {
        "model": "minilm",
        "budget": "r=4",
        "status": "completed",
        "parameters": 147_456,
        "metrics": {"accuracy": MetricValue(0.7 + 0.01 * seed, 0.02, 500)},
        "rank_pattern": {name: int(rank) for name, rank in zip(names, rng.integers(0, 9, len(names)), strict=True)},
        **changes,
    }
    return RunRecord(run_id=f"{method}-{seed}", method=method, task="docstrings", seed=seed, **values)


def full(seed=0):
    return run("full", seed, parameters=22_713_216, rank_pattern={}, budget=None)


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def drawn(monkeypatch):
    """The figures that are drawn, in place of only their pixels."""
    figures = []
    save = plots.save_figure

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save_figure", keep)
    return figures


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("encoder.layer.0.attention.self.query", Place("encoder.layer", 0, "q")),
        ("bert.encoder.layer.3.attention.self.key", Place("bert.encoder.layer", 3, "k")),
        ("bert.encoder.layer.3.attention.output.dense", Place("bert.encoder.layer", 3, "o")),
        ("bert.encoder.layer.3.output.dense", Place("bert.encoder.layer", 3, "down")),
        ("bert.encoder.layer.3.intermediate.dense", Place("bert.encoder.layer", 3, "up")),
        ("distilbert.transformer.layer.5.attention.out_lin", Place("distilbert.transformer.layer", 5, "o")),
        ("distilbert.transformer.layer.5.ffn.lin2", Place("distilbert.transformer.layer", 5, "down")),
        ("model.layers.10.self_attn.q_proj", Place("model.layers", 10, "q")),
        ("model.layers.10.self_attn.o_proj", Place("model.layers", 10, "o")),
        ("model.layers.10.mlp.gate_proj", Place("model.layers", 10, "gate")),
        ("model.layers.10.mlp.down_proj", Place("model.layers", 10, "down")),
        ("model.layers.10.mlp.gate_up_proj", Place("model.layers", 10, "gate+up")),
        ("model.layers.2.mlp.experts.7.w2", Place("model.layers", 2, "down")),
        ("model.decoder.layers.1.encoder_attn.v_proj", Place("model.decoder.layers", 1, "cross v")),
        ("transformer.h.0.attn.c_attn", Place("transformer.h", 0, "qkv")),
        ("transformer.h.0.attn.c_proj", Place("transformer.h", 0, "o")),
        ("transformer.h.0.mlp.c_fc", Place("transformer.h", 0, "up")),
        ("transformer.h.0.mlp.c_proj", Place("transformer.h", 0, "down")),
        ("gpt_neox.layers.4.attention.dense", Place("gpt_neox.layers", 4, "o")),
        ("gpt_neox.layers.4.mlp.dense_4h_to_h", Place("gpt_neox.layers", 4, "down")),
        ("layers.4.attn.Wo", Place("layers", 4, "o")),
        ("layers.4.mlp.Wo", Place("layers", 4, "down")),
        ("encoder.block.0.layer.0.SelfAttention.q", Place("encoder.block", 0, "q")),
        ("decoder.block.0.layer.1.EncDecAttention.o", Place("decoder.block", 0, "cross o")),
        ("backbone.blocks.3.mixer.in_something", Place("backbone.blocks", 3, "mixer.in_something")),
        ("layers.3", Place("layers", 3, "layers")),
        ("bert.pooler.dense", Place("", None, "pooler.dense")),
        ("classifier", Place("", None, "classifier")),
    ],
)
def test_module_names_are_placed(name, place):
    assert place_of(name) == place


def test_grid_orders_layers_by_number_and_gives_others_their_own_row():
    grid = module_grid(["m.layers.10.mlp.up_proj", "m.layers.2.attn.q_proj", "m.pooler.dense", "m.layers.2.odd.thing"])
    assert grid.rows == ("2", "10", "pooler.dense")
    assert grid.columns == ("q", "up", "odd.thing")
    assert grid.cells["m.layers.10.mlp.up_proj"] == (1, 1)
    assert grid.cells["m.pooler.dense"] == (2, None)


def test_grid_names_the_stacks_of_an_encoder_decoder():
    grid = module_grid(
        [f"model.{stack}.layers.{i}.self_attn.q_proj" for stack in ("encoder", "decoder") for i in (0, 1)]
    )
    assert grid.rows == ("encoder 0", "encoder 1", "decoder 0", "decoder 1")
    assert grid.columns == ("q",)


def test_ranks_are_means_over_seeds_and_shared_cells_and_missing_is_zero():
    names = ["layers.0.q_proj", "layers.0.experts.0.w1", "layers.0.experts.1.w1", "layers.1.q_proj"]
    runs = [
        run(seed=s, rank_pattern=dict(zip(names, ranks, strict=False)))
        for s, ranks in enumerate([(2, 4, 8, 6), (4, 4, 8)])
    ]
    values = plots._mean_ranks(module_grid(names), runs)
    np.testing.assert_equal(values, [[3.0, 6.0], [3.0, math.nan]])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("methods", [1, 2, 7])
def test_metric_plot_shows_every_method(tmp_path, monkeypatch, seeds, methods):
    figures = drawn(monkeypatch)
    names = [f"method{i}" for i in range(methods)]
    records = [run(name, seed) for name in names for seed in range(seeds)] + [full(seed) for seed in range(seeds)]
    path = plot_metric_against_parameters(records, tmp_path / "new" / "plot.png", "accuracy")
    assert path == tmp_path / "new" / "plot.png"
    assert min(png_size(path)) >= 500
    assert [entry.name for entry in path.parent.iterdir()] == ["plot.png"]
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*names, "full"]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["147k", "22.7M"]
    assert ("one seed" if seeds == 1 else "3 seeds") in axes.get_title(loc="left")
    points = [line for line in axes.lines if line.get_label() in names]
    places = [float(line.get_xdata()[0]) for line in points]
    assert len(set(places)) == methods  # side by side, not on top of each other
    assert all(low < place < high for place in places for low, high in [axes.get_xlim()])


def test_metric_plot_holds_every_seed_and_the_mean(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    metrics = [{"accuracy": MetricValue(value, 0.01, 500)} for value in (0.2, 0.8, 0.8)]
    plot_metric_against_parameters(
        [run(seed=s, metrics=m) for s, m in enumerate(metrics)], tmp_path / "p.png", "accuracy"
    )
    axes = figures[0].axes[0]
    assert next(line for line in axes.lines if line.get_label() == "lora").get_ydata()[0] == pytest.approx(0.6)
    low, high = axes.get_ylim()
    assert low < 0.2
    assert high > 0.8
    assert axes.get_xscale() == "linear"


def test_metric_plot_leaves_out_what_has_no_value(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    nothing = {"accuracy": MetricValue(math.nan, math.nan, 500)}
    records = [run("lora"), run("nan", metrics=nothing), run("failed", status="failed"), run("other", metrics={})]
    plot_metric_against_parameters(records, tmp_path / "p.png", "accuracy")
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["lora"]
    with pytest.raises(DataError, match="no completed run has a value of metric 'f1'"):
        plot_metric_against_parameters(records, tmp_path / "q.png", "f1")
    assert not (tmp_path / "q.png").exists()


def test_budgets_of_one_method_are_points_of_their_own(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    records = [run(budget=budget, parameters=n) for budget, n in (("r=2", 70_000), ("r=8", 280_000))]
    plot_metric_against_parameters(records, tmp_path / "p.png", "accuracy")
    axes = figures[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["lora"]
    assert sorted(float(line.get_xdata()[0]) for line in axes.lines if line.get_label() == "lora") == [70_000, 280_000]


@pytest.mark.parametrize("methods", [1, 3, 6])
def test_heat_map_has_a_panel_per_method_with_ranks(tmp_path, monkeypatch, methods):
    figures = drawn(monkeypatch)
    names = [f"method{i}" for i in range(methods)]
    records = [full(), *(run(name, seed) for name in names for seed in range(2))]
    path = plot_rank_heatmap(records, tmp_path / "ranks.png")
    assert path == tmp_path / "ranks.png"
    assert min(png_size(path)) >= 200
    panels = [axes for axes in figures[0].axes if axes.images]
    assert [axes.get_title() for axes in panels] == names
    assert len({axes.images[0].get_clim() for axes in panels}) == 1
    assert all(len(axes.texts) == 15 for axes in panels)  # a number in every cell
    assert panels[0].get_ylabel() == "layer"


def test_heat_map_of_a_deep_model_keeps_its_cells_readable(tmp_path):
    names = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in range(24) for kind in "qkvo"]
    records = [run(f"m{i}", rank_pattern=dict.fromkeys(names, 4)) for i in range(6)]
    _, height = png_size(plot_rank_heatmap(records, tmp_path / "ranks.png"))
    assert height / (2 * 24) > 30  # pixels per layer


def test_heat_map_without_ranks_is_not_written(tmp_path):
    with pytest.raises(DataError, match="no completed run has ranks"):
        plot_rank_heatmap([full(), run(status="failed")], tmp_path / "ranks.png")
    assert list(tmp_path.iterdir()) == []


def test_heat_map_of_ranks_that_are_all_zero(tmp_path):
    assert png_size(plot_rank_heatmap([run(rank_pattern={"pooler.dense": 0})], tmp_path / "ranks.png"))


def test_odd_names_are_drawn_as_they_are(tmp_path):
    odd = replace(run("a$b_$c"), task="my $data$ [x]", model="some/very/long/path/" * 9, budget="0.5%")
    png_size(plot_metric_against_parameters([odd], tmp_path / "p.png", "accuracy"))
    png_size(plot_rank_heatmap([odd], tmp_path / "q.png"))


def test_drawing_works_in_a_thread_and_leaves_no_global_state(tmp_path):
    import sys

    thread = threading.Thread(target=plot_metric_against_parameters, args=([run()], tmp_path / "p.png", "accuracy"))
    thread.start()
    thread.join()
    png_size(tmp_path / "p.png")
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


DRAW = (
    lambda path: plot_metric_against_parameters([run()], path, "accuracy"),
    lambda path: plot_rank_heatmap([run()], path),
)


@pytest.mark.parametrize("draw", DRAW)
def test_place_that_cannot_be_written_is_named(tmp_path, draw):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "plot.png", tmp_path):
        with pytest.raises(OutputError) as caught:
            draw(path)
        assert str(caught.value).startswith(f"{path}: cannot be written: ")


@pytest.mark.parametrize("draw", DRAW)
def test_full_disk_leaves_the_old_picture_and_no_remains(tmp_path, draw):
    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            draw(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
