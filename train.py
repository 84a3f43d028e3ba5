"""SpeciaRL, the whole loop: sample, judge, reward, advantages, update.

    python train.py                                            the embedded world, on a laptop, in minutes
    python train.py --data cub --n 8 --root DIR                Qwen2.5-VL-7B on CUB, on one GPU
    python train.py --resume runs/cub-speciarl-seed0           go on after a kill
    torchrun --nproc-per-node 4 -- train.py --data cub --n 8   the same on four GPUs, images split over them

A run folder holds config.json, log.jsonl (a line a step), samples.jsonl (a line an image: every answer with
its rung, the bar, the rewards), shown.jsonl (the same of a few validation images, before and after), adapter/
(PEFT's format), state.pt (what --resume needs), eval.json (before and after, on test), report.html.

Where this departs from the official release (README says why):
1. Losses have one denominator for the whole optimizer step, counted before it is split; verl's is per
   micro-batch.
2. A judge error takes its whole group out of the step; there it scores 0 for every answer of the batch.
3. N = 8 rollouts an image (release: 10), images up to 512 x 28 x 28 pixels (release: longer prompts are
   dropped), 512 new tokens (release: 2048), validation on unused training images (release: on test).
4. Only temperature shapes the sampled distribution, and the same distribution is scored.
"""

import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import data
from evaluate import ask, before_and_after, category_name, evaluate
from grpo import KL_CLAMP, aggregate, group_advantages, k3_kl, loss_denominator, masked_mean, policy_loss
from judge import JUDGE_ERROR, judge_groups
from lora import adapters_off, add_lora, save_adapter
from metrics import average, group_figures, merge
from policy import completion_logprobs, encode
from reward import SCHEMES, Category, dynamic_bar, inject_noise, speciarl_rewards, static_rewards
from rollout import Group, sample, seed_for, stack
from support import report
from support.command_line import (
    ABOVE_0,
    COUNT,
    FINITE,
    FROM_0,
    GROUP,
    SHARE,
    check,
    first_line,
    flag,
    option,
    parser,
)
from support.files import append, write_json
from support.opening import (
    JUDGE,
    MODEL,
    TOY_SETS,
    VERDICTS,
    JudgeFailed,
    is_toy,
    load_judge,
    load_policy,
    question_for,
    trust,
)
from support.processes import RANK, gather, share, start_processes, sum_gradients
from support.run_folder import load_state, save_state
from support.step_log import peak_gb
from support.tables import comparison

MAX_GRAD_NORM = 1.0  # official

MEMORY = {"micro_batch", "rows", "checkpointing"}  # a resumed run may change them; they only change rounding

# What --loss sets; an explicit flag wins for the first three.
LOSSES = {
    "grpo": dict(beta=0.01, clip_low=0.2, clip_high=0.2, dual_clip=3.0, scale="std", mode="token-mean"),
    "dr_grpo": dict(beta=0.0, clip_low=0.2, clip_high=0.2, dual_clip=3.0, scale="none",
                    mode="seq-mean-token-sum-norm"),
    "dapo": dict(beta=0.0, clip_low=0.2, clip_high=0.28, dual_clip=10.0, scale="std", mode="token-mean"),
}


