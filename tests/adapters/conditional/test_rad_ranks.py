"""A rank per input: masks, gradients of draws, decisions, prices."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.adapters.conditional.rad_ranks import (
    RankTracker,
    drawn_mask,
    fair_rank_price,
    fitting_rank_price,
    mean_rank,
    rank_chances,
    settled_ranks,
    tail_sums,
    uniform_mask,
)

R = 4
chances = st.lists(st.floats(0.05, 1), min_size=R, max_size=R).map(
    lambda values: torch.tensor(values, dtype=torch.float64) / sum(values)
)


def mask_of(rank):
    return torch.tensor([1.0] * rank + [0.0] * (R - rank), dtype=torch.float64)


def drawing(patch, rank):
    """Lets the next draw be `rank`."""
    waits = torch.full((1, R), 1e9, dtype=torch.float64)
    waits[0, rank - 1] = 1e-9
    patch.setattr(torch.Tensor, "exponential_", lambda self: self.copy_(waits))


def expected_gradients(loss, p):
    """(mean of the straight-through gradient over all ranks, exact gradient of the expected loss)."""
    through = torch.zeros_like(p)
    for rank in range(1, R + 1):
        leaf = p.clone().requires_grad_()
        with pytest.MonkeyPatch.context() as patch:
            drawing(patch, rank)
            mask = drawn_mask(leaf[None])[0]
        torch.testing.assert_close(mask.detach(), mask_of(rank))
        through += p[rank - 1] * torch.autograd.grad(loss(mask), leaf)[0]
    leaf = p.clone().requires_grad_()
    exact = torch.autograd.grad(sum(leaf[k - 1] * loss(mask_of(k)) for k in range(1, R + 1)), leaf)[0]
    return through - through.mean(), exact - exact.mean()  # chances sum to 1: only differences count


@given(chances, st.integers(0, 99))
def test_gradient_is_exact_in_expectation_where_the_loss_is_linear_in_the_mask(p, seed):
    weight = torch.randn(R, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(*expected_gradients(lambda mask: weight @ mask, p))


@pytest.mark.parametrize("up", [1.0, -1.0])
@given(chances)
def test_its_sign_is_right_where_more_components_help_all_the_way(up, p):
    """A step from a smaller rank to a larger one, by finite differences of the expectation."""

    def loss(mask):
        return torch.nn.functional.softplus(-up * mask.sum())

    through, _ = expected_gradients(loss, p)
    step = 1e-4
    for low, high in itertools.combinations(range(R), 2):
        moved = p.clone()
        moved[low] -= step
        moved[high] += step
        change = sum((moved - p)[k - 1] * loss(mask_of(k)) for k in range(1, R + 1)) / step
        assert torch.sign(through[high] - through[low]) == torch.sign(change) == -up


def test_draws_come_as_often_as_their_chance():
    torch.manual_seed(0)
    p = torch.tensor([0.1, 0.4, 0.2, 0.3])
    masks = drawn_mask(p.expand(40_000, R))
    assert set(masks.sum(1).tolist()) == {1.0, 2.0, 3.0, 4.0}
    torch.testing.assert_close(masks.mean(0), tail_sums(p), rtol=0, atol=0.01)
    assert bool((masks.diff(dim=1) <= 0).all()), "ranks are nested"


def test_uniform_ranks_are_nested_and_equally_likely():
    torch.manual_seed(0)
    masks = uniform_mask(40_000, R, torch.zeros(1))
    torch.testing.assert_close(masks.mean(0), torch.tensor([1, 0.75, 0.5, 0.25]), rtol=0, atol=0.01)
    assert bool((masks.diff(dim=1) <= 0).all())


@given(chances, st.floats(-2, 2), st.floats(0.3, 3))
def test_chances_are_written_out(p, price, temperature):
    logits = p.log()
    by_hand = torch.tensor([float((logits[k] - price * (k + 1)) / temperature) for k in range(R)]).double().exp()
    torch.testing.assert_close(rank_chances(logits, price, temperature), by_hand / by_hand.sum(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(tail_sums(p), torch.stack([p[j:].sum() for j in range(R)]))


@given(chances)
def test_settled_rank_is_the_median(p):
    rank = int(settled_ranks(p.log(), 0.0, 1.0))
    assert float(p[rank - 1 :].sum()) >= 0.5 - 1e-9
    assert float(p[rank:].sum()) <= 0.5 + 1e-9
    distance = [sum(float(p[k]) * abs(k + 1 - other) for k in range(R)) for other in range(1, R + 1)]
    assert distance[rank - 1] == pytest.approx(min(distance))


def random_logits(seed, *shape):
    return torch.randn(*shape, R, generator=torch.Generator().manual_seed(seed)).double()


@given(st.integers(0, 99), st.floats(1.2, 3.8), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_fair_price_gives_the_mean_asked_for(seed, goal, temperature):
    logits, weights = random_logits(seed, 20, 3), random_logits(seed + 1, 20, 3)[..., 0].sigmoid()
    price = fair_rank_price(logits, temperature, goal, weights)
    assert float(mean_rank(rank_chances(logits, price, temperature), weights)) == pytest.approx(goal, abs=1e-6)


@given(st.integers(0, 99), st.floats(1.1, 3.8))
def test_the_fitting_price_gives_the_nearest_mean_of_settled_ranks(seed, each):
    logits, opened = random_logits(seed, 20, 3), random_logits(seed + 1, 20, 3)[..., 0] > -0.8
    goal = each * float(opened.double().mean())
    price = fitting_rank_price(logits, 1.0, goal, opened)
    reached = float((settled_ranks(logits, price, 1.0) * opened).double().mean())
    assert abs(reached - goal) <= 0.5 / opened.numel() + 1e-9, "one component more or less is nearer"


def test_alike_inputs_can_still_be_brought_near_any_share():
    """Logits of an untrained router: the most likely rank would be all or one."""
    logits, opened = torch.zeros(8, 5, R), torch.ones(8, 5)
    for goal in (1.4, 2.0, 2.6, 3.5):
        price = fitting_rank_price(logits, 0.5, goal, opened)
        assert abs(float(settled_ranks(logits, price, 0.5).double().mean()) - goal) <= 0.5


def test_tracker_goes_from_uniform_ranks_to_its_target():
    tracker = RankTracker(rank=8, target=0.4, first=10, last=50)
    course = [tracker.target_at(step) for step in (1, 10, 30, 50, 90)]
    assert course[:2] == [0.5625, 0.5625]
    assert course[2] == pytest.approx(0.4 + 0.1625 / 8, abs=1e-5)  # half way, a cubic has an eighth left
    assert course[3:] == [0.4, 0.4]


def test_price_follows_moving_logits_to_the_target():
    tracker = RankTracker(rank=R, target=0.5, first=1, last=20)
    weights = torch.ones(30, 2)
    for step in range(2, 80):
        logits = random_logits(step, 30, 2) + 0.02 * step * torch.arange(R)
        tracker.update(logits, 1.0, step, weights)
    share = float(mean_rank(rank_chances(logits, tracker.price, 1.0), weights)) / R
    assert share == pytest.approx(0.5, abs=0.02)


def test_penalty_is_the_squared_distance_of_open_adapters_and_pushes_ranks_down():
    tracker = RankTracker(rank=R, target=0.5, first=1, last=2)
    logits = random_logits(3, 6, 2).requires_grad_()
    weights = torch.zeros(6, 2).double()
    weights[0, 1] = 0.7  # a single adapter may be open
    p = rank_chances(logits, -1.0, 1.0)
    share = float(sum((k + 1) * p[0, 1, k].detach() for k in range(R))) / R
    penalty = tracker.penalty(p, weights, 9)
    assert float(penalty.detach()) == pytest.approx((share - 0.5) ** 2 / 2)
    (gradient,) = torch.autograd.grad(penalty, logits)
    assert share > 0.5
    assert gradient[0, 1, R - 1] > 0 > gradient[0, 1, 0]
    assert float(gradient.abs().sum()) == pytest.approx(float(gradient[0, 1].abs().sum()))


def test_equal_seeds_draw_alike():
    """Gradient checkpointing runs blocks again."""
    p, draws = torch.full((5, R), 0.25), []
    for _ in range(2):
        torch.manual_seed(7)
        draws.append((drawn_mask(p), uniform_mask(5, R, p)))
    assert all(torch.equal(one, two) for one, two in zip(*draws, strict=True))
