"""GRPO in plain tensors: advantages, token log-probs, the k3 KL, the clipped loss, aggregation.

Torch only: copy this file alone; train.py shows the whole update.

Shapes: B images, N completions each, R = B * N rows, T completion tokens (right-padded), V vocabulary,
H hidden size. `mask` (R, T) is 1 up to and including a completion's first EOS.

Equal to verl's numbers where verl has the function (there: compute_grpo_outcome_advantage,
compute_policy_loss, kl_penalty "low_var_kl", agg_loss).

Where this departs from the official release (verl):
1. A group whose rewards are all equal has advantages of exactly 0. (verl leaves rounding dust, which its eps
   of 1e-6 amplifies. A group of one keeps its reward there, and learns nothing here.)
2. One denominator for the whole optimizer step, no mean per micro-batch: how a step is split changes nothing.
3. "seq-mean-token-sum-norm" is a mean over rows too, as Dr. GRPO writes it; verl divides the sum of all rows
   by the padded length alone.
4. `floor` is CoRPO's, `overlong_penalty` DAPO's and `length_penalty` ours; a group of equal rewards stays at
   0 under a floor too.
5. `clipfrac` is CleanRL's: the share of tokens whose ratio left the clip range, whatever the advantage's
   sign.
"""

import torch
from torch import Tensor

LOGRATIO_CLAMP = 20.0  # verl clamps every log-ratio here before exp: e^20 is already absurd, e^90 is inf
KL_CLAMP = 10.0        # and each token's k3 here: beyond it the KL has no gradient, so that share is logged


# ------------------------------------------------------------------------------------------------------------
# Advantages


def group_advantages(rewards: Tensor, scale: str = "std", eps: float = 1e-6,
                     floor: float | None = None) -> Tensor:
    """(r - mean) / (std + eps) within each group; std is unbiased (ddof 1).

    floor: the baseline never falls below it (CoRPO), so that a reward below it never has a positive
    advantage, whatever the group's others are. The std is then the spread about that baseline.

    rewards: (B, N), all finite. scale "none" leaves the division out (Dr. GRPO). Returns (B, N) float32
    (float64 if given so).
    """
    if scale not in ("std", "none"):
        raise ValueError(f"scale must be 'std' or 'none', got {scale!r}")
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (B, N), one row per image, got shape {tuple(rewards.shape)}")
    rewards = at_least_float32(rewards)
    if not rewards.isfinite().all():
        raise ValueError("rewards must be finite: a missing verdict is no reward, leave its group out")

    # Each reward against the others of its own group.
    baseline = rewards.mean(dim=1, keepdim=True)                                            # (B, 1)
    if floor is not None:
        baseline = baseline.clamp(min=floor)
    advantages = rewards - baseline                                                         # (B, N)
    if scale == "std" and rewards.shape[1] > 1:
        std = rewards.std(dim=1, keepdim=True)                                              # (B, 1)
        if floor is not None:
            # about that baseline: a spread of next to nothing below the floor must not blow up
            squares = advantages.square().sum(dim=1, keepdim=True)
            std = (squares / (rewards.shape[1] - 1)).sqrt()                                 # (B, 1)
        advantages = advantages / (std + eps)

    # Equal rewards teach nothing, exactly: in floating point the mean of eight 0.3s is not 0.3, and dividing
    # the dust by 1e-8 + 1e-6 would make it a signal.
    largest = rewards.amax(dim=1, keepdim=True)
    smallest = rewards.amin(dim=1, keepdim=True)
    return advantages.masked_fill(largest == smallest, 0.0)


def overlong_penalty(length: int, max_new_tokens: int, buffer: int) -> float:
    """DAPO's soft penalty for a completion of so many tokens: 0 up to `buffer` tokens before the end, from
    there on linearly down to -1 at max_new_tokens."""
    over = length - (max_new_tokens - buffer)
    return min(-over / buffer, 0.0)


def length_penalty(length: int, max_new_tokens: int, weight: float) -> float:
    """What a completion of so many tokens costs where every token has its price: nothing at length 0, weight
    at max_new_tokens. Returns a number that is at most 0."""
    return -weight * length / max_new_tokens


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


# ------------------------------------------------------------------------------------------------------------
# Log-probs and the KL


def token_logprobs(logits: Tensor, targets: Tensor, temperature: float = 1.0,
                   banned: Tensor | None = None) -> Tensor:
    """Log-probability of each target under softmax(logits / temperature), log-softmax in float32: the plain
    form of what chunked_logprobs does with less memory.

    logits: (..., T, V); targets: (..., T); banned: (V,) bool, tokens the sampler could not choose, so that
    the scored distribution is the sampled one. Returns (..., T) float32 (float64 for float64 logits).
    """
    logits = at_least_float32(logits) / temperature
    if banned is not None:
        logits = logits.masked_fill(banned, -torch.inf)
    logprobs = logits.log_softmax(dim=-1)                                                   # (..., T, V)
    return logprobs.gather(-1, targets.unsqueeze(-1)).squeeze(-1)


