"""Times taken in turn, on a clock that the models themselves move."""

import statistics

import pytest
import torch
from torch import nn

from rankwise.costs import latency
from rankwise.costs.latency import WARM_UP, Times, Variant, measure


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class Slow(nn.Module):
    """Takes `seconds` per example, and says when it ran."""

    def __init__(self, name, seconds, clock, log):
        super().__init__()
        self.name, self.seconds, self.clock, self.log = name, seconds, clock, log

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert not self.training
        self.clock.now += self.seconds * len(x)
        self.log.append((self.name, len(x)))


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(latency, "time", made)
    return made


def variants(clock, log, **seconds):
    return {name: Variant(Slow(name, value, clock, log)) for name, value in seconds.items()}


def test_every_round_runs_all_on_one_batch_in_an_order_of_its_own(clock):
    log, done = [], []
    batches = [{"x": torch.zeros(2)}, {"x": torch.zeros(3)}]
    times = measure(variants(clock, log, a=1.0, b=2.0, c=4.0), batches, 10, step=lambda: done.append(len(log)))
    assert done == [6 * (i + 1) for i in range(10 + WARM_UP)]
    rounds = [log[i : i + 6] for i in range(0, len(log), 6)]
    orders = {tuple(name for name, _ in calls[::2]) for calls in rounds}
    assert len(orders) > 1
    for number, calls in enumerate(rounds):
        assert [name for name, _ in calls[::2]] == [name for name, _ in calls[1::2]]  # once to warm up, once timed
        assert {size for _, size in calls} == {2 + number % 2}
    assert times.seconds["b"] == pytest.approx([2.0 * (2 + (i + WARM_UP) % 2) for i in range(10)])
    ratio = times.ratio("c", "a")
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((4.0, 4.0, 4.0))


def test_preparing_is_off_the_clock(clock):
    log = []
    slow = Slow("a", 1.0, clock, log)

    def prepare():
        clock.now += 100
        log.append("prepared")

    times = measure({"a": Variant(slow, prepare)}, [{"x": torch.zeros(1)}], 3)
    assert times.seconds["a"] == pytest.approx([1.0] * 3)
    assert log[:3] == ["prepared", ("a", 1), ("a", 1)]


def test_the_same_seed_gives_the_same_orders(clock):
    def order(seed):
        log = []
        measure(variants(clock, log, a=1, b=1, c=1), [{"x": torch.zeros(1)}], 5, seed=seed)
        return log

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_percentiles_are_values_that_were_measured():
    times = Times({"a": [5.0, 1.0, 4.0, 2.0, 3.0], "b": [1.0] * 5, "c": [float(i) for i in range(1, 101)]})
    assert [times.percentile("a", p) for p in (1, 20, 21, 50, 95, 100)] == [1.0, 1.0, 2.0, 3.0, 5.0, 5.0]
    assert (times.percentile("c", 50), times.percentile("c", 95)) == (50.0, 95.0)


def test_ratios_are_taken_within_rounds():
    own, other = [2.0, 20.0, 6.0], [1.0, 10.0, 2.0]
    found = Times({"a": own, "b": other}).ratio("a", "b")
    assert found.median == statistics.median([2.0, 2.0, 3.0])
    assert (found.low, found.high) == (2.0, 2.5)
    assert Times({"a": [3.0], "b": [2.0]}).ratio("a", "b").median == 1.5


def test_garbage_collection_goes_on_afterwards(clock):
    import gc

    class Breaks(nn.Module):
        def forward(self, x):
            assert not gc.isenabled()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure({"a": Variant(Breaks())}, [{"x": torch.zeros(1)}], 1)
    assert gc.isenabled()
