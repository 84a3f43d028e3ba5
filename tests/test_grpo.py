import itertools
import math

import pytest
import torch

from grpo import (AGGREGATIONS, aggregate, chunked_logprobs, group_advantages, k3_kl, loss_denominator,
                  length_penalty, masked_mean, overlong_penalty, policy_loss, token_logprobs)

INF, NAN = float("inf"), float("nan")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Advantages

def test_advantages_by_hand():
    """1, 0, 0, 1: mean .5, unbiased std sqrt(1 / 3)."""
    a = group_advantages(torch.tensor([[1., 0, 0, 1], [1, 0, 0, 0]]))
    assert torch.allclose(a[0], torch.tensor([1., -1, -1, 1]) * .5 * math.sqrt(3), atol=1e-5)
    assert torch.allclose(a[1], torch.tensor([.75, -.25, -.25, -.25]) / .5, atol=1e-5)
    assert torch.equal(group_advantages(torch.tensor([[2., 0, 0, 2]]), scale="none"),
                       torch.tensor([[1., -1, -1, 1]]))
    assert torch.allclose(group_advantages(torch.tensor([[1., 0]]), eps=1.), torch.tensor([[.5, -.5]])
                          / (math.sqrt(.5) + 1))


@pytest.mark.parametrize("reward", [0., .3, .8766, -1., 1 / 3, 1e6])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 10])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_equal_rewards_have_advantages_of_exactly_zero(reward, n, scale):
    """In float32 the mean of eight .3s is not .3, and eps makes that dust a signal."""
    assert (group_advantages(torch.full((3, n), reward), scale) == 0).all()


def test_advantages_are_centred_and_each_group_is_its_own():
    """Whitening that adds the mean back discourages nothing."""
    rewards = torch.rand(6, 8, dtype=torch.float64) + 5
    a = group_advantages(rewards)
    assert a.dtype == torch.float64 and a.mean(1).abs().max() < 1e-12
    assert torch.allclose(a.std(1), torch.ones(6, dtype=torch.float64), atol=1e-5)
    for i in range(6):
        assert torch.allclose(group_advantages(rewards[i:i + 1]), a[i:i + 1])
    assert (a > 0).any(1).all() and (a < 0).any(1).all()


def test_permuted_images_have_permuted_advantages():
    rewards, images, answers = torch.rand(5, 4), torch.randperm(5), torch.randperm(4)
    advantages = group_advantages(rewards)
    assert torch.equal(group_advantages(rewards[images]), advantages[images])
    assert torch.allclose(group_advantages(rewards[:, answers]), advantages[:, answers], atol=1e-6)


def test_advantages_refuse_what_is_no_reward():
    for bad in (NAN, INF, -INF):
        with pytest.raises(ValueError, match="finite"):
            group_advantages(torch.tensor([[1., bad]]))
    with pytest.raises(ValueError, match=r"\(B, N\)"):
        group_advantages(torch.zeros(8))
    with pytest.raises(ValueError, match="scale"):
        group_advantages(torch.zeros(2, 2), scale="mad")
    assert group_advantages(torch.tensor([[1, 0, -1]])).dtype == torch.float32   # whole numbers are welcome


# Log-probabilities

def loop_logprobs(logits, targets, temperature=1., banned=()):
    """In float64, by the definition, one token at a time."""
    out = torch.zeros(targets.shape, dtype=torch.float64)
    for index in itertools.product(*map(range, targets.shape)):
        scores = [x / temperature for x in logits[index].tolist()]
        total = math.fsum(math.exp(s) for v, s in enumerate(scores) if v not in banned)
        t = int(targets[index])
        out[index] = -INF if t in banned else scores[t] - math.log(total)
    return out


@pytest.mark.parametrize("temperature, banned", [(1., ()), (.6, ()), (1., (0, 4)), (1.7, (2,))])
def test_token_logprobs_against_a_loop(temperature, banned):
    logits, targets = torch.randn(2, 5, 7) * 4, torch.randint(7, (2, 5))
    ban = torch.isin(torch.arange(7), torch.tensor(banned)) if banned else None
    got = token_logprobs(logits, targets, temperature, ban)
    assert got.dtype == torch.float32 and got.shape == (2, 5)
    assert torch.allclose(got.double(), loop_logprobs(logits, targets, temperature, banned), atol=1e-5)


