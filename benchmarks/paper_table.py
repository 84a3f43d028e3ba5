"""The paper's experiment in miniature: every baseline, two controls and the ablations, on the embedded world.

    python benchmarks/paper_table.py --out runs/table           the tables that stand in the README
    python benchmarks/paper_table.py --parts main --seeds 0 1   a part of them
    python benchmarks/paper_table.py --split val --parts main --options "--lr 5e-4"   to choose a recipe by

Each run is one training on birds, in a process of its own, measured in domain (birds) and out of it (flowers,
vehicles, fish), greedy and with one sample at temperature 1. A finished run is kept in --out and not run
again: a stopped table goes on. The main table and the one over N take seeds 0..4, each with its own base
policy; the others the first three of them. Over N a step always has 128 answers. The controls must not raise
HM (train.py --control). The part `odds` also draws its curve, into odds.svg in --out.

bar@8 is the paper's rule on groups of 8 of the N answers (bar_at_k.py): up to N = 8 the paper's rule itself.

"±" is the standard error over seeds; [ ] a 95 % bootstrap interval over images, paired by image, the seeds as
they are. A toy world's figures: they stand for none of the paper's.
"""

import argparse
import json
import random
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from benchmarks.bar_at_k import bar_at_k
from benchmarks.odds_figure import curve_svg
from metrics import average, best_of_n, difference, summarize
from reward import Category

# Every method by name, with the options that make it, in parts. Without options: SpeciaRL in the toy preset.
ODDS_1 = ["--odds", "1"]
MAIN = {
    "base": [],
    "specific": [],
    "best of 64": [],
    "sft": [],
    "exact": ["--reward", "exact"],
    "graded": ["--reward", "graded"],
    "truthful": ["--reward", "truthful"],
    "speciarl": [],
    "speciarl, odds 1": ODDS_1,
}
CONTROLS = {"shuffled": ["--control", "shuffled"], "permuted": ["--control", "permuted"]}
STATIC = {"graded_abstain": ["--reward", "graded_abstain"], "close": ["--reward", "close"]}
LOSSES = {loss: ["--loss", loss] for loss in ("dr_grpo", "dapo", "gspo")}
ODDS = {"1/4": 0.25, "1/2": 0.5, "2": 2.0, "4": 4.0}  # 1 is in the part over N
NOISE = (5, 10, 25, 40)        # per cent
IMAGES = (128, 256, 512)       # training images; 1,000 are in the main part
FINE_SHARES = (0.08, 0.45)     # of the base policy's later captions; .18 is in the main part


