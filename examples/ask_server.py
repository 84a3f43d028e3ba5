"""Asks a server that holds the trained adapter (vLLM, say) about a dataset's pictures; judges the answers.

    python -m examples.ask_server --server http://localhost:8000 --model speciarl --data cub --root data \\
        --judge http://localhost:8001 --judge-model Qwen/Qwen3-4B-Instruct-2507 --out answers.jsonl

docs/trainers.md says how vLLM serves an adapter. Any OpenAI-compatible server that takes pictures will do. A
line of the answers' file is an image: its truth, the server's text, the answer in it, its category. The same
command goes on where a killed one was. A server that fails ends the command with one line.

Where this departs from evaluate.py: one greedy answer an image; no bootstrap; the server prepares the
pictures, so the pixel limit is the server's.
"""

import argparse
import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

import data
from judge import JUDGE_ERROR, category_name, judge_groups, open_judge, parse_answer
from judges.server import endpoint
from metrics import Summary, summarize
from reward import Category
from rollout import PROMPTS
from support.command_line import one_line_errors
from support.files import append

TIMEOUT = 300  # seconds


def picture_url(image) -> str:
    """The picture itself as a URL, without loss."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def ask(url: str, model: str, question: str, image, max_tokens: int) -> str:
    """The server's greedy answer to the question about the picture. Raises OSError where there is none."""
    content = [{"type": "image_url", "image_url": {"url": picture_url(image)}},
               {"type": "text", "text": question}]
    body = {"model": model, "temperature": 0, "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": content}]}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            text = json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        said = error.read(200).decode(errors="replace")
        raise OSError(f"{url} answers {error.code}: {said}") from None
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        # nobody there, a reply that breaks off, or no chat's
        raise OSError(f"no answer from {url}: {error!r}") from None
    if not isinstance(text, str):
        raise OSError(f"no answer from {url}: its reply holds no text")
    return text


def answer_batch(args: argparse.Namespace, judge, examples: list[data.Example]) -> list[dict]:
    """Asks about these images side by side, then judges the answers in one call. Returns a record each."""
    url = endpoint(args.server)

    def text_for(example: data.Example) -> str | None:
        try:
            image = example.image()
        except data.BadImage:
            return None
        return ask(url, args.model, PROMPTS[args.prompt], image, args.max_new_tokens)

    with ThreadPoolExecutor(args.workers) as pool:
        texts = list(pool.map(text_for, examples))

    # Each answer is a group of one; an image that can't be read is an empty one.
    groups = [[] if text is None else [parse_answer(text)] for text in texts]
    judged = judge_groups(judge, [example.label for example in examples], groups)

    records = []
    for example, text, answers, categories in zip(examples, texts, groups, judged):
        record = {"id": example.id, "model": args.model, "prompt": args.prompt, "truth": example.label,
                  "text": text}
        for answer, category in zip(answers, categories):
            record |= {"answer": answer, "category": category_name(category)}
        records.append(record)
    return records


def stored_records(file: Path, model: str, prompt: str) -> list[dict]:
    """What an earlier run of the same command has written. Raises ValueError where it was another command."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)

    # A kill can leave a last line without its end: it is cut off.
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        file.write_text("".join(lines), encoding="utf-8")

    records = [json.loads(line) for line in lines]
    for record in records:
        if (record["model"], record["prompt"]) != (model, prompt):
            raise ValueError(f"{file} holds the answers of {record['model']} to {record['prompt']!r}: "
                             "give another --out")
    return records


def summary_of(records: list[dict]) -> Summary:
    """The figures of all records; an image without a text could not be read."""
    by_name = {category_name(category): category for category in (*Category, None)}
    said = [record["category"] for record in records if record["text"] is not None]
    judged = [by_name[name] for name in said if name != JUDGE_ERROR]
    return summarize(judged, len(said) - len(judged), len(records) - len(said))


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--server", required=True, help="http://host:port")
    p.add_argument("--model", required=True, help="the adapter's name on the server")
    p.add_argument("--data", required=True, help="a dataset's name, as for evaluate.py")
    p.add_argument("--root", help="folder of the datasets")
    p.add_argument("--split", default="test")
    p.add_argument("--limit", type=int, help="at most this many images, a random subset by seed 42")
    p.add_argument("--prompt", default="base", choices=PROMPTS)
    p.add_argument("--max-new-tokens", type=int, default=512)
    p.add_argument("--workers", type=int, default=32, help="questions at a time")
    p.add_argument("--judge", required=True, help="http://server, taxonomy.json or a chat model")
    p.add_argument("--judge-model", help="the model's name on a judge server")
    p.add_argument("--out", required=True, help="the answers' file, a line an image")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> Summary:
    args = parse_args(argv)
    file = Path(args.out)
    with one_line_errors("ask_server.py"):
        examples = data.load(args.data, args.split, args.root, args.limit)
        judge = open_judge(args.judge, model=args.judge_model)

        # What an earlier run of this command has is not asked again.
        records = stored_records(file, args.model, args.prompt)
        done = {record["id"] for record in records}
        rest = [example for example in examples if example.id not in done]

        for start in tqdm(range(0, len(rest), args.workers), desc="answers"):
            batch = answer_batch(args, judge, rest[start:start + args.workers])
            append(file, batch)
            records += batch

    summary = summary_of(records)
    print(f"{args.data}: correctness {summary.correctness:.3f}, specificity {summary.specificity:.3f}, "
          f"harmonic mean {summary.harmonic_mean:.3f} of {summary.n} answers; {summary.malformed} malformed, "
          f"{summary.judge_errors} without a verdict, {summary.unreadable} unreadable images")
    return summary


if __name__ == "__main__":
    main()
