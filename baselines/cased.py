"""CaSED: names for pictures without a list of names, by retrieval (Conti et al., Vocabulary-free Image
Classification, NeurIPS 2023). The one system of the paper's main table that generates nothing.

    python -m baselines.cased --data flowers,food,pets --root DIR --captions captions.txt --out cased.jsonl
    python evaluate.py --answers cased.jsonl --judge meta-llama/Llama-3.1-8B-Instruct

`-m` works from the repository's folder only. An image's way:

1. A CLIP embeds it. The k captions that are nearest to it are looked up in a database (caption_index.py);
   of those that nearly say the same, the first is kept.
2. The captions' words are the candidates: singular, without words that name nothing, those that come twice.
3. Two CLIP classifiers over the candidates: one sees the image, the other the mean of its captions. Their
   probabilities are mixed, and the likeliest word is the answer.

The captions are any text, a caption a line. They are embedded once, into a folder beside them, and a killed
command goes on there, as it does in --out, which evaluate.py judges as stored answers.

Where this departs from the authors' code (altndrr/vic):
1. No tagger tells nouns and adjectives from other words here: a list of words that name nothing is left out.
2. Plurals are told by their endings, by rules and not by a dictionary.
3. The captions are the user's (theirs: five parts of PMD), and the search is exact.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import data
from baselines.caption_index import Clip, Index, embed_images, embed_texts, load_clip, open_index
from support.answers import append_answers, lock_answers, stored_records
from support.command_line import COUNT, SHARE, check_value, one_line_errors
from support.stored import NUMBER, TEXT

CLIP = "openai/clip-vit-large-patch14"  # the authors'
TEMPERATURE = 0.07     # of CLIP's softmax
NEARLY_THE_SAME = 0.94  # cosine from which two captions count as one
NOTHING_FOUND = "object"  # the candidate where captions leave none
SHOWN = 5              # candidates that are written beside the answer

# ------------------------------------------------------------------------------------------------------------
# Candidates: words out of captions

# What a picture is, which says nothing of what is on it.
META_WORDS = frozenset(
    "image photo picture thumbnail logo symbol clipart portrait painting illustration icon profile".split())
# Words of three letters and more that name nothing: the tagger's work in the authors' code.
NAME_NOTHING = frozenset(
    "the and but nor yet for with without within from into onto upon over under above below about "
    "across after against along among around before behind beside between beyond during near off out "
    "past since through toward towards until via than that this these those which who whom whose what "
    "when where while why how are was were been being has have had having does did doing can could may "
    "might must shall should will would get gets got make makes made take takes taken show shows sit "
    "sits stand stands look looks hold holds let lets see seen come comes his her hers its our ours "
    "your yours their theirs him them they she you all any both each every few many more most much "
    "neither none other another some such own same very too also just only not now then here there "
    "again ever never always often still even well one two three four five six seven eight nine ten "
    "first second".split())

IRREGULAR = {"men": "man", "women": "woman", "children": "child", "feet": "foot", "teeth": "tooth",
             "geese": "goose", "mice": "mouse", "leaves": "leaf", "wolves": "wolf", "calves": "calf",
             "loaves": "loaf", "knives": "knife"}
NO_PLURAL = ("ss", "us", "is", "ies", "oes")     # endings that are left as they are, as in the authors' code
PLURAL_IN_ES = ("ches", "shes", "xes", "sses", "zzes")


def candidates(captions: list[str]) -> list[str]:
    """The words of an image's captions that may name it, in the order in which they come; ["object"] where
    none is left. Those that come twice or more; where none does, all that come as often as any."""
    words = [singular(word) for word in plain_words(" ".join(captions))]
    words = [word for word in words if word not in META_WORDS]
    most = max(map(words.count, words), default=0)
    wanted = min(2, most)
    kept = dict.fromkeys(word for word in words if words.count(word) >= wanted)
    return [word for word in kept if word not in NAME_NOTHING] or [NOTHING_FOUND]


def plain_words(text: str) -> list[str]:
    """Its words of three letters and more, in lower case, without what the web adds: <person>, addresses, the
    kinds of files, signs."""
    text = re.sub(r"<[^>]+>", "", text)
    text = re.sub(r"(https?:|www\.)\S+", "", text)
    text = re.sub(r"[^\w\s\-.'&]", "", text)
    text = re.sub(r"\.\w+", "", text)            # "bird.jpg"
    text = re.sub(r"[_-]", " ", text)
    words = [word for word in text.split() if len(word) >= 3]
    letters = ["".join(filter(str.isalpha, word)) for word in words]
    return [word.lower() for word in letters if word]


def singular(word: str) -> str:
    """"birds" -> "bird", "finches" -> "finch"; but "glass", "cactus" and "iris" stay."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    if not word.endswith("s") or word.endswith(NO_PLURAL) or word in NAME_NOTHING:
        return word
    if word.endswith(PLURAL_IN_ES):
        return word[:-2]
    return word[:-1]


# ------------------------------------------------------------------------------------------------------------
# Scores


def first_of_equals(vectors: Tensor) -> list[int]:
    """The numbers of the captions that stay where those that nearly say the same count as one. Equal is whom
    a chain of such neighbours joins. vectors: (k, D), of length 1."""
    near = vectors @ vectors.T >= NEARLY_THE_SAME                             # (k, k)
    kept = []
    seen = set()
    for number in range(len(vectors)):
        if number in seen:
            continue
        kept.append(number)

        # all that can be reached from it
        reached = [number]
        while reached:
            here = reached.pop()
            seen.add(here)
            neighbours = near[here].nonzero()[:, 0].tolist()
            reached += [neighbour for neighbour in neighbours if neighbour not in seen]
    return kept


