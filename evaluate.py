"""The paper's table for a model, with or without adapters, on any datasets; and answers to one's own
pictures.

    python evaluate.py --data toy-bird,toy-fish --adapter none runs/toy/adapter
    python evaluate.py --data cub --root DIR --model Qwen/Qwen2.5-VL-7B-Instruct --adapter none runs/x/adapter
    python evaluate.py --image photo.jpg --model Qwen/Qwen2.5-VL-7B-Instruct --n 8

Greedy by default; `--n 8 --temperature 1` samples, and adds best-of-N. Prints correctness, specificity and
their harmonic mean with 95 % bootstrap intervals over images, the share of each category, and writes them
with `--out`.

Where this departs from the paper: the judge is whichever is given (the paper's evaluations use Llama-3-70B),
and a malformed answer counts as wrong inside n instead of standing outside it.
"""

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import torch
from tqdm import tqdm

import data
import policy as policies
import toy
from judge import JUDGE_ERROR, Judge, TaxonomyJudge, add_arguments, judge_groups, open_judge
from metrics import Summary, average, best_of_n, intervals, summarize
from policy import adapters_off
from reward import Category
from rollout import PROMPTS, Group, sample

MODEL, JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
VERDICTS = "~/.cache/speciarl/verdicts.sqlite"
TOY_SETS = [f"toy-{domain}" for domain in toy.DOMAINS]

# ------------------------------------------------------------------------------------------------------------
# What the command lines of evaluate.py and train.py share


def is_toy(names: list[str]) -> bool:
    return all(name == "toy" or name.startswith("toy-") for name in names)


def question_for(prompt: str, names: list[str]) -> str:
    """The question's text; the embedded world's policy knows a few words only and has its own wording."""
    prompts = toy.PROMPTS if is_toy(names) else PROMPTS
    if prompt not in prompts:
        raise ValueError(f"unknown prompt {prompt!r}: choose one of {', '.join(prompts)}")
    return prompts[prompt]


def load_judge(name: str, options=None, device="cpu") -> Judge:
    """"taxonomy" (the embedded world's tree), or what judge.open_judge knows. options: the command line's
    judge_... settings."""
    if name == "taxonomy":
        return TaxonomyJudge(toy.parents())
    if options is None:
        return open_judge(name, device=device)
    cache = None if options.judge_cache == "none" else Path(options.judge_cache).expanduser()
    return open_judge(name, options.judge_model, options.judge_mode, options.judge_prompt,
                      options.judge_key_file, cache, device)


class JudgeFailed(Exception):
    """Too large a share of verdicts is missing to go on."""


def trust(judge: Judge, failed: int, total: int, most: float, what: str) -> None:
    """Raises JudgeFailed where more than the share `most` has no verdict."""
    if failed > most * total:
        why = getattr(judge, "last_error", "")
        raise JudgeFailed(f"the judge failed on {failed} of {total} {what}" + (f" ({why})" if why else ""))


def load_policy(name: str, seed: int = 0, **kwargs) -> policies.Policy:
    """"toy" (the embedded world's base policy of that seed), or a checkpoint from a folder or the hub. On a
    GPU in bfloat16; on a CPU, and the small one anywhere, in float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    dtype = torch.bfloat16 if device == "cuda" and name != "toy" else torch.float32
    path = toy.base_policy(seed) if name == "toy" else name
    if name == "toy" and device == "cpu":
        torch.set_num_threads(1)  # so small a model that threads would only wait for each other
    return policies.load(path, device=device, dtype=dtype, seed=seed, **kwargs)


def ask(policy, examples: list[data.Example], question: str, answer=sample,
        **kwargs) -> tuple[list, list[Group], list[str]]:
    """rollout.sample on the examples whose image can be read. Returns those examples, their groups, and a
    line for each unreadable image: it is named and counted, never sampled."""
    read, images, unreadable = [], [], []
    for example in examples:
        try:
            images.append(example.image())
            read.append(example)
        except data.BadImage as e:
            unreadable.append(str(e))
    ids = [e.id for e in read]
    return read, answer(policy, images, ids, question, **kwargs) if read else [], unreadable


def write_json(path, value) -> None:
    """Whole or not at all: a killed run leaves the old file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def category_name(category) -> str:
    """A judged entry as text: a category's label, "malformed" or "judge error"."""
    return "malformed" if category is None else category.label if isinstance(category, Category) else category


# ------------------------------------------------------------------------------------------------------------
# Evaluation


