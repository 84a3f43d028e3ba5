"""The paper's experiment in miniature: every baseline, two controls and the ablations, on the embedded world.

    python benchmarks/paper_table.py --out runs/table           the tables that stand in the README
    python benchmarks/paper_table.py --parts main --seeds 0 1   a part of them
    python benchmarks/paper_table.py --split val --parts main --options "--lr 5e-4"   to choose a recipe by

Each run is one training on birds, in a process of its own, measured in domain (birds) and out of it (flowers,
vehicles, fish), greedy and with one sample at temperature 1. A finished run is kept in --out and not run
again: a stopped table goes on. The main table takes seeds 0..4, each with its own base policy; the ablations
the first three of them. Over N a step always has 128 answers. The controls must not raise HM: `shuffled`
deals each group's rewards out at random, `permuted` the step's verdicts over all its images.

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
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm

from metrics import average, difference, summarize
from reward import Category

QUORUM = ["--quorum", "0.25"]
UNTRAINED = ("base", "specific", "best of 64")
MAIN = {"base": [], "specific": [], "best of 64": [], "sft": ["--method", "sft"],
        "exact": ["--reward", "exact"], "graded": ["--reward", "graded"], "speciarl": [],
        "speciarl, quorum 1/4": QUORUM}
CONTROLS = {"shuffled": [], "permuted": []}


def of_n(n: int) -> list[str]:
    """128 answers a step, however many an image gets."""
    images = str(128 // n)
    return ["--n", str(n), "--images-per-step", images, "--minibatch", images, "--micro-batch", images]


OVER_N = {f"N = {n}{', quorum 1/4' if bar else ''}": of_n(n) + bar
          for bar in ([], QUORUM) for n in (2, 4, 16, 32)}
NOISE = {f"noise {share} %": ["--noise", str(share / 100)] for share in (5, 10, 25)}
LOSSES = {loss: ["--loss", loss] for loss in ("dr_grpo", "dapo")}
PARTS = {"main": MAIN, "controls": CONTROLS, "n": OVER_N, "noise": NOISE, "losses": LOSSES}
METHODS = {name: options for part in PARTS.values() for name, options in part.items()}
HOWS = {"greedy": 0.0, "temperature 1": 1.0}

# ------------------------------------------------------------------------------------------------------------
# One run


def deal_rewards(train) -> None:
    """Control: rewards shuffled within each group."""
    plain, rng = train.group_rewards, random.Random(0)
    train.group_rewards = lambda *args: rng.sample(rewards := plain(*args), len(rewards))


def deal_verdicts(train) -> None:
    """Control: the step's verdicts shuffled over all its images; malformed answers stay what they are."""
    plain, rng = train.judge_groups, random.Random(0)

    def judge_groups(*args):
        groups = plain(*args)
        verdicts = [c for group in groups for c in group if c is not None]
        rng.shuffle(verdicts)
        return [[None if c is None else verdicts.pop() for c in group] for group in groups]

    train.judge_groups = judge_groups


def file_of(out: Path, method: str, seed: int, split: str) -> Path:
    return out / f"{method.replace(' ', '_').replace('/', '-')}-{seed}-{split}.json"


