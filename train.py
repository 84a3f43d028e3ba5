"""SpeciaRL, the whole loop. `train` is one step's way: rollout, judge, reward, advantages, update.

    python train.py                                            the embedded world, on a laptop, in minutes
    python train.py --data cub --n 8 --root DIR                Qwen2.5-VL-7B on CUB, on one GPU
    python train.py --resume runs/cub-speciarl-seed0           go on after a kill
    torchrun --nproc-per-node 4 -- train.py --data cub --n 8   the same on four GPUs, images split over them

A run folder holds config.json, log.jsonl (a line a step), samples.jsonl (a line an image: every answer with
its rung, the bar, the rewards), shown.jsonl (the same of a few validation images, before and after), adapter/
(PEFT's format), state.pt (what --resume needs), eval.json (before and after, on test), report.html.

Shapes: B images, N completions of each, R = B * N rows, T completion tokens. A group is one image with its N
completions.

Where this departs from the official release (docs/departures.md says why):
1. A loss has one denominator for the whole optimizer step, counted before it is split; verl's is per
   micro-batch.
2. A judge error takes its whole group out of the step; there it scores 0 for every answer of the batch.
3. N = 8 rollouts an image (release: 10), images up to 512 x 28 x 28 pixels (release: longer prompts are
   dropped), 512 new tokens (release: 2048), validation on unused training images (release: on test).
4. Only temperature shapes the sampled distribution, and the same distribution is scored.
"""

import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from evaluate import before_and_after, evaluate
from grpo import (KL_CLAMP, aggregate, group_advantages, k3_kl, length_penalty, loss_denominator, masked_mean,
                  overlong_penalty, policy_loss)
from judge import JUDGE_ERROR, judge_groups
from lora import adapters_off, add_lora, save_adapter
from metrics import average, group_figures, merge
from policy import Policy, Prompt, completion_logprobs
from reward import (SCHEMES, inject_noise, permute_verdicts, shuffle_rewards, speciarl_rewards,
                    static_rewards)
from rollout import PROMPTS, Group, sample, seed_for, stack
from support import report
from support.command_line import (ABOVE_0, COUNT, FINITE, FROM_0, GROUP, RANK_OF_LORA, RATE, REQUESTS,
                                  SECONDS, SEED, SHARE, TEMPERATURE, TOKENS, check, one_line_errors, option,
                                  parse, parser, resumed_config)
from support.files import append, write_json
from support.memory import rows_at_a_time
from support.opening import (JUDGE, MODEL, QUESTION, TOY_SETS, VERDICTS, is_toy, load_judge, load_policy,
                             question_for, require_readable, trust)
from support.processes import RANK, gather, share, start_processes, sum_gradients, total
from support.run_folder import check_folder, load_state, lock_run, save_state, stops_in_one_line
from support.step_log import (StepLog, UpdateStatistics, cache_figures, gather_records, left_the_step,
                              peak_gb, sample_line, sampling_figures)
from support.tables import comparison

MAX_GRAD_NORM = 1.0  # official
MOST_BATCHES = 10    # official: that dynamic sampling draws for a step

# What --loss sets. An explicit --beta, --clip-low or --clip-high wins over it.
LOSSES = {
    "grpo": dict(beta=0.01, clip_low=0.2, clip_high=0.2, dual_clip=3.0, scale="std", mode="token-mean",
                 whole_sequence=False),
    "dr_grpo": dict(beta=0.0, clip_low=0.2, clip_high=0.2, dual_clip=3.0, scale="none",
                    mode="seq-mean-token-sum-norm", whole_sequence=False),
    "dapo": dict(beta=0.0, clip_low=0.2, clip_high=0.28, dual_clip=10.0, scale="std", mode="token-mean",
                 whole_sequence=False),
    "gspo": dict(beta=0.0, clip_low=3e-4, clip_high=4e-4, dual_clip=None, scale="std",
                 mode="seq-mean-token-mean", whole_sequence=True),
}


