"""Asks a server that holds the trained adapter (vLLM, say) about a dataset's pictures; judges the answers.

    python -m examples.ask_server --server http://localhost:8000 --model speciarl --data cub --root data \\
        --judge http://localhost:8001 --judge-model Qwen/Qwen3-4B-Instruct-2507 --out answers.jsonl

docs/evaluate.md says how vLLM serves an adapter. Any OpenAI-compatible server that takes pictures will do.
The answers' file is evaluate.py's (support/answers.py): a line an image, and the same command goes on where a
killed one was. A server that fails, and a judge that is gone, end the command with one line.

Where this departs from evaluate.py: one greedy answer an image; no bootstrap; the server prepares the
pictures, so the pixel limit is the server's.
"""

import argparse
import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
from tqdm import tqdm

import data
from evaluate import batch_records
from judge import judge_groups, judge_label, open_judge
from judges.endpoint import Endpoint, NoWords
from metrics import Summary, Tally
from rollout import PROMPTS, read_answer
from support.answers import append_answers, lock_answers, stored_answers
from support.command_line import COUNT, TOKENS, check_value, one_line_errors
from support.judging import prompt_texts, trusted_batches
from support.opening import JudgeFailed, question_for

TIMEOUT = 300  # seconds


def picture_url(image) -> str:
    """The picture itself as a URL, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(server: Endpoint, question: str, image) -> str:
    """The server's greedy answer to the question about the picture; one that is cut off as far as it goes,
    and "" where the model refuses. Raises OSError where there is none."""
    content = [{"type": "image_url", "image_url": {"url": picture_url(image)}},
               {"type": "text", "text": question}]
    try:
        return server.chat([{"role": "user", "content": content}]).words
    except NoWords:
        return ""
    except OSError as error:
        raise OSError(f"no answer from {server.url}: {server.one_line(error)}") from None


def answer_in_batches(args: argparse.Namespace, judge, examples: list[data.Example]) -> Iterator[list[dict]]:
    """Yields the records of --workers images at a time: they are asked about side by side, and their answers
    judged in one call."""
    server = Endpoint(args.server, args.model, timeout=TIMEOUT, tokens=args.max_new_tokens)
    question = question_for(args.prompt, [args.data])

    def answer(image) -> str:
        return ask(server, question, image)

    with ThreadPoolExecutor(args.workers) as pool:
        for start in tqdm(range(0, len(examples), args.workers), desc="answers"):
            batch = examples[start:start + args.workers]
            readable, images, unreadable = data.read_images(batch)
            texts = list(pool.map(answer, images))

            # Each answer is a group of one.
            groups = []
            for text in texts:
                groups.append(SimpleNamespace(texts=[text], answers=[read_answer(text, question)]))
            truths = [example.label for example in readable]
            judged = judge_groups(judge, truths, [group.answers for group in groups])
            yield batch_records(batch, readable, groups, judged, unreadable)


def answer_arguments(args: argparse.Namespace) -> dict:
    """All that the answers depend on: another command's are refused. What evaluate.py could do and this can't
    is in it as evaluate.py says that it is not done."""
    arguments = dict(vars(args))
    for name in ("server", "workers", "out"):
        del arguments[name]
    arguments["judge"] = judge_label(args.judge)
    arguments["prompts"] = prompt_texts(None, [args.judge])
    question = question_for(args.prompt, [args.data])
    return arguments | {"question": question, "n": 1, "embedder": None, "language_inclusion": None,
                        "choose": False}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", required=True, help="http://host:port")
    p.add_argument("--model", required=True, help="the adapter's name on the server")
    p.add_argument("--data", required=True, help="a dataset's name, as for evaluate.py")
    p.add_argument("--root", help="folder of the datasets")
    p.add_argument("--split", default="test")
    p.add_argument("--limit", type=int, help="at most this many images, a random subset by seed 42")
    p.add_argument("--prompt", default="base", help=f"{', '.join(PROMPTS)}, or a text file (default: base)")
    p.add_argument("--max-new-tokens", type=int, default=2048)
    p.add_argument("--workers", type=int, default=32, help="questions at a time")
    p.add_argument("--judge", required=True, help="http://server, taxonomy.json or a chat model")
    p.add_argument("--judge-model", help="the model's name on a judge server")
    p.add_argument("--out", required=True, help="the answers' file, a line an image")
    return p.parse_args(argv)


def answer_all(args: argparse.Namespace) -> Tally:
    """What all answers came to: those of an earlier run of this command, which are not asked for again, and
    the rest. Raises ValueError, OSError, JudgeFailed."""
    for name, must in {"workers": COUNT, "max_new_tokens": TOKENS, "limit": COUNT}.items():
        check_value(name, getattr(args, name), must)
    file = Path(args.out)
    arguments = answer_arguments(args)
    examples = data.load(args.data, args.split, args.root, args.limit)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    judge = open_judge(args.judge, model=args.judge_model, device=device)

    tally = Tally()
    with lock_answers(file) as lock:
        for _, _, record in stored_answers(file, arguments, [args.model], {args.data: examples}):
            tally.add(record)

        rest = examples[len(tally.groups):]
        batches = answer_in_batches(args, judge, rest)
        for records in trusted_batches(batches, judge, len(rest)):
            append_answers(file, arguments, args.model, args.data, records, bool(tally.groups), lock)
            for record in records:
                tally.add(record)
    return tally


def main(argv: list[str] | None = None) -> Summary:
    args = parse_args(argv)
    with one_line_errors("ask_server.py"):
        try:
            tally = answer_all(args)
        except JudgeFailed as error:
            raise OSError(f"{error}; what is written stands, the same command goes on") from None

    summary = tally.summary()
    print(f"{args.data}: correctness {summary.correctness:.3f}, specificity {summary.specificity:.3f}, "
          f"harmonic mean {summary.harmonic_mean:.3f} of {summary.n} answers; {summary.malformed} malformed, "
          f"{summary.judge_errors} without a verdict, {summary.unreadable} unreadable images")
    return summary


if __name__ == "__main__":
    main()