def of_n(n: int) -> list[str]:
    """128 answers a step, however many an image gets."""
    images = str(128 // n)
    return ["--n", str(n), "--images-per-step", images, "--minibatch", images, "--micro-batch", images]


def over_n() -> dict[str, list[str]]:
    """The paper's bar at each N, then odds 1, then bar@8 where it differs; N = 8 is in the main part."""
    methods = {}
    for n in (2, 4, 16, 32, 64):
        methods[f"N = {n}"] = of_n(n)
        methods[f"N = {n}, odds 1"] = of_n(n) + ODDS_1
    for n in (16, 32, 64):
        methods[f"N = {n}, bar@8"] = of_n(n)
    return methods


def over_odds() -> dict[str, list[str]]:
    return {f"N = 16, odds {name}": of_n(16) + ["--odds", str(odds)] for name, odds in ODDS.items()}


def over_noise() -> dict[str, list[str]]:
    """Both bars under each noise."""
    methods = {}
    for percent in NOISE:
        noise = ["--noise", str(percent / 100)]
        methods[f"noise {percent} %"] = noise
        methods[f"noise {percent} %, odds 1"] = noise + ODDS_1
    return methods


def over_domains() -> dict[str, list[str]]:
    """Trained on each other domain, and on all of them with as many images in all."""
    domains = ("flower", "vehicle", "fish")
    methods = {f"trained on {domain}": ["--data", f"toy-{domain}"] for domain in domains}
    mixed = ",".join(f"toy-{domain}" for domain in (TRAINED_ON, *domains))
    return methods | {"trained on all four": ["--data", mixed, "--limit", "250"]}


def over_starts() -> dict[str, list[str]]:
    """Base policies that are shyer and bolder, untrained and trained by both bars."""
    methods = {}
    for share in FINE_SHARES:
        methods[f"start {share}, base"] = []
        methods[f"start {share}, speciarl"] = []
        methods[f"start {share}, odds 1"] = ODDS_1
    return methods


TRAINED_ON = "bird"  # in domain; the others are out of it

PARTS = {
    "main": MAIN,
    "controls": CONTROLS,
    "n": over_n(),
    "odds": over_odds(),
    "static": STATIC,
    "noise": over_noise(),
    "judge": {"worse judge": [], "worse judge, odds 1": ODDS_1},
    "losses": LOSSES,
    "data": {f"{images} images": ["--limit", str(images)] for images in IMAGES},
    "domains": over_domains(),
    "start": over_starts(),
}
METHODS = {method: options for part in PARTS.values() for method, options in part.items()}

# The base policy itself, asked in other ways: nothing to train.
UNTRAINED = ("base", "specific", "best of 64", *[f"start {share}, base" for share in FINE_SHARES])

# The methods of other parts that stand in a part's table too, under the name they have there.
BOTH_BARS = {"speciarl": "speciarl", "speciarl, odds 1": "speciarl, odds 1"}
BESIDE = {
    "main": {},
    "controls": {"base": "base", "speciarl": "speciarl"},
    "n": {"speciarl": "N = 8", "speciarl, odds 1": "N = 8, odds 1"},
    "odds": {"N = 16": "N = 16, the paper's bar", "N = 16, odds 1": "N = 16, odds 1", "base": "base",
             "specific": "specific", "sft": "sft", "exact": "exact", "graded": "graded",
             "truthful": "truthful", "graded_abstain": "graded_abstain", "close": "close"},
    "static": {"exact": "exact", "graded": "graded", "truthful": "truthful"} | BOTH_BARS,
    "noise": {"speciarl": "noise 0 %", "speciarl, odds 1": "noise 0 %, odds 1"},
    "judge": BOTH_BARS,
    "losses": {"speciarl": "grpo"},
    "data": {"speciarl": "1000 images"},
    "domains": {"base": "base", "speciarl": "trained on bird"},
    "start": {"base": "start 0.18, base", "speciarl": "start 0.18, speciarl",
              "speciarl, odds 1": "start 0.18, odds 1"},
}
TITLES = {
    "controls": "Controls",
    "n": "Answers an image, 128 a step",
    "odds": "Odds at N = 16, other rewards at N = 8",
    "static": "Static rewards",
    "noise": "Noise in the judge",
    "judge": "A worse judge",
    "losses": "Losses",
    "data": "Training images",
    "domains": "Domains to train on",
    "start": "Where training starts",
}
ALL_SEEDS = ("main", "n")  # the parts that take all of --seeds; the others take the first three
ABLATION_SEEDS = 3

# The worse judge: how often a true rung (a row, Wrong first) is told as each of the six (a column).
CONFUSION = (
    (0.8, 0.2, 0.0, 0.0, 0.0, 0.0),
    (0.1, 0.8, 0.1, 0.0, 0.0, 0.0),
    (0.0, 0.1, 0.8, 0.1, 0.0, 0.0),
    (0.0, 0.0, 0.1, 0.8, 0.1, 0.0),
    (0.0, 0.0, 0.0, 0.1, 0.8, 0.1),
    (0.0, 0.0, 0.0, 0.0, 0.2, 0.8),
)

# How answers are drawn, and at which temperature.
HOWS = {"greedy": 0.0, "temperature 1": 1.0}

# ------------------------------------------------------------------------------------------------------------
# One run


def use_bar_at_8(train) -> None:
    """The rewards of bar@8 instead of the paper's."""

    def rewards(categories: list, config) -> list[float]:
        return bar_at_k(categories, 8, config.malformed)

    train.group_rewards = rewards


def use_worse_judge(train, seed: int) -> None:
    """A judge in training that tells each rung as CONFUSION says; the measurement keeps the right one."""
    judge_groups = train.judge_groups
    rng = random.Random(seed)

    def redrawn(*args) -> list[list]:
        groups = []
        for group in judge_groups(*args):
            groups.append([redraw(category, rng) for category in group])
        return groups

    train.judge_groups = redrawn


def redraw(category, rng):
    """One verdict as the worse judge tells it; what is no verdict stays."""
    if not isinstance(category, Category):
        return category
    return rng.choices(list(Category), weights=CONFUSION[category])[0]


def start_from(share: float, out: Path) -> None:
    """A base policy whose later captions have this share of fine names, the rest scaled. It has a cache of
    its own, since the usual one knows nothing of the share."""
    from toy import base_policy, captions

    *coarse, fine = captions.SHY["base"]
    scale = (1 - share) / (1 - fine)
    captions.SHY["base"] = (*[old * scale for old in coarse], share)
    base_policy.base_policy = partial(base_policy.base_policy, cache=out / f"base-{share}")


def measure_nothing(train) -> None:
    """Training ends with a measurement of its own, which nothing here would read: `measure` does it."""

    def no_results(*args, **options) -> dict:
        return {}

    def no_text(*args, **options) -> str:
        return ""

    train.before_and_after = no_results
    train.comparison = no_text


def train_method(method: str, seed: int, folder: Path, options: list[str]) -> None:
    """Trains one method on birds, unless the run in `folder` is whole."""
    import train

    # eval.json is written at the very end. A folder without it is of a run that was stopped.
    if (folder / "eval.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)

    command = train.main
    measure_nothing(train)
    if method == "sft":
        from baselines import sft  # it ends its runs by train's own function
        command = sft.main
    elif method.endswith("bar@8"):
        use_bar_at_8(train)
    elif method.startswith("worse judge"):
        use_worse_judge(train, seed)
    given = [*METHODS[method], *options]
    if "--data" not in given:
        given += ["--data", f"toy-{TRAINED_ON}"]
    command(["--seed", str(seed), "--out", str(folder), "--eval-every", "0", *given])


def measure(policy, judge, question: str, n: int, temperature: float, seed: int, split: str) -> dict:
    """The policy's answers to all four domains -> domain -> {"categories": the best verdict of an image's n
    answers, "shows": what its pixels carry}, a list entry an image."""
    import data
    from evaluate import evaluate
    from toy import world

    domains = {}
    for domain in world.DOMAINS:
        examples = data.load(f"toy-{domain}", split)
        found = evaluate(policy, judge, examples, question, n, temperature, 16, seed, rows=1024)
        shows = []
        for record in found["records"]:
            index = int(record["id"].rsplit("/", 1)[1])  # toy-bird/test/17
            _, _, shown = world.draw(domain, split, index)
            shows.append(shown)
        domains[domain] = {"categories": best_of_n(found["groups"]), "shows": shows}
    return domains


def file_of(out: Path, method: str, seed: int, split: str) -> Path:
    """The file of a run's verdicts."""
    name = method.replace(" ", "_").replace("/", "-")
    return out / f"{name}-{seed}-{split}.json"


def run_one(method: str, seed: int, split: str, out: Path, options: list[str]) -> None:
    """Trains, unless there is nothing to train; measures on one split; writes the file of that run."""
    # Here and not above: the parent process, which starts the runs, needs no torch.
    from judges.taxonomy import TaxonomyJudge
    from support.files import write_json
    from support.opening import load_policy, question_for
    from toy import world

    file = file_of(out, method, seed, split)
    if method.startswith("start "):
        share = method.split()[1].strip(",")
        start_from(float(share), out)
    adapter = None
    if method not in UNTRAINED:
        folder = file.with_suffix(".run")
        train_method(method, seed, folder, options)
        adapter = folder / "adapter"

    policy = load_policy("toy", seed, adapter=adapter)
    judge = TaxonomyJudge(world.parents())
    prompt = "specific" if method == "specific" else "base"
    question = question_for(prompt, ["toy"])
    if method == "best of 64":
        # greedily all 64 answers are one
        results = {"temperature 1": measure(policy, judge, question, 64, 1.0, seed, split)}
    else:
        results = {}
        for how, temperature in HOWS.items():
            results[how] = measure(policy, judge, question, 1, temperature, seed, split)
    write_json(file, results)


# ------------------------------------------------------------------------------------------------------------
# The tables. A result is what one run wrote; `runs` is method -> its results, one a seed.


def verdicts_of(result: dict, how: str, inside: bool) -> list[list[Category | None]]:
    """A run's verdicts, in domain or out of it: a list a domain, a verdict an image."""
    domains = []
    for domain, found in result[how].items():
        is_inside = domain == TRAINED_ON
        if is_inside == inside:
            domains.append([None if c is None else Category(c) for c in found["categories"]])
    return domains


def figures(result: dict, how: str, inside: bool) -> dict[str, float]:
    """Correctness, specificity and HM; out of domain the mean of the domains' own."""
    return average([summarize(verdicts) for verdicts in verdicts_of(result, how, inside)])


def harmonic_means(results: list[dict], how: str, inside: bool) -> list[float]:
    """The HM of each seed."""
    return [figures(result, how, inside)["harmonic_mean"] for result in results]


def error(values: list[float]) -> str:
    """The standard error over seeds, as text; nothing for one seed."""
    if len(values) < 2:
        return ""
    return f" ± {stdev(values) / len(values) ** 0.5:.3f}"


def three_figures(results: list[dict], how: str, inside: bool) -> str:
    """Correctness / specificity / **HM**, means over seeds."""
    seeds = [figures(result, how, inside) for result in results]
    correctness = fmean(seed["correctness"] for seed in seeds)
    specificity = fmean(seed["specificity"] for seed in seeds)
    hm = harmonic_means(results, how, inside)
    return f"{correctness:.3f} / {specificity:.3f} / **{fmean(hm):.3f}**{error(hm)}"


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown, a block for greedy and one for temperature 1."""
    lines = []
    for how in HOWS:
        lines.append(f"| {how} | in domain C / S / **HM** | out of domain C / S / **HM** |")
        lines.append("|---|---|---|")
        for method, results in runs.items():
            if how in results[0]:
                in_domain = three_figures(results, how, inside=True)
                out_of_domain = three_figures(results, how, inside=False)
                lines.append(f"| {method} | {in_domain} | {out_of_domain} |")
        lines.append("")
    return "\n".join(lines)


def hm_difference(results: list[dict], others: list[dict], how: str, inside: bool) -> str:
    """The first's HM minus the other's: mean and standard error over seeds, [interval over images]."""
    ours = harmonic_means(results, how, inside)
    theirs = harmonic_means(others, how, inside)
    by_seed = [a - b for a, b in zip(ours, theirs)]

    # Every seed's domains, each paired image by image: groups of one answer.
    datasets = []
    for result, other in zip(results, others):
        for first, second in zip(verdicts_of(other, how, inside), verdicts_of(result, how, inside)):
            datasets.append(([[c] for c in first], [[c] for c in second]))
    low, high = difference(*datasets)["intervals"]["harmonic_mean"]
    return f"{fmean(by_seed):+.3f}{error(by_seed)} [{low:+.3f} {high:+.3f}]"


def paired(runs: dict[str, list[dict]], against: str = "speciarl") -> str:
    """SpeciaRL's HM minus each other method's, over seeds and images."""
    columns = "greedy, in | greedy, out | temperature 1, in | temperature 1, out"
    lines = [f"| HM of {against} minus that of | {columns} |"]
    lines.append("|---|---|---|---|---|")
    for method, results in runs.items():
        if method == against:
            continue
        cells = []
        for how in HOWS:
            for inside in (True, False):
                if how in results[0]:
                    cells.append(hm_difference(runs[against], results, how, inside))
                else:
                    cells.append("-")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def verdicts_where(results: list[dict], how: str, shows: str) -> list[int | None]:
    """All seeds' verdicts out of domain, on the pictures that show `shows`."""
    verdicts = []
    for result in results:
        for domain, found in result[how].items():
            if domain == TRAINED_ON:
                continue
            for category, shown in zip(found["categories"], found["shows"]):
                if shown == shows:
                    verdicts.append(category)
    return verdicts


def by_what_it_shows(runs: dict[str, list[dict]]) -> str:
    """Shares of answers out of domain by what the pixels carry: where the method's point is seen."""
    kinds = {"fine": "the fine cue", "family": "the family only", "domain": "the domain only"}
    columns = " | ".join(kinds.values())
    lines = [f"| out of domain: Wrong / right and fine, where the picture shows | {columns} |"]
    lines.append("|---|---|---|---|")
    for how in HOWS:
        for method, results in runs.items():
            if how not in results[0]:
                continue
            cells = []
            for kind in kinds:
                verdicts = verdicts_where(results, how, kind)
                wrong = fmean(c is None or c == Category.WRONG for c in verdicts)
                fine = fmean(c is not None and c >= Category.SPECIFIC for c in verdicts)
                cells.append(f"{wrong:.3f} / {fine:.3f}")
            lines.append(f"| {how}: {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def seed_by_seed(runs: dict[str, list[dict]]) -> str:
    """Each seed's HM, for those who don't trust means."""
    lines = []
    for how in HOWS:
        for method, results in runs.items():
            if how not in results[0]:
                continue
            in_domain = harmonic_means(results, how, inside=True)
            out_of_domain = harmonic_means(results, how, inside=False)
            pairs = [f"{i:.3f}/{o:.3f}" for i, o in zip(in_domain, out_of_domain)]
            lines.append(f"HM in/out by seed, {how}, {method}: " + " ".join(pairs))
    return "\n".join(lines)


def read_runs(out: Path, split: str, methods, seeds: list[int]) -> dict[str, list[dict]]:
    """Method -> what its runs wrote, one a seed."""
    runs = {}
    for method in methods:
        runs[method] = [json.loads(file_of(out, method, seed, split).read_text()) for seed in seeds]
    return runs


def by_n(method: str) -> tuple[str, int]:
    """The place of "N = 16, odds 1" in its table: the paper's bar, bar@8, odds 1, each by N."""
    n, _, bar = method.partition(", ")
    return bar, int(n.split()[2])


def domains_table(runs: dict[str, list[dict]]) -> str:
    """HM on each domain, means over seeds, a row for what was trained on."""
    lines = []
    for how in HOWS:
        domains = list(next(iter(runs.values()))[0][how])
        lines.append(f"| {how}, HM on | " + " | ".join(domains) + " |")
        lines.append("|---" * (1 + len(domains)) + "|")
        for method, results in runs.items():
            cells = [hm_on(domain, results, how) for domain in domains]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def hm_on(domain: str, results: list[dict], how: str) -> str:
    """HM on one domain with its error over seeds."""
    values = []
    for result in results:
        verdicts = [None if c is None else Category(c) for c in result[how][domain]["categories"]]
        values.append(summarize(verdicts).harmonic_mean)
    return f"{fmean(values):.3f}{error(values)}"


def confusion_table() -> str:
    """The worse judge's matrix: true rungs in rows, told ones in columns."""
    labels = [category.label for category in Category]
    lines = ["| is, told as | " + " | ".join(labels) + " |", "|---" * 7 + "|"]
    for label, shares in zip(labels, CONFUSION):
        lines.append(f"| {label} | " + " | ".join(f"{share:.1f}" for share in shares) + " |")
    return "\n".join(lines) + "\n"


def draw_odds(runs: dict[str, list[dict]], file: Path) -> None:
    """The curve of correctness against specificity at temperature 1, out of domain; the rest as points."""
    points = {}
    for method, results in runs.items():
        seeds = [figures(result, "temperature 1", inside=False) for result in results]
        specificity = fmean(seed["specificity"] for seed in seeds)
        correctness = fmean(seed["correctness"] for seed in seeds)
        points[method.removeprefix("N = 16, ")] = (specificity, correctness)
    curve = ["the paper's bar", "odds 1/4", "odds 1/2", "odds 1", "odds 2", "odds 4"]
    file.write_text(curve_svg(points, curve), encoding="utf-8")


def print_main(out: Path, split: str, seeds: list[int]) -> None:
    runs = read_runs(out, split, MAIN, seeds)
    print(f"### Methods, seeds {seeds}\n")
    print(table(runs))
    print(paired(runs))
    print(by_what_it_shows(runs))
    print(seed_by_seed(runs))


def print_ablation(part: str, out: Path, split: str, seeds: list[int]) -> None:
    """The table of one part, with the methods of other parts that belong in it."""
    beside = BESIDE[part]
    runs = {}
    for method, results in read_runs(out, split, beside, seeds).items():
        runs[beside[method]] = results
    runs |= read_runs(out, split, PARTS[part], seeds)
    if part == "n":
        runs = {method: runs[method] for method in sorted(runs, key=by_n)}

    print(f"\n### {TITLES[part]}, seeds {seeds}\n")
    if part == "judge":
        print(confusion_table())
    print(domains_table(runs) if part == "domains" else table(runs))
    if part == "odds":
        draw_odds(runs, out / "odds.svg")


# ------------------------------------------------------------------------------------------------------------
# All runs


def seeds_of(part: str, seeds: list[int]) -> list[int]:
    return seeds if part in ALL_SEEDS else seeds[:ABLATION_SEEDS]


def wanted_runs(parts: list[str], seeds: list[int]) -> list[tuple[str, int]]:
    """The runs (method, seed) that the parts' tables need, each once."""
    # "base" first: it makes the seed's policy, which two runs at a time would both make
    runs = [("base", seed) for seed in seeds]
    for part in parts:
        for method in [*PARTS[part], *BESIDE[part]]:
            runs += [(method, seed) for seed in seeds_of(part, seeds)]
    return list(dict.fromkeys(runs))


def start(args, run: tuple[str, int]) -> None:
    """One run in a process of its own. What it prints goes into a file beside its verdicts."""
    method, seed = run
    command = [sys.executable, __file__, "--one", method, "--seeds", str(seed), "--split", args.split,
               "--out", args.out, f"--options={args.options}"]
    log = file_of(Path(args.out), method, seed, args.split).with_suffix(".txt")
    with log.open("w") as lines:
        done = subprocess.run(command, stdout=lines, stderr=lines)
    if done.returncode:
        raise SystemExit(f"{method}, seed {seed} failed: see {log}")


def keep_options(out: Path, split: str, options: str) -> None:
    """A table is of one recipe: ends the program where the runs in `out` had other options."""
    told = out / f"options-{split}.txt"
    if told.exists() and told.read_text() != options:
        sys.exit(f"paper_table.py: runs in {out} had the options {told.read_text()!r}: give another --out")
    told.write_text(options)


def parse_arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/table", help="folder of the runs (default: runs/table)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4],
                   help="parts other than main and n: the first three")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    p.add_argument("--split", default="test", choices=("val", "test"), help="images measured (default: test)")
    p.add_argument("--options", default="", help="further options of train.py, in one string")
    p.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    p.add_argument("--one", help=argparse.SUPPRESS)  # the method that a child process runs
    return p.parse_args()


def main() -> None:
    args = parse_arguments()
    out = Path(args.out)
    if args.jobs < 1:
        sys.exit(f"paper_table.py: --jobs must be at least 1, got {args.jobs}")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        sys.exit(f"paper_table.py: --out {out} can't be a folder: {e}")

    if args.one:
        import torch
        torch.set_num_threads(1)
        run_one(args.one, args.seeds[0], args.split, out, shlex.split(args.options))
        return

    keep_options(out, args.split, args.options)
    missing = []
    for method, seed in wanted_runs(args.parts, args.seeds):
        if not file_of(out, method, seed, args.split).exists():
            missing.append((method, seed))
    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            finished = pool.map(partial(start, args), missing)
            for _ in tqdm(finished, total=len(missing), desc="runs", unit="run"):
                pass
    except KeyboardInterrupt:
        sys.exit("paper_table.py: stopped; the same command goes on")

    print(f"{args.split} images, train.py {args.options or '(toy preset)'}\n")
    if "main" in args.parts:
        print_main(out, args.split, args.seeds)
    for part in TITLES:
        if part in args.parts:
            print_ablation(part, out, args.split, seeds_of(part, args.seeds))


if __name__ == "__main__":
    main()