@dataclass
class Config:
    """Defaults are the paper's run; TOY is what a tiny policy needs; explicit flags win."""
    data: str = option("toy", "datasets to train on, comma between them: cub, toy-bird, ...")
    root: str | None = option(None, "folder of the datasets; None: data")
    protocol: str = option("official", "splits: the publishers', or CoOp's", "official: CoOp for some",
                           choices=("official", "coop"))
    limit: int | None = option(3000, "training images a dataset, drawn by seed 42", "official", COUNT)
    model: str = option(MODEL, "checkpoint: folder or hub name", "official")
    judge: str = option(JUDGE, "chat model, http://server, taxonomy.json, taxonomy; A,B,C vote",
                        "official: 30B-A3B")
    judge_model: str | None = option(None, "the model's name on a judge server")
    judge_prompt: str | None = option(None, "short, detailed or a text file; None: by the judge's size")
    judge_key_file: str | None = option(None, "file with the server's key; None: JUDGE_API_KEY")
    judge_timeout: float = option(30.0, "seconds that a judge server has for a request", must=SECONDS)
    judge_patience: float = option(300.0, "seconds that it has for all answers of a step", must=SECONDS)
    judge_workers: int = option(16, "requests that a judge server gets at a time", must=REQUESTS)
    judge_tokens: int = option(1024, "longest reply of a judge server, thoughts included", must=TOKENS)
    judge_cache: str = option(VERDICTS, "file of remembered verdicts, or none", "official: Redis")
    max_judge_errors: float = option(0.5, "share of groups without a verdict that ends the run", must=SHARE)
    max_unreadable: float = option(0.5, "share of images that can't be read that ends the run", must=SHARE)
    method: str = option("rl", "rl; supervised fine-tuning is python -m baselines.sft", "official: rl",
                         choices=("rl", "sft"))
    prompt: str = option("base", "the question: base, specific, ..., or a text file", "official: base")
    n: int = option(8, "answers an image (N)", "official: 10", GROUP)
    images_per_step: int = option(256, "images a step", "official", COUNT)
    minibatch: int = option(128, "images an optimizer update", "official", COUNT)
    micro_batch: int = option(4, "images forwarded at a time (memory)", must=COUNT)
    rows: int | None = option(None, "answers decoded at a time; None: 512, on a GPU what fits", must=COUNT)
    epochs: int = option(15, "passes over the images, unless --steps is given", "official", COUNT)
    steps: int | None = option(None, "steps", "official: 165", COUNT)
    lr: float = option(3e-5, "AdamW learning rate, constant", "official", RATE)
    warmup: int = option(0, "steps of linear warm-up", "official", FROM_0)
    betas: tuple = option((0.9, 0.999), "AdamW betas", "official", nargs=2, type=float)
    weight_decay: float = option(0.01, "AdamW weight decay", "official", FROM_0)
    loss: str = option("grpo", "loss", "official", choices=tuple(LOSSES))
    beta: float | None = option(None, "KL coefficient; None: by --loss, .01 or 0", "official: .01", FROM_0)
    clip_low: float | None = option(None, "lower clip; None: by --loss", "official: .2", FROM_0)
    clip_high: float | None = option(None, "upper clip; None: by --loss", "official: .2", FROM_0)
    overlong_buffer: int | None = option(None, "last tokens in which length costs reward; None: free",
                                         "official dapo: a quarter", COUNT)
    length_penalty: float = option(0.0, "reward that an answer of --max-new-tokens loses, a shorter one less",
                                   "official: 0", FROM_0)
    dynamic_sampling: bool = option(False, "draw images until a step's groups all have unequal rewards",
                                    "official dapo: on")
    corpo_floor: float | None = option(None, "reward below which no advantage is positive", "CoRPO", FINITE)
    reward: str = option("speciarl", "reward scheme", "paper", choices=("speciarl", *SCHEMES))
    odds: float = option(0.0, "answers the bar needs per Wrong one; 0: the best sets it", "paper: 0", FROM_0)
    malformed: float = option(-1.0, "reward of an answer that can't be read", "official", FINITE)
    noise: float = option(0.0, "probability that a verdict moves one rung (ablation)", "official: 0", SHARE)
    control: str | None = option(None, "rewards or verdicts dealt at random, which must not teach",
                                 choices=("shuffled", "permuted"))
    temperature: float = option(1.0, "sampling temperature", "official", TEMPERATURE)
    max_new_tokens: int = option(512, "longest completion, tokens", "official: 2048", TOKENS)
    max_pixels: int | None = option(512 * 28 * 28, "larger images are scaled down", "official: no such limit",
                                    COUNT)
    lora_rank: int = option(64, "LoRA rank", "official", RANK_OF_LORA)
    lora_alpha: float = option(32, "LoRA alpha (scale = alpha / rank)", "official", ABOVE_0)
    checkpointing: bool = option(True, "make activations again in backward (memory)", "official")
    seed: int = option(0, "of everything but the data subset", "official: 1", SEED)
    eval_every: int = option(5, "steps between validations, 0 = only before", "official", FROM_0)
    eval_limit: int = option(300, "images of each validation and test set", "official: all", COUNT)
    out: str | None = option(None, "run folder; None: runs/DATA-REWARD-seedSEED")


# The embedded world's values.
TOY = dict(limit=1000, model="toy", judge="taxonomy", images_per_step=16, minibatch=16, micro_batch=16,
           steps=60, lr=7e-4, warmup=10, betas=(0.9, 0.99), max_new_tokens=16, max_pixels=None, lora_rank=16,
           checkpointing=False, eval_every=20)

# A resumed run may change these: they change memory and waiting, and of the numbers nothing but rounding and
# how many verdicts are missing.
MEMORY = {"micro_batch", "rows", "checkpointing", "judge_timeout", "judge_patience", "judge_workers",
          "judge_tokens"}

# None on the command line leaves these to make_config; a run that has begun has them decided.
DECIDED = ("rows", "beta", "clip_low", "clip_high", "out")