@dataclass
class Config:
    """Defaults are the paper's run; PRESETS["toy"] is what a tiny policy needs; explicit flags win."""
    data: str = option("toy", "datasets to train on, comma between them: cub, toy-bird, ...")
    root: str | None = option(None, "folder of the datasets; None: data")
    protocol: str = option("official", "splits: the publishers', or CoOp's", "official: CoOp for some",
                           choices=("official", "coop"))
    limit: int | None = option(3000, "training images a dataset, drawn by seed 42", "official", COUNT)
    model: str = option(MODEL, "checkpoint: folder or hub name", "official")
    judge: str = option(JUDGE, "chat model, http://server, taxonomy.json, taxonomy", "official: 30B-A3B")
    judge_model: str | None = option(None, "the model's name on a judge server")
    judge_prompt: str | None = option(None, "short, detailed or a text file; None: by the judge's size")
    judge_key_file: str | None = option(None, "file with the server's key; None: JUDGE_API_KEY")
    judge_cache: str = option(VERDICTS, "file of remembered verdicts, or none", "official: Redis")
    max_judge_errors: float = option(0.5, "share of groups without a verdict that ends the run", must=SHARE)
    method: str = option("rl", "learn from rewards, or (sft) from the labels themselves", "official: rl",
                         choices=("rl", "sft"))
    prompt: str = option("base", "the question: base, specific, ...", "official: base")
    n: int = option(8, "answers an image (N)", "official: 10", GROUP)
    images_per_step: int = option(256, "images a step", "official", COUNT)
    minibatch: int = option(128, "images an optimizer update", "official", COUNT)
    micro_batch: int = option(1, "images forwarded at a time (memory)", must=COUNT)
    rows: int = option(512, "answers decoded at a time (memory)", must=COUNT)
    epochs: int = option(15, "passes over the images, unless --steps is given", "official", COUNT)
    steps: int | None = option(None, "steps", "official: 165", COUNT)
    lr: float = option(3e-5, "AdamW learning rate, constant", "official", ABOVE_0)
    warmup: int = option(0, "steps of linear warm-up", "official", FROM_0)
    betas: tuple = option((0.9, 0.999), "AdamW betas", "official", nargs=2, type=float)
    weight_decay: float = option(0.01, "AdamW weight decay", "official", FROM_0)
    loss: str = option("grpo", "loss", "official", choices=tuple(LOSSES))
    beta: float | None = option(None, "KL coefficient; None: by --loss, .01 or 0", "official: .01", FROM_0)
    clip_low: float | None = option(None, "lower clip; None: by --loss, .2", "official: .2", FROM_0)
    clip_high: float | None = option(None, "upper clip; None: by --loss, .2 or .28", "official: .2", FROM_0)
    reward: str = option("speciarl", "reward scheme", "paper", choices=("speciarl", *SCHEMES))
    quorum: float = option(0.0, "share of answers that must reach the bar; 0: any one", "ours", SHARE)
    malformed: float = option(-1.0, "reward of an answer that can't be read", "official", FINITE)
    noise: float = option(0.0, "probability that a verdict moves one rung (ablation)", "official: 0", SHARE)
    temperature: float = option(1.0, "sampling temperature", "official", ABOVE_0)
    max_new_tokens: int = option(512, "longest completion, tokens", "official: 2048", COUNT)
    max_pixels: int | None = option(512 * 28 * 28, "larger images are scaled down", "official: no such limit")
    lora_rank: int = option(64, "LoRA rank", "official", COUNT)
    lora_alpha: float = option(32, "LoRA alpha (scale = alpha / rank)", "official", ABOVE_0)
    checkpointing: bool = option(False, "make activations again in backward (memory)", "official: on")
    seed: int = option(0, "of everything but the data subset", "official: 1")
    eval_every: int = option(5, "steps between validations, 0 = only before", "official", FROM_0)
    eval_limit: int = option(300, "images of each validation and test set", "official: all", COUNT)
    out: str | None = option(None, "run folder; None: runs/DATA-REWARD-seedSEED")


PRESETS = {"toy": dict(limit=1000, model="toy", judge="taxonomy", images_per_step=16, minibatch=16,
                       micro_batch=16, steps=60, lr=7e-4, warmup=10, betas=(0.9, 0.99), max_new_tokens=16,
                       max_pixels=None, lora_rank=16, eval_every=20)}


# ------------------------------------------------------------------------------------------------------------
# Configuration