def run_one(method: str, seed: int, split: str, out: Path, options: list[str]) -> None:
    """Trains, unless there is nothing to train; measures on one split; writes the file of that run."""
    import data
    import train
    from evaluate import evaluate, load_policy, question_for, write_json
    from judges.taxonomy import TaxonomyJudge
    from toy import world
    adapter, file = None, file_of(out, method, seed, split)
    if method not in UNTRAINED:
        {"shuffled": deal_rewards, "permuted": deal_verdicts}.get(method, lambda _: None)(train)
        # measured below instead
        train.before_and_after, train.comparison = lambda *args: {}, lambda *args: ""
        folder = file.with_suffix(".run")
        adapter = folder / "adapter"
        if not (folder / "eval.json").exists():  # written at the very end
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
            train.main(["--data", "toy-bird", "--seed", str(seed), "--out", str(folder), "--eval-every", "0",
                        *METHODS[method], *options])
    policy, judge = load_policy("toy", seed, adapter=adapter), TaxonomyJudge(world.parents())
    question = question_for("specific" if method == "specific" else "base", ["toy"])
    many = method == "best of 64"
    results = {}
    for how, temperature in HOWS.items():
        if many and how == "greedy":
            continue
        for domain in world.DOMAINS:
            examples = data.load(f"toy-{domain}", split)
            found = evaluate(policy, judge, examples, question, 64 if many else 1, temperature, 16, seed,
                             rows=1024)
            best = [max((c for c in group if c is not None), default=None) for group in found["groups"]]
            shows = [world.draw(domain, split, int(r["id"].rsplit("/", 1)[1]))[2] for r in found["records"]]
            results.setdefault(how, {})[domain] = {"categories": best, "shows": shows}
    write_json(file, results)


# ------------------------------------------------------------------------------------------------------------
# The tables


def groups_of(result: dict, how: str, inside: bool) -> list[list[list]]:
    """A run's verdicts, one list of one-answer groups a domain. In domain: birds."""
    return [[[None if c is None else Category(c)] for c in found["categories"]]
            for domain, found in result[how].items() if (domain == "bird") == inside]


def figures(result: dict, how: str, inside: bool) -> list[float]:
    """C, S and HM; out of domain the mean of the domains' own."""
    sets = groups_of(result, how, inside)
    return list(average([summarize([c for group in groups for c in group]) for groups in sets]).values())