@dataclass
class Job:
    """What a run works with: all that is opened before its first step."""
    config: Config
    run: Path                    # its folder
    lock: object                 # support.lock.Lock on the folder, in the first process
    policy: Policy               # frozen, with adapters to train
    optimizer: torch.optim.Optimizer
    judge: object                # judge.Judge
    question: str
    examples: list               # to train on
    validation: dict[str, list]  # by dataset
    tests: dict[str, list]
    shown: list                  # a few validation images, for the report
    evaluation_rows: int         # answers decoded at a time outside training
    steps: int
    done: int                    # the last saved step; -1: not even validated
    progress: tqdm | None = None


# ------------------------------------------------------------------------------------------------------------
# The loop


def train(job: Job) -> None:
    """SpeciaRL. Each step takes B images from the pixels to the gradient."""
    config = job.config
    policy = job.policy
    loss = LOSSES[config.loss]

    for step in steps_to_go(job):
        log = StepLog()
        batch = step_examples(job.examples, config, step)

        # 1. Rollout: N answers to each image. Of several processes each takes its share of the images. An
        #    image that can't be read is named, and left out.
        with log.timer("rollout"):
            groups, unreadable = sample_groups(job, step, batch)

        # 2. Judge: a rung for each answer, by its image's true label. A judge error is no verdict and never a
        #    reward: its whole group leaves the step.
        with log.timer("judge"):
            groups, failed = judged(job, groups)
        stop_if_too_many(job, step, batch, failed, unreadable)

        # 3. Reward: 1 for an answer at or above the image's own bar c*, the best rung that its group has
        #    reached (reward.dynamic_bar); 0 below it; -1 for a malformed answer. Groups of equal rewards are
        #    replaced where --dynamic-sampling asks for it.
        give_rewards(groups, config, step)
        batch, groups = draw_until_full(job, step, batch, groups, failed, unreadable, log)
        rewards = torch.tensor([group.rewards for group in groups]).view(len(groups), config.n)     # (B, N)

        # 4. Advantages: each reward against the others of its group, the same for every token of the answer.
        advantages = group_advantages(rewards, loss["scale"], floor=config.corpo_floor)             # (B, N)
        for group, row in zip(groups, advantages.tolist()):
            group.advantages = row

        # 5. Update: clipped policy loss, plus a KL penalty to the frozen base. A group keeps its place in the
        #    step, so that it stays in its minibatch whichever others have left.
        with log.timer("update"):
            set_learning_rate(job.optimizer, learning_rate(config, step))
            places = places_in(batch, groups)
            figures = update(policy, job.optimizer, groups, advantages, config, places)

        finish_step(job, step, batch, groups + failed, unreadable, figures, log)
        del groups, failed  # the prompts' embeddings in them would take room in the next rollout


def update(policy: Policy, optimizer, groups: list[Group], advantages: Tensor, config: Config,
           places: Sequence[int] | None = None, sampled: bool = True) -> dict[str, float]:
    """One step's optimizer updates, one for each minibatch.

    groups: B that this process holds; advantages: (B, N); places: where each group stands in the step (None:
    one after the other). Of minibatches of 128 images, places 0 to 127 are the first, whichever of them are
    there. A place without a group, because it left the step or another process holds it, is a hole: it enters
    neither the denominator nor a mean. A minibatch of holes alone makes no update. sampled: False for
    completions that the policy did not sample (baselines/sft.py); their ratio is 1 in every minibatch.
    Returns the step's statistics, means over tokens; {} for a step of holes alone.
    """
    loss = LOSSES[config.loss]
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    places = range(len(groups)) if places is None else places
    minibatches = make_minibatches(policy, groups, advantages.to(policy.device), places, config)
    statistics = UpdateStatistics()

    # Old log-probs. The first minibatch meets the weights that sampled it: its own will do. For the others
    # they are taken here, before anything moves, in the same micro-batches: an unmoved ratio is exactly 1.
    if sampled:
        for minibatch in minibatches[1:]:
            for micro_batch in minibatch.micro_batches:
                with torch.no_grad():
                    micro_batch.old_logprobs = score(policy, micro_batch, config)

    for number, minibatch in enumerate(minibatches):
        for micro_batch in minibatch.micro_batches:
            mask = micro_batch.mask                                                                 # (R, T)
            logprobs = score(policy, micro_batch, config)                                           # (R, T)
            old_logprobs = micro_batch.old_logprobs
            if old_logprobs is None:
                old_logprobs = logprobs.detach()

            # The policy loss of each token, summed up under the one denominator of the whole minibatch: how
            # it is split into micro-batches and over processes changes nothing.
            token_losses, figures = policy_loss(logprobs, old_logprobs, micro_batch.advantages, mask,
                                                config.clip_low, config.clip_high, loss["dual_clip"],
                                                loss["whole_sequence"])
            objective = aggregate(token_losses, mask, loss["mode"], minibatch.denominator)
            figures["loss"] = objective.detach()

            # The KL to the reference, which is the same model with its adapters off: the frozen base.
            if config.beta > 0:
                with torch.no_grad(), adapters_off(policy.model):
                    ref_logprobs = score(policy, micro_batch, config)                               # (R, T)
                kl = k3_kl(logprobs, ref_logprobs)                                                  # (R, T)
                penalty = aggregate(kl, mask, loss["mode"], minibatch.denominator)
                objective = objective + config.beta * penalty
                figures["kl"] = masked_mean(kl.detach(), mask)
                figures["kl_clamped"] = masked_mean(kl.detach() >= KL_CLAMP, mask)

            # A self-check: before the first update, what is scored must be what was sampled.
            if number == 0:
                gap = (logprobs.detach() - micro_batch.sampler_logprobs).abs()
                figures["logprob_gap"] = masked_mean(gap, mask)
            figures["nll"] = masked_mean(-logprobs.detach(), mask)

            # Gradients add up over micro-batches, and then over processes.
            objective.backward()
            statistics.add(figures, mask)
        sum_gradients(parameters)

        norm = clipped_step(optimizer, parameters, minibatch)
        statistics.end_minibatch(norm, skipped=not math.isfinite(norm))
    return statistics.summary()