def parse_config(argv: list[str] | None = None) -> tuple[Config, Path | None]:
    """The resolved configuration, and the folder to resume if any. Raises ValueError for what can't be."""
    given = vars(parser(Config, PRESETS, __doc__).parse_args(argv))
    folder = given.pop("resume")
    if "betas" in given:
        given["betas"] = tuple(given["betas"])
    if folder is not None:
        file = Path(folder) / "config.json"
        if not file.is_file():
            raise ValueError(f"nothing to resume in {folder}: there is no config.json")
        try:
            saved = json.loads(file.read_text())
            config = Config(**saved | {"betas": tuple(saved["betas"])})
            check(config)
        except (ValueError, TypeError, KeyError) as e:
            raise ValueError(f"{file} is not the configuration of a run of this version: {e}") from None
        for name in MEMORY & given.keys():
            setattr(config, name, given[name])
        check(config)
        changed = [f"{flag(k)} was {getattr(config, k)}, now {v}" for k, v in given.items()
                   if getattr(config, k) != v]
        if changed:
            raise ValueError("a resumed run keeps its settings: " + "; ".join(changed))
        return config, Path(folder)
    preset = PRESETS["toy"] if is_toy(given.get("data", Config.data).split(",")) else {}
    config = Config(**preset | given)
    if config.method == "sft" and config.beta is None:
        config.beta = 0.0
    for name in ("beta", "clip_low", "clip_high"):
        if getattr(config, name) is None:
            setattr(config, name, LOSSES[config.loss][name])
    idle = [flag(name) for name in ("reward", "quorum", "noise", "loss") if name in given]
    if idle and config.method == "sft":
        raise ValueError(f"--method sft learns from labels: {' and '.join(idle)} would do nothing")
    if config.out is None:
        name = [config.data.replace(",", "+").replace("/", "_"),
                config.reward if config.method == "rl" else config.method,
                *(value for value in (config.prompt, config.loss) if value not in ("base", "grpo")),
                *[f"quorum{config.quorum:g}"] * (config.quorum > 0), f"seed{config.seed}"]
        config.out = "runs/" + "-".join(name)
    check(config)
    return config, None


# ------------------------------------------------------------------------------------------------------------
# The step's parts


def step_examples(examples: list, config: Config, step: int) -> list:
    """The images of step 1, 2, ...: each epoch in its own order, the incomplete last batch dropped, as the
    release does."""
    per_epoch = len(examples) // config.images_per_step
    epoch, k = divmod(step - 1, per_epoch)
    order = np.random.default_rng(seed_for(config.seed, "order", epoch)).permutation(len(examples))
    return [examples[i] for i in order[k * config.images_per_step:(k + 1) * config.images_per_step]]


def group_rewards(categories: list, config: Config) -> list[float]:
    if config.reward == "speciarl":
        return speciarl_rewards(categories, config.quorum, config.malformed)
    return static_rewards(categories, config.reward, config.malformed)


def with_noise(categories: list, config: Config, step: int, image_id: str) -> list:
    """The judge-noise ablation, seeded by image and step."""
    rng = random.Random(seed_for(config.seed, "noise", step, image_id))
    return inject_noise(categories, config.noise, rng) if config.noise else categories


def labelled(policy, images: list, ids: list[str], question: str, labels: dict, toy: bool) -> list[Group]:
    """Supervised fine-tuning's "rollouts": one completion an image, the label behind an empty think block
    (its form is not published)."""
    groups = []
    for name, prompt in zip(ids, encode(policy, images, question)):
        text = f"<think></think> <answer>{labels[name]}</answer>"
        if toy:  # whose words stand apart
            text = text.replace("<", " <").replace(">", "> ")
        tokens = policy.tokenizer(text, add_special_tokens=False)["input_ids"] + policy.eos_ids[:1]
        row = torch.tensor([tokens], device=policy.device)
        groups.append(Group(name, prompt, row, torch.ones_like(row, dtype=torch.bool),
                            torch.zeros(row.shape, device=policy.device), [text], [labels[name]], 0))
    return groups