def evaluate(policy, judge: Judge, examples: list[data.Example], question: str, n: int = 1,
             temperature: float = 0.0, max_new_tokens: int = 512, seed: int = 0, rows: int = 256,
             label: str = "evaluate") -> dict:
    """N answers an image, greedy at temperature 0, judged. Returns {"summary": Summary, "groups": one list of
    categories an image (None = malformed, judge errors left out), "records": one dict an image, "unreadable":
    lines}.
    """
    if n > 1 and temperature == 0:
        raise ValueError("n > 1 greedy answers to one image are all the same: give a temperature")
    records, groups, unreadable, errors = [], [], [], 0
    per_batch = max(1, rows // n)
    for i in tqdm(range(0, len(examples), per_batch), desc=label, unit="batch", leave=False):
        read, rollouts, bad = ask(policy, examples[i:i + per_batch], question, n=n, temperature=temperature,
                                  max_new_tokens=max_new_tokens, seed=seed, stream="evaluate", max_rows=rows)
        unreadable += bad
        judged = judge_groups(judge, [e.label for e in read], [g.answers for g in rollouts])
        for example, group, categories in zip(read, rollouts, judged):
            errors += categories.count(JUDGE_ERROR)
            groups.append([c for c in categories if c != JUDGE_ERROR])
            records.append({"id": example.id, "domain": example.domain, "truth": example.label,
                            "texts": group.texts, "answers": group.answers,
                            "categories": [category_name(c) for c in categories]})
    summary = summarize([c for group in groups for c in group], errors, len(unreadable))
    return {"summary": summary, "groups": groups, "records": records, "unreadable": unreadable}


def row(name: str, s: Summary, bounds: dict | None = None) -> str:
    """One line of the table."""
    def figure(value, key):
        low, high = bounds[key] if bounds else (None, None)
        return f"{value:.3f} [{low:.3f} {high:.3f}]" if bounds else f"{value:.3f}" + " " * 14
    shares = " ".join(f"{s.shares[c]:.2f}" for c in Category)
    odd = f"{s.malformed / s.n:.3f}" if s.n else "-"
    return (f"{name:<28} {figure(s.correctness, 'correctness')} {figure(s.specificity, 'specificity')} "
            f"{figure(s.harmonic_mean, 'harmonic_mean')} {s.n:>6} {odd:>9} {s.judge_errors:>6} "
            f"{s.unreadable:>6}  {shares}")


HEADER = (f"{'':<28} {'correctness':<20}{'specificity':<20}{'harmonic mean':<20}{'n':>6} {'malformed':>9} "
          f"{'errors':>6} {'unread':>6}  {'W    A    G    S-   S    S+'}")


def before_and_after(policy, judge: Judge, tests: dict[str, list], question: str, max_new_tokens: int,
                     seed: int, most_errors: float = 1.0) -> dict:
    """Every test set, greedy and one sample at temperature 1, with the adapters off (the model as it came)
    and on."""
    results = {}
    for when in ("before", "after"):
        for how, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
            for name, examples in tests.items():
                with adapters_off(policy.model) if when == "before" else nullcontext():
                    result = evaluate(policy, judge, examples, question, 1, temperature, max_new_tokens, seed,
                                      label=f"{when} {name}")
                s = result["summary"]
                trust(judge, s.judge_errors, s.n + s.judge_errors, most_errors, f"answers to {name}")
                results.setdefault(how, {}).setdefault(name, {})[when] = s.to_json()
    return results


def comparison(results: dict, trained_on: list[str]) -> str:
    """Before -> after as text, with the mean over the datasets that training never saw."""
    trained_on = ["toy-bird" if name == "toy" else name for name in trained_on]
    keys = ("correctness", "specificity", "harmonic_mean")
    lines = [f"{'':<40}" + "".join(f"{k.replace('_', ' '):>20}" for k in keys) + f"{'malformed':>20}"]
    for how, sets in results.items():
        unseen = [name for name in sets if name not in trained_on]
        for name, r in sets.items():
            cells = [f"{r['before'][k]:.3f} -> {r['after'][k]:.3f}" for k in keys]
            malformed = [r[when]["malformed"] / max(1, r[when]["n"]) for when in ("before", "after")]
            cells.append("{:.3f} -> {:.3f}".format(*malformed))
            title = f"{how} · {name}" + (" (trained on)" if name in trained_on else "")
            lines.append(f"{title:<40}" + "".join(f"{c:>20}" for c in cells))
        if len(unseen) > 1:
            mean = [[fmean(sets[name][w][k] for name in unseen) for w in ("before", "after")] for k in keys]
            lines.append(f"{how + ' · mean of the unseen':<40}"
                         + "".join("{:.3f} -> {:.3f}".format(*m).rjust(20) for m in mean))
    return "\n".join(lines)


def answer_pictures(policy, paths: list[str], question: str, n: int, temperature: float, **kwargs) -> None:
    """Prints the greedy answer to each picture, then N sampled ones."""
    examples = [data.Example(path, "", "", lambda path=path: data.read_image(path)) for path in paths]
    read, greedy, bad = ask(policy, examples, question, n=1, temperature=0.0, **kwargs)
    sampled = [None] * len(read)
    if n > 1:
        sampled = ask(policy, read, question, n=n, temperature=temperature or 1.0, **kwargs)[1]
    for example, one, many in zip(read, greedy, sampled):
        print(f"{example.id}\n  greedy   {one.answers[0] or '(no answer)'}\n           {one.texts[0]}")
        if many is not None:
            for answer in sorted(set(many.answers), key=lambda a: -many.answers.count(a)):
                print(f"  {many.answers.count(answer)} of {n:<4}{answer or '(no answer)'}")
    for line in bad:
        print(line, file=sys.stderr)
    if not read:
        raise OSError("none of the pictures could be read")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default=",".join(TOY_SETS), help="datasets, comma between them")
    p.add_argument("--root", help="folder of the datasets (default: data)")
    p.add_argument("--split", default="test", choices=("train", "val", "test"))
    p.add_argument("--limit", type=int, help="at most this many images a dataset, a random subset by seed 42")
    p.add_argument("--image", nargs="+", metavar="FILE", help="name these pictures instead")
    p.add_argument("--model", help="checkpoint folder or hub name, or toy (default: the adapter's base, "
                                   f"else toy for the embedded world, {MODEL} otherwise)")
    p.add_argument("--adapter", nargs="+", default=["none"], metavar="DIR",
                   help="adapters, a table row each; none = the base")
    p.add_argument("--prompt", default="base", help="the question: " + ", ".join(PROMPTS))
    p.add_argument("--n", type=int, default=1, help="answers an image")
    p.add_argument("--temperature", type=float, help="default: 0 (greedy) for n = 1, else 1")
    p.add_argument("--judge", help="chat model, taxonomy.json, or taxonomy (default: taxonomy for the "
                                   f"embedded world, else {JUDGE})")
    add_arguments(p)
    p.add_argument("--judge-cache", default=VERDICTS, help="file of remembered verdicts, or none")
    p.add_argument("--max-new-tokens", type=int, default=512)
    p.add_argument("--max-pixels", type=int, default=512 * 28 * 28, help="larger images are scaled down")
    p.add_argument("--rows", type=int, default=256, help="answers decoded at a time (memory)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", help="write summaries and every answer to this JSON file")
    return p


