"""Training CoGaLoRA otherwise than by Rankwise's own trainer: stock Trainer, checkpointed blocks, autocast, prompts."""

import warnings

import pytest
import torch
from gated import causal_model, context, decisions, fill, gated, gated_config, padded, rows_of, tokens
from peft import PeftModel
from ranked import KINDS as RANKED
from ranked import ranked, ranked_config
from tiny import build, logits, settings, tiny_data, tiny_model, tiny_tokenizer
from transformers import DataCollatorWithPadding, Trainer

from rankwise.adapters.conditional.context import PASSES
from rankwise.errors import AllocationError, TrainingError
from rankwise.training.callback import RankwiseCallback
from rankwise.training.fit import training_arguments

KINDS = ("module", "shared")
FAST = {"budget": "r=8", "warmup": 2, "annealing": 9}
QUIET = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")


def classifier(kind="module"):
    return gated(tiny_model(**QUIET), gated_config("bert", router=kind, task_type="SEQ_CLS")).train()


def labelled(seed, rows=6, length=9):
    inputs = tokens(rows, length, seed=seed)
    inputs["attention_mask"][0, 5:] = 0
    return inputs | {"labels": inputs["input_ids"][:, 0] % 3}


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and "lora_" in n}


def checkpointed(model, reentrant):
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model


def same(one, two):
    assert one.keys() == two.keys()
    assert any("lora_router" in name and float(value.abs().max()) > 0 for name, value in one.items())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("kind", "reentrant"), [("module", False), ("module", True), ("shared", False)])
def test_checkpointed_blocks_give_the_same_gradients(kind, reentrant):
    found = []
    for model in (classifier(kind), checkpointed(classifier(kind), reentrant)):
        torch.manual_seed(3)
        model(**labelled(1)).loss.backward()
        found.append(gradients(model))
    same(*found)


@pytest.mark.parametrize(("kind", "reentrant"), [("module", False), ("module", True), ("shared", False)])
@pytest.mark.parametrize("order", ["together", "first first", "last first"])
def test_passes_that_wait_for_their_backward_keep_their_own_mask_and_gates(kind, reentrant, order):
    """Batches of other sizes and paddings, so that a wrong mask would be an error or show."""
    found = []
    for model in (classifier(kind), checkpointed(classifier(kind), reentrant)):
        torch.manual_seed(3)
        losses = [model(**labelled(seed, rows)).loss for seed, rows in ((1, 6), (2, 6), (3, 4))]
        if order == "together":
            sum(losses).backward()
        for loss in {"together": [], "first first": losses, "last first": losses[::-1]}[order]:
            loss.backward()
        found.append(gradients(model))
    same(*found)


def test_too_many_passes_before_their_backward_are_an_error():
    model = checkpointed(classifier(), False)
    first = model(**labelled(1)).loss
    for seed in range(PASSES):
        model(**labelled(seed))
    with pytest.raises(TrainingError, match=f"more than {PASSES} other forward passes came between"):
        first.backward()


def test_shared_router_under_reentrant_checkpointing_is_an_error():
    model = checkpointed(classifier("shared"), True)
    with pytest.raises(TrainingError, match=r"shared router gets no gradient .*'use_reentrant': False"):
        model(**labelled(1))


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_without_gradients_is_no_error(kind):
    with torch.no_grad():
        assert classifier(kind)(**labelled(1)).loss.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind):
    """Half the precision for the products, all of it for the decisions."""
    model = classifier(kind).eval()
    inputs = tokens()
    with torch.no_grad():
        full = model(**inputs).logits
        before = decisions(model)
        with torch.autocast("cpu", torch.bfloat16):
            half = model(**inputs).logits
    assert half.dtype == torch.bfloat16
    agreed = sum(int((decisions(model)[key] == gates).sum()) for key, gates in before.items())
    assert agreed >= 0.9 * sum(gates.numel() for gates in before.values())
    assert float((half.float() - full).abs().max()) < 0.1
    context(model).recording = True
    with torch.autocast("cpu", torch.bfloat16):
        model.train()(**labelled(1)).loss.backward()
    assert {seen.dtype for parts in context(model).recorded.values() for seen in parts} == {torch.float32}
    assert all(value.isfinite().all() for value in gradients(model).values())