# ------------------------------------------------------------------------------------------------------------
# The loop's parts


def steps_to_go(job: Job) -> Iterator[int]:
    """The numbers of the steps that are still to be made, from 1. The first process shows a progress bar."""
    start = max(job.done, 0)
    job.progress = tqdm(total=job.steps, initial=start, desc="train", unit="step", dynamic_ncols=True,
                        disable=RANK > 0)
    with job.progress:
        for step in range(start + 1, job.steps + 1):
            yield step
            job.progress.update()


def step_examples(examples: list, config: Config, step: int) -> list:
    """The images of step 1, 2, ...: each epoch in an order of its own, the incomplete last batch dropped, as
    the release does."""
    steps_per_epoch = len(examples) // config.images_per_step
    epoch, step_of_epoch = divmod(step - 1, steps_per_epoch)
    rng = np.random.default_rng(seed_for(config.seed, "order", epoch))
    order = rng.permutation(len(examples))
    start = step_of_epoch * config.images_per_step
    return [examples[i] for i in order[start:start + config.images_per_step]]


def sample_groups(job: Job, step: int, batch: list) -> tuple[list[Group], list[str]]:
    """N answers to each image of this process's share of the batch, each group with its truth; and a line for
    each image that can't be read."""
    config = job.config
    examples, images, unreadable = data.read_images(share(batch))
    ids = [example.id for example in examples]
    groups = sample(job.policy, images, ids, job.question, n=config.n, seed=config.seed,
                    stream=f"train/{step}", temperature=config.temperature,
                    max_new_tokens=config.max_new_tokens, max_rows=config.rows)
    for group, example in zip(groups, examples):
        group.truth = example.label
    return groups, unreadable


def judged(job: Job, groups: list[Group]) -> tuple[list[Group], list[Group]]:
    """The groups whose answers all have a rung now, and those that the judge failed on."""
    truths = [group.truth for group in groups]
    answers = [group.answers for group in groups]
    verdicts = judge_groups(job.judge, truths, answers)
    for group, categories in zip(groups, verdicts):
        group.categories = categories

    whole = [group for group in groups if JUDGE_ERROR not in group.categories]
    failed = [group for group in groups if JUDGE_ERROR in group.categories]
    return whole, failed


def stop_if_too_many(job: Job, step: int, drawn: list, failed: list[Group], unreadable: list[str]) -> None:
    """Ends the run where too many of the images that the step has drawn can't be read, or have no verdict.
    failed, unreadable: of this process."""
    config = job.config
    all_unreadable = gather(unreadable)
    all_failed = total(len(failed))

    require_readable(all_unreadable, len(drawn), config.max_unreadable, f"step {step}")
    answered = len(drawn) - len(all_unreadable)
    trust(job.judge, all_failed, answered, config.max_judge_errors, f"groups of step {step}")


def give_rewards(groups: list[Group], config: Config, step: int) -> None:
    """Each group's N rewards, after what the ablations and the controls do to its verdicts. Their random
    numbers are seeded by step."""
    # Ablation: noise in the judge.
    for group in groups:
        group.categories = with_noise(group.categories, config, step, group.id)

    # Control: verdicts over all images that this process holds.
    if config.control == "permuted":
        rng = random.Random(seed_for(config.seed, "permuted", step))
        permuted = permute_verdicts([group.categories for group in groups], rng)
        for group, categories in zip(groups, permuted):
            group.categories = categories

    # The scheme's own rewards.
    for group in groups:
        group.rewards = group_rewards(group.categories, config)

    # The price of length: DAPO's, of the last tokens, and one of every token. Both are off by default.
    if config.overlong_buffer is not None or config.length_penalty > 0:
        for group in groups:
            group.rewards = with_price_of_length(group, config)

    # Control: rewards within each group.
    if config.control == "shuffled":
        for group in groups:
            rng = random.Random(seed_for(config.seed, "shuffled", step, group.id))
            group.rewards = shuffle_rewards(group.rewards, rng)


