"""Answers that are on disk, judged and measured: `evaluate.py --answers`. No policy is loaded.

    python evaluate.py --answers table.jsonl --judge meta-llama/Llama-3.1-8B-Instruct --out again.json
    python evaluate.py --answers table.jsonl --judge A --judge B

The verdicts go to a file as a live evaluation's do (support/answers.py), a line for each judge and image, but
without the completions. The same command goes on after a kill, and judges nothing twice.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from judge import Judge, judge_groups, judge_label, read_names, settled
from judges.audit import read_audit
from judges.vote import refuse_shared_key
from metrics import JudgeErrors, Tally
from support.answers import (CATEGORY, answer_record, answers_file, append_answers, lock_answers,
                             stored_records)
from support.command_line import flag
from support.compare_judges import comparison, comparison_text
from support.files import write_json
from support.judging import audited, errors_line, prompt_texts, trusted_batches
from support.opening import JUDGE, is_toy, load_judge
from support.scores import Scorer, asked_scores, load_scorers, model_scores
from support.stored_answers import Answered, Stored, open_answers
from support.tables import table, table_rows, titles

Tallies = dict[str, dict[str, dict[str, Tally]]]  # judge -> system -> dataset


def judge_stored(args, datasets: dict[str, list]) -> None:
    """The command. args: evaluate.py's; datasets: those of --data, {} where none is given. Raises ValueError,
    OSError, JudgeFailed."""
    refuse_repeats_and_overwriting(args)
    audit_rows = read_audit(args.audit) if args.audit else []
    stored = open_answers(args.answers, datasets)
    named = args.judge or ["taxonomy" if is_toy(list(stored.images)) else JUDGE]
    # Of each, what is kept of its name, and the whole of it.
    judges = {judge_label(name): name for name in named}
    for line in missing_lines(stored):
        print(line, file=sys.stderr)

    arguments = judging_arguments(args, list(judges))
    file = answers_file(args.out) if args.out else None
    with lock_answers(file) as lock:
        tallies = empty_tallies(list(judges), stored)
        done = Counter()  # (judge, system, dataset) -> how many images are judged
        if file is not None:
            done = tally_judged(file, arguments, stored, tallies)
        errors = judge_rest(args, judges, audit_rows, stored, tallies, done, file, arguments, lock)
        fill_missing(stored, tallies)

        results = {}  # judge -> its table
        for judge in judges:
            results[judge] = table_rows(tallies[judge], errors.get(judge))
        compared = None
        if len(judges) > 1:
            compared = comparison(tallies, results, was_asked(stored))
        if args.out:
            lock.check()
            write_json(args.out, document(arguments, stored, results, errors, compared))

    for judge, rows in results.items():
        print_table(args, judge, rows, errors.get(judge))
    if compared is not None:
        print(comparison_text(compared))


def document(arguments: dict, stored: Stored, results: dict[str, dict], errors: dict[str, JudgeErrors],
             compared: dict | None) -> dict:
    """What --out holds: as a live evaluation's, the first judge's table under "results"."""
    first = next(iter(results.values()))
    said = {"arguments": arguments, "missing": stored.missing(), "results": first}
    if errors:
        said["audit"] = {judge: found.to_json() for judge, found in errors.items()}
    if compared is not None:
        said["by_judge"] = results
        said["comparison"] = compared
    return said


def print_table(args, judge: str, rows: dict[str, dict], errors: JudgeErrors | None) -> None:
    """One judge's table."""
    print(f"{', '.join(args.answers)}, judge {judge}")
    if errors is not None:
        print(errors_line(args.audit, errors))
    print()
    print(table(dict(zip(titles(rows), rows.values()))))
    print()


