"""The paper's tables and figures on the real sets, as commands: what each takes and costs, what is there.

    python benchmarks/paper.py --root DIR --out runs/paper                     print every command
    python benchmarks/paper.py --root DIR --out runs/paper --tables main n     a part of them
    python benchmarks/paper.py --root DIR --out runs/paper --run               run them, one after another

It works from the repository's folder. First it prints a shell script: the commands as they are run (`python`
stands for the interpreter that runs this), and comments around them. With --run what is there already is
skipped, a training that was stopped goes on with --resume, and so does a stopped evaluation. A command that
fails ends it in one line, and what is done is kept. The tables come last, with the figures that are there.

A row of a table is a training, if it has one, and its evaluation on the five sets that the main training
never sees, by another judge than the training's. Rows that share a training or an evaluation share its run.

Hours are those of one H100 of 80 GB and the 7B policy. Measured (docs/speed.md): the parts of a step of 256
pictures of CUB's size x 10 answers of 150 tokens, with a judge of 4B. Extrapolated from it:

- a rollout by its images (vision tower and prompt), and by its rounds of decoding: how many answers fit at a
  time follows from --max-new-tokens;
- the update and the log-probs by prompt and answer tokens, the judge by answers;
- validation and tests as rollouts, the pictures of Aircraft by their pixels.

A round of decoding lasts as long as its longest answer. The first number of hours takes all answers to have
--answer-tokens, the second that in every round one runs on to --max-new-tokens. Dynamic sampling is taken to
draw three batches a step, as many images as the release draws. What nobody has measured has no hours.

Where this departs from the paper: the training judge, the questions and other defaults of train.py stand
(docs/departures.md). The paper publishes no subset sizes for its other training domains: here 3,000, or what
there is. The part `thinking` is ours.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import evaluate
import train
from baselines import cased, sft
from judge import judge_label
from support.command_line import COUNT, SEED, check_value, first_line, flag
from support.memory import PLANNED_PIXELS
from support.opening import MODEL

# ------------------------------------------------------------------------------------------------------------
# What the paper runs

SETS = ("flowers", "food", "pets", "cars", "aircraft")  # that the main training never sees
MIXED = ("cub", "food", "flowers", "pets", "aircraft", "cars")  # in the release's order
MEANS = ("fine-grained", "very fine-grained")
EVALUATION_JUDGE = "meta-llama/Llama-3.1-8B-Instruct"  # of another family than train.py's
EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL = "meta-llama/Llama-3.2-3B-Instruct"    # of the literature's language inclusion

# Every training by the name of its folder: what it has beside, or instead of, the main one's options. A
# quarter is DAPO's share of --max-new-tokens.
TRAININGS = {
    "speciarl": "",
    "sft": "",
    "exact": "--reward exact",
    "graded_abstain": "--reward graded_abstain",
    "graded": "--reward graded",
    "close": "--reward close",
    "n5": "--n 5",
    "n15": "--n 15",
    "images128": "--limit 128 --images-per-step 128",
    "images1024": "--limit 1024",
    "images2048": "--limit 2048",
    "on-flowers": "--data flowers --protocol coop",
    "on-food": "--data food --protocol coop",
    "on-pets": "--data pets --protocol coop",
    "on-cars": "--data cars --protocol coop",
    "on-aircraft": "--data aircraft --protocol coop",
    "on-all": f"--data {','.join(MIXED)} --protocol coop --limit 500",
    "dr_grpo": "--loss dr_grpo",
    "dapo": "--loss dapo --overlong-buffer {quarter}",
    "dapo-dynamic": "--loss dapo --overlong-buffer {quarter} --dynamic-sampling",
    "noise5": "--limit 1024 --noise 0.05",
    "noise10": "--limit 1024 --noise 0.1",
    "noise25": "--limit 1024 --noise 0.25",
    "direct": "--prompt direct",
    "length-penalty": "--length-penalty 0.1",
}


@dataclass(frozen=True)
class Row:
    """A row of a table. figures: the name of its figures' file; training: of TRAININGS, None for the model as
    it came; options: of its evaluation; paper: the paper's HM on the fine-grained sets, where it is known."""
    title: str
    figures: str
    training: str | None = None
    options: str = ""
    paper: float | None = None

    @property
    def sampled(self) -> bool:
        return "--n " in self.options

    @property
    def seeded(self) -> bool:
        """Whether another seed gives other figures: greedy answers of the model as it came have none."""
        return self.training is not None or self.sampled


