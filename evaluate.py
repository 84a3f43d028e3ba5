"""The paper's table for a model, with or without adapters, on any datasets; and answers to one's own
pictures.

    python evaluate.py --data toy-bird,toy-fish --adapter none runs/toy-speciarl-seed0/adapter
    python evaluate.py --data flowers,food,pets,cars,aircraft --root DIR --adapter none runs/x/adapter
    python evaluate.py --data cub --root DIR --n 64 --temperature 0.6 --top-p 0.95 --out best_of.json
    python evaluate.py --image photo.jpg --model Qwen/Qwen2.5-VL-7B-Instruct --n 8
    python evaluate.py --answers best_of.jsonl --judge meta-llama/Llama-3.1-8B-Instruct

As a library: `evaluate(policy, judge, data.load("toy-bird", "test"), question)["summary"]`.

Answers are greedy by default, sampled with `--n 8`. The command prints correctness, specificity and their
harmonic mean with 95 % bootstrap intervals over images; the paired difference of every further adapter to
the first; what the answers are; what an oracle would pick of k; the majority answer. `--out FILE.json` keeps
the figures, and every answer in FILE.jsonl, from which the same command goes on after a kill. `--answers`
judges and measures such a file, or anyone's, without a policy (support/rejudge.py): by another judge, or by
several beside each other. `--audit` adds correctness without the judge's errors.

Where this departs from the paper and from lmms-owc:
1. The judge is whichever is given (the paper's evaluations use Llama-3-70B).
2. A malformed answer counts as wrong inside n instead of standing outside it. It holds no truth and resembles
   nothing (0 in text inclusion and similarity), and is never "thought, not said".
3. Text inclusion and the other scores of lmms-owc's are of the answer between the tags, all answers, those
   without a verdict too (support/scores.py says how each departs from it).
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

import data
from judge import WHOLE_NAME, Judge, add_arguments, judge_groups, judge_label, normalize_label
from judges.audit import read_audit
from lora import adapters_off
from metrics import JudgeErrors, Tally, merge
from policy import Policy, split_images
from rollout import PROMPTS, Group, sample
from support.answers import (answer_record, answers_file, append_answers, lock_answers, stored_answers,
                             weights_hash)
from support.command_line import (ANSWERS, COUNT, FROM_0, REQUESTS, SECONDS, SEED, SHARE, TEMPERATURE,
                                  TOKENS, TOP_P, check_value, first_line, flag)
from support.files import write_json
from support.judging import audited, errors_line, prompt_texts, trusted_batches
from support.memory import PLANNED_PIXELS, rows_at_a_time
from support.opening import (JUDGE, MODEL, TOY_SETS, VERDICTS, ImagesUnreadable, JudgeFailed, adapter_folder,
                             base_models, choose_model, is_toy, is_toy_model, load_judge, load_policy,
                             question_for, require_readable, trust)
from support.processes import gather, share
from support.rejudge import judge_stored
from support.scores import Scorer, load_scorers, model_scores
from support.tables import table, table_rows, titles
from toy import captions

# Where the command line does not say. The tokens are the release's; the embedded world needs less.
DEFAULTS = {"judge": JUDGE, "max_new_tokens": 2048}
TOY_DEFAULTS = {"judge": "taxonomy", "max_new_tokens": 16}

PICTURES = 16    # of --image that are answered at a time
FEW_IMAGES = 32  # whose prompts take next to no memory

# What stands above a table of lmms-owc's question.
WHOLE_REPLIES = ("answers are whole replies: the judge's rules take long ones and those that say several "
                 "names for wrong; what compares are the scores without a judge")

# The question of --choose.
CHOICE = """{question}
These answers were given before:
{answers}
Choose the one that is most likely right, and the most specific of those. Answer with it, word for word."""


# ------------------------------------------------------------------------------------------------------------
# Answers, judged and measured


def evaluate(policy: Policy, judge: Judge, examples: list[data.Example], question: str, n: int = 1,
             temperature: float = 0.0, max_new_tokens: int = 512, seed: int = 0, rows: int = 256,
             label: str = "evaluate", top_p: float = 1.0, scorers: dict[str, Scorer] | None = None,
             choose: bool = False) -> dict:
    """A policy's answers to the examples, judged and measured, all in memory.

    n answers an image, greedy at temperature 0; at most `rows` answers are decoded at a time; label: of the
    progress bar; top_p: as in rollout.sample; scorers: support.scores', for the scores that take a model;
    choose: ask the policy which of its n answers it takes.

    Returns {"summary": Summary, "groups": one list of categories an image (None = malformed, judge errors
    left out), "records": one dict an image, "unreadable": a line for each image that can't be read}.
    """
    batches = answer_in_batches(policy, judge, examples, question, n, temperature, max_new_tokens, seed, rows,
                                label, top_p, scorers, choose=choose)
    tally = Tally()
    records = []
    for batch in batches:
        for record in batch:
            tally.add(record)
            if "unreadable" not in record:
                records.append(record)

    groups = []
    for group, verdicts in zip(tally.groups, tally.verdicts()):
        if group:  # empty where the image can't be read: it was never answered
            groups.append(verdicts)
    return {"summary": tally.summary(), "groups": groups, "records": records, "unreadable": tally.unreadable}


def answer_in_batches(policy: Policy, judge: Judge, examples: list[data.Example], question: str, n: int,
                      temperature: float, max_new_tokens: int, seed: int, rows: int, label: str,
                      top_p: float = 1.0, scorers: dict[str, Scorer] | None = None, first: int = 0,
                      choose: bool = False) -> Iterator[list[dict]]:
    """Yields lists of records, one an image, in the order of the examples from number `first` on: a batch of
    at most `rows` answers (but one image at least) at a time. The other arguments are evaluate's."""
    images_per_batch = max(1, rows // n)
    with tqdm(total=len(examples), initial=first, desc=label, unit="image", leave=False) as progress:
        while first < len(examples):
            # A batch ends where it would have, had all begun with the first image. So a command that goes on
            # decodes the same images together, and rounding gives the same answers.
            end = (first // images_per_batch + 1) * images_per_batch
            batch = examples[first:end]

            # rollout: n answers to each image that can be read; very large ones are answered fewer at a time
            readable, images, unreadable = data.read_images(batch)
            ids = [example.id for example in readable]
            groups = []
            most_pixels = max(images_per_batch, FEW_IMAGES) * PLANNED_PIXELS
            for some in split_images(images, len(batch), most_pixels, policy.max_pixels):
                some_ids = ids[len(groups):len(groups) + len(some)]
                groups += sample(policy, some, some_ids, question, n=n, seed=seed, stream="evaluate",
                                 temperature=temperature, max_new_tokens=max_new_tokens, max_rows=rows,
                                 top_p=top_p)

            # judge: a category for each answer
            truths = [example.label for example in readable]
            judged = judge_groups(judge, truths, [group.answers for group in groups])

            # choice: which of its own answers the policy takes
            choices = {}
            if choose:
                for example, image, group in zip(readable, images, groups):
                    choices[example.id] = own_choice(policy, image, group, question, max_new_tokens, seed)

            # The prompts' embeddings in the groups would take room in the next rollout.
            records = batch_records(batch, readable, groups, judged, unreadable, scorers)
            for record in records:
                if record["id"] in choices:
                    record["choice"] = choices[record["id"]]
            del images, groups
            yield records
            first += len(batch)
            progress.update(len(batch))


def batch_records(batch: list[data.Example], readable: list[data.Example], groups: list[Group],
                  judged: list[list], unreadable: list[str],
                  scorers: dict[str, Scorer] | None = None) -> list[dict]:
    """A record for each image of the batch, in its order. readable, groups, judged: those that were answered;
    unreadable: a line for each of the others."""
    answered = {}
    scores = model_scores(scorers or {}, readable, groups)
    for example, group, categories, own_scores in zip(readable, groups, judged, scores):
        answered[example.id] = answer_record(example, group, categories, own_scores)
    lines = iter(unreadable)
    records = []
    for example in batch:
        if example.id in answered:
            records.append(answered[example.id])
        else:
            records.append({"id": example.id, "unreadable": next(lines)})
    return records


def own_choice(policy: Policy, image, group: Group, question: str, max_new_tokens: int,
               seed: int) -> int | None:
    """The place of the answer that the policy takes when it sees its own distinct answers; None where it
    takes none of them. One greedy answer to one more question, unless there is nothing to choose."""
    places = {}  # normalised answer -> where it stands first
    for place, answer in enumerate(group.answers):
        if answer is not None:
            places.setdefault(normalize_label(answer), place)
    if len(places) < 2:
        return next(iter(places.values()), None)

    listed = "\n".join(f"- {group.answers[place]}" for place in places.values())
    asked = CHOICE.format(question=question, answers=listed)
    groups = sample(policy, [image], [group.id], asked, n=1, seed=seed, temperature=0.0,
                    max_new_tokens=max_new_tokens)
    chosen = groups[0].answers[0]
    return None if chosen is None else places.get(normalize_label(chosen))


def before_and_after(policy: Policy, judge: Judge, tests: dict[str, list], question: str, max_new_tokens: int,
                     seed: int, most_errors: float = 1.0, rows: int = 256,
                     most_unreadable: float = 1.0) -> dict:
    """What training changed: every test set, greedy and with one sample at temperature 1, with the adapters
    off (the model as it came) and on. Of several processes each answers its own share of the images.

    tests: name -> Examples. Returns {"greedy" or "temperature 1": {name: {"before" or "after": figures}}}.
    Raises JudgeFailed where more than the share most_errors of a set's answers has no verdict,
    ImagesUnreadable where more than the share most_unreadable of its images can't be read, or none of any.
    """
    results = {}
    read = 0  # images, however often
    for when in ("before", "after"):
        adapters = adapters_off(policy.model) if when == "before" else nullcontext()
        with adapters:
            for how, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
                for name, examples in tests.items():
                    own = evaluate(policy, judge, share(examples), question, 1, temperature, max_new_tokens,
                                   seed, rows, label=f"{when} {name}")
                    summary = merge(gather([own["summary"]]))
                    require_readable(gather(own["unreadable"]), len(examples), most_unreadable, name)
                    answers = summary.n + summary.judge_errors
                    trust(judge, summary.judge_errors, answers, most_errors, f"answers to {name}")
                    results.setdefault(how, {}).setdefault(name, {})[when] = summary.to_json()
                    read += len(examples) - summary.unreadable
    if any(tests.values()) and read == 0:
        raise ImagesUnreadable("none of the test images can be read: there is no table")
    return results


# ------------------------------------------------------------------------------------------------------------
# One's own pictures


def answer_pictures(policy: Policy, paths: list[str], question: str, n: int, temperature: float,
                    max_new_tokens: int, seed: int, top_p: float = 1.0) -> None:
    """Prints the greedy answer to each picture, then, for n > 1, what n sampled answers say, the most
    frequent first. Raises OSError where none of the pictures can be read."""
    unreadable = []
    for start in range(0, len(paths), PICTURES):
        some = [data.Example(path, "", "", partial(data.read_image, path))
                for path in paths[start:start + PICTURES]]
        readable, images, lines = data.read_images(some)
        unreadable += lines
        if not images:
            continue
        ids = [example.id for example in readable]
        greedy = sample(policy, images, ids, question, n=1, temperature=0.0, max_new_tokens=max_new_tokens,
                        seed=seed)
        sampled = [None] * len(images)
        if n > 1:
            sampled = sample(policy, images, ids, question, n=n, temperature=temperature,
                             max_new_tokens=max_new_tokens, seed=seed, top_p=top_p)
        for path, one, many in zip(ids, greedy, sampled):
            print_answers(path, one, many)

    for line in unreadable:
        print(line, file=sys.stderr)
    if len(unreadable) == len(paths):
        raise OSError("none of the pictures could be read")


def print_answers(path: str, greedy: Group, sampled: Group | None) -> None:
    """One picture's block: the greedy answer with its reasoning, and how often each sampled answer came."""
    print(path)
    print(f"  greedy   {greedy.answers[0] or '(no answer)'}")
    print(f"           {greedy.texts[0]}")
    if sampled is not None:
        n = len(sampled.answers)
        for answer, count in Counter(sampled.answers).most_common():
            print(f"  {count} of {n:<4}{answer or '(no answer)'}")


# ------------------------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    """The options; what None stands for is decided in resolve."""
    p = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data",
                   help="datasets, comma between them (default: the embedded world's four)")
    p.add_argument("--root", help="folder of the datasets (default: data)")
    p.add_argument("--split", default="test", choices=("train", "val", "test"))
    p.add_argument("--protocol", default="official", choices=("official", "coop"), help="whose splits")
    p.add_argument("--limit", type=int, help="at most this many images a dataset, a random subset by seed 42")
    p.add_argument("--image", nargs="+", metavar="FILE", help="name these pictures instead")
    p.add_argument("--answers", action="append", metavar="FILE.jsonl",
                   help="judge the answers that are stored there instead: an --out's, or a line an image of "
                        "id or image, truth, answers or texts; may be given again")
    p.add_argument("--model", help="checkpoint folder or hub name, or toy (default: the adapter's base, "
                                   f"else toy for the embedded world, {MODEL} otherwise)")
    p.add_argument("--adapter", nargs="+", default=["none"], metavar="DIR",
                   help="adapters or runs, compared with the first; none = the base (default)")
    p.add_argument("--prompt", default="base",
                   help=f"the question: {', '.join(PROMPTS)}, or a text file (direct: no thinking; owc: "
                        "lmms-owc's, answered by the whole reply); in the embedded world "
                        f"{', '.join(captions.PROMPTS)} (default: base)")
    p.add_argument("--n", type=int, default=1,
                   help="answers an image (default: 1); above 1 with the best of 1, 2, 4, ...")
    p.add_argument("--choose", action="store_true",
                   help="with --n: ask the model which of its own answers it takes, one more answer an image")
    p.add_argument("--temperature", type=float, help="default: 0 (greedy) for n = 1, else 1")
    p.add_argument("--top-p", type=float, default=1.0, metavar="SHARE",
                   help="sample among the likeliest tokens that together have this probability (default: 1, "
                        "all of them; the release's best of 64: temperature 0.6, 0.95)")
    p.add_argument("--judge", action="append",
                   help=f"chat model, http://server, taxonomy.json, or taxonomy; A,B,C vote; a whole name is "
                        f"{WHOLE_NAME} (default: taxonomy for the embedded world, else {JUDGE}); with "
                        "--answers several are compared, each in a --judge of its own")
    add_arguments(p)
    p.add_argument("--audit", metavar="FILE",
                   help="labelled pairs, as judge.py's: adds correctness without the judge's errors")
    p.add_argument("--judge-cache", default=VERDICTS, help="file of remembered verdicts, or none")
    p.add_argument("--max-unreadable", type=float, default=0.5, metavar="SHARE",
                   help="share of a dataset's images that can't be read that ends the command (default: 0.5)")
    p.add_argument("--embedder",
                   help="encoder of texts, folder or hub name: adds semantic and concept similarity "
                        "(the literature's: sentence-transformers/all-MiniLM-L6-v2)")
    p.add_argument("--language-inclusion", metavar="MODEL",
                   help="chat model, folder or hub name, that is asked whether an answer holds the truth "
                        "(the literature's: meta-llama/Llama-3.2-3B-Instruct)")
    p.add_argument("--max-new-tokens", type=int, help="default: 2048, for the embedded world 16")
    p.add_argument("--max-pixels", type=int,
                   help="larger images are scaled down (default: full resolution, as far as the checkpoint's "
                        "own limit)")
    p.add_argument("--rows", type=int, default=256,
                   help="answers decoded, or with --answers judged, at a time (default: 256; on a GPU at "
                        "most what fits)")
    p.add_argument("--seed", type=int, default=0, help="of sampled answers and of the model toy (default: 0)")
    p.add_argument("--out", metavar="FILE.json",
                   help="write the figures there, the answers to FILE.jsonl, from which the same command "
                        "goes on after a kill (--rows may differ)")
    return p


@dataclass
class Command:
    """What the command line's options come to, where they leave something open or depend on each other."""
    adapters: list[str]             # folders; "none" is the base
    weights: list[str | None]       # a hash of each adapter's weights, None for the base
    model: str                      # folder or hub name of the checkpoint, or toy
    judge: str
    question: str                   # the text of the prompt
    temperature: float              # 0 is greedy
    max_new_tokens: int
    max_pixels: int | None          # None: images as they are


def check_options(args) -> None:
    """Raises ValueError for an option that can't be, alone or beside the others."""
    # numbers
    numbers = {"n": ANSWERS, "rows": COUNT, "max_new_tokens": TOKENS, "max_pixels": COUNT, "limit": COUNT,
               "seed": SEED, "temperature": FROM_0, "max_unreadable": SHARE, "judge_timeout": SECONDS,
               "judge_patience": SECONDS, "judge_workers": REQUESTS, "judge_tokens": TOKENS}
    for name, must in numbers.items():
        check_value(name, getattr(args, name), must)
    if args.temperature:  # 0 is greedy
        check_value("temperature", args.temperature, TEMPERATURE)
    check_value("top_p", args.top_p, TOP_P)

    if args.language_inclusion and args.language_inclusion.startswith(("http://", "https://")):
        raise ValueError("--language-inclusion takes a chat model's folder or hub name, no server")
    if args.choose and args.n < 2:
        raise ValueError("--choose chooses among several answers: give --n 2 or more")

    # words that neither the files nor the answers could hold
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        for each in values:
            data.refuse_undecodable(f"--{name.replace('_', '-')}", str(each))

    # where the figures go: nothing of somebody else's is overwritten
    if args.out is not None:
        if args.out == "" or Path(args.out).is_dir() or args.out.endswith(".jsonl"):
            raise ValueError(f"--out names the figures' JSON file (the answers go beside it), got {args.out}")
        if Path(args.out).exists() and not answers_file(args.out).exists():
            raise ValueError(f"{args.out} holds something else: give another --out")

    # options that would do nothing
    if args.answers:
        refuse_idle_with_answers(args)
        return
    if args.image:
        needing_data = ("out", "limit", "embedder", "language_inclusion", "choose", "audit")
        idle = [flag(name) for name in needing_data if getattr(args, name)]
        if idle:
            raise ValueError(f"--image only prints answers: give --data for {' and '.join(idle)}")
        if args.n == 1 and (args.temperature or args.top_p < 1):
            raise ValueError("--image prints the greedy answer: a temperature and top_p are of the answers "
                             "beside it, give --n 2 or more")
    if args.judge and len(args.judge) > 1:
        raise ValueError("several judges are compared on answers that are stored: answer once, with one "
                         "--judge and --out FILE.json, then give --answers FILE.jsonl and every --judge")


def refuse_idle_with_answers(args) -> None:
    """Raises ValueError for what has no effect where nothing is answered."""
    of_the_policy = ("image", "model", "adapter", "prompt", "n", "choose", "temperature", "top_p",
                     "max_unreadable", "max_new_tokens", "max_pixels", "seed")
    of_the_data = ("root", "split", "protocol", "limit")
    defaults = parser()
    given = [name for name in vars(args) if getattr(args, name) != defaults.get_default(name)]

    idle = [flag(name) for name in given if name in of_the_policy]
    if idle:
        raise ValueError(f"--answers judges what is stored: {' and '.join(idle)} would do nothing")
    idle = [flag(name) for name in given if name in of_the_data]
    if idle and not args.data:
        raise ValueError(f"--answers takes the images from its files: give --data for {' and '.join(idle)}")


def resolve(args) -> Command:
    """Decides what the options leave open. Raises ValueError or OSError for what does not go together."""
    names = [] if args.image else args.data.split(",")
    adapters = [adapter_folder(name) for name in args.adapter]
    refuse_repeats("--data", names)
    refuse_repeats("--adapter", adapters)

    # model: the adapters' base, unless another is named
    bases = base_models(adapters)
    weights = [None if adapter == "none" else weights_hash(adapter) for adapter in adapters]
    model = choose_model(args.model, bases, names)

    # question: the embedded world's policy has a vocabulary, and so prompts, of its own
    toy = is_toy(names) if names else is_toy_model(model)
    question = question_for(args.prompt, ["toy"] if toy else ["real"])
    if args.choose and toy:
        raise ValueError("--choose needs words that the embedded world's policy lacks: leave it out")
    if args.choose and question == PROMPTS["owc"]:
        raise ValueError("--choose lists answers between tags, which the prompt owc does not ask for: leave "
                         "one of them out")

    # decoding: greedy, unless there are several answers an image
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if args.n > 1 else 0.0
    if args.n > 1 and temperature == 0:
        raise ValueError("n > 1 greedy answers to one image are all the same: give a temperature")
    if args.top_p < 1 and temperature == 0:
        raise ValueError("--top-p would do nothing: greedy answers are not sampled, give a --temperature")

    defaults = TOY_DEFAULTS if toy else DEFAULTS
    return Command(
        adapters=adapters,
        weights=weights,
        model=model,
        judge=args.judge[0] if args.judge else defaults["judge"],
        question=question,
        temperature=temperature,
        max_new_tokens=args.max_new_tokens or defaults["max_new_tokens"],
        max_pixels=args.max_pixels,
    )


def refuse_repeats(flag: str, values: list[str]) -> None:
    """Raises ValueError where a list on the command line names one thing twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{flag} names one thing twice: {' '.join(values)}")


def answer_arguments(args, command: Command) -> dict:
    """All that the answers depend on, as the files of --out say it: another command's answers are refused.
    Left out is what only says where they go, how many are decoded at a time, how a judge is reached and how
    much it may say."""
    arguments = dict(vars(args))
    for name in ("image", "answers", "audit", "out", "rows", "max_unreadable", "judge_cache",
                 "judge_key_file", "judge_timeout", "judge_patience", "judge_workers", "judge_tokens"):
        del arguments[name]
    arguments["adapter"] = command.adapters
    arguments["model"] = command.model
    arguments["judge"] = judge_label(command.judge)
    arguments["prompts"] = prompt_texts(args.judge_prompt, [command.judge])
    arguments["question"] = command.question
    arguments["max_pixels"] = command.max_pixels
    arguments["temperature"] = command.temperature
    arguments["max_new_tokens"] = command.max_new_tokens
    arguments["weights"] = command.weights
    return arguments


def open_policy(args, command: Command, adapter: str) -> Policy:
    """The command's model with one of its adapters."""
    folder = None if adapter == "none" else adapter
    return load_policy(command.model, args.seed, adapter=folder, max_pixels=command.max_pixels)


def name_pictures(args, command: Command) -> None:
    """Prints every adapter's answers to the pictures of --image."""
    for adapter, title in zip(command.adapters, titles(command.adapters)):
        print(f"{command.model}, {title}:")
        answer_pictures(open_policy(args, command, adapter), args.image, command.question, args.n,
                        command.temperature, command.max_new_tokens, args.seed, args.top_p)


def load_datasets(args) -> dict[str, list[data.Example]]:
    """Name -> Examples. Raises ValueError for one that is unknown or broken, or where two share an image;
    FileNotFoundError for one that is not there."""
    datasets = {}
    for name in args.data.split(","):
        datasets[name] = data.load(name, args.split, args.root, args.limit, protocol=args.protocol)
    ids = []
    for examples in datasets.values():
        ids += [example.id for example in examples]
    if len(set(ids)) < len(ids):
        raise ValueError(f"--data {args.data} holds an image twice")
    return datasets


def stored_tallies(file: Path | None, arguments: dict, adapters: list[str],
                   datasets: dict[str, list[data.Example]]) -> dict[str, dict[str, Tally]]:
    """Adapter -> dataset's name -> Tally of what the same command wrote before. Raises ValueError where the
    file holds something else."""
    tallies = {}
    for adapter in adapters:
        tallies[adapter] = {name: Tally() for name in datasets}
    if file is not None:
        for adapter, name, record in stored_answers(file, arguments, adapters, datasets):
            tallies[adapter][name].add(record)
    return tallies


def refuse_stored_unreadable(args, datasets: dict[str, list], tallies: dict[str, dict[str, Tally]]) -> None:
    """Raises ValueError where the file holds more unreadable images than this command allows: it would never
    read them again."""
    for by_name in tallies.values():
        for name, examples in datasets.items():
            stored = len(by_name[name].unreadable)
            if stored > args.max_unreadable * len(examples):
                raise ValueError(f"{answers_file(args.out)} says that {stored} of {len(examples)} images of "
                                 f"{name} can't be read, --max-unreadable is {args.max_unreadable}: give "
                                 "another --out")


def refuse_empty_table(args, datasets: dict[str, list], tallies: dict[str, dict[str, Tally]]) -> None:
    """Raises ValueError where none of the images could be read."""
    first = next(iter(tallies.values()))
    answers = sum(tally.answers for tally in first.values())
    if any(datasets.values()) and answers == 0:
        again = "; once they can, give another --out" if args.out else ""
        raise ValueError(f"none of the images can be read: there is no table{again}")


def answer_rest(args, command: Command, datasets: dict[str, list[data.Example]],
                tallies: dict[str, dict[str, Tally]], judge: Judge | None, file: Path | None, arguments: dict,
                lock) -> None:
    """Answers what the tallies lack, judges it, keeps it in the file if there is one, and tallies it. judge:
    None where it is not yet loaded."""
    scorers = None
    rows = None  # answers at a time
    begun = any(tally.groups for by_name in tallies.values() for tally in by_name.values())
    for adapter in command.adapters:
        policy = None  # lets go of the last adapter's: two would not fit in the memory
        for name, examples in datasets.items():
            tally = tallies[adapter][name]
            done = len(tally.groups)
            if done == len(examples):
                continue

            # Loaded when they are first needed: where nothing is left to answer, not even the model is.
            if scorers is None:
                scorers = load_scorers(args, "cuda" if torch.cuda.is_available() else "cpu")
            if policy is None:
                policy = open_policy(args, command, adapter)
            if judge is None:
                judge = load_judge(command.judge, args, policy.device)
            if rows is None:
                rows = rows_at_a_time(policy, judge, command.question, args.n, max(1, args.rows // args.n),
                                      command.max_new_tokens, command.max_pixels, most=args.rows,
                                      beside=scorers.get("language_inclusion"))

            batches = answer_in_batches(policy, judge, examples, command.question, args.n,
                                        command.temperature, command.max_new_tokens, args.seed, rows,
                                        label=f"{adapter} {name}", top_p=args.top_p, scorers=scorers,
                                        first=done, choose=args.choose)
            batches = readable_batches(batches, tally.unreadable, len(examples), args.max_unreadable, name)
            for records in trusted_batches(batches, judge, len(examples) - done):
                if file is not None:
                    append_answers(file, arguments, adapter, name, records, begun, lock)
                    begun = True
                for record in records:
                    tally.add(record)


def readable_batches(batches: Iterable[list[dict]], stored: list[str], images: int, most: float,
                     name: str) -> Iterator[list[dict]]:
    """Passes batches of records on, as long as enough of a dataset's images can be read.

    stored: a line for each of its `images` that could not be read before. While most of what is new can't
    be, it is held back. Raises ImagesUnreadable once more than the share `most` of all its images can't: what
    was held back is not kept, so that the same command reads those images again.
    """
    unreadable = list(stored)
    held = []
    for batch in batches:
        held += batch
        lines = [record["unreadable"] for record in held if "unreadable" in record]
        require_readable(unreadable + lines, images, most, name)
        if len(lines) <= most * len(held):
            yield held
            unreadable += lines
            held = []
    if held:
        yield held


def print_results(args, command: Command, results: dict[str, dict[str, dict]],
                  errors: JudgeErrors | None) -> None:
    """The table; and, on the error output, the first ten of the images that could not be read."""
    if command.temperature > 0:
        how = f"{args.n} samples at temperature {command.temperature}"
        if args.top_p < 1:
            how += f", top_p {args.top_p}"
    else:
        how = "greedy"
    print(f"{command.model}, prompt {args.prompt!r}, {how}, judge {judge_label(command.judge)}, "
          f"{args.split} images")
    if command.question == PROMPTS["owc"]:
        print(WHOLE_REPLIES)
    if errors is not None:
        print(errors_line(args.audit, errors))
    print()
    print(table(dict(zip(titles(command.adapters), results.values()))))

    unreadable = {}  # as keys, so that an image is named once, however many adapters met it
    for rows in results.values():
        for row in rows.values():
            unreadable |= dict.fromkeys(row["unreadable"])
    for line in list(unreadable)[:10]:
        print(line, file=sys.stderr)


def run(args) -> None:
    """The command: raises what main makes one line of."""
    check_options(args)
    if args.answers:
        judge_stored(args, load_datasets(args) if args.data else {})
        return
    if not args.data:
        args.data = ",".join(TOY_SETS)
    command = resolve(args)

    if args.image:
        name_pictures(args, command)
        return

    audit_rows = read_audit(args.audit) if args.audit else []
    datasets = load_datasets(args)
    arguments = answer_arguments(args, command)
    file = answers_file(args.out) if args.out else None
    with lock_answers(file) as lock:
        tallies = stored_tallies(file, arguments, command.adapters, datasets)
        refuse_stored_unreadable(args, datasets, tallies)

        # Whether the judge can be corrected shows before anything is answered.
        judge = None
        errors = None
        if audit_rows:
            judge = load_judge(command.judge, args, "cuda" if torch.cuda.is_available() else "cpu")
            errors = audited(judge, judge_label(command.judge), audit_rows, args.audit)
        answer_rest(args, command, datasets, tallies, judge, file, arguments, lock)
        refuse_empty_table(args, datasets, tallies)

        results = table_rows(tallies, errors)
        if args.out:
            lock.check()
            document = {"arguments": arguments, "results": results}
            write_json(args.out, document if errors is None else document | {"audit": errors.to_json()})
    print_results(args, command, results, errors)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        data.refuse_odd_words(argv, repeatable=("--answers", "--judge"))
        run(args)
    except ValueError as error:
        sys.exit(f"evaluate.py: {first_line(error)}")
    except (OSError, KeyboardInterrupt, JudgeFailed, torch.cuda.OutOfMemoryError) as error:
        why = "stopped" if isinstance(error, KeyboardInterrupt) else first_line(error)
        goes_on = args.out and not args.image
        if goes_on and isinstance(error, OSError):
            # It may be a mistake in this command, unless it came as far as to write.
            goes_on = os.path.exists(answers_file(args.out))  # unlike Path's it takes any name
        if goes_on:
            why += "; what is written stands, the same command goes on"
        sys.exit(f"evaluate.py: {why}")


if __name__ == "__main__":
    main()
