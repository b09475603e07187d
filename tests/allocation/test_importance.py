"""Averages and scores of components against the paper's formulas, entry by entry in float64, and what they cost."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from rankwise.allocation.importance import Importance, Triplets, update_averages

SHAPES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)
BETAS = st.floats(0.05, 0.95)


def draw(shapes, seed, *, dtype=torch.float64, device="cpu"):
    """Random triplets of (rank, in, out), entries of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape):
        entries = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (entries * 10 ** (2 * torch.rand(shape, generator=generator, dtype=torch.float64))).to(device, dtype)

    return [Triplets(tensor(rank), tensor(rank, inn), tensor(out, rank)) for rank, inn, out in shapes]


def by_the_formulas(weights, steps, beta1, beta2):
    """Eq. 7 to 11 of the paper with a Python loop over the components."""
    scores = []
    for index, triplets in enumerate(weights):
        entries = []
        for part, weight in enumerate(triplets):
            average, deviation = torch.zeros_like(weight), torch.zeros_like(weight)
            for gradients in steps:
                sensitivity = (weight * list(gradients[index])[part]).abs()
                average = beta1 * average + (1 - beta1) * sensitivity
                deviation = beta2 * deviation + (1 - beta2) * (sensitivity - average).abs()
            entries.append(average * deviation)
        values, a, b = entries
        scores.append(torch.stack([values[i] + a[i].mean() + b[:, i].mean() for i in range(len(values))]))
    return scores


@given(SHAPES, st.integers(1, 5), BETAS, BETAS)
def test_scores_are_the_papers(shapes, steps, beta1, beta2):
    weights = draw(shapes, 0)
    gradients = [draw(shapes, step + 1) for step in range(steps)]
    importance = Importance(weights, beta1=beta1, beta2=beta2)
    for gradient in gradients:
        importance.update(gradient)
    for actual, expected in zip(importance.scores(), by_the_formulas(weights, gradients, beta1, beta2), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)


def test_weights_are_read_when_they_have_moved():
    weights, gradients = draw([(2, 3, 4)], 0), draw([(2, 3, 4)], 1)
    importance = Importance(weights, beta1=0.5, beta2=0.5)
    for tensor in weights[0]:
        tensor.zero_()
    importance.update(gradients)
    assert not importance.scores()[0].any()


