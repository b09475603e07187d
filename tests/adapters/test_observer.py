"""Every signal on real training steps, in float64, against a reference that knows neither hooks nor sketches.

The reference makes the frozen matrices trainable, so that autograd itself gives ∂L/∂W, keeps all inputs of all layers,
and computes scores from their textbook definitions in NumPy.
"""

import numpy as np
import pytest
import scipy.linalg
import torch
from tiny import batch, build, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.adapters import observer
from rankwise.adapters.attach import ADAPTER, adapted_layers
from rankwise.adapters.contract import generator_for
from rankwise.adapters.listen import Once
from rankwise.allocation.signals import SIGNALS, projection
from rankwise.allocation.signals.spectra import CUTOFF, RIDGE
from rankwise.errors import AllocationError

BETA, STEPS = 0.7, 4
NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def model_of(family):
    return tiny_model(family, **NO_DROPOUT[family]).double()


def micro_batches(step, family="bert"):
    """Two micro-batches of a step, the second one shorter; the encoder's are padded."""
    found = [batch(2, seed=10 * step + i, length=length) for i, length in enumerate((6, 4))]
    if family == "bert":
        for i, inputs in enumerate(found):
            inputs["attention_mask"][i, -2:] = 0
    return found


class Reference:
    """What one step showed of every matrix, collected without the code under test."""

    def __init__(self, method):
        self.layers = {name: adapted_layers(method.model)[name] for name in method.matrices}
        self.steps, self.inputs, self.mask = [], {name: [] for name in self.layers}, None
        for name, layer in self.layers.items():
            layer.get_base_layer().weight.requires_grad_(True)
            layer.register_forward_pre_hook(
                lambda module, args, name=name: self.inputs[name].append(self.tokens(args[0]))
            )

    def tokens(self, x):
        return x.detach()[self.mask.bool()].numpy().copy()

    def close_step(self):
        entry = {}
        for name, layer in self.layers.items():
            transposed = type(layer.get_base_layer()).__name__ == "Conv1D"
            a, b, w = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.get_base_layer().weight
            numbers = {"A": a, "B": b, "gA": a.grad, "gB": b.grad, "W": w, "G": w.grad}
            entry[name] = {key: value.detach().numpy().copy() for key, value in numbers.items()}
            if transposed:
                entry[name] |= {key: entry[name][key].T for key in "WG"}
            x = np.concatenate(self.inputs[name])
            entry[name]["C"] = x.T @ x / len(x)
            self.inputs[name] = []
        self.steps.append(entry)


def train(method, family, *, steps=STEPS, reference=None):
    """A few steps of plain gradient descent on the adapter, with the method's hooks called as a trainer does."""
    method.model.train()
    trained = [p for n, p in method.model.named_parameters() if ".lora_" in n]
    optimizer = torch.optim.SGD(trained, lr=0.5)
    for step in range(1, steps + 1):
        method.model.zero_grad()
        for inputs in micro_batches(step, family):
            if reference is not None:
                reference.mask = inputs["attention_mask"]
            method.model(**inputs).loss.backward()
        if reference is not None:
            reference.close_step()
        method.before_optimizer_step(step)
        optimizer.step()
        assert method.after_optimizer_step(step) is None


def expected_score(signal, steps, weights, seed, leader):
    """The score of one matrix from its definition; `steps` holds what each step showed of it, `weights` sum to 1."""

    def mean(key):
        return sum(w * step[key] for w, step in zip(weights, steps, strict=True))

    def mean_of(function):
        return float(sum(w * function(step, t + 1) for t, (w, step) in enumerate(zip(weights, steps, strict=True))))

    def projected(step, number, directions):
        stream = generator_for(seed, 1, leader, number)
        p = projection(step["G"].shape[1], stream, directions=directions).double().numpy()
        return step["G"] @ p.T

    norm = np.linalg.norm
    if signal == "record":
        return mean_of(lambda step, t: norm(step["gB"]))
    if signal == "exact":
        return mean_of(lambda step, t: norm(step["G"]))
    if signal == "estimate":
        return mean_of(lambda step, t: norm(projected(step, t, 4)))
    if signal == "norm_of_mean":
        return norm(sum(w * projected(step, 0, 8) for w, step in zip(weights, steps, strict=True)))
    if signal == "sensitivity":
        return mean_of(
            lambda step, t: np.mean(np.abs(np.concatenate([(step[k] * step[f"g{k}"]).ravel() for k in "AB"])))
        )
    if signal == "weight_sensitivity":
        return np.mean(np.abs(steps[0]["W"] * mean("G")))
    if signal == "activation":
        values = np.linalg.eigvalsh(mean("C"))[::-1]
        return values / values.sum()
    if signal == "whitened":
        c = mean("C")
        root = scipy.linalg.sqrtm(c + RIDGE * np.trace(c) / len(c) * np.eye(len(c))).real
        return np.linalg.svd(mean("G") @ np.linalg.inv(root), compute_uv=False) ** 2
    assert signal == "variance"
    gradients = np.stack([step["gB"] for step in steps])
    spread = np.tensordot(weights, (gradients - mean("gB")) ** 2, 1)
    return np.mean(spread) / (1 - sum(w**2 for w in weights))