def update(policy, optimizer, groups: list, advantages: torch.Tensor, config: Config,
           places: list[int] | None = None) -> dict[str, float]:
    """One step's optimizer updates: a minibatch each, in micro-batches under the minibatch's own denominator.

    groups: B that this process holds; advantages: (B, N); places: where each of them stands in the step (None:
    one after the other). A place without a group, because it left the step or another process holds it, is a
    hole in its minibatch: it enters no denominator and no mean, and a minibatch of holes alone, in every
    process, makes no update. Returns the step's statistics, means over tokens; {} for a step of holes alone.
    """
    loss = LOSSES[config.loss]
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    places = range(len(groups)) if places is None else places
    advantages = advantages.to(policy.device)

    def rows(members: list[int]) -> list[torch.Tensor]:
        return [x.flatten(0, 1) for x in stack([groups[i] for i in members], policy.pad_id)]  # (R, T) each

    def score(members: list[int]) -> torch.Tensor:
        return completion_logprobs(policy, [groups[i].prompt for i in members], *rows(members)[:2],
                                   config.temperature, config.checkpointing)

    minibatches = []  # (micro-batches of group numbers, denominator over all processes)
    for start in range(0, config.images_per_step, config.minibatch):
        members = [i for i, place in enumerate(places) if start <= place < start + config.minibatch]
        lengths = torch.cat([torch.zeros(0), *(groups[i].mask.sum(1).cpu() for i in members)])
        denominator = loss_denominator(lengths, loss["mode"], config.max_new_tokens)
        # every process enters here, whatever it holds
        denominator = sum(gather([float(denominator)]))
        if denominator == 0:
            continue
        # without KL equal rewards teach nothing; their tokens stay in the denominator
        members = [i for i in members if config.beta or advantages[i].any()]
        minibatches.append((chunks(members, config.micro_batch), denominator))
    # The first minibatch meets the weights that sampled it; for the others the old log-probs are taken before
    # anything moves, in the same micro-batches, so that an unmoved ratio is exactly 1. A label was not
    # sampled: its ratio always is 1, and the gradient that of its likelihood.
    if not minibatches:
        return {}
    later = minibatches[1:] if config.method == "rl" else []
    with torch.no_grad():
        old = {m[0]: score(m) for micros, _ in later for m in micros}

    stats, norms, skipped = [], [], 0  # stats: (name, value, tokens) of every micro-batch
    for number, (micros, denominator) in enumerate(minibatches):
        for members in micros:
            logprobs, (_, mask, sampled) = score(members), rows(members)
            values, seen = policy_loss(logprobs, old.get(members[0], logprobs.detach()),
                                       advantages[members].flatten(), mask, config.clip_low,
                                       config.clip_high, loss["dual_clip"])
            objective = aggregate(values, mask, loss["mode"], denominator)
            seen["loss"] = objective.detach()
            if config.beta > 0:
                with torch.no_grad(), adapters_off(policy.model):
                    reference = score(members)
                kl = k3_kl(logprobs, reference)
                objective = objective + config.beta * aggregate(kl, mask, loss["mode"], denominator)
                seen |= {"kl": masked_mean(kl.detach(), mask),
                         "kl_clamped": masked_mean(kl.detach() >= KL_CLAMP, mask)}
            if number == 0:  # same weights, same distribution: what was sampled and what is scored must agree
                seen["logprob_gap"] = masked_mean((logprobs.detach() - sampled).abs(), mask)
            seen["nll"] = masked_mean(-logprobs.detach(), mask)
            objective.backward()
            stats += [(name, float(value), float(mask.sum())) for name, value in seen.items()]
        sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM))
        if np.isfinite(norm):
            if norm > 0:  # nothing to learn: no weight decay either, in one process as in several
                optimizer.step()
            norms.append(norm)
        else:  # one poisoned update would end the run: leave it out, and say which images it was
            skipped += 1
            images = " ".join(groups[i].id for members in micros for i in members)
            tqdm.write(f"warning: gradient {norm}, update skipped; its images: {images}", file=sys.stderr)
        optimizer.zero_grad(set_to_none=True)
    by_name = {"loss": [], "ratio_max": []}
    for name, value, weight in gather(stats):
        by_name.setdefault(name, []).append((value, weight))
    losses, ratios = by_name.pop("loss"), by_name.pop("ratio_max")
    means = {f"policy/{k}": sum(v * w for v, w in x) / sum(w for _, w in x) for k, x in by_name.items()}
    return means | {"policy/loss": sum(v for v, _ in losses) / len(minibatches),
                    "policy/ratio_max": max((v for v, _ in ratios), default=0.0),
                    "policy/grad_norm": float(np.mean(norms)) if norms else 0.0, "policy/skipped": skipped}