def with_price_of_length(group: Group, config: Config) -> list[float]:
    """The group's N rewards, each with what its answer's length costs."""
    priced = []
    for reward, length in zip(group.rewards, group.mask.sum(dim=1).tolist()):
        reward += length_penalty(length, config.max_new_tokens, config.length_penalty)
        if config.overlong_buffer is not None:
            reward += overlong_penalty(length, config.max_new_tokens, config.overlong_buffer)
        priced.append(reward)
    return priced


class TooFewGroups(OSError):
    """Dynamic sampling did not find a step's groups. An OSError: what ends the run in one line."""


def draw_until_full(job: Job, step: int, batch: list, groups: list[Group], failed: list[Group],
                    unreadable: list[str], log: StepLog) -> tuple[list, list[Group]]:
    """DAPO's dynamic sampling, off by default: groups of equal rewards teach nothing and leave the step, and
    further images are drawn until there are images_per_step groups again, in all processes together. What is
    above that is trimmed.

    batch, groups: of the step so far; groups of equal rewards are let go of at once, for their memory;
    failed, unreadable: take in what else is drawn. Returns the step's images, those of its groups first, and
    the groups that this process holds. Raises TooFewGroups.
    """
    config = job.config
    if not config.dynamic_sampling:
        return batch, groups

    drawn = list(batch)
    groups[:] = [group for group in groups if rewards_differ(group, config)]
    while True:
        everyones = total(len(groups))
        if everyones >= config.images_per_step:
            break

        # Rollout, judge and reward, as in `train`, for images that the step has not drawn yet.
        more = further_examples(job.examples, batch, config, step, log.batches)
        if log.batches == MOST_BATCHES or not more:
            raise TooFewGroups("--dynamic-sampling found too few groups of unequal rewards for step "
                               f"{step} in {log.batches} batches: lower --images-per-step, or leave it out")
        log.batches += 1
        drawn += more
        with log.timer("rollout"):
            new_groups, new_unreadable = sample_groups(job, step, more)
        with log.timer("judge"):
            new_groups, new_failed = judged(job, new_groups)
        failed += new_failed
        unreadable += new_unreadable
        stop_if_too_many(job, step, drawn, failed, unreadable)
        give_rewards(new_groups, config, step)
        groups += [group for group in new_groups if rewards_differ(group, config)]

    # The first ones in the order of drawing make the step, whichever process holds them.
    kept_ids = gather([group.id for group in groups])
    chosen = [example for example in drawn if example.id in kept_ids][:config.images_per_step]
    chosen_ids = {example.id for example in chosen}
    others = [example for example in drawn if example.id not in chosen_ids]
    return chosen + others, [group for group in groups if group.id in chosen_ids]


def rewards_differ(group: Group, config: Config) -> bool:
    """Whether the scheme's own rewards do, before any price of length."""
    return len(set(group_rewards(group.categories, config))) > 1


def further_examples(examples: list, batch: list, config: Config, step: int, number: int) -> list:
    """The step's further batch 1, 2, ...: images that it has not drawn yet, in an order of their own; fewer
    or none where they run out."""
    drawn = {example.id for example in batch}
    rng = np.random.default_rng(seed_for(config.seed, "further", step))
    order = [i for i in rng.permutation(len(examples)) if examples[i].id not in drawn]
    start = (number - 1) * config.images_per_step
    return [examples[i] for i in order[start:start + config.images_per_step]]


def with_noise(categories: list, config: Config, step: int, image_id: str) -> list:
    """The judge-noise ablation, off by default. Its random numbers are seeded by step and image."""
    if config.noise == 0:
        return categories
    rng = random.Random(seed_for(config.seed, "noise", step, image_id))
    return inject_noise(categories, config.noise, rng)


def group_rewards(categories: list, config: Config) -> list[float]:
    """One group's N rewards, by the scheme of the run: the paper's, or one of its static baselines."""
    if config.reward == "speciarl":
        return speciarl_rewards(categories, config.odds, config.malformed)
    return static_rewards(categories, config.reward, config.malformed)


def places_in(batch: list, groups: list[Group]) -> list[int]:
    """Where each group's image stands in the step."""
    place = {example.id: i for i, example in enumerate(batch)}
    return [place[group.id] for group in groups]


def learning_rate(config: Config, step: int) -> float:
    """Constant after a linear warm-up."""
    return config.lr * min(1.0, step / max(1, config.warmup))


def set_learning_rate(optimizer, rate: float) -> None:
    for parameter_group in optimizer.param_groups:
        parameter_group["lr"] = rate


@dataclass
class MicroBatch:
    """Some groups of a minibatch as the R rows of one forward; completions are padded on the right."""
    ids: list[str]
    prompts: list[Prompt]              # one a group
    completions: Tensor                # (R, T)
    mask: Tensor                       # (R, T)
    sampler_logprobs: Tensor           # (R, T)
    advantages: Tensor                 # (R,)
    old_logprobs: Tensor | None = None  # (R, T)