def adapter_base(folder: str) -> str | None:
    """The checkpoint an adapter was trained on, as its config says."""
    config = Path(folder) / "adapter_config.json"
    return json.loads(config.read_text()).get("base_model_name_or_path") or None if config.is_file() else None


def run(args) -> None:
    if args.n < 1:
        raise ValueError(f"--n must be at least 1, got {args.n}")
    if args.temperature is not None and args.temperature < 0:
        raise ValueError(f"--temperature must not be negative, got {args.temperature}")
    names = [] if args.image else args.data.split(",")
    bases = [adapter_base(a) for a in args.adapter if a != "none"]
    model = args.model or next(filter(None, bases), None) or ("toy" if names and is_toy(names) else MODEL)
    # the embedded world's policy has a vocabulary, and so prompts, of its own
    toys = is_toy(names) if names else model == "toy" or Path(model).name.startswith("toy-base-seed")
    temperature = (1.0 if args.n > 1 else 0.0) if args.temperature is None else args.temperature
    question = question_for(args.prompt, ["toy"] if toys else ["real"])
    limits = {"max_new_tokens": 16 if toys else args.max_new_tokens}
    sets = {name: data.load(name, args.split, args.root, args.limit) for name in names}
    judge = None
    table, document = [], {}
    for adapter in args.adapter:
        policy = load_policy(model, args.seed, adapter=None if adapter == "none" else adapter,
                             max_pixels=None if toys else args.max_pixels)
        if args.image:
            answer_pictures(policy, args.image, question, args.n, temperature, seed=args.seed, **limits)
            continue
        judge_name = args.judge or ("taxonomy" if toys else JUDGE)
        judge = judge or load_judge(judge_name, args, policy.device)
        title, document[adapter], summaries = "base" if adapter == "none" else adapter, {}, []
        for name, examples in sets.items():
            result = evaluate(policy, judge, examples, question, args.n, temperature, seed=args.seed,
                              rows=args.rows, label=f"{title} {name}", **limits)
            bounds = intervals(result["groups"])
            summaries.append(result["summary"])
            table.append(row(f"{title} · {name}", result["summary"], bounds))
            entry = {"summary": result["summary"].to_json(), "intervals": bounds,
                     "unreadable": result["unreadable"]}
            if args.n > 1:
                best = best_of_n(result["groups"])
                entry["best_of_n"] = summarize(best).to_json()
                table.append(row(f"  best of {args.n}", summarize(best), intervals([[c] for c in best])))
            document[adapter][name] = entry | {"records": result["records"]}
        if len(sets) > 1:
            mean = average(summaries)
            table.append(f"{title + ' · mean':<28} " + " ".join(f"{v:<19.3f}" for v in mean.values()))
    if not args.image:
        how = "greedy" if temperature == 0 else f"{args.n} samples at temperature {temperature}"
        print(f"{model}, prompt {args.prompt!r}, {how}\n{HEADER}\n" + "\n".join(table))
    if args.out and not args.image:
        arguments = vars(args) | {"model": model, "temperature": temperature}
        write_json(args.out, {"arguments": arguments, "results": document})


def main(argv: list[str] | None = None) -> None:
    try:
        run(parser().parse_args(argv))
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as e:
        lines = str(e).splitlines() or [type(e).__name__]
        sys.exit(f"evaluate.py: {lines[0]}")


if __name__ == "__main__":
    main()