def test_token_logprobs_upcasts():
    logits, targets = torch.randn(3, 9).bfloat16(), torch.randint(9, (3,))
    assert torch.allclose(token_logprobs(logits, targets).double(), loop_logprobs(logits, targets), atol=1e-5)
    assert token_logprobs(logits.double(), targets).dtype == torch.float64


def both(hidden, weight, targets, grad, temperature, ban, chunk):
    """(value, grad of hidden, grad of weight) by the plain and the chunked way."""
    results = []
    for way in ("plain", "chunked"):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        if way == "plain":
            out = token_logprobs(h @ w.T, targets, temperature, ban)
        else:
            out = chunked_logprobs(h, w, targets, temperature, ban, chunk)
        out.backward(grad)
        results.append((out.detach(), h.grad, w.grad))
    return zip(*results)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("chunk", [1, 4, 5, 15, 1000])
@pytest.mark.parametrize("temperature, ban", [(1., None), (.7, (1, 11))])
def test_chunked_equals_plain_in_value_and_gradient(dtype, tolerance, chunk, temperature, ban):
    hidden, weight = torch.randn(3, 5, 8, dtype=dtype), torch.randn(13, 8, dtype=dtype) * .5
    targets, grad = torch.randint(2, 11, (3, 5)), torch.randn(3, 5, dtype=dtype)
    ban = None if ban is None else torch.isin(torch.arange(13), torch.tensor(ban))
    for plain, chunked in both(hidden, weight, targets, grad, temperature, ban, chunk):
        assert chunked.dtype == plain.dtype and torch.allclose(plain, chunked, rtol=tolerance, atol=tolerance)


def test_chunked_gradcheck():
    hidden = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    targets, ban = torch.tensor([0, 5, 2, 2, 1]), torch.arange(6) == 4
    assert torch.autograd.gradcheck(lambda h, w: chunked_logprobs(h, w, targets, .8, ban, chunk=2),
                                    (hidden, weight))


def test_chunked_bf16_hidden_gives_float32_and_the_plain_gradient():
    hidden, weight = torch.randn(6, 16).bfloat16(), torch.randn(20, 16).bfloat16()
    targets, grad = torch.randint(20, (6,)), torch.randn(6)
    (p, c), (ph, ch), (pw, cw) = both(hidden, weight, targets, grad, 1., None, 4)
    assert c.dtype == torch.float32 and torch.equal(p, c) and ch.dtype == torch.bfloat16
    assert torch.allclose(ph.float(), ch.float(), rtol=.02, atol=.02)
    assert torch.allclose(pw.float(), cw.float(), rtol=.03, atol=.03)      # chunk sums are rounded to bf16


def test_chunked_with_a_frozen_head_or_under_no_grad():
    hidden, weight = torch.randn(2, 4, 8, requires_grad=True), torch.randn(9, 8)
    targets = torch.randint(9, (2, 4))
    chunked_logprobs(hidden, weight, targets).sum().backward()            # an expanded (stride 0) gradient
    want, = torch.autograd.grad(token_logprobs(hidden @ weight.T, targets).sum(), hidden)
    assert torch.allclose(hidden.grad, want, atol=1e-5) and weight.grad is None
    with torch.no_grad():
        assert not chunked_logprobs(hidden, weight, targets).requires_grad
    turned = torch.randn(4, 2, 8).transpose(0, 1)                         # no contiguous rows
    assert torch.allclose(chunked_logprobs(turned, weight, targets.T.contiguous().T, chunk=3),
                          token_logprobs(turned @ weight.T, targets), atol=1e-5)


def test_chunked_of_no_tokens():
    none = torch.zeros(2, 0, dtype=torch.long)
    assert chunked_logprobs(torch.zeros(2, 0, 4), torch.zeros(5, 4), none).shape == (2, 0)


def test_a_banned_target_is_minus_infinity_and_poisons_nothing():
    """Padding may hold a banned token; its zero gradient must stay zero."""
    ban = torch.arange(6) == 3
    for way in (lambda h, w, t: token_logprobs(h @ w.T, t, banned=ban),
                lambda h, w, t: chunked_logprobs(h, w, t, banned=ban, chunk=2)):
        hidden, weight = torch.randn(3, 4, requires_grad=True), torch.randn(6, 4, requires_grad=True)
        out = way(hidden, weight, torch.tensor([1, 3, 2]))
        assert out[1] == -INF and out[[0, 2]].isfinite().all()
        torch.where(torch.tensor([True, False, True]), out, 0.).sum().backward()
        assert hidden.grad.isfinite().all() and (hidden.grad[1] == 0).all()
        assert weight.grad.isfinite().all() and (weight.grad[3] == 0).all()
        way(hidden, weight, torch.tensor([1, 3, 2])).sum().backward()
        assert (weight.grad[3] == 0).all()                 # nothing flows into a banned logit, target or not