@dataclass
class Minibatch:
    """What one optimizer update is made from."""
    micro_batches: list[MicroBatch]
    denominator: float


def make_minibatches(policy: Policy, groups: list[Group], advantages: Tensor, places: Sequence[int],
                     config: Config) -> list[Minibatch]:
    """The step's minibatches, by the groups' places, each split into micro-batches."""
    minibatches = []
    for start in range(0, config.images_per_step, config.minibatch):
        end = start + config.minibatch
        members = [i for i, place in enumerate(places) if start <= place < end]

        # The denominator counts all of its groups in all processes, those that are skipped below too: then
        # neither skipping nor splitting changes the loss.
        lengths = completion_lengths([groups[i] for i in members])
        own = loss_denominator(lengths, LOSSES[config.loss]["mode"], config.max_new_tokens)
        denominator = total(float(own))

        # Holes alone, in every process alike: no update.
        if denominator == 0:
            continue

        # Without a KL, a group of equal rewards has nothing to teach.
        if config.beta == 0:
            members = [i for i in members if advantages[i].any()]

        micro_batches = []
        for first in range(0, len(members), config.micro_batch):
            chosen = members[first:first + config.micro_batch]
            micro_batches.append(make_micro_batch(policy, [groups[i] for i in chosen], advantages[chosen]))
        minibatches.append(Minibatch(micro_batches, denominator))
    return minibatches


def make_micro_batch(policy: Policy, groups: list[Group], advantages: Tensor) -> MicroBatch:
    """Groups (B of them, N completions each) and their advantages (B, N), flattened to R rows."""
    completions, mask, sampler_logprobs = stack(groups, policy.pad_id)                      # (B, N, T) each
    return MicroBatch([group.id for group in groups], [group.prompt for group in groups],
                      completions.flatten(0, 1), mask.flatten(0, 1), sampler_logprobs.flatten(0, 1),
                      advantages.flatten())


def completion_lengths(groups: list[Group]) -> Tensor:
    """(R,) tokens of every completion."""
    lengths = [group.mask.sum(dim=1) for group in groups]
    return torch.cat(lengths) if lengths else torch.zeros(0)


def score(policy: Policy, micro_batch: MicroBatch, config: Config) -> Tensor:
    """(R, T) log-probs of the completions, by the policy as it stands."""
    return completion_logprobs(policy, micro_batch.prompts, micro_batch.completions, micro_batch.mask,
                               config.temperature, config.checkpointing)


def clipped_step(optimizer, parameters: list, minibatch: Minibatch) -> float:
    """One optimizer step with the gradient clipped to MAX_GRAD_NORM. Returns its norm before clipping."""
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM))

    # A poisoned update would end the run: it is left out, and its images are named. Nothing to learn moves
    # nothing, in one process as in several: no weight decay either.
    if not math.isfinite(norm):
        warn_of_poisoned_update(norm, minibatch)
    elif norm > 0:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def warn_of_poisoned_update(norm: float, minibatch: Minibatch) -> None:
    ids = []
    for micro_batch in minibatch.micro_batches:
        ids += micro_batch.ids
    tqdm.write(f"warning: gradient {norm}, update skipped; its images: {' '.join(ids)}", file=sys.stderr)


# ------------------------------------------------------------------------------------------------------------
# What a run writes down


def begin_run(job: Job) -> None:
    """Line 0 of the log: how the model answers before training. Nothing to do for a run that goes on."""
    if job.done >= 0:
        return
    line = {"step": 0} | validate(job) | {"mem/peak_gb": peak_gb()}
    if RANK == 0:
        check_folder(job.run, job.lock)
        append(job.run / "log.jsonl", [line])
        show_pictures(job, 0)
        save_state(job.run, job.policy, job.optimizer, 0)


def finish_step(job: Job, step: int, batch: list, groups: list[Group], unreadable: list[str],
                figures: dict[str, float], log: StepLog) -> None:
    """Writes a step down: its line, its samples, and the state that vouches for both.

    groups: all that this process sampled, those that left the step too; figures: what update returned.
    """
    config = job.config
    records = gather_records(groups, [example.id for example in batch])
    unreadable = gather(unreadable)

    # The step's line
    whole = [record for record in records if not left_the_step(record)]
    line = {"step": step, "images": len(whole), "unreadable": len(unreadable),
            "judge_errors": len(records) - len(whole), "lr": learning_rate(config, step)}
    if whole and config.method == "rl":
        line |= group_figures([record["categories"] for record in whole],
                              [record["rewards"] for record in whole],
                              [record["advantages"] for record in whole], config.odds)
    if config.dynamic_sampling:
        line["batches"] = log.batches
    line |= figures
    line |= cache_figures(job.judge)
    line |= sampling_figures(records)
    line |= log.times(tokens=sum(record["tokens"] for record in records))
    line["mem/peak_gb"] = peak_gb()

    # Every eval_every steps, greedy answers to images that are never trained on.
    validated = config.eval_every > 0 and step % config.eval_every == 0
    if validated:
        line |= validate(job)

    # The files are the first process's. The state comes last: what it doesn't vouch for is made again.
    if RANK > 0:
        return
    check_folder(job.run, job.lock)
    if validated:
        save_adapter(job.policy.model, job.run / "adapter", job.policy.name)
    append(job.run / "samples.jsonl", [{"step": step, "unreadable": reason} for reason in unreadable])
    if config.method == "rl":
        append(job.run / "samples.jsonl", [sample_line(step, record, config) for record in records])
    if step == job.steps:
        show_pictures(job, step)
    append(job.run / "log.jsonl", [line])
    save_state(job.run, job.policy, job.optimizer, step)
    show_progress(job, line)