def stock(method, folder, **changes):
    return Trainer(
        model=method.model,
        args=training_arguments(settings(**changes), folder),
        train_dataset=tiny_data(20),
        eval_dataset=tiny_data(9, seed=3),
        data_collator=DataCollatorWithPadding(tiny_tokenizer()),
        callbacks=[RankwiseCallback(method, total_steps=12)],
    )


STOCK = {
    **{kind: ("cogalora", {"router": kind}) for kind in KINDS},
    **{kind: ("radlora", {"router_hidden": 1} | fields) for kind, fields in RANKED.items()},
}


@pytest.mark.parametrize(
    "kind", [kind if kind in ("module", "bank") else pytest.param(kind, marks=pytest.mark.slow) for kind in STOCK]
)
def test_stock_trainer_with_the_callback(tmp_path, kind):
    name, fields = STOCK[kind]
    method = build(name, **(FAST | fields))
    trainer = stock(method, tmp_path / "work", save_every=6)
    trainer.train()
    method.check_finished()
    expected = torch.tensor(trainer.predict(tiny_data(9, seed=3)).predictions)
    method.export(tmp_path / "out")
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "out")
    collate = DataCollatorWithPadding(tiny_tokenizer())
    rows = collate([{k: row[k] for k in ("input_ids", "attention_mask")} for row in tiny_data(9, seed=3)])
    torch.testing.assert_close(logits(loaded, dict(rows)), expected, rtol=0, atol=1e-5)
    resumed = build(name, **(FAST | fields))
    stock(resumed, tmp_path / "work", save_every=6).train(
        resume_from_checkpoint=str(tmp_path / "work" / "checkpoint-6")
    )
    assert torch.equal(logits(resumed.model), logits(method.model))
    assert resumed.peft.usage == method.peft.usage


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_stock_trainer_with_checkpointed_blocks(tmp_path, kind, precision):
    method = build("cogalora", tiny_model(**QUIET), router=kind, **FAST)
    stock(method, tmp_path, gradient_checkpointing=True, precision=precision).train()
    method.check_finished()
    assert all(p.isfinite().all() for p in method.model.parameters())


def test_stopping_before_the_end_is_told(tmp_path):
    method = build("cogalora", **FAST)
    with pytest.raises(AllocationError, match=r"never measured its share .* RankwiseCallback"):
        method.export(tmp_path / "out")


def answered(prompt=4, rows=6, length=9):
    inputs = tokens(rows, length)
    labels = inputs["input_ids"].clone()
    labels[:, :prompt] = -100
    return inputs | {"labels": labels}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_causal_models_decide_from_the_prompt(family):
    """What is to be predicted may change as it likes; in inference on the prompt alone the decisions are the same."""
    model = gated(causal_model(family), gated_config(family, fan_in_fan_out=family == "gpt2"))
    inputs = answered()
    other = dict(inputs, input_ids=torch.where(inputs["labels"] == -100, inputs["input_ids"], 3))
    found = []
    for given in (inputs, other, rows_of(tokens(), (slice(None), slice(0, 4)))):
        with torch.no_grad():
            model(**given)
        found.append(decisions(model))
    for key, gates in found[0].items():
        assert torch.equal(gates, found[1][key])
        assert torch.equal(gates, found[2][key])
    with torch.no_grad():
        model(**tokens())
    assert any(not torch.equal(gates, found[0][key]) for key, gates in decisions(model).items())


def test_of_several_answers_what_comes_before_the_first_decides():
    model = gated(causal_model(), gated_config("llama"))
    inputs = answered()
    inputs["labels"][:, 6:8] = -100  # the user speaks again
    later = dict(inputs, input_ids=inputs["input_ids"].clone())
    later["input_ids"][:, 6:8] = 3
    found = []
    for given in (inputs, later):
        with torch.no_grad():
            model(**given)
        found.append(decisions(model))
    assert all(torch.equal(gates, found[1][key]) for key, gates in found[0].items())