def trained(title: str, training: str, options: str = "", paper: float | None = None) -> Row:
    """The row of a training, whose figures go by its name."""
    return Row(title, training, training, options, paper)


# The main table's rows, with HM on the fine-grained sets as the paper states it.
BASE = Row("base", "base", paper=0.790)
SPECIFIC = Row("specific prompt", "prompt-specific", options="--prompt specific", paper=0.822)
SFT = trained("SFT", "sft", paper=0.866)
RFT = trained("RFT", "exact", paper=0.825)
SPECIARL = trained("SpeciaRL", "speciarl", paper=0.883)
BEST_OF_64 = Row("best of 64", "best-of-64", options="--n 64 --temperature 0.6 --top-p 0.95", paper=0.933)
CASED = Row("CaSED", "cased")


def renamed(row: Row, title: str) -> Row:
    """The same run in another table."""
    return Row(title, row.figures, row.training, row.options)


PROMPTS = ("calibrated", "elimination", "high_precision", "max_correctness", "max_specificity")

TABLES = {
    "main": [BASE, SPECIFIC, SFT, RFT, SPECIARL, BEST_OF_64, CASED],
    "broader": [renamed(row, row.title) for row in (BASE, SPECIFIC, SFT, RFT, SPECIARL)],
    "static": [renamed(SPECIARL, "dynamic bar"), trained("graded_abstain", "graded_abstain"),
               trained("graded", "graded"), trained("close", "close"), renamed(RFT, "exact")],
    "n": [trained("N = 5", "n5"), renamed(SPECIARL, "N = 10"), trained("N = 15", "n15")],
    "data": [trained("128 images", "images128"), trained("1,024", "images1024"),
             trained("2,048", "images2048"), renamed(SPECIARL, "3,000")],
    "domain": [renamed(SPECIARL, "cub"), *[trained(name, f"on-{name}") for name in SETS],
               trained("all six, 500 each", "on-all")],
    "optimizers": [renamed(SPECIARL, "GRPO"), trained("Dr. GRPO", "dr_grpo"), trained("DAPO", "dapo"),
                   trained("DAPO, dynamic sampling", "dapo-dynamic")],
    "noise": [trained("0 %", "images1024"), trained("5 %", "noise5"), trained("10 %", "noise10"),
              trained("25 %", "noise25")],
    "prompts": [renamed(BASE, "base"), renamed(SPECIFIC, "specific"),
                *[Row(name, f"prompt-{name}", options=f"--prompt {name}") for name in PROMPTS]],
    "thinking": [renamed(BASE, "base"), Row("base, direct", "prompt-direct", options="--prompt direct"),
                 renamed(SPECIARL, "SpeciaRL"), trained("SpeciaRL, direct", "direct", "--prompt direct"),
                 trained("SpeciaRL, length penalty", "length-penalty")],
}
TITLES = {
    "main": "The main table",
    "broader": "The broader benchmark's figures",
    "static": "Static rewards",
    "n": "Answers an image",
    "data": "Training images",
    "domain": "Training domain",
    "optimizers": "Optimizers",
    "noise": "Noise in the judge, 1,024 training images",
    "prompts": "Questions to the model as it came",
    "thinking": "Without thinking, and with less (ours)",
}

# ------------------------------------------------------------------------------------------------------------
# Commands


@dataclass
class Command:
    """One command line. kind: train, sft, evaluate, measure (of stored answers) or cased; words: without
    `python`; leaves: the run's folder or the file that it writes to; result: what is there once it has ended,
    None where only the next command's says so."""
    kind: str
    words: list[str]
    leaves: Path
    result: Path | None

    @property
    def there(self) -> bool:
        return self.result is not None and self.result.exists()

    @property
    def begun(self) -> bool:
        """Whether it is a training that was stopped."""
        return not self.there and (self.leaves / "config.json").exists()

    def to_run(self) -> list[str]:
        """Its words now. A training that has begun goes on; its settings are given again, so that train.py
        refuses those that differ, and takes those that only move memory."""
        words = list(self.words)
        if self.begun:
            words[words.index("--out")] = "--resume"
        return words

    def shown(self) -> str:
        return shlex.join(["python", *self.to_run()])