def show_progress(job: Job, line: dict) -> None:
    """The figures that one watches, on the progress bar."""
    watched = {}
    for key in ("reward", "correctness", "specificity", "malformed"):
        if key in line:
            watched[key] = f"{line[key]:.2f}"
    watched["tok/s"] = f"{line['time/tokens_per_s']:.0f}"
    for key in ("judge_errors", "unreadable"):
        if line[key] > 0:
            watched[key] = line[key]
    job.progress.set_postfix(watched)


def validate(job: Job) -> dict[str, float]:
    """Figures of greedy answers to the validation images, the mean over datasets. Each process answers its
    own share of the images."""
    config = job.config
    summaries = []
    for name, examples in job.validation.items():
        if not examples:
            continue
        own = evaluate(job.policy, job.judge, share(examples), job.question,
                       max_new_tokens=config.max_new_tokens, rows=job.evaluation_rows,
                       label=f"validate {name}")
        summary = merge(gather([own["summary"]]))
        unreadable = gather(own["unreadable"])
        require_readable(unreadable, len(examples), config.max_unreadable, f"the validation on {name}")
        trust(job.judge, summary.judge_errors, summary.n + summary.judge_errors, config.max_judge_errors,
              "validation answers")
        if summary.n > 0:
            summaries.append(summary)
    if not summaries:
        return {}
    return {f"val/{figure}": value for figure, value in average(summaries).items()}


def show_pictures(job: Job, step: int) -> None:
    """N answers to the same few validation pictures, for the report's before and after."""
    config = job.config
    seen = evaluate(job.policy, job.judge, job.shown, job.question, config.n, config.temperature,
                    config.max_new_tokens, config.seed, job.evaluation_rows, label="pictures to show")
    lines = []
    for record, categories in zip(seen["records"], seen["groups"]):
        if len(categories) == config.n:  # no judge error among them
            rewards = group_rewards(categories, config)
            lines.append(sample_line(step, record | {"categories": categories, "rewards": rewards}, config))
    append(job.run / "shown.jsonl", lines)


def finish_run(job: Job) -> None:
    """The trained adapter, how test images are answered before and after, and the report."""
    config = job.config
    if RANK == 0:
        check_folder(job.run, job.lock)
        save_adapter(job.policy.model, job.run / "adapter", job.policy.name)
    results = before_and_after(job.policy, job.judge, job.tests, job.question, config.max_new_tokens,
                               config.seed, config.max_judge_errors, job.evaluation_rows,
                               config.max_unreadable)
    if RANK > 0:
        return
    check_folder(job.run, job.lock)
    write_json(job.run / "eval.json", results)
    report.write(job.run, job.examples + job.shown)
    print(comparison(results, config.data.split(",")))
    print(f"everything about this run is in {job.run}")


# ------------------------------------------------------------------------------------------------------------
# How a run begins


def parse_config(argv: list[str] | None = None) -> tuple[Config, Path | None]:
    """The resolved configuration, and the folder to resume if any. Raises ValueError for what can't be."""
    given, folder = parse(parser(Config, TOY, __doc__), argv)
    if given.get("method") == "sft":
        raise ValueError("supervised fine-tuning is a command of its own: python -m baselines.sft")
    config = make_config(given) if folder is None else resume_config(folder, given)
    if config.method != "rl":
        raise ValueError(f"{folder} is a run of supervised fine-tuning: "
                         f"python -m baselines.sft --resume {folder}")
    return config, folder


def make_config(given: dict) -> Config:
    """A new run's configuration: the options that were given, then the preset's, then the defaults."""
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    datasets = given.get("data", Config.data).split(",")
    preset = TOY if is_toy(datasets) else {}
    config = Config(**preset | given)
    for name in ("beta", "clip_low", "clip_high"):
        if getattr(config, name) is None:
            setattr(config, name, LOSSES[config.loss][name])
    if config.overlong_buffer is not None and config.overlong_buffer >= config.max_new_tokens:
        raise ValueError(f"--overlong-buffer must be below --max-new-tokens {config.max_new_tokens}, got "
                         f"{config.overlong_buffer}")
    if "odds" in given and config.reward != "speciarl":
        raise ValueError(f"--odds moves the bar, and --reward {config.reward} has none: leave one of them "
                         "out")
    if config.out is None:
        config.out = f"runs/{run_name(config)}"
    check(config)
    return config