def error(values) -> str:
    return f" ± {stdev(values) / len(values) ** 0.5:.3f}" if len(values) > 1 else ""


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown, a block for greedy and one for temperature 1."""
    lines = []
    for how in HOWS:
        lines += [f"| {how} | in domain C / S / **HM** | out of domain C / S / **HM** |", "|---|---|---|"]
        for method, results in runs.items():
            if how in results[0]:
                cells = [zip(*(figures(r, how, inside) for r in results)) for inside in (True, False)]
                texts = [f"{fmean(c):.3f} / {fmean(s):.3f} / **{fmean(hm):.3f}**{error(hm)}"
                         for c, s, hm in cells]
                lines.append(f"| {method} | " + " | ".join(texts) + " |")
        lines.append("")
    return "\n".join(lines)


def paired(runs: dict[str, list[dict]], against: str = "speciarl") -> str:
    """SpeciaRL's HM minus each other method's, over seeds and images."""
    lines = [f"| HM of {against} minus that of | greedy, in | greedy, out | temperature 1, in "
             "| temperature 1, out |", "|---|---|---|---|---|"]
    for method, results in runs.items():
        if method == against:
            continue
        cells = []
        for how in HOWS:
            for inside in (True, False):
                if how not in results[0]:
                    cells.append("-")
                    continue
                each = [figures(a, how, inside)[2] - figures(b, how, inside)[2]
                        for a, b in zip(runs[against], results)]
                pairs = [pair for a, b in zip(runs[against], results)
                         for pair in zip(groups_of(b, how, inside), groups_of(a, how, inside))]
                low, high = difference(*pairs)["intervals"]["harmonic_mean"]
                cells.append(f"{fmean(each):+.3f}{error(each)} [{low:+.3f} {high:+.3f}]")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def by_what_it_shows(runs: dict[str, list[dict]]) -> str:
    """Shares of answers out of domain by what the pixels carry: where the method's point is seen."""
    kinds = {"fine": "the fine cue", "family": "the family only", "domain": "the domain only"}
    lines = ["| out of domain: Wrong / right and fine, where the picture shows | "
             + " | ".join(kinds.values()) + " |", "|---|---|---|---|"]
    for how in HOWS:
        for method, results in runs.items():
            if how not in results[0]:
                continue
            cells = []
            for kind in kinds:
                said = [c for r in results for domain, found in r[how].items() if domain != "bird"
                        for c, shown in zip(found["categories"], found["shows"]) if shown == kind]
                wrong = fmean(c is None or c == Category.WRONG for c in said)
                fine = fmean(c is not None and c >= Category.SPECIFIC for c in said)
                cells.append(f"{wrong:.3f} / {fine:.3f}")
            lines.append(f"| {how}: {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def show(parts: list[str], read, seeds: list[int]) -> None:
    """Prints the tables; read(methods, seeds) -> method -> results by seed."""
    some = seeds[:3]
    if "main" in parts:
        runs = read(MAIN, seeds)
        print(f"### Methods, seeds {seeds}\n\n{table(runs)}\n{paired(runs)}\n{by_what_it_shows(runs)}")
        for how in HOWS:  # seed by seed, for those who don't trust means
            for method, results in runs.items():
                if how in results[0]:
                    hm = [[figures(r, how, inside)[2] for inside in (True, False)] for r in results]
                    print(f"HM in/out by seed, {how}, {method}: "
                          + " ".join(f"{i:.3f}/{o:.3f}" for i, o in hm))
    for part, title, named in (
            ("controls", "Controls", {"base": "base", "speciarl": "speciarl"}),
            ("n", "Answers an image, 128 a step", {"speciarl": "N = 8",
                                                   "speciarl, quorum 1/4": "N = 8, quorum 1/4"}),
            ("noise", "Noise in the judge", {"speciarl": "noise 0 %"}),
            ("losses", "Losses", {"speciarl": "grpo"})):
        if part in parts:
            runs = {named[m]: r for m, r in read(named, some).items()} | read(PARTS[part], some)
            if part == "n":
                number = {name: int(name.split()[2].strip(",")) for name in runs}
                runs = dict(sorted(runs.items(), key=lambda r: ("quorum" in r[0], number[r[0]])))
            print(f"\n### {title}, seeds {some}\n\n{table(runs)}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/table", help="folder of the runs (default: runs/table)")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="ablations: the first three")
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    p.add_argument("--split", default="test", choices=("val", "test"), help="images measured (default: test)")
    p.add_argument("--options", default="", help="further options of train.py, in one string")
    p.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    p.add_argument("--one", help=argparse.SUPPRESS)
    args = p.parse_args()
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
        return run_one(args.one, args.seeds[0], args.split, out, shlex.split(args.options))

    told = out / f"options-{args.split}.txt"  # a table is of one recipe
    if told.exists() and told.read_text() != args.options:
        sys.exit(f"paper_table.py: runs in {out} had the options {told.read_text()!r}: give another --out")
    told.write_text(args.options)

    # "base" first: it makes the seed's policy, which two runs at a time would both make
    jobs = [("base", s) for s in args.seeds]
    jobs += [(m, s) for part in args.parts for m in PARTS[part]
             for s in (args.seeds if part == "main" else args.seeds[:3])]
    if set(args.parts) - {"main"}:
        jobs += [(m, s) for s in args.seeds[:3] for m in ("speciarl", "speciarl, quorum 1/4")]
    missing = [j for j in dict.fromkeys(jobs) if not file_of(out, *j, args.split).exists()]

    def start(job):
        method, seed = job
        command = [sys.executable, __file__, "--one", method, "--seeds", str(seed), "--split", args.split,
                   "--out", str(out), f"--options={args.options}"]
        with file_of(out, *job, args.split).with_suffix(".txt").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                raise SystemExit(f"{method}, seed {seed} failed: see {log.name}")

    try:
        with ThreadPoolExecutor(args.jobs) as pool:
            list(tqdm(pool.map(start, missing), total=len(missing), desc="runs", unit="run"))
    except KeyboardInterrupt:
        sys.exit("paper_table.py: stopped; the same command goes on")
    print(f"{args.split} images, train.py {args.options or '(toy preset)'}\n")
    show(args.parts, lambda methods, seeds: {m: [json.loads(file_of(out, m, s, args.split).read_text())
                                                 for s in seeds] for m in methods}, args.seeds)


if __name__ == "__main__":
    main()
