"""How far a command goes with its judge: it ends where the judge is gone, and finds out what errors it makes.

    for records in trusted_batches(batches, judge, images):
        append(records)
    errors = audited(judge, "Qwen/Qwen3-4B-Instruct-2507", read_audit(file), file)
"""

from collections.abc import Iterable, Iterator

from judge import BY_LABEL, JUDGE_ERROR, Judge, load_prompt, read_names
from metrics import JudgeErrors, known_errors
from support.opening import trust

MOST_JUDGE_ERRORS = 0.5  # a larger share of answers without a verdict ends the command
ENOUGH_ANSWERS = 16      # fewer don't tell a few judge errors from a judge that is gone


def trusted_batches(batches: Iterable[list[dict]], judge: Judge, images: int) -> Iterator[list[dict]]:
    """Passes batches of records on, together `images` of them, as long as the judge can be trusted.

    Records with judge errors are held back until there are answers enough to tell a few errors from a judge
    that is gone. Raises JudgeFailed in the second case: what was held back is no result, and is not kept.
    """
    held = []
    for batch in batches:
        held += batch
        images -= len(batch)

        # an entry for each answer that is held, a judge error where there is no verdict
        categories = []
        for record in held:
            categories += record.get("categories", [])
        errors = categories.count(JUDGE_ERROR)

        # After the last image there won't be more to go by.
        if errors > 0 and len(categories) < ENOUGH_ANSWERS and images > 0:
            continue
        trust(judge, errors, len(categories), MOST_JUDGE_ERRORS, "answers")
        yield held
        held = []


def audited(judge: Judge, name: str, rows: list[dict], file: str) -> JudgeErrors:
    """The errors of the judge of that name on labelled pairs, the rows of a file as judges.audit reads them.
    Raises ValueError where nothing can be corrected by them, JudgeFailed where too many have no verdict."""
    verdicts = judge([(row["ground_truth"], row["prediction"]) for row in rows])
    trust(judge, verdicts.count(None), len(rows), MOST_JUDGE_ERRORS, f"pairs of {file}")
    labels = [BY_LABEL[row["category"]] for row in rows]
    try:
        return known_errors(labels, verdicts)
    except ValueError as error:
        raise ValueError(f"--audit {file}, judge {name}: {error}") from None


def errors_line(file: str, errors: JudgeErrors) -> str:
    """What the judge gets right of the pairs that its figures are corrected by."""
    return (f"on {file} it finds {errors.q0:.3f} of {errors.wrong} wrong pairs, and lets pass "
            f"{errors.q1:.3f} of {errors.not_wrong} others")


def prompt_texts(judge_prompt: str | None, judges: list[str]) -> list[str]:
    """The prompts that judges are given by --judge-prompt or by their names: what they say, whatever their
    files are called. Raises ValueError, OSError."""
    prompts = [judge_prompt] if judge_prompt else []
    for judge in judges:
        prompts += [name.prompt for name in read_names(judge) if name.prompt]
    return [load_prompt(prompt)[0] for prompt in prompts]