@pytest.mark.parametrize(
    ("signal", "family"),
    [(signal, "bert") for signal in SIGNALS if signal != "random"]
    + [(s, f) for f in ("llama", "gpt2") for s in ("estimate", "weight_sensitivity", "activation", "whitened")],
)
def test_scores_of_real_steps_are_what_the_definition_says(signal, family):
    """A cap of 40 makes sketches as wide as there are tokens in two steps, so that they lose nothing."""
    method = build("glora", model_of(family), signal=signal, warmup=10, beta=BETA, cap=40, seed=3)
    reference = Reference(method)
    train(method, family, reference=reference)
    steps = reference.steps[SIGNALS[signal].settle :]
    weights = [BETA ** (len(steps) - 1 - t) for t in range(len(steps))]
    weights = [w / sum(weights) for w in weights]
    names, leaders = list(method.matrices), observer.leaders(method.matrices)
    scores = method.scores()
    assert list(scores) == names
    for name, found in scores.items():
        known = [step[name] for step in steps]
        expected = expected_score(signal, known, weights, method.seed, names.index(leaders[name]))
        if isinstance(found, list):
            size = min(len(found), len(expected))
            assert size >= min(method.matrices[name].full_rank, 32)
            lost = CUTOFF if signal == "activation" else 1e-8
            np.testing.assert_allclose(found[:size], expected[:size], rtol=1e-6, atol=lost * expected[0])
        else:
            assert found == pytest.approx(float(expected), rel=1e-6)


def test_sketched_gradients_are_computed_once_per_input():
    """Query, key and value get one input, so a block of BERT has four projections for its six matrices."""

    class Products(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.shapes = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "mm" in str(function):
                self.shapes.append(tuple(result.shape))
            return result

    method = build("glora", warmup=3)
    method.model.train()
    with Products() as products:
        method.model(**batch(5))
    assert sum(4 in shape for shape in products.shapes) == 2 * 4
    assert len(method.matrices) == 2 * 6


def test_once_looks_at_the_tensor_its_version_and_the_key():
    once, calls = Once(), []

    def ask(tensor, key):
        return once(tensor, key, lambda: calls.append(float(tensor.sum())) or len(calls))

    x, key = torch.ones(3), object()
    assert [ask(x, key), ask(x, key), ask(x, object())] == [1, 1, 2]
    assert [ask(x, key), ask(x.clone(), key), ask(x, key)] == [3, 4, 5]
    x.add_(1)
    assert ask(x, key) == 6
    assert calls[-1] == 6.0


@pytest.mark.parametrize("signal", ["exact", "norm_of_mean", "whitened", "activation"])
def test_two_processes_see_what_one_sees_on_both_their_batches(monkeypatch, signal):
    """Gradients average, and second moments count every token once though the processes have different numbers."""
    halves = [micro_batches(1)[0], micro_batches(1)[1]]
    sent, received = [], []

    def exchange(tensors):
        if len(received) == 0:  # the first process hands over what it has
            sent.append([t.clone() for t in tensors])
            return
        for tensor, other in zip(tensors, received.pop(0), strict=True):
            tensor.add_(other).div_(2)

    def look(batches, weight):
        method = build("glora", model_of("bert"), signal=signal, warmup=5, seed=1)
        method.observer.settled = 9  # the basis stays as it was drawn
        method.model.train()
        for inputs in batches:
            (method.model(**inputs).loss * weight).backward()
        return method.observer.take()

    monkeypatch.setattr(observer, "all_mean", exchange)
    look(halves[:1], 1.0)
    received, sent = sent, []
    both = look(halves[1:], 1.0)
    assert not received
    monkeypatch.setattr(observer, "all_mean", lambda tensors: None)
    one = look(halves, 0.5)
    for field in ("gradients", "moments", "cores", "traces"):
        found, expected = getattr(both, field), getattr(one, field)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert len(one.gradients or one.moments) == 12


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(use_reentrant):
    seen = []
    for checkpointing in (False, True):
        method = build("glora", model_of("bert"), signal="whitened", warmup=3)
        if checkpointing:
            method.model.enable_input_require_grads()
            method.model.base_model.model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        method.model.train()
        for inputs in micro_batches(1):
            method.model(**inputs).loss.backward()
        seen.append(method.observer.take())
    for field in ("gradients", "moments", "traces"):
        for a, b in zip(getattr(seen[0], field), getattr(seen[1], field), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("signal", ["estimate", "whitened", "activation"])
def test_sums_are_float32_under_bf16(signal):
    method, plain = (build("glora", tiny_model(**NO_DROPOUT["bert"]), signal=signal, warmup=5) for _ in range(2))
    seen = []
    for one, half in ((method, True), (plain, False)):
        one.model.train()
        one.observer.settled = 9
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = one.model(**batch(6)).loss
        loss.backward()
        seen.append(one.observer.take())
    for field, tolerance in (("gradients", 0.1), ("moments", 0.03), ("cores", 0.03), ("traces", 0.03)):
        for a, b in zip(getattr(seen[0], field), getattr(seen[1], field), strict=True):
            assert a.dtype == torch.float32
            assert float((a - b).norm()) <= tolerance * float(b.norm())


def test_matrix_that_takes_no_part_is_named():
    method = build("glora", signal="activation", warmup=5)
    with pytest.raises(AllocationError, match=rf"{next(iter(method.matrices))}: no gradient came by"):
        method.observer.take()


def test_settled_bases_travel_with_the_state():
    """Values, and which layers share one object: those that get one input."""
    method = build("glora", model_of("bert"), signal="activation", warmup=5)
    train(method, "bert", steps=3)
    again = build("glora", model_of("bert"), signal="activation", warmup=5)
    again.load_state_dict(method.state_dict())
    assert again.observer.settled == method.observer.settled == 2
    names = list(method.matrices)
    for one in names:
        assert torch.equal(method.observer.bases[one], again.observer.bases[one])
        for two in names:
            shared = method.observer.bases[one] is method.observer.bases[two]
            assert shared == (again.observer.bases[one] is again.observer.bases[two])
    assert len({id(basis) for basis in again.observer.bases.values()}) == 2 * 4