# KL

def test_k3_closed_form():
    d = torch.tensor([0., .5, -.5, 2., -8., -10.5, 2.7, 30., -30.], dtype=torch.float64)  # d = ref - logprobs
    want = [0, math.exp(.5) - 1.5, math.exp(-.5) - .5, math.exp(2) - 3, math.exp(-8) + 7,
            math.exp(-10.5) + 9.5, 10, 10, 10]
    logprobs = torch.full_like(d, -3.)
    assert torch.allclose(k3_kl(logprobs, logprobs + d), torch.tensor(want, dtype=torch.float64), atol=1e-12)


def test_k3_gradient_is_exact_inside_and_zero_beyond_the_clamps():
    d = torch.tensor([0., .5, -2., 2.5, 2.7, -10.9, -12., 25., -25.])
    logprobs = torch.zeros_like(d, requires_grad=True)
    k3_kl(logprobs, d).sum().backward()
    want = [1 - math.exp(x) for x in (0., .5, -2., 2.5)] + [0, 1 - math.exp(-10.9), 0, 0, 0]
    assert torch.allclose(logprobs.grad, torch.tensor(want), atol=1e-5)


def test_k3_is_an_unbiased_estimate_of_the_kl():
    """E_p[k3] = sum p log(p / q), over the whole distribution."""
    p, q = (torch.randn(2, 50, dtype=torch.float64) * .5).log_softmax(-1)      # no clamp in force
    assert torch.allclose((p.exp() * k3_kl(p, q)).sum(), (p.exp() * (p - q)).sum(), atol=1e-9)
    assert (k3_kl(torch.randn(1000), torch.randn(1000)) > -1e-6).all()


def test_k3_in_the_padding_touches_nothing():
    logprobs = torch.tensor([[-1., -INF, NAN]], requires_grad=True)
    mask = torch.tensor([[1, 0, 0]])
    loss = aggregate(k3_kl(logprobs, torch.tensor([[-2., -INF, -1.]])), mask, "token-mean")
    loss.backward()
    assert loss.item() == pytest.approx(math.exp(-1)) and torch.allclose(
        logprobs.grad, torch.tensor([[1 - math.exp(-1), 0, 0]]))


# The clipped loss