def k3_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) per token: exp(d) - d - 1 with d = ref - logprobs, d
    clamped to +-20 and the result to +-10 (verl's low_var_kl). Any shape; never negative (but for float32
    rounding near 0); unbiased for samples of the policy, the clamps aside."""
    d = (ref_logprobs - logprobs).clamp(-LOGRATIO_CLAMP, LOGRATIO_CLAMP)
    kl = d.exp() - d - 1  # 0 or more; both ends are clamped below because verl writes it so
    return kl.clamp(-KL_CLAMP, KL_CLAMP)


# ------------------------------------------------------------------------------------------------------------
# The clipped policy loss


def policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor,
                clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float | None = 3.0,
                whole_sequence: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped loss per token, with DAPO's separate upper clip and the dual clip for advantages below 0.

    logprobs, old_logprobs, mask: (R, T); advantages: (R,) or (R, T). Per token -A * ratio, but no less than
    with the ratio clipped to [1 - clip_low, 1 + clip_high] (so a token pushed far enough already has no
    gradient) and, where A < 0, no more than -A * dual_clip (None: off). whole_sequence: every token has its
    completion's ratio, the geometric mean of its tokens' (GSPO's equation 7). Returns the loss (R, T), 0
    outside the mask, and its statistics, detached means over the mask: ratio, approx_kl (k3 of old to new),
    clipfrac, dual_clipfrac (dual clip in force), clamped (log-ratio beyond +-20), and ratio_max.
    """
    if dual_clip is not None and dual_clip <= 1.0:
        raise ValueError(f"dual_clip must be above 1 (it caps the ratio), got {dual_clip}")
    mask = mask.bool()
    if advantages.dim() == 1:
        advantages = advantages.unsqueeze(1)                                                # (R, 1)

    # The ratio of new to old probability. where, not multiplication: what stands in the padding, infinities
    # too, has neither value nor gradient.
    difference = torch.where(mask, logprobs - old_logprobs, 0.0)                            # (R, T)
    logratio = difference.clamp(-LOGRATIO_CLAMP, LOGRATIO_CLAMP)
    if whole_sequence:
        lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)                                # (R, 1)
        logratio = (logratio.sum(dim=1, keepdim=True) / lengths).expand_as(mask)            # (R, T)
    ratio = logratio.exp()

    # The worse of two: the plain loss, and the loss with the ratio clipped.
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = torch.maximum(unclipped, clipped)                                                # (R, T)

    # A bad answer that has become likely would have a loss without bound: the dual clip is its bound.
    is_capped = torch.zeros_like(mask)
    if dual_clip is not None:
        cap = -advantages * dual_clip
        is_bad = advantages < 0
        is_capped = is_bad & (loss > cap)
        loss = torch.where(is_bad, torch.minimum(loss, cap), loss)

    stats = loss_statistics(ratio, logratio, difference, is_capped, mask, clip_low, clip_high)
    return torch.where(mask, loss, 0.0), stats


@torch.no_grad()
def loss_statistics(ratio: Tensor, logratio: Tensor, difference: Tensor, is_capped: Tensor, mask: Tensor,
                    clip_low: float, clip_high: float) -> dict[str, Tensor]:
    """What policy_loss says of itself; all (R, T)."""
    is_outside = (ratio < 1 - clip_low) | (ratio > 1 + clip_high)
    ratio_max = ratio.new_zeros(())
    if mask.numel() > 0:
        ratio_max = torch.where(mask, ratio, 0.0).max()
    return {
        "ratio": masked_mean(ratio, mask),
        "approx_kl": masked_mean(ratio - 1 - logratio, mask),
        "clipfrac": masked_mean(is_outside, mask),
        "dual_clipfrac": masked_mean(is_capped, mask),
        "clamped": masked_mean(difference.abs() > LOGRATIO_CLAMP, mask),
        "ratio_max": ratio_max,
    }


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask's ones; 0 for an empty mask."""
    mask = mask.bool()
    total = torch.where(mask, at_least_float32(values), 0.0).sum()
    return total / mask.sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------------------
# From tokens to one number

AGGREGATIONS = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm")


