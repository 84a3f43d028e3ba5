"""CaSED, vocabulary-free classification by retrieval: the paper's baseline that is no language model.

    python -m baselines.cased --data flowers,food --root DIR --captions captions.txt --out cased.jsonl
    python evaluate.py --answers cased.jsonl --data flowers,food --root DIR --judge JUDGE

`-m` works from the repository's folder only. The captions are a large text file, embedded once by CLIP
(captions_index.py). Then, for a picture,

1. the 10 captions nearest to it are found, and near-duplicates among them dropped;
2. the words that they say more than once are its candidates (candidates.py);
3. picture and captions each choose among these, by a softmax over CLIP's cosines;
4. the answer is the word that is best by .7 of the picture's choice and .3 of the captions'.

--out holds a line a picture as `evaluate.py --answers` reads it. The same command goes on after a kill.

Source: Conti et al., Vocabulary-free Image Classification, NeurIPS 2023, and its release, altndrr/vic, whose
settings these are. Where this departs from the release:
1. The captions are whichever are given, and the search through them is exact. The release has a part of the
   Public Multimodal Dataset, as an index that its authors share.
2. A tagger of parts of speech leaves the release nouns, adjectives and participles. Here a list of function
   words, adverbs, numbers and verbs of captions is dropped instead.
3. Plurals become singular by a few rules, not by the package inflect.
4. Candidates keep the order of the captions, so that a tie always goes to the same one.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

import data
from baselines.candidates import candidates
from baselines.captions_index import CaptionIndex, complete, find_index
from baselines.clip import Clip, load_clip
from evaluate import load_datasets, readable_batches, refuse_repeats
from support.answers import append_answers, lock_answers, stored_records
from support.command_line import COUNT, REQUESTS, SHARE, check_value, first_line
from support.stored import TEXT, is_number

CLIP = "openai/clip-vit-large-patch14"
SYSTEM = "cased"           # whose answers these are, in the file and in the table
NEAR_DUPLICATE = 0.94      # cosine of two captions that count as one
SCALE = 1 / 0.07           # of cosines, before the softmax
IMAGES_PER_SCAN = 1024     # pictures that one pass through the captions serves
SHOWN = 5                  # candidates kept beside an answer

# ------------------------------------------------------------------------------------------------------------
# From a picture to its answer


def first_of_duplicates(vectors: Tensor) -> list[int]:
    """The places to keep of (C, D) vectors of length 1: the first of each group. A group is what is linked by
    pairs that are nearly the same, however many pairs apart."""
    similar = vectors @ vectors.T >= NEAR_DUPLICATE                             # (C, C)
    kept = []
    grouped = set()
    for place in range(len(vectors)):
        if place in grouped:
            continue
        kept.append(place)
        grouped.add(place)
        waiting = [place]
        while waiting:
            linked = similar[waiting.pop()].nonzero().flatten().tolist()
            new = [other for other in linked if other not in grouped]
            grouped.update(new)
            waiting += new
    return kept


def word_scores(image: Tensor, captions: Tensor, words: Tensor, alpha: float) -> Tensor:
    """Each candidate's probability, (W,). image: (D,), captions: (C, D), words: (W, D), all of length 1."""
    centre = normalize(captions.mean(dim=0), dim=0)                             # (D,)
    by_image = (SCALE * words @ image).softmax(dim=0)                           # (W,)
    by_captions = (SCALE * words @ centre).softmax(dim=0)                       # (W,)
    return alpha * by_image + (1 - alpha) * by_captions


class Retrieved(NamedTuple):
    """What was found for one picture."""
    captions: list[str]
    vectors: Tensor    # of the captions, (C, D)
    words: list[str]   # the candidates


def retrieve(index: CaptionIndex, images: Tensor, k: int, device) -> list[Retrieved]:
    """The captions near each picture, without near-duplicates, and their candidates. images: (B, D)."""
    places = index.nearest(images, k, device)                                   # (B, k)
    found = []
    for near in places:
        vectors = normalize(index.embeddings_at(near), dim=-1)                  # (k, D)
        kept = first_of_duplicates(vectors)
        captions = index.texts(near[kept].tolist())
        found.append(Retrieved(captions, vectors[kept], candidates(captions)))
    return found