def one_token(advantage, ratio, **kwargs):
    """(loss, d loss / d logprob) of one token."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero, ones = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1)
    loss, _ = policy_loss(logprobs, zero, torch.tensor([advantage], dtype=torch.float64), ones, **kwargs)
    loss.sum().backward()
    return loss.item(), logprobs.grad.item()


@pytest.mark.parametrize("advantage, ratio, loss, gradient", [
    (1., 2., -1.2, 0.),        # pushed up far enough
    (1., .5, -.5, -.5),        # too low: pushed up
    (-1., 2., 2., 2.),         # too high: pushed down (an inverted clip has 0 here)
    (-1., .5, .8, 0.),         # pushed down far enough (an inverted clip has .5 here)
    (1., 1., -1., -1.), (-1., 1., 1., 1.),          # the first update: the plain policy gradient
    (1., 1.1, -1.1, -1.1), (-1., .9, .9, .9),       # inside the range
    (2., 1.1, -2.2, -2.2), (0., 2., 0., 0.), (0., .5, 0., 0.),
    (-1., 2.9, 2.9, 2.9), (-1., 3.5, 3., 0.), (-2., 10., 6., 0.),    # dual clip at 3
    (1., .01, -.01, -.01), (1., 50., -1.2, 0.),                       # which only caps advantages below 0
])
def test_loss_and_gradient_by_hand(advantage, ratio, loss, gradient):
    assert one_token(advantage, ratio) == pytest.approx((loss, gradient), abs=1e-9)


def test_a_whole_sequences_ratio_by_hand():
    """Two answers of two tokens and one. The first's ratios 2 and .5 make 1: in no clip. The second's 1.1 is
    clipped where it gained, and where it lost it is not. A token's gradient: -A * ratio / length."""
    old = torch.zeros(2, 2)
    logprobs = torch.tensor([[2.0, 0.5], [1.1, 9.0]]).log().requires_grad_()
    mask = torch.tensor([[1, 1], [1, 0]])
    for sign, second, gradient in ((1.0, -1.05, 0.0), (-1.0, 1.1, 1.1)):
        advantages = torch.tensor([3.0, sign])
        loss, stats = policy_loss(logprobs, old, advantages, mask, 0.05, 0.05, None, whole_sequence=True)
        torch.testing.assert_close(loss, torch.tensor([[-3.0, -3.0], [second, 0.0]]))
        found, = torch.autograd.grad(aggregate(loss, mask, "seq-mean-token-mean", 1.0), logprobs)
        torch.testing.assert_close(found, torch.tensor([[-1.5, -1.5], [gradient, 0.0]]))
        assert float(stats["ratio"]) == pytest.approx((1 + 1 + 1.1) / 3)
        assert float(stats["clipfrac"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("advantage, ratio, kwargs, loss, gradient", [
    (1., 1.25, dict(clip_high=.28), -1.25, -1.25), (1., 1.3, dict(clip_high=.28), -1.28, 0.),
    (-1., .75, dict(clip_high=.28), .8, 0.), (-1., .75, dict(clip_low=.3), .75, .75),
    (1., 1.3, dict(clip_low=.4), -1.2, 0.), (-1., 8., dict(dual_clip=None), 8., 8.),
    (-1., 8., dict(dual_clip=10.), 8., 8.), (-1., 11., dict(dual_clip=10.), 10., 0.),
])
def test_asymmetric_and_dual_clip(advantage, ratio, kwargs, loss, gradient):
    assert one_token(advantage, ratio, **kwargs) == pytest.approx((loss, gradient), abs=1e-9)


def test_dual_clip_must_exceed_one():
    with pytest.raises(ValueError, match="dual_clip"):
        one_token(1., 1., dual_clip=1.)


def random_step(rows=8, length=6):
    mask = (torch.arange(length) < torch.randint(1, length + 1, (rows, 1))).float()
    return torch.randn(rows, length) * .3, torch.randn(rows, length) * .3, torch.randn(rows), mask


def naive_loss(new, old, advantage, low, high, cap):
    ratio = math.exp(min(max(new - old, -20), 20))
    loss = max(-advantage * ratio, -advantage * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -advantage * cap) if advantage < 0 else loss


def test_loss_against_a_loop_and_advantages_per_token():
    new, old, advantages, mask = random_step()
    loss, _ = policy_loss(new, old, advantages, mask, .1, .25, 1.3)
    for i in range(8):
        for t in range(6):
            want = naive_loss(*(x.item() for x in (new[i, t], old[i, t], advantages[i])), .1, .25, 1.3)
            assert loss[i, t].item() == pytest.approx(want * mask[i, t].item(), abs=1e-5)
    per_token = advantages[:, None].expand(-1, 6)
    assert torch.equal(policy_loss(new, old, per_token, mask, .1, .25, 1.3)[0], loss)


def test_statistics_by_hand_over_the_mask_only():
    """Means over the mask alone: the padding holds ratios that would show."""
    ratios = torch.tensor([[2., 1., 1e9], [.5, 4., 1e-9]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0]])
    _, s = policy_loss(ratios.log(), torch.zeros(2, 3), torch.tensor([1., -1.]), mask)
    k3 = [r - 1 - math.log(r) for r in (2, 1, .5, 4)]
    want = {"ratio": 7.5 / 4, "approx_kl": sum(k3) / 4, "clipfrac": .75, "dual_clipfrac": .25, "clamped": 0,
            "ratio_max": 4}
    assert {k: v.item() for k, v in s.items()} == pytest.approx(want, abs=1e-5)
    assert not any(v.requires_grad for v in s.values())


def test_statistics_of_absurd_and_of_no_tokens():
    new = torch.tensor([[25., -25., 0., 0.]])
    _, s = policy_loss(new, torch.zeros(1, 4), torch.ones(1), torch.ones(1, 4))
    assert s["clamped"] == .5 and s["ratio_max"].item() == pytest.approx(math.exp(20), rel=1e-5)
    loss, s = policy_loss(new, new, torch.ones(1), torch.zeros(1, 4))
    assert (loss == 0).all() and all(v == 0 for v in s.values())
    loss, s = policy_loss(new[:, :0], new[:, :0], torch.ones(1), torch.ones(1, 0))
    assert loss.shape == (1, 0) and all(v == 0 for v in s.values())


@pytest.mark.parametrize("poison", [INF, -INF, NAN])
def test_padding_has_neither_value_nor_gradient(poison):
    new, old, advantages, mask = random_step()
    per_token = advantages[:, None].expand(-1, 6).clone()
    results = []
    for fill in (0., poison):
        tensors = [torch.where(mask.bool(), x, fill) for x in (new, old, per_token)]
        tensors[0].requires_grad_()
        loss, stats = policy_loss(*tensors, mask)
        total = aggregate(loss, mask, "token-mean") + aggregate(k3_kl(*tensors[:2]), mask, "token-mean")
        total.backward()
        results.append([total.detach(), tensors[0].grad, loss.detach(), *stats.values()])
    for clean, poisoned in zip(*results):
        assert torch.equal(clean, poisoned)
    assert (results[1][1][mask == 0] == 0).all()


def test_nan_inside_the_mask_is_not_hidden():
    new, old, advantages, mask = random_step()
    new[0, 0] = NAN
    assert aggregate(policy_loss(new, old, advantages, mask)[0], mask, "token-mean").isnan()


def test_first_update_is_the_policy_gradient():
    """old = the same log-probs, detached: the gradient is -A for every token in the mask."""
    new, _, advantages, mask = random_step()
    new.requires_grad_()
    loss, stats = policy_loss(new, new.detach(), advantages, mask)
    loss.sum().backward()
    assert torch.allclose(new.grad, -advantages[:, None] * mask) and stats["ratio"] == 1
    assert stats["approx_kl"] == 0 and stats["clipfrac"] == 0


# Aggregation

VALUES = torch.tensor([[1., 2., 9.], [3., 9., 9.], [4., 5., 6.]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("mode, own, given", [      # sums 3, 3, 15; lengths 2, 1, 3; T = 3
    ("token-mean", 21 / 6, 21 / 10), ("seq-mean-token-mean", (1.5 + 3 + 5) / 3, 9.5 / 10),
    ("seq-mean-token-sum-norm", 21 / 3 / 3, 21 / 10)])
def test_aggregate_by_hand(mode, own, given):
    assert aggregate(VALUES, MASK, mode).item() == pytest.approx(own)
    assert aggregate(VALUES, MASK, mode, denominator=10).item() == pytest.approx(given)
    assert aggregate(VALUES, MASK, mode, denominator=torch.tensor(10)).item() == pytest.approx(given)
    assert aggregate(VALUES.masked_fill(MASK == 0, NAN), MASK.bool(), mode).item() == pytest.approx(own)


@pytest.mark.parametrize("mode, expected", [
    ("token-mean", 2 + 1 + 3), ("seq-mean-token-mean", 3), ("seq-mean-token-sum-norm", 3 * 7)])
def test_the_denominator_by_hand(mode, expected):
    """Rows of 2, 1 and 3 tokens that could have been 7 long."""
    assert loss_denominator(torch.tensor([2, 1, 3]), mode, max_length=7).item() == expected
    assert loss_denominator(torch.tensor([]), mode, max_length=7).item() == 0
    with pytest.raises(ValueError, match="token-mean"):
        loss_denominator(torch.tensor([2]), "mean", max_length=7)


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_micro_batches_add_up_under_one_denominator(mode):
    """1 x 8 rows or 4 x 2 rows, each cut to its own longest completion: one loss, one gradient."""
    new, old, advantages, mask = random_step()
    denominator = {"token-mean": mask.sum(), "seq-mean-token-mean": 8, "seq-mean-token-sum-norm": 8 * 6}[mode]
    grads, totals = [], []
    for size in (8, 2):
        x = new.clone().requires_grad_()
        total = 0.
        for rows in torch.arange(8).split(size):
            width = int(mask[rows].sum(1).max())
            m = mask[rows, :width]
            loss, _ = policy_loss(x[rows, :width], old[rows, :width], advantages[rows], m)
            part = aggregate(loss, m, mode, denominator)
            part.backward()
            total += part.item()
        grads.append(x.grad)
        totals.append(total)
    assert totals[0] == pytest.approx(totals[1], abs=1e-6) and torch.allclose(*grads, atol=1e-7)
    # and the step's own denominator is the one that None takes, and loss_denominator makes
    assert loss_denominator(mask.sum(1), mode, 6) == denominator
    assert aggregate(policy_loss(new, old, advantages, mask)[0], mask, mode).item() == pytest.approx(
        totals[0], abs=1e-6)


def test_aggregate_of_an_empty_row_and_unknown_mode():
    mask = torch.tensor([[0, 0], [1, 0]])
    values = torch.tensor([[5., 5.], [3., 5.]])
    assert aggregate(values, mask, "seq-mean-token-mean").item() == 1.5
    assert aggregate(values, torch.zeros(2, 2), "token-mean").item() == 0
    with pytest.raises(ValueError, match="token-mean"):
        aggregate(values, mask, "mean")


@pytest.mark.parametrize("mode", AGGREGATIONS)
def test_aggregate_of_nothing_is_zero(mode):
    for shape in ((0, 4), (2, 0), (0, 0)):
        assert aggregate(torch.zeros(shape), torch.zeros(shape), mode).item() == 0


def test_masked_mean():
    assert masked_mean(VALUES, MASK) == 3.5 and masked_mean(VALUES, torch.zeros(3, 3)) == 0
    assert masked_mean(VALUES > 4, MASK).item() == pytest.approx(2 / 6)


def test_no_function_changes_its_inputs():
    """A write through a view would rescale a later loss."""
    new, old, advantages, mask = random_step()
    mask = mask.bool()  # as train.py gives it: of a float one the functions would only spoil their own copy
    hidden, weight, targets = torch.randn(8, 6, 4), torch.randn(7, 4), torch.randint(7, (8, 6))
    ban, logits, rewards = torch.arange(7) == 2, torch.randn(8, 6, 7), torch.rand(2, 4)
    tensors = [new, old, advantages, mask, hidden, weight, targets, ban, logits, rewards]
    kept = [t.clone() for t in tensors]
    h, w = hidden.requires_grad_(), weight.requires_grad_()
    group_advantages(rewards)
    token_logprobs(logits, targets, .7, ban)
    chunked_logprobs(h, w, targets, .7, ban, chunk=5).clamp(min=-50).sum().backward()
    loss, _ = policy_loss(new, old, advantages, mask)
    k3_kl(new, old), masked_mean(new, mask), [aggregate(loss, mask, m) for m in AGGREGATIONS]
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept))


def test_corpo_floor_by_hand():
    """Three Wrong answers beside a malformed one: mean -1/4, floor 1/2. Without it they are rewarded."""
    rewards = torch.tensor([[-1.0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]])
    assert (group_advantages(rewards)[0, 1:] > 0).all()
    floored = group_advantages(rewards, "none", floor=0.5)
    assert floored.tolist() == [[-1.5, -0.5, -0.5, -0.5], [0.25, 0.25, 0.25, -0.75], [0, 0, 0, 0]]
    scaled = group_advantages(rewards, floor=0.5)                    # spread about .5: (2.25 + 3 / 4) / 3 = 1
    assert torch.allclose(scaled[0], torch.tensor([-1.5, -0.5, -0.5, -0.5]), atol=1e-4)


def test_a_floor_above_a_groups_rewards_does_not_blow_up():
    """Seven 0 and one -1/128 below a floor of .5: about that baseline each is a deviation of some .5, and the
    spread about it is (8 * .5^2 / 7)^.5 = .535."""
    advantages = group_advantages(torch.tensor([[0.0] * 7 + [-1 / 128]]), floor=0.5)
    torch.testing.assert_close(advantages, torch.full((1, 8), -0.9354), atol=0.02, rtol=0)


@pytest.mark.parametrize("length, penalty", [(1, 0), (1536, 0), (1537, -1 / 512), (1792, -0.5), (2048, -1)])
def test_overlong_penalty_of_the_release(length, penalty):
    assert overlong_penalty(length, 2048, 512) == pytest.approx(penalty)


@pytest.mark.parametrize("length, penalty", [(0, 0), (1, -0.2 / 512), (128, -0.05), (512, -0.2)])
def test_length_penalty_by_hand(length, penalty):
    assert length_penalty(length, 512, 0.2) == pytest.approx(penalty)
    assert length_penalty(length, 512, 0.0) == 0
