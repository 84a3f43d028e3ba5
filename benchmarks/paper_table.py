"""The method's table on the embedded world: base, exact-match RFT, SpeciaRL, and two controls, over seeds.

    python benchmarks/paper_table.py --out runs/table               the table that stands in the README
    python benchmarks/paper_table.py --split val --options "--lr 7e-4"   what a recipe is chosen by

Each (seed, method) is one training run on birds in a process of its own, measured in domain (birds) and out
of it (flowers, vehicles, fish), greedy and with one sample at temperature 1. A finished run is kept in --out
and not run again. The controls must not raise HM: `shuffled` deals each group's rewards out at random,
`permuted` deals the step's verdicts out at random over all its images. A toy world's figures: they stand for
none of the paper's.
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

METHODS = {"speciarl": ["--reward", "speciarl"], "exact": ["--reward", "exact"],
           "shuffled": ["--reward", "speciarl"], "permuted": ["--reward", "speciarl"]}
FIGURES = ("correctness", "specificity", "harmonic_mean")


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


def run_one(method: str, seed: int, split: str, out: Path, options: list[str]) -> None:
    """Trains (unless base), measures on one split, writes out/METHOD-SEED-SPLIT.json."""
    import data
    import toy
    import train
    from evaluate import evaluate, load_judge, load_policy, question_for, write_json
    adapter = None
    if method != "base":
        if method == "shuffled":
            deal_rewards(train)
        if method == "permuted":
            deal_verdicts(train)
        # measured below instead
        train.before_and_after, train.comparison = lambda *args: {}, lambda *args: ""
        folder = out / f"{method}-{seed}"
        adapter = folder / "adapter"
        if not adapter.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
            train.main(["--data", "toy-bird", "--seed", str(seed), "--out", str(folder), "--eval-every", "0",
                        *METHODS[method], *options])
    policy, judge = load_policy("toy", seed, adapter=adapter), load_judge("taxonomy")
    results = {}
    for how, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
        for domain in toy.DOMAINS:
            examples = data.load(f"toy-{domain}", split)
            question = question_for("base", ["toy"])
            result = evaluate(policy, judge, examples, question, 1, temperature, 16, seed)
            results.setdefault(how, {})[domain] = result["summary"].to_json()
    write_json(out / f"{method}-{seed}-{split}.json", results)


def place(results: dict, how: str, figure: str, domain_in: bool) -> float:
    """In domain: birds; out of domain: the mean over the other domains of their own figures."""
    return fmean(s[figure] for domain, s in results[how].items() if (domain == "bird") == domain_in)


def table(runs: dict[str, list[dict]]) -> str:
    """Markdown; each cell the mean over seeds, HM with its standard error."""
    lines = ["| | in domain C / S / **HM** | out of domain C / S / **HM** |", "|---|---|---|"]
    for how in ("greedy", "temperature 1"):
        for method, results in runs.items():
            cells = []
            for domain_in in (True, False):
                c, s, hm = ([place(r, how, f, domain_in) for r in results] for f in FIGURES)
                error = f" ± {stdev(hm) / len(hm) ** 0.5:.3f}" if len(hm) > 1 else ""
                cells.append(f"{fmean(c):.3f} / {fmean(s):.3f} / **{fmean(hm):.3f}**{error}")
            lines.append(f"| {how}: {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="runs/table")
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--methods", nargs="+", default=["base", *METHODS], choices=["base", *METHODS])
    p.add_argument("--split", default="test", choices=("val", "test"))
    p.add_argument("--options", default="", help="further options of train.py, in one string")
    p.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    p.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.one:
        import torch
        torch.set_num_threads(1)
        return run_one(args.methods[0], args.seeds[0], args.split, out, shlex.split(args.options))

    wanted = [(m, s) for s in args.seeds for m in args.methods]
    missing = [(m, s) for m, s in wanted if not (out / f"{m}-{s}-{args.split}.json").exists()]

    def start(job):
        method, seed = job
        command = [sys.executable, __file__, "--one", "--methods", method, "--seeds", str(seed),
                   "--split", args.split, "--out", str(out), f"--options={args.options}"]
        with (out / f"{method}-{seed}-{args.split}.txt").open("w") as log:
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                raise SystemExit(f"{method}, seed {seed} failed: see {log.name}")

    with ThreadPoolExecutor(args.jobs) as pool:
        list(tqdm(pool.map(start, missing), total=len(missing), desc="runs", unit="run"))
    runs = {m: [json.loads((out / f"{m}-{s}-{args.split}.json").read_text()) for s in args.seeds]
            for m in args.methods}
    print(f"{args.split} images, seeds {args.seeds}, train.py {args.options or '(toy preset)'}\n")
    print(table(runs))
    for how in ("greedy", "temperature 1"):  # seed by seed, for those who don't trust means
        for method, results in runs.items():
            pairs = [[place(r, how, "harmonic_mean", inside) for inside in (True, False)] for r in results]
            hm = " ".join(f"{inside:.3f}/{outside:.3f}" for inside, outside in pairs)
            print(f"HM in/out by seed, {how}, {method}: {hm}")


if __name__ == "__main__":
    main()