@given(SHAPES, st.randoms())
def test_the_order_of_the_matrices_does_not_matter(shapes, random):
    order = random.sample(range(len(shapes)), len(shapes))
    scores = []
    for which in (range(len(shapes)), order):
        weights, gradients = draw(shapes, 0), draw(shapes, 1)
        importance = Importance([weights[i] for i in which], beta1=0.8, beta2=0.7)
        importance.update([gradients[i] for i in which])
        scores.append(dict(zip(which, importance.scores(), strict=True)))
    for index in range(len(shapes)):
        torch.testing.assert_close(scores[0][index], scores[1][index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_step_that_is_not_finite_is_as_if_it_had_not_been(bad, part):
    shapes = [(2, 3, 4), (3, 2, 2)]
    weights = draw(shapes, 0)
    whole, skipping = (Importance(weights, beta1=0.85, beta2=0.85) for _ in range(2))
    for step in range(1, 5):
        gradients = draw(shapes, step)
        whole.update(gradients)
        skipping.update(gradients)
        list(gradients[1])[part].view(-1)[1] = bad
        skipping.update(gradients)
    for expected, actual in zip(whole.scores(), skipping.scores(), strict=True):
        assert torch.equal(expected, actual)


def test_half_precision_parameters_are_averaged_in_float32():
    shapes = [(2, 30, 40)]
    weights = draw(shapes, 0, dtype=torch.bfloat16)
    steps = [draw(shapes, step, dtype=torch.bfloat16) for step in range(1, 30)]
    importance = Importance(weights, beta1=0.85, beta2=0.85)
    for gradients in steps:
        importance.update(gradients)
    exact = by_the_formulas([_double(w) for w in weights], [[_double(g) for g in s] for s in steps], 0.85, 0.85)
    torch.testing.assert_close(importance.scores()[0].double(), exact[0], rtol=1e-5, atol=0)


def _double(triplets):
    return Triplets(*(t.double() for t in triplets))


def test_averages_are_views_from_which_another_goes_on():
    shapes = [(2, 3, 4), (3, 3, 2), (2, 3, 4)]
    weights = draw(shapes, 0)
    first, second = (Importance(weights, beta1=0.85, beta2=0.6) for _ in range(2))
    first.update(draw(shapes, 1))
    for old, new, weight in zip(first.averages(), second.averages(), weights, strict=True):
        for saved, restored in zip(old, new, strict=True):
            for source, destination, parameter in zip(saved, restored, weight, strict=True):
                assert source.shape == destination.shape == parameter.shape
                destination.copy_(source)
    for importance in (first, second):
        importance.update(draw(shapes, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.scores(), second.scores(), strict=True))


def test_matrices_on_several_devices_are_kept_apart():
    """The meta device stands for a second one."""
    shapes = [(2, 3, 4), (3, 2, 2), (1, 3, 4)]
    weights, gradients = draw(shapes, 0), draw(shapes, 1)
    alone = Importance(weights[1:2], beta1=0.85, beta2=0.85)
    alone.update(gradients[1:2])
    away = [draw(shapes, seed, device="meta") for seed in (0, 1)]
    mixed = Importance([away[0][0], weights[1], away[0][2]], beta1=0.85, beta2=0.85)
    mixed.update([away[1][0], gradients[1], away[1][2]])
    scores = mixed.scores()
    assert [score.device.type for score in scores] == ["meta", "cpu", "meta"]
    assert [len(score) for score in scores] == [2, 3, 1]
    assert torch.equal(scores[1], alone.scores()[0])


def test_parameters_are_left_as_they_are():
    weights, gradients = draw([(2, 3, 4)], 0), draw([(2, 3, 4)], 1)
    trained = [Triplets(*(torch.nn.Parameter(t.clone()) for t in triplets)) for triplets in weights]
    importance, plain = (Importance(w, beta1=0.85, beta2=0.85) for w in (trained, weights))
    importance.update(gradients)
    plain.update(gradients)
    assert torch.equal(importance.scores()[0], plain.scores()[0])
    assert not importance.scores()[0].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(trained[0], weights[0], strict=True))


def test_update_is_in_place_and_uses_the_new_average():
    average, deviation = torch.tensor([1.0]), torch.tensor([2.0])
    update_averages(average, deviation, torch.tensor([5.0]), beta1=0.75, beta2=0.5)
    assert average.item() == 0.75 * 1 + 0.25 * 5
    assert deviation.item() == 0.5 * 2 + 0.5 * (5 - average.item())


class Count(TorchDispatchMode):
    """Names of the kernels called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_costs_as_many_kernels_however_many_matrices_and_never_waits_for_the_device(device):
    """On the meta device nothing has a value, so that asking for one raises."""
    counts = []
    for matrices in (2, 40):
        shapes = [(3, 8, 6), (3, 6, 8)] * (matrices // 2)
        importance = Importance(draw(shapes, 0, device=device), beta1=0.85, beta2=0.85)
        gradients = draw(shapes, 1, device=device)
        with Count() as count:
            importance.update(gradients)
        counts.append(len(count.names))
    assert counts[0] == counts[1] <= 14, count.names


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_scoring_costs_one_mean_per_shape_and_never_waits_for_the_device(device):
    counts = []
    for matrices in (2, 40):
        shapes = [(3, 8, 6), (3, 6, 8)] * (matrices // 2)
        importance = Importance(draw(shapes, 0, device=device), beta1=0.85, beta2=0.85)
        with Count() as count:
            importance.scores()
        assert count.names.count("mean") == 4
        counts.append(len([name for name in count.names if name != "split_with_sizes"]))
    assert counts[0] == counts[1]


def test_updating_allocates_nothing_that_grows_with_the_matrices():
    shapes = [(4, 200, 100)] * 5
    importance = Importance(draw(shapes, 0), beta1=0.85, beta2=0.85)
    gradients = draw(shapes, 1)
    importance.update(gradients)
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        importance.update(gradients)
    largest = max(event.self_cpu_memory_usage for event in profile.key_averages())
    assert largest < 1000, "bytes; the factors hold 48,160"