def loss_denominator(lengths: Tensor, mode: str, max_length: int) -> Tensor:
    """What a loss summed over rows is divided by: one number for a whole optimizer step.

    lengths: (R,) tokens of each row; max_length: the longest a row may be. Returns a scalar:
    - token-mean: the number of tokens;
    - seq-mean-token-mean: the number of rows (each row is a mean already);
    - seq-mean-token-sum-norm: the number of rows times max_length (Dr. GRPO).
    """
    check_aggregation(mode)
    if mode == "token-mean":
        return lengths.sum()
    rows = lengths.new_tensor(len(lengths))
    if mode == "seq-mean-token-mean":
        return rows
    return rows * max_length


def aggregate(values: Tensor, mask: Tensor, mode: str, denominator: float | Tensor | None = None) -> Tensor:
    """Per-token values (R, T) to one number: a sum over rows, divided by a denominator.

    - token-mean: all tokens / number of tokens;
    - seq-mean-token-mean: each row's own token mean / number of rows;
    - seq-mean-token-sum-norm: each row's token sum / length T / number of rows (Dr. GRPO).
    denominator None takes that of this tensor (loss_denominator). Passing the whole optimizer step's makes
    the losses of its micro-batches add up to the loss of the undivided step.
    """
    check_aggregation(mode)
    mask = mask.bool()
    lengths = mask.sum(dim=-1)                                                              # (R,)
    rows = torch.where(mask, values, 0.0).sum(dim=-1)                                       # (R,)
    if mode == "seq-mean-token-mean":
        rows = rows / lengths.clamp(min=1)
    if denominator is None:
        denominator = loss_denominator(lengths, mode, mask.shape[-1]).clamp(min=1)
    return rows.sum() / denominator


def check_aggregation(mode: str) -> None:
    if mode not in AGGREGATIONS:
        raise ValueError(f"unknown aggregation {mode!r}: choose one of {', '.join(AGGREGATIONS)}")


# ------------------------------------------------------------------------------------------------------------
# token_logprobs with less memory
#
# For Qwen's V of 152k the logits of one image's 8 x 512 tokens would take 2.5 GB, several times over. Here a
# chunk of tokens has its logits at a time, and backward makes them again instead of keeping them.


def chunked_logprobs(hidden: Tensor, lm_head_weight: Tensor, targets: Tensor, temperature: float = 1.0,
                     banned: Tensor | None = None, chunk: int = 1024) -> Tensor:
    """token_logprobs(hidden @ lm_head_weight.T, targets), never holding more than (chunk, V) logits.

    hidden: (..., T, H); lm_head_weight: (V, H); targets: (..., T). The gradient is exact and costs one more
    product in backward.
    """
    flat_hidden = hidden.reshape(-1, hidden.shape[-1])                                      # (tokens, H)
    flat_targets = targets.reshape(-1)                                                      # (tokens,)
    flat = ChunkedLogprobs.apply(flat_hidden, lm_head_weight, flat_targets, temperature, banned, chunk)
    return flat.view(targets.shape)


def chunk_logits(hidden: Tensor, weight: Tensor, temperature: float, banned: Tensor | None) -> Tensor:
    """(chunk, V), in float32 at least."""
    logits = at_least_float32(hidden @ weight.T) / temperature
    if banned is not None:
        logits.masked_fill_(banned, -torch.inf)
    return logits


class ChunkedLogprobs(torch.autograd.Function):
    """log-softmax over chunks of tokens, with a backward of its own."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, banned, chunk):
        ctx.save_for_backward(hidden, weight, targets, banned)
        ctx.temperature = temperature
        ctx.chunk = chunk
        parts = []
        for chunk_hidden, chunk_targets in zip(hidden.split(chunk), targets.split(chunk)):
            logprobs = chunk_logits(chunk_hidden, weight, temperature, banned).log_softmax(-1)
            parts.append(logprobs.gather(-1, chunk_targets[:, None])[:, 0])
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad):
        hidden, weight, targets, banned = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            probs = chunk_logits(hidden[part], weight, ctx.temperature, banned).softmax(-1)  # (chunk, V)

            # d logp[target] / d logits = onehot(target) - probs, and nothing flows into a banned logit.
            grad_logprobs = grad[part, None]                                                # (chunk, 1)
            grad_logits = probs.mul_(-grad_logprobs)
            grad_logits.scatter_add_(-1, targets[part, None], grad_logprobs)
            if banned is not None:
                grad_logits.masked_fill_(banned, 0.0)
            grad_logits = (grad_logits / ctx.temperature).to(hidden.dtype)

            if wants_hidden:
                grad_hidden[part] = grad_logits @ weight
            if wants_weight:
                grad_weight += grad_logits.T @ hidden[part]
        return grad_hidden, grad_weight, None, None, None, None