def options_in(words: list[str]) -> dict[str, list[str]]:
    """Options and their values: ["--n", "5", "--run"] -> {"--n": ["5"], "--run": []}. Raises ValueError where
    the first word is no option."""
    options = {}
    name = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options[name] = [value] if equals else []
        elif name is None:
            raise ValueError(f"an option starts with --, got {word!r}")
        else:
            options[name].append(word)
    return options


def words_of(*layers: dict[str, list[str]]) -> list[str]:
    """The words of all options; of one that stands in several layers the last, for no command takes one
    twice."""
    merged = {}
    for layer in layers:
        merged |= layer
    words = []
    for name, values in merged.items():
        words += [name, *values]
    return words


def chains(args, table: str, row: Row) -> list[list[Command]]:
    """What a row of a table takes, a list of commands for each seed. They are run in order; the last one
    leaves the row's figures."""
    if row == CASED:
        return [cased_commands(args)]
    made = []
    for seed in seeds_of(args, row):
        commands = []
        if row.training is not None:
            commands.append(training(args, row.training, seed))
        commands.append(evaluation(args, row, seed))
        if table == "broader":
            commands.append(broader(args, row, seed))
        made.append(commands)
    return made


def training(args, name: str, seed: int) -> Command:
    folder = args.out / f"{name}-seed{seed}"
    common = {"--data": ["cub"], "--n": ["10"], "--max-new-tokens": [str(args.max_new_tokens)],
              "--root": [args.root]}
    if args.model:
        common["--model"] = [args.model]
    if args.judge:
        common["--judge"] = [args.judge]
    own = options_in(TRAININGS[name].format(quarter=max(1, args.max_new_tokens // 4)).split())
    where = {"--seed": [str(seed)], "--out": [str(folder)]}
    options = words_of(common, own, args.train_options, where)
    if name == "sft":
        return Command("sft", ["-m", "baselines.sft", *options], folder, folder / "eval.json")
    return Command("train", ["train.py", *options], folder, folder / "eval.json")


def evaluation(args, row: Row, seed: int) -> Command:
    policy = {}
    if row.training is not None:
        policy["--adapter"] = [str(args.out / f"{row.training}-seed{seed}")]
    if args.model:
        policy["--model"] = [args.model]
    policy["--max-new-tokens"] = [str(args.max_new_tokens)]
    own = options_in(row.options.split())
    if row.sampled:
        own["--seed"] = [str(seed)]
    file = figures_file(args, "main", row, seed)
    options = words_of(evaluated_sets(args), policy, own, judged_by(args), args.eval_options,
                       {"--out": [str(file)]})
    return Command("evaluate", ["evaluate.py", *options], file, file)


def broader(args, row: Row, seed: int) -> Command:
    """The same answers, read from their file, by further figures: nothing is answered twice."""
    answers = figures_file(args, "main", row, seed).with_suffix(".jsonl")
    scores = {"--embedder": [args.embedder], "--language-inclusion": [args.language_inclusion]}
    return measuring(args, answers, scores, figures_file(args, "broader", row, seed))


def measuring(args, answers: Path, scores: dict[str, list[str]], file: Path) -> Command:
    """Stored answers, judged and measured. Of the user's options those of the judge mean something here."""
    of_the_judge = {name: values for name, values in args.eval_options.items() if name.startswith("--judge")}
    options = words_of({"--answers": [str(answers)]}, evaluated_sets(args), judged_by(args), scores,
                       of_the_judge, of_the_images(args), {"--out": [str(file)]})
    return Command("measure", ["evaluate.py", *options], file, file)


def cased_commands(args) -> list[Command]:
    """CaSED's answers, and their figures as stored answers."""
    answers = args.out / "cased-answers.jsonl"
    options = words_of(evaluated_sets(args), of_the_images(args), args.cased_options,
                       {"--captions": [args.captions], "--out": [str(answers)]})
    return [Command("cased", ["-m", "baselines.cased", *options], answers, None),
            measuring(args, answers, {}, args.out / "cased.json")]


def of_the_images(args) -> dict[str, list[str]]:
    """Of the user's options for evaluations those that say which images: they hold for every measurement."""
    names = ("--data", "--root", "--split", "--protocol", "--limit")
    return {name: values for name, values in args.eval_options.items() if name in names}


def evaluated_sets(args) -> dict[str, list[str]]:
    """The paper's splits: CoOp's where there are any."""
    options = {"--data": [",".join(SETS)], "--protocol": ["coop"], "--root": [args.root]}
    if args.limit is not None:
        options["--limit"] = [str(args.limit)]
    return options


def judged_by(args) -> dict[str, list[str]]:
    return {"--judge": [args.eval_judge]}


def figures_file(args, table: str, row: Row, seed: int) -> Path:
    name = f"{row.figures}-seed{seed}" if row.seeded else row.figures
    if table == "broader":
        name += "-broader"
    return args.out / f"{name}.json"


def rows_of(args, table: str) -> list[Row]:
    """A table's rows. CaSED needs a file of captions, which is the user's."""
    return [row for row in TABLES[table] if row != CASED or args.captions]


def seeds_of(args, row: Row) -> list[int]:
    return args.seeds if row.seeded else args.seeds[:1]


def missing_commands(args) -> list[Command]:
    """What is still to be run, each once, in order."""
    missing = []
    for table in args.tables:
        for row in rows_of(args, table):
            for commands in chains(args, table, row):
                missing += [command for command in needed(commands) if command not in missing]
    return missing


def needed(commands: list[Command]) -> list[Command]:
    """Of a row's commands those behind the last that has left its result: it needs nothing of what comes
    before, which may have been deleted."""
    rest = []
    for command in reversed(commands):
        if command.there:
            break
        rest.insert(0, command)
    return rest


# ------------------------------------------------------------------------------------------------------------
# A command as its own program reads it

# What decides an evaluation's figures, of its options.
DECIDING = ("data", "root", "split", "protocol", "limit", "model", "judge", "judge_model", "judge_prompt",
            "prompt", "n", "choose", "temperature", "top_p", "seed", "max_new_tokens", "max_pixels",
            "embedder", "language_inclusion")


def config_of(command: Command) -> train.Config:
    """A training's settings as its program reads them. Raises ValueError, also where a run in its folder has
    others."""
    words = command.words[1:]
    parse_config = train.parse_config
    if command.kind == "sft":
        words = command.words[2:]  # behind -m and the module
        parse_config = sft.parse_config
    if (command.leaves / "config.json").exists():
        words[words.index("--out")] = "--resume"
    try:
        config, _ = parse_config(words)
    except ValueError as error:
        raise ValueError(f"{command.leaves}: {first_line(error)}") from None
    return config


def evaluation_options(command: Command) -> argparse.Namespace:
    """An evaluation's options as evaluate.py reads them. Raises ValueError, also where its figures are there
    and were made by others."""
    options = evaluate.parser().parse_args(command.words[1:])
    evaluate.check_options(options)
    if command.there:
        refuse_other_figures(command.result, options)
    return options


def refuse_other_figures(file: Path, options: argparse.Namespace) -> None:
    """Raises ValueError where the figures in a file are another command's."""
    made_by = read_document(file)["arguments"]
    wanted = dict(vars(options))
    wanted["judge"] = judge_label(options.judge[0])
    if options.answers:
        wanted["judge"] = [wanted["judge"]]  # of several, there
    if options.model is None and options.adapter == ["none"]:
        wanted["model"] = MODEL
    for name in DECIDING:
        # what is left open here stands decided there
        left_open = wanted.get(name) is None and name in ("model", "temperature", "max_new_tokens")
        if name in made_by and name in wanted and not left_open and made_by[name] != wanted[name]:
            raise ValueError(f"{file} was made with {flag(name)} {made_by[name]}, not {wanted[name]}: give "
                             "another --out")


def read_document(file: Path) -> dict:
    """A figures' file of evaluate.py. Raises ValueError for anything else."""
    try:
        document = json.loads(file.read_text("utf-8"))
        if not document["arguments"] or not document["results"]:
            raise ValueError("it is empty")
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{file} holds no figures of evaluate.py ({first_line(error)})") from None
    return document


# ------------------------------------------------------------------------------------------------------------
# What a command costs

# Seconds on one H100 with the 7B, measured (docs/speed.md): a step of 256 images x 10 answers of 150 tokens.
IMAGE = 0.052               # of a rollout, for an image of CUB's size: vision tower and prompt
DECODED = 0.066             # of a rollout, for a token of all answers that are decoded together
JUDGED = 3.0 / 2560         # for an answer; 1,500 of the 2,560 pairs were distinct
STEP_TOKENS = 256 * (400 + 10 * 150)
REFERENCE = 16.7 / STEP_TOKENS
OLD = 9.7 / (STEP_TOKENS / 2)  # for all minibatches of a step but the first
UPDATE = 63.8 / STEP_TOKENS

PROMPT_TOKENS = 400
ANSWER_TOKENS = 150         # of an answer with its thoughts
DIRECT_TOKENS = 15          # of one without any
CUB_PIXELS = 500 * 375
PIXELS = {"aircraft": 1_500_000}  # of sets whose pictures are much larger than CUB's
DYNAMIC_BATCHES = 3

# How many answers are decoded at a time, as support/memory.py counts: what 80 GB have left beside policy,
# adapters and judge, and what a token of an answer, or of its share of the prompt, takes of it.
FREE_BYTES = 42e9
TOKEN_BYTES = 59_000
QUESTION_TOKENS = 60
TOKEN_PIXELS = 28 * 28      # of an image

TRAINING_IMAGES = {"cub": 5994, "flowers": 4093, "food": 50500, "pets": 2944, "cars": 8144, "aircraft": 3334}
TEST_IMAGES = {"flowers": 2463, "food": 30300, "pets": 3669, "cars": 8041, "aircraft": 3333}


def hours(command: Command, answer_tokens: int) -> tuple[float, float] | None:
    """(expected, at most) of one H100; None for what was never measured. Raises ValueError where the command
    can't be, or its result is another command's."""
    if command.kind in ("train", "sft"):
        options = config_of(command)
        seconds_of = training_seconds
    elif command.kind == "cased":
        cased.check_options(cased.parser().parse_args(command.words[2:]))
        return None
    else:
        options = evaluation_options(command)
        seconds_of = evaluation_seconds
    expected = seconds_of(options, answer_tokens, runs_on=False)
    most = seconds_of(options, answer_tokens, runs_on=True)
    if "--language-inclusion" in command.words or expected is None:
        return None
    return expected / 3600, most / 3600


def training_seconds(config: train.Config, answer_tokens: int, runs_on: bool) -> float | None:
    """All steps, validations and the tests at the end. runs_on: whether one answer of each round does; None
    for a set of unknown size."""
    names = config.data.split(",")
    if any(name not in TRAINING_IMAGES for name in names):
        return None
    tokens = mean_length(config.prompt, answer_tokens, config.max_new_tokens)
    longest = config.max_new_tokens if runs_on else tokens

    # A release's epoch is whole steps.
    images = sum(min(TRAINING_IMAGES[name], config.limit) for name in names)
    steps = config.steps or config.epochs * (images // config.images_per_step)
    size = fmean(relative_size(name, config.max_pixels) for name in names)
    if config.method == "sft":
        step = sft_step_seconds(config, size)
    else:
        step = step_seconds(config, size, tokens, longest)

    # Each set is validated before the first step and then every few; at the end it is tested before and after
    # training, greedily and at temperature 1.
    validations = 1 + (steps // config.eval_every if config.eval_every else 0)
    measured = (validations + 4) * len(names)
    rows = min(256, rows_that_fit(config.max_new_tokens, 1, config.max_pixels))
    one = rollout_seconds(config.eval_limit, 1, longest, rows, size) + config.eval_limit * JUDGED
    return steps * step + measured * one


def step_seconds(config: train.Config, size: float, answer_tokens: int, longest: int) -> float:
    """Rollout, judge, log-probs and update of one step. size: of an image, CUB's being 1; longest: tokens of
    a round's longest answer."""
    images = config.images_per_step
    rows = rows_that_fit(config.max_new_tokens, config.n, config.max_pixels)
    if config.rows is not None:
        rows = min(rows, config.rows)
    batches = DYNAMIC_BATCHES if config.dynamic_sampling else 1
    sampled = batches * rollout_seconds(images, config.n, longest, rows, size)
    judged = batches * images * config.n * JUDGED

    # An image goes through the model once for all its answers.
    tokens = PROMPT_TOKENS + config.n * answer_tokens
    scored = images * tokens * UPDATE
    if config.beta > 0:
        scored += images * tokens * REFERENCE
    scored += max(0, images - config.minibatch) * tokens * OLD
    return sampled + judged + scored


def sft_step_seconds(config: train.Config, size: float) -> float:
    """A label has about as many tokens as an answer without thoughts."""
    images = config.images_per_step
    return images * size * IMAGE + images * (PROMPT_TOKENS + DIRECT_TOKENS) * UPDATE


def evaluation_seconds(options: argparse.Namespace, answer_tokens: int, runs_on: bool) -> float | None:
    """Answers to the test images, and their verdicts; of stored answers the verdicts alone. None for a set of
    unknown size."""
    names = options.data.split(",")
    if any(name not in TEST_IMAGES for name in names):
        return None
    max_new_tokens = options.max_new_tokens or evaluate.DEFAULTS["max_new_tokens"]
    rows = min(options.rows, rows_that_fit(max_new_tokens, options.n, options.max_pixels))
    longest = max_new_tokens if runs_on else mean_length(options.prompt, answer_tokens, max_new_tokens)

    seconds = 0.0
    for name in names:
        images = min(TEST_IMAGES[name], options.limit or TEST_IMAGES[name])
        seconds += images * options.n * JUDGED
        if not options.answers:
            size = relative_size(name, options.max_pixels)
            seconds += rollout_seconds(images, options.n, longest, fewer_rows(rows, name, options), size)
    return seconds


def fewer_rows(rows: int, name: str, options: argparse.Namespace) -> float:
    """Answers at a time of a set whose pictures are larger than memory is reckoned with: they share the room
    of smaller ones."""
    if options.max_pixels or name not in PIXELS:
        return rows
    max_new_tokens = options.max_new_tokens or evaluate.DEFAULTS["max_new_tokens"]
    planned = QUESTION_TOKENS + PLANNED_PIXELS / TOKEN_PIXELS
    prompt = QUESTION_TOKENS + PIXELS[name] / TOKEN_PIXELS
    by_tokens = rows * (max_new_tokens + planned / options.n) / (max_new_tokens + prompt / options.n)

    # and no more images than have so many pixels together
    images = max(rows / options.n, evaluate.FEW_IMAGES) * PLANNED_PIXELS / PIXELS[name]
    return min(by_tokens, images * options.n)


def mean_length(prompt: str, answer_tokens: int, max_new_tokens: int) -> int:
    """Tokens of an answer: answer_tokens, unless the question forbids thoughts or no more are allowed."""
    return min(DIRECT_TOKENS if prompt == "direct" else answer_tokens, max_new_tokens)


def rollout_seconds(images: int, n: int, longest: int, rows: float, size: float) -> float:
    """N answers to each image, `rows` of them at a time. size: of an image, CUB's being 1."""
    rounds = max(1.0, images * n / rows)
    return images * size * IMAGE + rounds * longest * DECODED


def rows_that_fit(max_new_tokens: int, n: int, max_pixels: int | None) -> int:
    """Each answer is counted at its longest, with its share of the longest prompt."""
    prompt = QUESTION_TOKENS + (max_pixels or PLANNED_PIXELS) / TOKEN_PIXELS
    return max(1, int(FREE_BYTES / (TOKEN_BYTES * (max_new_tokens + prompt / n))))


def relative_size(name: str, max_pixels: int | None) -> float:
    """Pixels of a set's picture as the model sees it, CUB's being 1."""
    pixels = PIXELS.get(name, CUB_PIXELS)
    return min(pixels, max_pixels or pixels) / CUB_PIXELS


# ------------------------------------------------------------------------------------------------------------
# Printing and running


def print_commands(args) -> None:
    """The script: a row's commands below its title, those of another row named where they were."""
    missing = missing_commands(args)
    named = {}  # where a result was named first
    for table in args.tables:
        print(f"\n# ---- {TITLES[table]} (--tables {table})")
        for row in rows_of(args, table):
            print(f"\n# {row.title}")
            for commands in chains(args, table, row):
                for command in commands:
                    print_command(args, command, missing, named, f"{table}, {row.title}")
        if table == "main" and not args.captions:
            print("\n# CaSED: give --captions FILE")
    print(f"\n# {left_line(missing, args.answer_tokens)}")


def print_command(args, command: Command, missing: list[Command], named: dict[Path, str],
                  title: str) -> None:
    """Its hours, its state and its words; or, where it was named before, by which row. title: of this row."""
    if command.leaves in named:
        print(f"# as in {named[command.leaves]}: {command.leaves}")
        return
    named[command.leaves] = title
    print(f"# {hours_text(hours(command, args.answer_tokens))}; {state(command, missing)}")
    print(command.shown())


def state(command: Command, missing: list[Command]) -> str:
    if command.there:
        return "there"
    if command not in missing:
        return "not needed any more"
    return "begun, the hours are the whole run's" if command.begun else "missing"


def hours_text(cost: tuple[float, float] | None) -> str:
    if cost is None:
        return "not measured"
    expected, most = cost
    return f"{amount(expected)} hours, at most {amount(most)}"


def amount(value: float) -> str:
    if value < 0.1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def left_line(missing: list[Command], answer_tokens: int) -> str:
    """What is still to be run, in all."""
    costs = [hours(command, answer_tokens) for command in missing]
    known = [cost for cost in costs if cost is not None]
    expected = sum(cost[0] for cost in known)
    most = sum(cost[1] for cost in known)
    line = f"missing: {len(missing)} commands"
    if known:
        line += f", {amount(expected)} hours of one H100, at most {amount(most)}"
    if len(known) < len(costs):
        line += f"; {len(costs) - len(known)} of them not measured"
    return line


def run_missing(args) -> None:
    """Runs what is missing, one command after another. A command that fails ends the program in one line."""
    args.out.mkdir(parents=True, exist_ok=True)
    missing = missing_commands(args)
    for number, command in enumerate(missing, 1):
        shown = command.shown()
        print(f"\n[{number} of {len(missing)}] {shown}", flush=True)
        status = execute(command.to_run())
        if status != 0:
            sys.exit(f"paper.py: this command ended with status {status}, what is done is kept: {shown}")


def execute(words: list[str]) -> int:
    """One command in a process of its own. Returns its exit status. Ctrl-C reaches that process too; it has
    last things to write, and is waited for."""
    process = subprocess.Popen([sys.executable, *words])
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise


# ------------------------------------------------------------------------------------------------------------
# The tables


def print_tables(args) -> None:
    """Markdown, for each table of which figures are there."""
    for table in args.tables:
        found = {}  # row -> the figures of each seed that is there
        for row in rows_of(args, table):
            files = [figures_file(args, table, row, seed) for seed in seeds_of(args, row)]
            documents = [read_figures(file) for file in files if file.exists()]
            if documents:
                found[row] = documents
        if not found:
            continue
        print(f"\n### {TITLES[table]}\n")
        print(broader_table(found) if table == "broader" else means_table(found))
        if table == "domain":
            print(sets_table(found))


def read_figures(file: Path) -> dict[str, dict]:
    """Dataset or mean -> its row of the first and only system in a figures' file."""
    results = read_document(file)["results"]
    return next(iter(results.values()))


def means_table(found: dict[Row, list[dict]]) -> str:
    """Both means of each row, beside the paper's HM where one of the rows has it."""
    in_paper = any(row.paper for row in found)
    heads = [f"{mean} C / S / **HM**" for mean in MEANS]
    if in_paper:
        heads.append("the paper's fine-grained HM")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for row, documents in found.items():
        cells = [three_figures(documents, mean) for mean in MEANS]
        if in_paper:
            cells.append(f"{row.paper:.3f}" if row.paper else "-")
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def three_figures(documents: list[dict], name: str) -> str:
    """Correctness / specificity / **HM** of a dataset or mean, means over the seeds that have it."""
    seeds = [summary(document[name]) for document in documents if name in document]
    if not seeds:
        return "-"
    correctness = fmean(seed["correctness"] for seed in seeds)
    specificity = fmean(seed["specificity"] for seed in seeds)
    means = [seed["harmonic_mean"] for seed in seeds]
    return f"{correctness:.3f} / {specificity:.3f} / **{fmean(means):.3f}**{error(means)}"


def summary(row: dict) -> dict[str, float]:
    """A row's figures; of several answers to an image those of the best."""
    if "best_of" in row:
        row = list(row["best_of"].values())[-1]
    return row["summary"]


def error(values: list[float]) -> str:
    """The standard error over seeds, as text; nothing for one seed."""
    if len(values) < 2:
        return ""
    return f" ± {stdev(values) / len(values) ** 0.5:.3f}"


def sets_table(found: dict[Row, list[dict]]) -> str:
    """Every set by itself: what a row was trained on is among them, and in the means above."""
    lines = ["| C / S / **HM** on | " + " | ".join(SETS) + " |", "|---" * (1 + len(SETS)) + "|"]
    for row, documents in found.items():
        cells = []
        for name in SETS:
            seen = " (trained on)" if row.training in (f"on-{name}", "on-all") else ""
            cells.append(three_figures(documents, name) + seen)
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def broader_table(found: dict[Row, list[dict]]) -> str:
    """The scores beside the six rungs, on both means; means over the seeds that have them."""
    columns = {}  # (mean, score), as keys: in the order of the files
    for documents in found.values():
        for document in documents:
            for mean in MEANS:
                columns |= {(mean, name): None for name in scores_of(document, mean)}
    heads = [f"{mean}: {name.replace('_', ' ')}" for mean, name in columns]

    lines = ["| | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for row, documents in found.items():
        cells = []
        for mean, name in columns:
            seeds = [scores_of(document, mean).get(name) for document in documents]
            seeds = [score for score in seeds if score is not None]
            cells.append(f"{fmean(seeds):.3f}" if seeds else "-")
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def scores_of(document: dict[str, dict], name: str) -> dict[str, float]:
    """A dataset's or mean's scores that are no rungs' figures; {} where it is not there."""
    return document.get(name, {}).get("scores", {})


# ------------------------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", default="data", help="folder of the datasets (default: data)")
    p.add_argument("--out", type=Path, default=Path("runs/paper"),
                   help="folder of runs and figures (default: runs/paper)")
    p.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES),
                   help="a part of the tables (default: all)")
    p.add_argument("--run", action="store_true", help="run what is missing")
    p.add_argument("--model", help="the policy's checkpoint (default: Qwen2.5-VL-7B)")
    p.add_argument("--judge", help="of training (default: train.py's)")
    p.add_argument("--eval-judge", default=EVALUATION_JUDGE,
                   help=f"of evaluation (default: {EVALUATION_JUDGE})")
    p.add_argument("--max-new-tokens", type=int, default=2048,
                   help="longest completion, in training and evaluation (default: 2048, the release's)")
    p.add_argument("--limit", type=int, help="test images a set (default: all)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0], help="of trainings and samples (default: 0)")
    p.add_argument("--captions", metavar="FILE", help="a text file of captions: adds CaSED")
    p.add_argument("--embedder", default=EMBEDDER, help=f"of the part broader (default: {EMBEDDER})")
    p.add_argument("--language-inclusion", default=LANGUAGE_MODEL, metavar="MODEL",
                   help=f"of the part broader (default: {LANGUAGE_MODEL})")
    p.add_argument("--train-options", default="", help="for every training, in one string; they win")
    p.add_argument("--eval-options", default="", help="for every evaluation, in one string; they win")
    p.add_argument("--cased-options", default="", help="for baselines.cased, in one string; they win")
    p.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS,
                   help=f"mean length of an answer, for the hours (default: {ANSWER_TOKENS})")
    return p


DECIDED = ("--seed", "--out", "--resume", "--adapter", "--answers")  # of each command, by its row


def read_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options, the strings of options among them read. Raises ValueError for one that can't be."""
    args = parser().parse_args(argv)
    for name in ("max_new_tokens", "limit", "answer_tokens"):
        check_value(name, getattr(args, name), COUNT)
    for seed in args.seeds:
        check_value("seeds", seed, SEED)
    if len(set(args.seeds)) < len(args.seeds):
        raise ValueError("--seeds names one twice")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {args.out} is a file")
    if args.captions is not None and not Path(args.captions).is_file():
        raise ValueError(f"--captions {args.captions} is no file")
    if Path.cwd() != ROOT:
        raise ValueError(f"its commands work in the repository's folder only: start it in {ROOT}")
    args.tables = list(dict.fromkeys(args.tables))
    for name in ("train_options", "eval_options", "cased_options"):
        try:
            setattr(args, name, options_in(shlex.split(getattr(args, name))))
        except ValueError as error:
            raise ValueError(f"{flag(name)}: {error}") from None
        decided = [option for option in DECIDED if option in getattr(args, name)]
        if decided:
            raise ValueError(f"{flag(name)}: {' and '.join(decided)} can't be given here, it follows from "
                             "the row, --seeds and --out")
    return args


def main(argv: list[str] | None = None) -> None:
    try:
        args = read_arguments(argv)
        print_commands(args)  # parses every command: a slip in an option is met before any hour is spent
        if args.run:
            run_missing(args)
        print_tables(args)
    except (ValueError, OSError) as error:
        sys.exit(f"paper.py: {first_line(error)}")
    except KeyboardInterrupt:
        sys.exit("paper.py: stopped; the same command goes on")


if __name__ == "__main__":
    main()