def chunks(items: list, size: int) -> list[list]:
    return [items[i:i + size] for i in range(0, len(items), size)]


# ------------------------------------------------------------------------------------------------------------
# Files


def sample_line(step: int, entry: dict, config: Config) -> dict:
    """An image of the step for samples.jsonl, whether it stayed (then with the categories and rewards it was
    trained on, and the bar where there is one) or left it."""
    categories = entry["categories"]
    line = {"step": step} | {key: entry[key] for key in ("id", "truth", "answers", "texts")}
    line["categories"] = [category_name(c) for c in categories]
    if "rewards" in entry:
        line["rewards"] = entry["rewards"]
        if config.reward == "speciarl":
            line["bar"] = dynamic_bar(categories, config.quorum).label
    return line


# ------------------------------------------------------------------------------------------------------------
# The loop


def load_data(config: Config) -> tuple[list, dict[str, list], dict[str, list]]:
    """Training examples, and validation and test sets by name. Nothing is chosen on test: validation images
    are training images that the run doesn't use. The embedded world is tested on all its domains."""
    names = config.data.split(",")
    rng = random.Random(42)  # one for a mixed set's parts, as in the release
    examples = [e for name in names
                for e in data.load(name, "train", config.root, config.limit, rng, config.protocol)]
    if len(examples) < config.images_per_step:
        raise ValueError(f"{len(examples)} training images are fewer than a step's {config.images_per_step}: "
                         "lower --images-per-step or raise --limit")
    used = {e.id for e in examples}
    if len(used) < len(examples):
        raise ValueError(f"--data {config.data} holds an image twice")
    options = dict(root=config.root, protocol=config.protocol)
    validation = {n: [e for e in data.load(n, "val", **options) if e.id not in used] for n in names}
    tests = TOY_SETS if is_toy(names) else names
    return (examples, {n: data.spread(v, config.eval_limit) for n, v in validation.items()},
            {n: data.spread(data.load(n, "test", **options), config.eval_limit) for n in tests})