def answer(clip: Clip, index: CaptionIndex, images: Tensor, k: int, alpha: float) -> list[dict]:
    """What each picture's line says: the answer, the best candidates and the captions. images: (B, D)."""
    found = retrieve(index, images, k, clip.device)

    # Each word once, however many pictures it is a candidate of.
    places = {}
    for retrieved in found:
        for word in retrieved.words:
            places.setdefault(word, len(places))
    vectors = clip.embed_texts(list(places))                                    # (all words, D)

    answers = []
    for image, retrieved in zip(images, found):
        words = vectors[[places[word] for word in retrieved.words]]             # (W, D)
        scores = word_scores(image, retrieved.vectors, words, alpha).tolist()
        ranked = sorted(zip(retrieved.words, scores), key=lambda pair: -pair[1])
        best, _ = ranked[0]
        shown = {word: round(score, 4) for word, score in ranked[:SHOWN]}
        answers.append({"answers": [best], "candidates": shown, "captions": retrieved.captions})
    return answers


def answer_in_groups(clip: Clip, index: CaptionIndex, examples: list[data.Example], k: int, alpha: float,
                     label: str, first: int = 0) -> Iterator[list[dict]]:
    """Yields lists of records, one a picture, in the order of the examples from number `first` on: those of
    one pass through the captions at a time. label: of the progress bar."""
    with tqdm(total=len(examples), initial=first, desc=label, unit="image", leave=False) as progress:
        while first < len(examples):
            # A group begins and ends where it would have, had all begun with the first picture: rounding
            # depends on who is computed together.
            start = first // IMAGES_PER_SCAN * IMAGES_PER_SCAN
            members = examples[start:start + IMAGES_PER_SCAN]
            records = group_records(clip, index, members, k, alpha)[first - start:]
            yield records
            first += len(records)
            progress.update(len(records))


def group_records(clip: Clip, index: CaptionIndex, examples: list[data.Example], k: int,
                  alpha: float) -> list[dict]:
    """A record for each picture, in their order."""
    # A batch of pictures is in memory at a time, and their vectors are what stays.
    answered = []    # the pictures that can be read
    vectors = []     # of them, a tensor a batch
    unreadable = []  # a line for each of the others
    for start in range(0, len(examples), clip.batch):
        readable, images, lines = data.read_images(examples[start:start + clip.batch])
        answered += [example.id for example in readable]
        unreadable += lines
        if images:
            vectors.append(clip.embed_images(images))

    found = {}
    if answered:
        answers = answer(clip, index, torch.cat(vectors), k, alpha)
        found = dict(zip(answered, answers))

    records = []
    lines = iter(unreadable)
    for example in examples:
        if example.id in found:
            beginning = {"id": example.id, "domain": example.domain, "truth": example.label}
            records.append(beginning | found[example.id])
        else:
            records.append({"id": example.id, "unreadable": next(lines)})
    return records


# ------------------------------------------------------------------------------------------------------------
# The file of answers


def expected_records(datasets: dict[str, list[data.Example]]) -> Iterator[tuple[dict, dict]]:
    """As support.answers.stored_records takes it: how each line begins, and the pattern of the rest."""
    words = (are_scores, "words with their scores")
    captions = (are_texts, "a list of texts")
    for name, examples in datasets.items():
        for example in examples:
            beginning = {"adapter": SYSTEM, "data": name, "id": example.id}
            pattern = {"domain": example.domain, "truth": example.label, "answers": [TEXT],
                       "candidates": words, "captions": captions}
            yield beginning, pattern


def are_scores(value) -> bool:
    return type(value) is dict and all(is_number(score) for score in value.values())


def are_texts(value) -> bool:
    return type(value) is list and all(type(text) is str for text in value)


def answer_arguments(args, clip: Clip, captions: str) -> dict:
    """All that the answers depend on, but for how many pictures are encoded at a time: another command's are
    refused. captions: a hash of the file."""
    kept = ("data", "root", "split", "protocol", "limit", "clip", "k", "alpha")
    arguments = {name: getattr(args, name) for name in kept}
    return arguments | {"weights": clip.fingerprint, "captions": captions}