def refuse_repeats_and_overwriting(args) -> None:
    """Raises ValueError for what can't be among the options of this command."""
    labels = [judge_label(name) for name in args.judge or []]
    files = [str(Path(file).resolve()) for file in args.answers]
    for name, values in (("answers", files), ("judge", labels)):
        if len(set(values)) < len(values):
            raise ValueError(f"{flag(name)} names one thing twice: {' '.join(values)}")
    judges = []
    for name in args.judge or []:
        judges += read_names(name)
    refuse_shared_key(judges)

    # With several judges nobody could say whose these are.
    if len(args.judge or []) > 1:
        for name in ("judge_model", "judge_prompt", "judge_key_file"):
            if getattr(args, name) is not None:
                raise ValueError(f"{flag(name)} is of one judge: of several each has its own, as in --judge "
                                 "'http://host#model=NAME&prompt=detailed&key=FILE'")

    if args.out is not None:
        ours = answers_file(args.out).resolve()
        for file in args.answers:
            if Path(file).resolve() == ours:
                raise ValueError(f"--out {args.out} would write into {file}, the answers: give another --out")


def missing_lines(stored: Stored) -> list[str]:
    """A line for each system and dataset of which images are not answered."""
    lines = []
    for system, counts in stored.missing().items():
        for dataset, count in counts.items():
            lines.append(f"{system} has no answers to {count} of {len(stored.images[dataset])} images of "
                         f"{dataset}: they are left out")
    return lines


def judging_arguments(args, judges: list[str]) -> dict:
    """All that the verdicts depend on, as the files of --out say it: another command's are refused."""
    arguments = {"answers": args.answers, "judge": judges}
    for name in ("data", "root", "split", "protocol", "limit", "judge_model", "judge_prompt", "embedder",
                 "language_inclusion"):
        arguments[name] = getattr(args, name)

    arguments["prompts"] = prompt_texts(args.judge_prompt, judges)
    return arguments


# ------------------------------------------------------------------------------------------------------------
# Verdicts that are there


def empty_tallies(judges: list[str], stored: Stored) -> Tallies:
    tallies = {}
    for judge in judges:
        tallies[judge] = {}
        for system in stored.systems:
            tallies[judge][system] = {dataset: Tally() for dataset in stored.images}
    return tallies


def tally_judged(file: Path, arguments: dict, stored: Stored, tallies: Tallies) -> Counter:
    """Tallies what the same command wrote before. Returns how many images that are, by (judge, system,
    dataset). Raises ValueError where the file holds something else."""
    done = Counter()
    for record in stored_records(file, arguments, expected_records(arguments, stored)):
        place = record["judge"], record["adapter"], record["data"]
        tally_record(stored, tallies, place, record)
        done[place] += 1
    return done


def expected_records(arguments: dict, stored: Stored) -> Iterator[tuple[dict, dict]]:
    """For each record, in the order in which the command makes them: how it begins, and the pattern that the
    whole has, as support.stored says it. All but the verdicts follows from the answers."""
    for judge in arguments["judge"]:
        for system in stored.systems:
            for dataset in stored.images:
                for answered in stored.read(system, dataset):
                    beginning = {"adapter": system, "data": dataset, "judge": judge, "id": answered.id}
                    n = len(answered.answers)
                    pattern = judged_record(judge, answered, [None] * n, {})
                    if not answered.unreadable:
                        pattern["categories"] = [CATEGORY] * n
                        for name, value in asked_scores(arguments).items():
                            pattern["scores"][name] = [value] * n
                    yield beginning, pattern


def tally_record(stored: Stored, tallies: Tallies, place: tuple[str, str, str], record: dict) -> None:
    """Takes in an image's record. An image before it that the system has not answered is an empty group: the
    groups of all systems stand side by side."""
    judge, system, dataset = place
    tally = tallies[judge][system][dataset]
    answered = stored.systems[system].places.get(dataset, {})
    while stored.images[dataset][len(tally.groups)] not in answered:
        tally.add({})
    tally.add(record)


def fill_missing(stored: Stored, tallies: Tallies) -> None:
    """Empty groups for the images behind the last that a system has answered."""
    for by_system in tallies.values():
        for by_dataset in by_system.values():
            for dataset, tally in by_dataset.items():
                while len(tally.groups) < len(stored.images[dataset]):
                    tally.add({})


# ------------------------------------------------------------------------------------------------------------
# Verdicts that are not


