"""The paper's table for a model, with or without adapters, on any datasets; and answers to one's own
pictures.

    python evaluate.py --data toy-bird,toy-fish --adapter none runs/toy-speciarl-seed0/adapter
    python evaluate.py --data flowers,food,pets,cars,aircraft --root DIR --adapter none runs/x/adapter
    python evaluate.py --data cub --root DIR --n 64 --temperature 0.6 --out best_of.json
    python evaluate.py --image photo.jpg --model Qwen/Qwen2.5-VL-7B-Instruct --n 8

Greedy by default, sampled with `--n 8`. Prints correctness, specificity and their harmonic mean with 95 %
bootstrap intervals over images, the paired difference of every further adapter to the first, what the answers
are, and what an oracle would pick of the first k. `--out FILE.json` keeps it, and every answer in FILE.jsonl,
from which the same command goes on after a kill.

Where this departs from the paper and from lmms-owc:
1. The judge is whichever is given (the paper's evaluations use Llama-3-70B).
2. A malformed answer counts as wrong inside n instead of standing outside it. It holds no truth and resembles
   nothing (0 in text inclusion and similarity), and is never "thought, not said".
3. Text inclusion and similarity are of the answer between the tags, all answers, those without a verdict too.
"""

import argparse
import hashlib
import math
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

import data
from judge import JUDGE_ERROR, Judge, add_arguments, judge_groups, normalize_label
from lora import adapter_config, adapters_off
from metrics import Tally, means_over, measured, merge, similarity, text_inclusion
from reward import Category
from rollout import PROMPTS, Group, sample
from support.answers import answers_file, written
from support.command_line import first_line
from support.files import append, write_json
from support.opening import (JUDGE, MODEL, TOY_SETS, VERDICTS, JudgeFailed, is_toy, load_judge, load_policy,
                             question_for, trust)
from support.processes import gather, share
from support.tables import table
from toy import captions


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


def category_name(category) -> str:
    """A judged entry as text: a category's label, "malformed" or "judge error"."""
    return "malformed" if category is None else category.label if isinstance(category, Category) else category


# ------------------------------------------------------------------------------------------------------------
# Evaluation


def thought_not_said(truth: str, text: str, answer: str | None) -> bool:
    """Whether the reasoning, all that stands outside the answer's tags, names the truth and the answer does
    not: normalised, as whole words."""
    if answer is None:
        return False
    reasoning = re.sub(r"(<think>.*?</think>)|<answer>.*?</answer>", r"\1 ", text, flags=re.DOTALL)
    name, thought, said = (f" {normalize_label(t)} " for t in (truth, reasoning, answer))
    return name in thought and name not in said


def load_embedder(name: str, device="cpu"):
    """Texts -> (len, D) float32 of unit length, as sentence-transformers' all-MiniLM-L6-v2 makes them: the
    mean over a text's tokens, at most 256. name: any encoder's folder or hub name. Raises OSError."""
    @torch.inference_mode()
    def embed(texts: list[str]) -> torch.Tensor:
        rows = []
        for i in range(0, len(texts), 256):
            batch = tokenizer(texts[i:i + 256], padding=True, truncation=True, max_length=longest,
                              return_tensors="pt").to(device)
            mask = batch["attention_mask"][..., None]
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=-1))
        return torch.cat(rows)

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = AutoModel.from_pretrained(name, dtype=torch.float32).to(device).eval()
        longest = min(256, getattr(model.config, "max_position_embeddings", 256))
        embed(["a", "a longer text"])
    except Exception as e:  # whatever is wrong with a model that is no encoder of texts
        raise OSError(f"cannot load the embedder {name!r}: {first_line(e)}") from None
    return embed