def answer_all(args, datasets: dict[str, list[data.Example]]) -> tuple[int, list[str]]:
    """Answers what the file lacks. Returns how many pictures are answered, and a line for each that can't be
    read. Raises ValueError, OSError."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")  # float32 is float32: no TF32 on a GPU
    file = Path(args.out)
    with lock_answers(file) as lock:
        clip = load_clip(args.clip, device, args.batch)
        index = find_index(Path(args.captions), index_folder(args), clip)
        arguments = answer_arguments(args, clip, index.digest)

        # What the same command has written before.
        done = Counter()
        unreadable = {name: [] for name in datasets}
        for record in stored_records(file, arguments, expected_records(datasets)):
            done[record["data"]] += 1
            if "unreadable" in record:
                unreadable[record["data"]].append(record["unreadable"])

        # Only now, when it is sure that --out is this command's: embedding may take hours.
        complete(index, clip)
        for name, examples in datasets.items():
            groups = answer_in_groups(clip, index, examples, args.k, args.alpha, name, first=done[name])
            groups = readable_batches(groups, unreadable[name], len(examples), args.max_unreadable, name)
            for records in groups:
                begun = done.total() > 0
                append_answers(file, arguments, SYSTEM, name, records, begun, lock)
                done[name] += len(records)
                unreadable[name] += [record["unreadable"] for record in records if "unreadable" in record]

    lines = [line for of_one in unreadable.values() for line in of_one]
    return done.total() - len(lines), lines


# ------------------------------------------------------------------------------------------------------------
# Command line


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(usage="%(prog)s [options]; --help lists them", description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="datasets, comma between them")
    p.add_argument("--root", help="folder of the datasets (default: data)")
    p.add_argument("--split", default="test", choices=data.SPLITS)
    p.add_argument("--protocol", default="official", choices=("official", "coop"), help="whose splits")
    p.add_argument("--limit", type=int, help="at most this many images a dataset, a random subset by seed 42")
    p.add_argument("--captions", required=True, metavar="FILE", help="a text file, a caption a line")
    p.add_argument("--index", metavar="DIR", help="where their embeddings are kept (default: beside them)")
    p.add_argument("--clip", default=CLIP, help=f"folder or hub name (default: {CLIP})")
    p.add_argument("--k", type=int, default=10, help="captions retrieved for a picture (default: 10)")
    p.add_argument("--alpha", type=float, default=0.7,
                   help="weight of the picture's choice; the captions' has the rest (default: 0.7)")
    p.add_argument("--batch", type=int, default=64,
                   help="pictures or captions encoded at a time (default: 64)")
    p.add_argument("--max-unreadable", type=float, default=0.5, metavar="SHARE",
                   help="share of a dataset's images that can't be read that ends the command (default: 0.5)")
    p.add_argument("--out", required=True, metavar="FILE.jsonl", help="the answers, a line a picture")
    return p


def index_folder(args) -> Path:
    """Where the embeddings are kept: if nothing else is said beside the captions, named after the CLIP."""
    if args.index:
        return Path(args.index)
    clip = Path(args.clip).resolve().name
    return Path(f"{args.captions}.{clip}.index")


def check_options(args) -> None:
    """Raises ValueError for an option that can't be, OSError where there are no captions: a CLIP takes its
    time to load."""
    numbers = {"limit": COUNT, "k": REQUESTS, "alpha": SHARE, "batch": COUNT, "max_unreadable": SHARE}
    for name, must in numbers.items():
        check_value(name, getattr(args, name), must)
    refuse_repeats("--data", args.data.split(","))
    if not args.out.endswith(".jsonl"):
        raise ValueError(f"--out names a file of answers, FILE.jsonl, got {args.out}")
    data.refuse_special(args.captions)


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        data.refuse_odd_words(argv)
        check_options(args)
        answered, unreadable = answer_all(args, load_datasets(args))
    except (ValueError, OSError) as error:
        sys.exit(f"baselines.cased: {first_line(error)}")
    except torch.cuda.OutOfMemoryError:
        sys.exit("baselines.cased: out of GPU memory: the same command with a lower --batch goes on")
    except KeyboardInterrupt:
        sys.exit("baselines.cased: stopped; what is written stands, the same command goes on")
    for line in unreadable[:10]:
        print(line, file=sys.stderr)
    print(f"{args.out}: {answered} pictures answered, {len(unreadable)} unreadable")
    print(f"judge them: python evaluate.py --answers {args.out} --judge JUDGE")


if __name__ == "__main__":
    main()