def test_labels_without_a_prompt_are_warned_of_once():
    model = gated(causal_model(), gated_config("llama")).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**answered())
    inputs = answered(prompt=0)
    with pytest.warns(UserWarning, match=r"labels mark no prompt .* those it is to predict included"):
        model(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**inputs)


def test_padding_is_no_prompt():
    """Labels of -100 where the mask is 0 mark nothing."""
    model = gated(causal_model(), gated_config("llama")).train()
    inputs = padded(answered(prompt=0), 3, left=True)
    inputs["labels"][inputs["attention_mask"] == 0] = -100
    with pytest.warns(UserWarning, match="labels mark no prompt"):
        model(**inputs)


def test_texts_that_are_scored_without_a_prompt_are_warned_of_too():
    """The decision sees every token, so an early token's loss is not that of a model that reads on."""
    model, inputs = gated(causal_model(), gated_config("llama")), answered(prompt=0)
    with torch.no_grad(), pytest.warns(UserWarning, match="labels mark no prompt"):
        model(**inputs)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        model(**inputs)
        model(**tokens())


def test_labels_of_tokens_do_not_hide_them_from_other_models():
    """A token classifier ignores pieces of words, and decides from them all the same."""
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    base = BertForTokenClassification(BertConfig(vocab_size=60, num_labels=3, **sizes))
    model = gated(base, gated_config("bert", task_type="TOKEN_CLS"))
    labels = torch.full((6, 9), -100)
    labels[:, 5:] = 1
    with torch.no_grad():
        model(**tokens())
        plain = decisions(model)
        model(**tokens(), labels=labels)
    assert all(torch.equal(gates, plain[key]) for key, gates in decisions(model).items())


def test_fill_makes_gates_differ():
    model = gated(causal_model(), gated_config("llama"))
    fill(model)
    with torch.no_grad():
        model(**tokens())
    assert any(0 < float(gates.mean()) < 1 for gates in decisions(model).values())


def in_parallel(model, inputs):
    """What `torch.nn.DataParallel` does on two devices, one after the other: copies that share all but parameters."""
    copies = {id(module): module._replicate_for_data_parallel() for module in model.modules()}
    for module in model.modules():
        copy = copies[id(module)]
        for name, child in module._modules.items():
            copy._modules[name] = None if child is None else copies[id(child)]
        for name, parameter in module._parameters.items():
            setattr(copy, name, parameter)
        copy._buffers = module._buffers
    return copies[id(model)](**inputs).logits


def test_copies_that_would_share_their_decisions_are_refused():
    plain = tiny_model().eval()
    torch.testing.assert_close(in_parallel(plain, tokens()), plain(**tokens()).logits)
    for model in (classifier(), classifier().eval(), ranked(tiny_model(), ranked_config())):
        with pytest.raises(TrainingError, match=r"DataParallel, .* one process per GPU with torchrun"):
            in_parallel(model, tokens())
        assert logits(model).isfinite().all(), "on one device it runs as before"


@pytest.mark.parametrize(("kind", "reentrant"), [("module", False), ("module", True), ("shared", False)])
def test_a_block_that_is_run_again_is_recorded_once(kind, reentrant):
    """What routers saw counts in prices and penalties; a second time it would weigh checkpointed blocks twice."""
    found = []
    for model in (classifier(kind), checkpointed(classifier(kind), reentrant)):
        context(model).recording = True
        torch.manual_seed(3)
        for seed in (1, 2):
            model(**labelled(seed)).loss.backward()
        found.append({key: [len(part) for part in parts] for key, parts in context(model).recorded.items()})
    assert found[0] == found[1]
    assert found[0]
    assert all(lengths == [6, 6] for lengths in found[0].values())