def main(argv: list[str] | None = None) -> Path:
    """Runs (or resumes) training; returns the run folder."""
    # What a user can get wrong is met here, before any hour is spent, and ends in one line.
    try:
        config, resumed = parse_config(argv)
        start_processes()
        run = resumed or Path(config.out)
        if RANK == 0 and resumed is None and run.exists() and {f.name for f in run.iterdir()} - {
                "config.json.tmp"}:  # which a kill at the very start may leave
            raise ValueError(f"{run} holds a run already: --resume {run} goes on, --out DIR starts another")
        examples, validation, tests = load_data(config)
        question = question_for(config.prompt, config.data.split(","))
        policy = load_policy(config.model, config.seed, max_pixels=config.max_pixels)
        add_lora(policy.model, config.lora_rank, config.lora_alpha, config.seed)
        judge = load_judge(config.judge, config, policy.device)
        parameters = [p for p in policy.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, config.lr, config.betas, weight_decay=config.weight_decay)
        done = load_state(run, policy, optimizer) if resumed else -1
        steps = config.steps or config.epochs * (len(examples) // config.images_per_step)
        if RANK == 0:
            write_json(run / "config.json", asdict(config))
            print(json.dumps(asdict(config) | {"steps": steps}, indent=2))
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as e:
        sys.exit(f"train.py: {first_line(e)}")
    except KeyboardInterrupt:
        sys.exit("train.py: stopped before the first step")

    rows = min(config.rows, 256)  # where one image gets one answer, each row has a prompt to encode

    def validate() -> dict[str, float]:
        """Every process answers its own share of the images."""
        sums = []
        for name, images in validation.items():
            if images:
                own = evaluate(policy, judge, share(images), question, max_new_tokens=config.max_new_tokens,
                               rows=rows, label=f"validate {name}")
                sums.append(merge(gather([own["summary"]])))
        for s in sums:
            trust(judge, s.judge_errors, s.n + s.judge_errors, config.max_judge_errors, "validation answers")
        return {f"val/{k}": v for k, v in average(sums).items()} if sums else {}

    shown = data.spread([e for v in validation.values() for e in v], 8 if config.eval_every else 0)

    def kept() -> str:
        return "the last whole step is saved" if (run / "state.pt").exists() else "no step was made"

    def show(step: int) -> None:
        """The same few validation pictures, N answers each, for the report's before and after."""
        seen = evaluate(policy, judge, shown, question, config.n, config.temperature, config.max_new_tokens,
                        config.seed, rows, label="pictures to show")
        append(run / "shown.jsonl", [
            sample_line(step, record | {"categories": group, "rewards": group_rewards(group, config)}, config)
            for record, group in zip(seen["records"], seen["groups"]) if len(group) == config.n])

    progress = tqdm(total=steps, initial=max(done, 0), desc="train", unit="step", dynamic_ncols=True,
                    disable=RANK > 0)
    try:
        if done < 0:
            line = {"step": 0} | validate() | {"mem/peak_gb": peak_gb()}
            if RANK == 0:
                append(run / "log.jsonl", [line])
                show(0)
                save_state(run, policy, optimizer, 0)
        for step in range(max(done, 0) + 1, steps + 1):
            start = time.perf_counter()
            # N answers to each image (for SFT, its label)
            batch = step_examples(examples, config, step)
            if config.method == "rl":
                answer = partial(sample, n=config.n, seed=config.seed, stream=f"train/{step}",
                                 temperature=config.temperature, max_new_tokens=config.max_new_tokens,
                                 max_rows=config.rows)
            else:
                answer = partial(labelled, labels={e.id: e.label for e in batch},
                                 toy=is_toy(config.data.split(",")))
            read, groups, unreadable = ask(policy, share(batch), question, answer)
            sampled = time.perf_counter()

            # a rung for each answer; a group that the judge failed on leaves the step whole
            truths = [e.label for e in read]
            judged = (judge_groups(judge, truths, [g.answers for g in groups]) if config.method == "rl"
                      else [[Category.SPECIFIC] for _ in groups])
            judge_seconds = time.perf_counter() - sampled
            # from here on every process knows the whole step, but holds its own images' groups
            place = {e.id: i for i, e in enumerate(batch)}
            unreadable = gather(unreadable)
            entries = sorted(gather([
                {"id": g.id, "truth": t, "answers": g.answers, "texts": g.texts, "categories": c,
                 "tokens": int(g.mask.sum()), "truncated": g.truncated}
                for t, g, c in zip(truths, groups, judged)]), key=lambda entry: place[entry["id"]])
            whole = [entry for entry in entries if JUDGE_ERROR not in entry["categories"]]
            trust(judge, len(entries) - len(whole), len(entries), config.max_judge_errors,
                  f"groups of step {step}")
            for entry in whole:
                entry["categories"] = with_noise(entry["categories"], config, step, entry["id"])
                entry["rewards"] = group_rewards(entry["categories"], config)

            # advantages (B, N), then the updates
            line = {"step": step, "images": len(whole), "unreadable": len(unreadable),
                    "judge_errors": len(entries) - len(whole),
                    "lr": config.lr * min(1.0, step / max(1, config.warmup))}
            updating = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = line["lr"]
            rewards = {entry["id"]: entry["rewards"] for entry in whole}
            scale = LOSSES[config.loss]["scale"]
            groups = [g for g in groups if g.id in rewards]
            own = torch.tensor([rewards[g.id] for g in groups]).view(len(groups), -1 if groups else config.n)
            advantages = group_advantages(own, scale) if config.method == "rl" else torch.ones(len(groups), 1)
            dealt = dict(gather([(g.id, row) for g, row in zip(groups, advantages.tolist())]))
            if whole and config.method == "rl":
                line |= group_figures([entry["categories"] for entry in whole], list(rewards.values()),
                                      [dealt[entry["id"]] for entry in whole], config.quorum)
            line |= update(policy, optimizer, groups, advantages, config, [place[g.id] for g in groups])
            del groups  # the prompts' embeddings in them would take room in the next rollout
            updated = time.perf_counter()
            tokens = sum(entry["tokens"] for entry in entries)
            answers = max(1, sum(len(entry["answers"]) for entry in entries))
            if hasattr(judge, "hits"):  # of all distinct pairs so far
                line["cache/hit_rate"] = judge.hits / max(1, judge.hits + judge.misses)
            line |= {"length": tokens / answers,
                     "truncated": sum(entry["truncated"] for entry in entries) / answers,
                     "time/rollout": sampled - start, "time/judge": judge_seconds,
                     "time/update": updated - updating, "time/step": updated - start,
                     "time/tokens_per_s": tokens / (updated - start), "mem/peak_gb": peak_gb()}
            # validation, then the step's lines, then the state that vouches for them
            validating = config.eval_every and step % config.eval_every == 0
            if validating:
                line |= validate()
            if RANK > 0:
                continue
            if validating:
                save_adapter(policy.model, run / "adapter", policy.name)
            append(run / "samples.jsonl", [{"step": step, "unreadable": text} for text in unreadable] + [
                sample_line(step, entry, config) for entry in entries if config.method == "rl"])
            if step == steps:
                show(step)
            append(run / "log.jsonl", [line])
            save_state(run, policy, optimizer, step)
            progress.update()
            watched = [k for k in ("reward", "correctness", "specificity", "malformed") if k in line]
            progress.set_postfix({k: f"{line[k]:.2f}" for k in watched}
                                 | {"tok/s": f"{line['time/tokens_per_s']:.0f}"}
                                 | {k: line[k] for k in ("judge_errors", "unreadable") if line[k]})
        progress.close()
        if RANK == 0:
            save_adapter(policy.model, run / "adapter", policy.name)
        results = before_and_after(policy, judge, tests, question, config.max_new_tokens, config.seed,
                                   config.max_judge_errors, rows)
        if RANK > 0:
            return run
        write_json(run / "eval.json", results)
        report.write(run, examples + shown)
    except KeyboardInterrupt:
        if RANK == 0 and (run / "state.pt").exists():
            load_state(run, policy, optimizer)  # a half-done step is not kept
            save_adapter(policy.model, run / "adapter", policy.name)
            report.write(run, examples + shown)
        sys.exit(f"stopped; {kept()}. Go on with python train.py --resume {run}")
    except (JudgeFailed, OSError) as e:  # OSError: a full disk, a cache that stays locked
        sys.exit(f"train.py: {e}; {kept()}. Go on with python train.py --resume {run}")
    except torch.cuda.OutOfMemoryError:
        sys.exit(f"train.py: out of GPU memory; {kept()}. Go on with python train.py --resume {run} and a "
                 "lower --micro-batch or --rows, or --checkpointing; or start another run with a lower "
                 "--max-pixels, --max-new-tokens or --n")
    finally:
        progress.close()
    print(comparison(results, config.data.split(",")))
    print(f"everything about this run is in {run}")
    return run


if __name__ == "__main__":
    main()