def judge_rest(args, judges: dict[str, str], audit_rows: list[dict], stored: Stored, tallies: Tallies,
               done: Counter, file: Path | None, arguments: dict, lock) -> dict[str, JudgeErrors]:
    """Judges what the tallies lack, one judge after the other, keeps it in the file if there is one, and
    tallies it. judges: their labels and whole names. Returns each judge's errors on the rows of --audit, {}
    without any."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    errors = {}
    names = {}  # key of a judge -> its name
    scorers = None  # for the scores that take a model
    for name, whole_name in judges.items():
        judge = None  # lets go of the last one: two would not fit in the memory

        # Whether a judge can be corrected shows before it has judged all answers.
        if audit_rows:
            judge = open_another(whole_name, args, device, names)
            errors[name] = audited(judge, name, audit_rows, args.audit)

        for system in stored.systems:
            for dataset in stored.images:
                place = name, system, dataset
                left = len(stored.answered(system, dataset)) - done[place]
                if left == 0:
                    continue

                # Loaded when they are first needed: where nothing is left to judge, nothing is.
                if judge is None:
                    judge = open_another(whole_name, args, device, names)
                if scorers is None:
                    scorers = load_scorers(args, device)

                answers = stored.read(system, dataset, first=done[place])
                answers = tqdm(answers, f"{name} {dataset}", left, leave=False, unit="image")
                batches = judged_in_batches(name, judge, answers, args.rows, scorers)
                for records in trusted_batches(batches, judge, left):
                    if file is not None:
                        append_answers(file, arguments, system, dataset, records, bool(done), lock)
                    for record in records:
                        tally_record(stored, tallies, place, record)
                    done[place] += len(records)
    return errors


def open_another(name: str, args, device: str, names: dict[str, str]) -> Judge:
    """The judge of that name. names: of those that were opened before, by their keys. Raises ValueError where
    it is one of them: it would repeat what is remembered of the first, and agree with it in everything."""
    judge = load_judge(name, args, device)
    key = getattr(judge, "key", name)
    label = judge_label(name)
    if names.setdefault(key, label) != label:
        raise ValueError(f"{names[key]} and {label} are one judge, by its model's name and prompt")
    return judge


def judged_in_batches(name: str, judge: Judge, answers: Iterable[Answered], rows: int,
                      scorers: dict[str, Scorer]) -> Iterator[list[dict]]:
    """Yields lists of records, of at least `rows` answers together but for the last: what a judge is asked
    about in one call."""
    batch = []
    count = 0
    for answered in answers:
        batch.append(answered)
        count += len(answered.answers)
        if count >= rows:
            yield judged_batch(name, judge, batch, scorers)
            batch = []
            count = 0
    if batch:
        yield judged_batch(name, judge, batch, scorers)


def judged_batch(name: str, judge: Judge, batch: list[Answered], scorers: dict[str, Scorer]) -> list[dict]:
    """The batch's records."""
    truths = [answered.label for answered in batch]
    judged = judge_groups(judge, truths, [answered.answers for answered in batch])
    scores = model_scores(scorers, batch, batch)
    records = []
    for answered, categories, own_scores in zip(batch, judged, scores):
        records.append(judged_record(name, answered, categories, own_scores))
    return records


def judged_record(judge: str, answered: Answered, categories: list, scores: dict[str, list]) -> dict:
    """What is kept of an image's verdicts: as a live evaluation's record, but the completions stay where they
    are, and what the answers' file says that no judge decides is kept."""
    if answered.unreadable:
        return {"judge": judge, "id": answered.id, "unreadable": answered.unreadable}
    scores = answered.scores | scores
    record = {"judge": judge} | answer_record(answered, answered, categories, scores) | answered.choice
    del record["texts"]
    return record


def was_asked(stored: Stored) -> list[bool]:
    """Of every answer, whether a judge was asked about it. The others are malformed, equal to the truth, or
    Wrong by a rule."""
    asked = []
    for system in stored.systems:
        for dataset in stored.images:
            for answered in stored.read(system, dataset):
                for answer in answered.answers:
                    asked.append(answer is not None and settled(answered.label, answer) is None)
    return asked
