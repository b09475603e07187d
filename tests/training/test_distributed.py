"""One process and two, at the same global batch: the same ranks, losses and weights; bit for bit on both processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import processes
import pytest
import torch
from safetensors.torch import load_file
from tiny import batch as tiny_batch
from tiny import build

from rankwise.errors import ConfigError
from rankwise.training import ddp
from rankwise.training.data import LengthGroupedSampler, SharedBatches
from rankwise.training.fit import split_evenly

SCRIPT = Path(processes.__file__)
QUICK = ["of different minds", "causal", "stock, prepared, penalty", "resumed, scripted"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:mtime may not be reliable")]


CASES = processes.cases()
SLOW = [name for name in CASES if name not in QUICK]


def torchrun(*command, **environment):
    """Run something on several processes of this machine, each with one thread."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, *map(str, command)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def on_two(folder, names):
    done = torchrun(SCRIPT, folder, *names)
    assert done.returncode == 0, done.stderr[-4000:]
    return [torch.load(folder / f"results{rank}of2.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return on_two(tmp_path_factory.mktemp("quick"), QUICK)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    return on_two(tmp_path_factory.mktemp("slow"), SLOW)


def same(one, first, second):
    """One process's outcome against those of two."""
    if "bit for bit" in one:
        assert all(result["bit for bit"] for result in (one, first, second))
        return
    assert first["trace"] == second["trace"]
    assert first["losses"] == second["losses"]
    assert all(torch.equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    assert [entry[:3] for entry in one["trace"]] == [entry[:3] for entry in first["trace"]]
    for (*_, alone), (*_, together) in zip(one["trace"], first["trace"], strict=True):
        assert together == pytest.approx(alone, rel=1e-3)
    assert [step for step, _ in one["losses"]] == [step for step, _ in first["losses"]]
    assert [loss for _, loss in first["losses"]] == pytest.approx([loss for _, loss in one["losses"]], abs=1e-5)
    assert one["weights"].keys() == first["weights"].keys()
    for key, value in one["weights"].items():
        torch.testing.assert_close(first["weights"][key], value, rtol=0, atol=2e-5)
    if "logits" in one:
        torch.testing.assert_close(first["logits"], one["logits"], rtol=0, atol=1e-5)
        assert torch.equal(first["logits"], second["logits"])
        assert first["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_do_what_one_does(quick, tmp_path, name):
    same(CASES[name](tmp_path), *(results[name] for results in quick))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_two_processes_do_what_one_does_everywhere(slow, tmp_path, name):
    same(CASES[name](tmp_path), *(results[name] for results in slow))


@pytest.fixture(scope="module")
def calm_model(model_folder, tmp_path_factory):
    """The tiny BERT on disk, without dropout."""
    folder = tmp_path_factory.mktemp("calm") / "tiny"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def command(model, data, output, *more):
    sizes = ["--budget", "r=2", "--seeds", "1", "--steps", "6", "--batch-size", "4"]
    task = ["--task", data, "--text", "sentence", "--label", "verdict", "--model", model]
    return ["-m", "rankwise", "compare", "--methods", "lora,glora", *task, *sizes, "--output", output, *more]


def scores(output):
    runs = json.loads((output / "results.json").read_text())["runs"]
    return {run["method"]: (run["rank_pattern"], run["parameters"], run["metrics"]["loss"]["value"]) for run in runs}


@pytest.mark.slow
def test_comparison_on_two_processes_is_that_of_one(calm_model, data_file, tmp_path):
    done = torchrun(*command(calm_model, data_file, tmp_path / "two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("results.json") == 1
    assert done.stderr.count("[1/2] lora at ") == 1
    words = [str(word) for word in command(calm_model, data_file, tmp_path / "one")]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=300)
    one, two = scores(tmp_path / "one"), scores(tmp_path / "two")
    assert one.keys() == two.keys() == {"lora", "glora"}
    for method, (ranks, count, loss) in one.items():
        assert two[method] == (ranks, count, pytest.approx(loss, abs=1e-5))
    tensors = [
        load_file(next((tmp_path / n / "checkpoints").glob(f"{glora(tmp_path / n)}/*.safetensors")))
        for n in ("one", "two")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for key, value in tensors[0].items():
        torch.testing.assert_close(tensors[1][key], value, rtol=0, atol=2e-5)
    again = torchrun(*command(calm_model, data_file, tmp_path / "two"))
    assert again.stderr.count("from the store") == 2


def glora(output):
    runs = json.loads((output / "results.json").read_text())["runs"]
    return next(run["run_id"] for run in runs if run["method"] == "glora")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch-size", "5"], "5 examples per forward pass cannot be split evenly over 2 processes"),
        (["--methods", "nix"], "unknown method 'nix'"),
        (["--learning-rate", "1e30", "--methods", "lora"], "the loss is nan at step 3"),
        (["--nix"], "No such option: --nix"),
    ],
)
def test_trouble_on_two_processes_is_one_message_and_no_hang(calm_model, data_file, tmp_path, more, message):
    done = torchrun(*command(calm_model, data_file, tmp_path / "out", *more))
    assert done.returncode != 0
    assert done.stderr.count(message) == 1
    assert "exitcode  : 2" in done.stderr  # of the process; torchrun's own is always 1
    assert "rankwise/cli.py" not in done.stderr


@pytest.mark.slow
def test_a_plan_is_tuned_on_two_processes_as_on_one(calm_model, data_file, tmp_path):
    """The first process decides which rates come next, and one that diverges ends no process."""
    plan = tmp_path / "plan.yaml"
    task = {"name": "files", "path": str(data_file), "text": ["sentence"], "label": "verdict"}
    content = {
        "name": "p", "model": str(calm_model), "arms": {"lora": "lora"}, "tasks": [task], "budgets": ["r=2"],
        "seeds": 1, "training": {"max_steps": 4, "batch_size": 4},
        "protocol": {"tuning": {"learning_rates": [1e-3, 1e-2, 1e30], "share": 0.25}},
    }  # fmt: skip
    plan.write_text(json.dumps(content))
    words = ["-m", "rankwise", "compare", plan, "--output"]
    done = torchrun(*words, tmp_path / "two")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("1 of 3 trials failed") == 1
    subprocess.run(
        [sys.executable, *map(str, [*words, tmp_path / "one"])], check=True, capture_output=True, timeout=300
    )
    one, two = (json.loads((tmp_path / name / "verdicts.json").read_text()) for name in ("one", "two"))
    assert [row["learning_rate"] for row in one["tuning"]] == [row["learning_rate"] for row in two["tuning"]]
    assert [row["chosen"] for row in one["tuning"]] == [row["chosen"] for row in two["tuning"]]
    assert [row["value"] for row in one["runs"]] == [row["value"] for row in two["runs"]]


@pytest.mark.slow
def test_trouble_of_the_second_process_alone_ends_both(calm_model, data_file, tmp_path):
    script = tmp_path / "broken.py"
    script.write_text(
        "import os, sys\n"
        "import rankwise.experiments.runner as runner\n"
        "from rankwise.cli import main\n"
        "from rankwise.errors import TrainingError\n"
        "def broken(*args): raise TrainingError('only here')\n"
        "if os.environ['RANK'] == '1': runner._fit = broken\n"
        "sys.argv = ['rankwise', *sys.argv[1:]]\n"
        "main()\n"
    )
    done = torchrun(script, *command(calm_model, data_file, tmp_path / "out")[2:])
    assert done.returncode != 0
    assert done.stderr.count("rankwise: only here") == 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("examples", [30, 31, 32, 34, 39])
def test_parts_of_all_processes_are_the_batches_of_one(examples, count):
    lengths = [3 + i % 7 for i in range(examples)]
    size = 30
    alone = SharedBatches(LengthGroupedSampler(lengths, size, 0), size, 0, 1)
    parts = [SharedBatches(LengthGroupedSampler(lengths, size, 0), size, p, count) for p in range(count)]
    for epoch in (0, 1):
        for batches in (alone, *parts):
            batches.set_epoch(epoch)
        whole, shared = list(alone), [list(part) for part in parts]
        assert sorted(index for batch in whole for index in batch) == list(range(examples))
        assert {len(batches) for batches in shared} == {len(whole)} == {len(part) for part in parts}
        for batch, *together in zip(whole, *shared, strict=True):
            seen = [index for part in together for index in part]
            counts = {index: seen.count(index) for index in batch}
            assert set(seen) == set(batch)
            assert len(set(counts.values())) == 1  # every example counts as often as the others
            assert all(together)
            if len(batch) >= count:
                assert seen == batch
                assert max(map(len, together)) - min(map(len, together)) <= 1


def test_batch_that_cannot_be_split_is_refused():
    split_evenly(12, 3)
    with pytest.raises(
        ConfigError, match=r"training\.batch_size: 16 .* over 3 processes; use a multiple of 3, such as 15"
    ):
        split_evenly(16, 3)
    with pytest.raises(ConfigError, match="such as 4 or 8"):
        split_evenly(3, 4)


def test_after_a_resize_weights_and_moments_are_those_of_process_0(monkeypatch):
    method = build("lora")
    optimizer = torch.optim.AdamW(p for p in method.model.parameters() if p.requires_grad)
    method.model(**tiny_batch()).loss.backward()
    optimizer.step()
    sent = []
    monkeypatch.setattr(ddp, "world_size", lambda: 2)
    monkeypatch.setattr(ddp, "broadcast_tensors", sent.extend)
    ddp.align(method.model, optimizer)
    wanted = [p for p in method.model.parameters() if p.requires_grad]
    wanted += [optimizer.state[p][key] for p in list(wanted) for key in ("exp_avg", "exp_avg_sq")]
    assert sorted(t.data_ptr() for t in sent) == sorted(t.data_ptr() for t in wanted)