def resume_config(folder: Path, given: dict) -> Config:
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    return resumed_config(folder, Config, given, MEMORY, DECIDED)


def run_name(config: Config) -> str:
    """What sets the run apart: datasets, reward, every choice that is not the default one, seed."""
    parts = [config.data.replace(",", "+").replace("/", "_")]
    parts.append(config.reward if config.method == "rl" else config.method)
    if config.prompt != "base":
        parts.append(Path(config.prompt).stem)  # it may be a file
    if config.loss != "grpo":
        parts.append(config.loss)
    if config.overlong_buffer is not None:
        parts.append(f"overlong{config.overlong_buffer}")
    if config.length_penalty > 0:
        parts.append(f"length{config.length_penalty:g}")
    if config.dynamic_sampling:
        parts.append("dynamic")
    if config.corpo_floor is not None:
        parts.append(f"corpo{config.corpo_floor:g}")
    if config.odds > 0:
        parts.append(f"odds{config.odds:g}")
    if config.control is not None:
        parts.append(config.control)
    parts.append(f"seed{config.seed}")
    return "-".join(parts)


def load_data(config: Config) -> tuple[list, dict[str, list], dict[str, list]]:
    """Training examples, and validation and test sets by name. Nothing is chosen on test: validation images
    are training images that the run doesn't use. The embedded world is tested on all its domains."""
    names = config.data.split(",")
    rng = random.Random(42)  # one for all parts of a mixed set, as in the release
    examples = []
    for name in names:
        examples += data.load(name, "train", config.root, config.limit, rng, config.protocol)
    if len(examples) < config.images_per_step:
        raise ValueError(f"{len(examples)} training images are fewer than a step's {config.images_per_step}: "
                         "lower --images-per-step or raise --limit")
    used = {example.id for example in examples}
    if len(used) < len(examples):
        raise ValueError(f"--data {config.data} holds an image twice")

    validation = {}
    for name in names:
        unused = [example for example in data.load(name, "val", config.root, protocol=config.protocol)
                  if example.id not in used]
        validation[name] = data.spread(unused, config.eval_limit)

    tests = {}
    for name in TOY_SETS if is_toy(names) else names:
        test = data.load(name, "test", config.root, protocol=config.protocol)
        tests[name] = data.spread(test, config.eval_limit)
    return examples, validation, tests


def open_job(config: Config, folder: Path | None, lock) -> Job:
    """Opens all that the run works with. folder: of a run to go on with; None for a new one; lock: on the
    run's folder. Raises ValueError or OSError for what a user can get wrong: it is met here, before any hour
    is spent."""
    run = folder or Path(config.out)
    examples, validation, tests = load_data(config)
    question = question_for(config.prompt, config.data.split(","), folder)

    # The frozen model with adapters to train, and the judge.
    policy = load_policy(config.model, config.seed, max_pixels=config.max_pixels)
    add_lora(policy.model, config.lora_rank, config.lora_alpha, config.seed)
    judge = load_judge(config.judge, config, policy.device)
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)

    # How many answers are decoded at a time: in training, and where each has a prompt of its own.
    config.rows = rows_at_a_time(policy, judge, question, config.n, config.images_per_step,
                                 config.max_new_tokens, config.max_pixels, most=config.rows)
    rows = min(config.rows, 256)
    evaluation_rows = rows_at_a_time(policy, judge, question, 1, rows, config.max_new_tokens,
                                     config.max_pixels, most=rows)

    steps = config.steps or config.epochs * (len(examples) // config.images_per_step)
    done = load_state(run, policy, optimizer, steps) if folder else -1
    candidates = []
    for images in validation.values():
        candidates += images
    shown = data.spread(candidates, 8 if config.eval_every else 0)

    if RANK == 0:
        if config.prompt not in PROMPTS and not is_toy(config.data.split(",")):
            # It came from a file, which may hold another question when the run goes on.
            (run / QUESTION).write_text(question, encoding="utf-8")
        write_json(run / "config.json", asdict(config))
        print(json.dumps(asdict(config) | {"steps": steps}, indent=2))
    return Job(config, run, lock, policy, optimizer, judge, question, examples, validation, tests, shown,
               evaluation_rows, steps, done)


def run_job(config: Config, folder: Path | None, loop: Callable[[Job], None], program: str,
            command: str) -> Path:
    """Opens a run, makes its steps by `loop`, and finishes it. program, command: as the one line in which it
    may end names them, and as one types it to go on. Returns the run's folder."""
    with one_line_errors(program):
        start_processes()
        lock = lock_run(folder or Path(config.out), new=folder is None)
    with lock:
        with one_line_errors(program):
            job = open_job(config, folder, lock)
        with stops_in_one_line(job, program, command):
            begin_run(job)
            loop(job)
            finish_run(job)
    return job.run


def main(argv: list[str] | None = None) -> Path:
    """Runs, or goes on with, training; returns the run's folder."""
    with one_line_errors("train.py"):
        config, folder = parse_config(argv)
    return run_job(config, folder, train, "train.py", "python train.py")


if __name__ == "__main__":
    main()