def score(image: Tensor, captions: Tensor, words: Tensor, alpha: float) -> Tensor:
    """(W,) probabilities of an image's W candidates: alpha of what the image says, the rest of what the mean
    of its captions does. image: (D,), captions: (k, D), words: (W, D), all of length 1."""
    text = torch.nn.functional.normalize(captions.mean(dim=0), dim=0)         # (D,)
    by_image = (words @ image / TEMPERATURE).softmax(dim=0)                   # (W,)
    by_text = (words @ text / TEMPERATURE).softmax(dim=0)                     # (W,)
    return alpha * by_image + (1 - alpha) * by_text


def name_images(clip: Clip, index: Index, images: list, k: int, alpha: float) -> list[dict[str, float]]:
    """The candidates of each of B PIL images with their probabilities, the likeliest first."""
    queries = embed_images(clip, images)                                      # (B, D)
    rows, _ = index.search(queries, k)                                        # (B, k)
    named = []
    for query, own_rows in zip(queries, rows.tolist()):
        captions = torch.tensor(index.vectors[own_rows], device=query.device).to(query.dtype)  # (k, D)
        kept = first_of_equals(captions)
        words = candidates([index.caption(own_rows[number]) for number in kept])
        probabilities = score(query, captions[kept], embed_texts(clip, words), alpha)
        ordered, places = probabilities.sort(descending=True, stable=True)
        named.append({words[place]: value for place, value in zip(places.tolist(), ordered.tolist())})
    return named


# ------------------------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser("baselines.cased", "python -m %(prog)s [options]; --help lists them",
                                description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="datasets, comma between them")
    p.add_argument("--root", help="folder of the datasets (default: data)")
    p.add_argument("--split", default="test", choices=("train", "val", "test"))
    p.add_argument("--protocol", default="official", choices=("official", "coop"), help="whose splits")
    p.add_argument("--limit", type=int, help="at most this many images a dataset, a random subset by seed 42")
    p.add_argument("--captions", required=True, metavar="FILE", help="the database: a caption a line")
    p.add_argument("--index", metavar="DIR", help="where their embeddings are kept (default: FILE.index)")
    p.add_argument("--clip", default=CLIP, help=f"a CLIP's folder or hub name (default: {CLIP})")
    p.add_argument("--k", type=int, default=10, help="captions that are looked up (default: 10)")
    p.add_argument("--alpha", type=float, default=0.7,
                   help="weight of what the image says against what its captions say (default: 0.7)")
    p.add_argument("--rows", type=int, default=64, help="images at a time (default: 64)")
    p.add_argument("--out", required=True, metavar="FILE.jsonl",
                   help="the answers, a line an image; the same command goes on after a kill")
    return p


def check_options(args) -> None:
    """Raises ValueError for an option that can't be."""
    for name, must in {"limit": COUNT, "k": COUNT, "rows": COUNT, "alpha": SHARE}.items():
        check_value(name, getattr(args, name), must)
    names = args.data.split(",")
    if len(set(names)) < len(names):
        raise ValueError(f"--data names one thing twice: {args.data}")
    if not args.out.endswith(".jsonl"):
        raise ValueError(f"--out names a .jsonl file, got {args.out}")


def expected_records(arguments: dict, datasets: dict[str, list]) -> Iterator[tuple[dict, dict]]:
    """As support.answers.stored_records takes them."""
    shown = (lambda value: type(value) is dict and all(map(NUMBER[0], value.values())), "words with numbers")
    for name, examples in datasets.items():
        for example in examples:
            beginning = {"adapter": "cased", "data": name, "id": example.id}
            yield beginning, {"domain": example.domain, "truth": example.label, "answers": [TEXT],
                              "candidates": shown}


def answer_batch(clip: Clip, index: Index, batch: list[data.Example], args) -> list[dict]:
    """A record for each image, in their order."""
    readable, images, unreadable = data.read_images(batch)
    named = {}
    if images:
        for example, words in zip(readable, name_images(clip, index, images, args.k, args.alpha)):
            named[example.id] = words
    lines = iter(unreadable)

    records = []
    for example in batch:
        if example.id not in named:
            records.append({"id": example.id, "unreadable": next(lines)})
            continue
        words = named[example.id]
        likeliest = list(words)[:SHOWN]
        shown = {word: round(words[word], 4) for word in likeliest}
        records.append({"id": example.id, "domain": example.domain, "truth": example.label,
                        "answers": likeliest[:1], "candidates": shown})
    return records


def run(args) -> None:
    """The command: raises what main makes one line of."""
    check_options(args)
    captions = Path(args.captions)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    datasets = {}
    for name in args.data.split(","):
        datasets[name] = data.load(name, args.split, args.root, args.limit, protocol=args.protocol)
    clip = load_clip(args.clip, device)
    index = open_index(captions, clip, Path(args.index or f"{args.captions}.index"))

    arguments = dict(vars(args))
    for name in ("captions", "index", "rows", "out"):
        del arguments[name]
    arguments["text"] = index.text_hash
    file = Path(args.out)
    with lock_answers(file) as lock:
        # What the same command answered before stands.
        done = dict.fromkeys(datasets, 0)
        for record in stored_records(file, arguments, expected_records(arguments, datasets)):
            done[record["data"]] += 1

        for name, examples in datasets.items():
            left = examples[done[name]:]
            for start in tqdm(range(0, len(left), args.rows), desc=name):
                records = answer_batch(clip, index, left[start:start + args.rows], args)
                append_answers(file, arguments, "cased", name, records, any(done.values()), lock)
                done[name] += len(records)
    print(f"the answers are in {file}: python evaluate.py --answers {file} --judge JUDGE")


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with one_line_errors("baselines.cased"):
        data.refuse_odd_words(argv)
        run(args)


if __name__ == "__main__":
    main()