def answered(policy, judge: Judge, examples: list[data.Example], question: str, n: int = 1,
             temperature: float = 0.0, max_new_tokens: int = 512, seed: int = 0, rows: int = 256,
             label: str = "evaluate", embed=None, first: int = 0):
    """N answers an image, greedy at temperature 0, judged: yields lists of records, one an image in the order
    of the examples from number `first` on, a batch of at most `rows` answers at a time."""
    def records(batch: list[data.Example]) -> list[dict]:
        read, rollouts, bad = ask(policy, batch, question, n=n, temperature=temperature,
                                  max_new_tokens=max_new_tokens, seed=seed, stream="evaluate", max_rows=rows)
        judged = judge_groups(judge, [e.label for e in read], [g.answers for g in rollouts])
        made, bad = {}, iter(bad)
        for e, group, categories in zip(read, rollouts, judged):
            scores = {"text_inclusion": [int(text_inclusion(e.label, a)) for a in group.answers],
                      "thought_not_said": [int(thought_not_said(e.label, t, a))
                                           for t, a in zip(group.texts, group.answers)]}
            if embed:
                scores["semantic_similarity"] = similarity(embed, e.label, group.answers)
            made[e.id] = {"id": e.id, "domain": e.domain, "truth": e.label, "texts": group.texts,
                          "answers": group.answers, "categories": [category_name(c) for c in categories],
                          "scores": scores}
        return [made.get(e.id) or {"id": e.id, "unreadable": next(bad)} for e in batch]

    size = max(1, rows // n)
    with tqdm(total=len(examples), initial=first, desc=label, unit="image", leave=False) as progress:
        while first < len(examples):
            batch = examples[first:(first // size + 1) * size]  # the same batches wherever it starts
            yield records(batch)
            first += len(batch)
            progress.update(len(batch))


def evaluate(*args, **kwargs) -> dict:
    """All that `answered` yields for these arguments, in memory. Returns {"summary": Summary, "groups": one
    list of categories an image (None = malformed, judge errors left out), "records": one dict an image,
    "unreadable": lines}."""
    tally, records = Tally(), []
    for record in (record for batch in answered(*args, **kwargs) for record in batch):
        tally.add(record)
        records += [record] if "answers" in record else []
    groups = [judged for group, judged in zip(tally.groups, tally.verdicts()) if group]
    return {"summary": tally.summary(), "groups": groups, "records": records, "unreadable": tally.unreadable}


def before_and_after(policy, judge: Judge, tests: dict[str, list], question: str, max_new_tokens: int,
                     seed: int, most_errors: float = 1.0, rows: int = 256) -> dict:
    """Every test set, greedy and one sample at temperature 1, with the adapters off (the model as it came)
    and on. Every process answers its own share of the images."""
    results = {}
    for when in ("before", "after"):
        for how, temperature in (("greedy", 0.0), ("temperature 1", 1.0)):
            for name, examples in tests.items():
                with adapters_off(policy.model) if when == "before" else nullcontext():
                    own = evaluate(policy, judge, share(examples), question, 1, temperature, max_new_tokens,
                                   seed, rows, f"{when} {name}")
                s = merge(gather([own["summary"]]))
                trust(judge, s.judge_errors, s.n + s.judge_errors, most_errors, f"answers to {name}")
                results.setdefault(how, {}).setdefault(name, {})[when] = s.to_json()
    return results


def answer_pictures(policy, paths: list[str], question: str, n: int, temperature: float, **kwargs) -> None:
    """Prints the greedy answer to each picture, then N sampled ones."""
    examples = [data.Example(path, "", "", lambda path=path: data.read_image(path)) for path in paths]
    read, greedy, bad = ask(policy, examples, question, n=1, temperature=0.0, **kwargs)
    sampled = [None] * len(read)
    if n > 1:
        sampled = ask(policy, read, question, n=n, temperature=temperature, **kwargs)[1]
    for example, one, many in zip(read, greedy, sampled):
        print(f"{example.id}\n  greedy   {one.answers[0] or '(no answer)'}\n           {one.texts[0]}")
        if many is not None:
            for answer in sorted(set(many.answers), key=lambda a: -many.answers.count(a)):
                print(f"  {many.answers.count(answer)} of {n:<4}{answer or '(no answer)'}")
    for line in bad:
        print(line, file=sys.stderr)
    if not read:
        raise OSError("none of the pictures could be read")


# ------------------------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", default=",".join(TOY_SETS), help="datasets, comma between them (default: the "
                                                              "embedded world's four)")
    p.add_argument("--root", help="folder of the datasets (default: data)")
    p.add_argument("--split", default="test", choices=("train", "val", "test"))
    p.add_argument("--protocol", default="official", choices=("official", "coop"), help="whose splits")
    p.add_argument("--limit", type=int, help="at most this many images a dataset, a random subset by seed 42")
    p.add_argument("--image", nargs="+", metavar="FILE", help="name these pictures instead")
    p.add_argument("--model", help="checkpoint folder or hub name, or toy (default: the adapter's base, "
                                   f"else toy for the embedded world, {MODEL} otherwise)")
    p.add_argument("--adapter", nargs="+", default=["none"], metavar="DIR",
                   help="adapters or runs, compared with the first; none = the base (default)")
    p.add_argument("--prompt", default="base", help=f"the question: {', '.join(PROMPTS)}; in the "
                   f"embedded world {', '.join(captions.PROMPTS)} (default: base)")
    p.add_argument("--n", type=int, default=1,
                   help="answers an image (default: 1); above 1 with the best of 1, 2, 4, ...")
    p.add_argument("--temperature", type=float, help="default: 0 (greedy) for n = 1, else 1")
    p.add_argument("--judge", help="chat model, http://server, taxonomy.json, or taxonomy (default: taxonomy "
                                   f"for the embedded world, else {JUDGE})")
    add_arguments(p)
    p.add_argument("--judge-cache", default=VERDICTS, help="file of remembered verdicts, or none")
    p.add_argument("--embedder", help="encoder of texts, folder or hub name: adds semantic similarity "
                                      "(the literature's: sentence-transformers/all-MiniLM-L6-v2)")
    p.add_argument("--max-new-tokens", type=int, help="default: 512, for the embedded world 16")
    p.add_argument("--max-pixels", type=int, help="larger images are scaled down (default: 512 x 28 x 28; "
                                                  "none in the embedded world)")
    p.add_argument("--rows", type=int, default=256, help="answers decoded at a time (default: 256; memory)")
    p.add_argument("--seed", type=int, default=0, help="of sampled answers and of the model toy (default: 0)")
    p.add_argument("--out", metavar="FILE.json", help="write the figures there, the answers to FILE.jsonl, "
                   "from which the same command goes on after a kill (--rows may differ)")
    return p


def weights_of(adapter: str) -> str:
    """A hash of an adapter's weights: answers of another training are others."""
    return hashlib.sha256((Path(adapter) / "adapter_model.safetensors").read_bytes()).hexdigest()[:16]


def titles(adapters: list[str]) -> list[str]:
    """Short names: "base", the run's folder, or the whole path where two runs' folders have one name."""
    names = ["base" if a == "none" else Path(a.removesuffix("/").removesuffix("/adapter")).name
             for a in adapters]
    return [name if names.count(name) == 1 else a for name, a in zip(names, adapters)]


def measure(args, load, question: str, judge_name: str, settings: dict, told: dict) -> dict:
    """Answers to all datasets with every adapter. load(adapter) -> its policy; told: all that the answers
    depend on. Returns adapter -> dataset or mean -> its row of the table."""
    sets = {name: data.load(name, args.split, args.root, args.limit, protocol=args.protocol)
            for name in args.data.split(",")}
    if len({e.id for examples in sets.values() for e in examples}) < sum(map(len, sets.values())):
        raise ValueError(f"--data {args.data} holds an image twice")
    file = answers_file(args.out) if args.out else None
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
    before = written(file, told) if file else iter(())
    judge = embed = None
    tallies = {adapter: {name: Tally() for name in sets} for adapter in args.adapter}
    for adapter in args.adapter:
        policy = None  # two would not fit in the memory
        for name, examples in sets.items():
            tally, place = tallies[adapter][name], {"adapter": adapter, "data": name}
            for example, record in zip(examples, before):
                if record | place | {"id": example.id} != record:
                    raise ValueError(f"{file} goes on with {record['id']}, the data with {example.id}: "
                                     "they have changed, give another --out")
                tally.add(record)
            if len(tally.groups) == len(examples):
                continue
            policy = policy or load(adapter)
            judge = judge or load_judge(judge_name, args, policy.device)
            embed = embed or (load_embedder(args.embedder, policy.device) if args.embedder else None)
            new = []  # with errors in it kept back until there are verdicts enough to judge the judge
            for records in answered(policy, judge, examples, question, args.n, **settings, seed=args.seed,
                                    rows=args.rows, label=f"{adapter} {name}", embed=embed,
                                    first=len(tally.groups)):
                new += records
                verdicts = [c for r in new for c in r.get("categories", ())]
                errors, left = verdicts.count(JUDGE_ERROR), len(examples) - len(tally.groups) - len(new)
                if errors and left and len(verdicts) < 16:
                    continue
                trust(judge, errors, len(verdicts), 0.5, "answers")
                if file:  # whose first line says what these are answers to
                    head = [] if file.exists() and file.stat().st_size else [{"arguments": told}]
                    append(file, head + [place | r for r in new])
                for record in new:
                    tally.add(record)
                new = []
    if next(before, None):
        raise ValueError(f"{file} holds more answers than there are images: give another --out")
    measurable = [name for name in sets if all(of[name].summary().n for of in tallies.values())]
    rows, results = {name: [name] for name in sets} | means_over(measurable), {}
    for adapter, of in tallies.items():
        first = tallies[args.adapter[0]] if results else {}
        results[adapter] = {row: {"datasets": names} | measured(
            [of[name] for name in names], [first[name] for name in names if first], args.n)
            for row, names in rows.items()}
    return results


def run(args) -> None:
    for name in ("n", "rows", "max_new_tokens", "max_pixels"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.temperature is not None and not 0 <= args.temperature < math.inf:
        raise ValueError(f"--temperature must be 0 or more, got {args.temperature}")
    if args.out and (Path(args.out).is_dir() or args.out.endswith(".jsonl")):
        raise ValueError(f"--out names the figures' JSON file (the answers go beside it), got {args.out}")
    if args.out and Path(args.out).exists() and not answers_file(args.out).exists():
        raise ValueError(f"{args.out} holds something else: give another --out")
    unused = [f"--{name}" for name in ("out", "limit", "embedder") if args.image and getattr(args, name)]
    if unused:
        raise ValueError(f"--image only prints answers: {' and '.join(unused)} need --data")
    args.adapter = [a if a == "none" or not (Path(a) / "adapter").is_dir() else str(Path(a) / "adapter")
                    for a in args.adapter]  # a run's folder will do
    names = [] if args.image else args.data.split(",")
    for flag, values in (("--data", names), ("--adapter", args.adapter)):
        if len(set(values)) < len(values):
            raise ValueError(f"{flag} names one thing twice: {' '.join(values)}")
    configs = [adapter_config(a) if a != "none" else {} for a in args.adapter]
    weights = [weights_of(a) if a != "none" else None for a in args.adapter]
    bases = sorted({c.get("base_model_name_or_path") for c in configs} - {None, ""})
    if len(bases) > 1 and not args.model:
        raise ValueError(f"these adapters have different bases, --model must say which: {', '.join(bases)}")
    model = args.model or (bases[0] if bases else "toy" if names and is_toy(names) else MODEL)
    # the embedded world's policy has a vocabulary, and so prompts, of its own
    toys = is_toy(names) if names else model == "toy" or Path(model).name.startswith("toy-base-seed")
    temperature = (1.0 if args.n > 1 else 0.0) if args.temperature is None else args.temperature
    question = question_for(args.prompt, ["toy"] if toys else ["real"])
    if args.n > 1 and temperature == 0:
        raise ValueError("n > 1 greedy answers to one image are all the same: give a temperature")
    settings = {"temperature": temperature, "max_new_tokens": args.max_new_tokens or (16 if toys else 512)}
    max_pixels = args.max_pixels or (None if toys else 512 * 28 * 28)

    def load(adapter: str):
        return load_policy(model, args.seed, adapter=None if adapter == "none" else adapter,
                           max_pixels=max_pixels)

    if args.image:
        for adapter, title in zip(args.adapter, titles(args.adapter)):
            print(f"{model}, {title}:")
            answer_pictures(load(adapter), args.image, question, args.n, seed=args.seed, **settings)
        return
    judge = args.judge or ("taxonomy" if toys else JUDGE)
    told = {k: v for k, v in vars(args).items()
            if k not in ("image", "out", "rows", "judge_cache", "judge_key_file")}
    told |= {"model": model, "judge": judge, "question": question, "max_pixels": max_pixels, **settings,
             "weights": weights}
    results = measure(args, load, question, judge, settings, told)
    if args.out:
        write_json(args.out, {"arguments": told, "results": results})
    how = f"{args.n} samples at temperature {temperature}" if temperature else "greedy"
    print(f"{model}, prompt {args.prompt!r}, {how}, judge {judge}, {args.split} images\n\n"
          + table(dict(zip(titles(args.adapter), results.values()))))
    rows = [row for rows in results.values() for row in rows.values()]
    for line in list(dict.fromkeys(line for row in rows for line in row["unreadable"]))[:10]:
        print(line, file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        run(args)
    except ValueError as e:
        sys.exit(f"evaluate.py: {first_line(e)}")
    except (OSError, KeyboardInterrupt, JudgeFailed, torch.cuda.OutOfMemoryError) as e:
        why = "stopped" if isinstance(e, KeyboardInterrupt) else first_line(e)
        # an OSError may be a mistake in this command, unless it came as far as to write
        if args.out and not args.image and (answers_file(args.out).exists() or not isinstance(e, OSError)):
            why += "; what is written stands, the same command goes on"
        sys.exit(f"evaluate.py: {why}")


if __name__ == "__main__":
    main()
