"""Answers in files, whoever gave them, so that they can be judged: `evaluate.py --answers FILE.jsonl`.

A line an image, one JSON object each:

    {"id": "cub/1.jpg", "truth": "Mallard", "answers": ["a duck", null]}
    {"image": "pictures/1.jpg", "truth": "Mallard", "texts": ["<think> … <answer> a duck </answer>"]}

"id" or "image" names the image. An answer of null is malformed. Where there are no "answers", they are read
out of "texts", the whole completions. "dataset" says what the image belongs to. The files that evaluate.py
writes (support/answers.py) are read too: a first line of arguments, then "data" for the dataset, and
"adapter" where several systems have answered. Any other key is passed over.

A file is read twice: whole, so that a mistake in its last line shows before anything is judged, and then
image by image. Nothing is ever written to it.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import data
from judge import normalize_label, parse_answer
from readers.cars import year_first
from support.scores import MODEL_SCORES
from support.tables import titles

DATASET = "answers"  # what images belong to where nobody says it
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold it, a judge can't read it
LINE = '{"id" or "image": text, "truth": text, "answers" or "texts": [text, ...]}'


@dataclass(frozen=True)
class Answered:
    """One image's answers. It has what a data.Example and a rollout.Group have of it."""
    id: str
    label: str                            # the truth, "" where the line holds none
    domain: str
    answers: list[str | None]             # None is malformed
    texts: list[str] | None = None        # the whole completions
    scores: dict[str, list] = field(default_factory=dict)  # those that a model gave each answer, if any did
    choice: dict = field(default_factory=dict)  # {"choice": the place of the model's own}, {} if not asked
    unreadable: str = ""                  # why there are no answers


@dataclass
class System:
    """Whose answers stand in one file, and where."""
    name: str  # the file's word for it
    file: Path
    places: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)  # dataset, id -> byte, line
    has_answers: bool = False    # whether any image has some
    has_texts: bool = True       # whether every image that has answers has these too
    scores: set[str] = field(default_factory=lambda: set(MODEL_SCORES))  # that all these images have


@dataclass
class Stored:
    """The answers of all files. truths: dataset -> image -> its truth, in the order of --data, or else in
    that of the files; an image may lack some system's answers."""
    systems: dict[str, System]
    truths: dict[str, dict[str, str]]
    domains: dict[str, str] = field(default_factory=dict)  # dataset -> its images', of those of --data

    def __post_init__(self):
        self.images = {dataset: list(truths) for dataset, truths in self.truths.items()}

    def answered(self, name: str, dataset: str) -> list[str]:
        """The images of the dataset that a system has answered, in the order of all."""
        places = self.systems[name].places.get(dataset, {})
        return [image for image in self.images[dataset] if image in places]

    def read(self, name: str, dataset: str, first: int = 0) -> Iterator[Answered]:
        """Yields a system's answers to a dataset, in that order, from image number `first` on."""
        system = self.systems[name]
        with system.file.open("rb") as lines:
            for image in self.answered(name, dataset)[first:]:
                byte, number = system.places[dataset][image]
                lines.seek(byte)
                place = f"{system.file}, line {number}"
                answered = parse_entry(place, parse_line(place, lines.readline()))
                answered = replace(answered, id=image, label=self.truths[dataset][image],
                                   domain=self.domains.get(dataset) or answered.domain or dataset)

                # What some lines lack is known of none: its mean would be of other images.
                if not system.has_texts:
                    answered = replace(answered, texts=None)
                known = {name: answered.scores[name] for name in answered.scores if name in system.scores}
                yield replace(answered, scores=known)

    def missing(self) -> dict[str, dict[str, int]]:
        """System -> dataset -> how many of its images the system has not answered, where there are any."""
        counts = {}
        for name in self.systems:
            for dataset, images in self.images.items():
                lacking = len(images) - len(self.answered(name, dataset))
                if lacking > 0:
                    counts.setdefault(name, {})[dataset] = lacking
        return counts


def open_answers(files: list[str], datasets: dict[str, list]) -> Stored:
    """Reads all files once. datasets: name -> Examples, to which the answers must be; {}: what the files say
    stands. Raises ValueError that names the line which is none, or does not fit; OSError."""
    truths = {}
    domains = {}
    for name, examples in datasets.items():
        truths[name] = {example.id: example.label for example in examples}
        domains[name] = examples[0].domain if examples else name
    finder = Finder(truths) if datasets else None

    systems = []
    for file in files:
        found = systems_in(Path(file), truths, finder)
        if not found:
            raise ValueError(f"{file} holds no answers")
        systems += found
    if not any(system.has_answers for system in systems):
        raise ValueError(f"none of the images in {', '.join(files)} has an answer: there is no table")
    names = system_names(systems)
    if len(set(names)) < len(names):
        raise ValueError(f"two systems in {', '.join(files)} have one name: {' '.join(sorted(names))}")
    return Stored(dict(zip(names, systems)), truths, domains)


def system_names(systems: list[System]) -> list[str]:
    """As the table and the files name them: of one file as it names them, of several by their files."""
    by_file = {}
    for system in systems:
        by_file.setdefault(system.file, []).append(system.name)
    if len(by_file) == 1:
        return [system.name for system in systems]

    names = []
    for file, own_names in by_file.items():  # a file's systems stand together
        file_name = str(file).removesuffix(".jsonl")
        if len(own_names) == 1:
            names.append(file_name)
        else:
            names += [f"{file_name}: {title}" for title in titles(own_names)]
    return names


# ------------------------------------------------------------------------------------------------------------
# A file


def systems_in(file: Path, truths: dict[str, dict[str, str]], finder: "Finder | None") -> list[System]:
    """The systems of a file. Its images are looked for by the finder; without one they are added to the
    truths. Raises ValueError, OSError."""
    systems = {}
    for byte, number, entry in entries(file):
        place = f"{file}, line {number}"
        answered = parse_entry(place, entry)
        dataset = entry.get("dataset") or entry.get("data")
        if finder is None:
            dataset = dataset or DATASET
            image = answered.id
            known = truths.setdefault(dataset, {})
            known[image] = known.get(image) or answered.label
        else:
            has_truth = bool(answered.label) or bool(answered.unreadable)
            dataset, image = finder.find(place, answered.id, dataset, has_truth)
        refuse_other_truth(place, answered, image, truths[dataset][image])

        name = entry.get("adapter") or file.name.removesuffix(".jsonl")
        system = systems.setdefault(name, System(name, file))
        places = system.places.setdefault(dataset, {})
        if image in places:
            _, earlier = places[image]
            raise ValueError(f"{place}: {image} is answered in line {earlier} already")
        places[image] = (byte, number)
        if not answered.unreadable:
            system.has_answers = True
            system.has_texts &= answered.texts is not None
            system.scores &= answered.scores.keys()
    return list(systems.values())


def entries(file: Path) -> Iterator[tuple[int, int, dict]]:
    """(byte, number, object) of each line that says something of an image. Raises ValueError, OSError."""
    try:
        data.refuse_special(file)
    except ValueError as error:
        raise ValueError(f"cannot read {file}: {error}") from None
    is_ours = False  # evaluate.py's
    judge = None
    byte = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            start = byte
            byte += len(line)
            if not line.strip():
                continue
            entry = parse_line(f"{file}, line {number}", line)
            if number == 1 and entry.keys() == {"arguments"}:
                is_ours = True
                continue

            # Several judges' verdicts on the same answers: the answers are the first's.
            if is_ours:
                judge = judge or entry.get("judge")
                if entry.get("judge") != judge:
                    continue
            yield start, number, entry


def parse_line(place: str, line: bytes) -> dict:
    """The JSON object in a line. Raises ValueError."""
    line = line.removeprefix(b"\xef\xbb\xbf")  # the mark that some editors put first
    try:
        entry = json.loads(line.decode())
    except (ValueError, RecursionError):
        cut_off = "" if line.endswith(b"\n") else ", it may be cut off"
        raise ValueError(f"{place} is no JSON{cut_off}: expected {LINE}") from None
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected {LINE}, got {str(entry):.40}")
    # What a table's export leaves empty is not given. (A "choice" of null is a choice that was none of them.)
    return {key: value for key, value in entry.items() if value is not None or key == "choice"}


def parse_entry(place: str, entry: dict) -> Answered:
    """What a line says of an image. Raises ValueError."""
    # whose answers these are
    image = entry.get("id", entry.get("image"))
    if type(image) not in (str, int) or image == "":
        raise ValueError(f'{place}: expected {LINE}, there is no "id" or "image"')
    image = whole_characters(str(image))
    for key in ("dataset", "data", "adapter", "domain"):
        if not isinstance(entry.get(key, ""), str):
            raise ValueError(f'{place}: "{key}" must be a text, got {entry[key]!r:.40}')
        if HALF_CHARACTER.search(entry.get(key, "")):
            raise ValueError(f'{place}: "{key}" holds half a character')
    domain = entry.get("domain", "")
    if entry.get("unreadable") and "answers" not in entry and "texts" not in entry:
        return Answered(image, "", domain, [], unreadable=str(entry["unreadable"]))

    truth = entry.get("truth", "")
    if not isinstance(truth, str):
        raise ValueError(f'{place}: "truth" must be a text, got {truth!r:.40}')

    # the answers, read out of the completions where they do not stand in the line
    texts = parse_list(place, entry, "texts", may_be_null=False)
    answers = parse_list(place, entry, "answers", may_be_null=True)
    if answers is None and texts is None:
        raise ValueError(f'{place}: expected {LINE}, there are no "answers" and no "texts"')
    if answers is None:
        answers = [parse_answer(text) for text in texts]
    n = len(answers)
    if texts is not None and len(texts) != n:
        raise ValueError(f"{place}: there are {n} answers and {len(texts)} texts")
    return Answered(image, whole_characters(truth).strip(), domain, answers, texts,
                    stored_scores(entry, n), stored_choice(entry, n))


def parse_list(place: str, entry: dict, key: str, may_be_null: bool) -> list | None:
    """The texts under a key, None where there is no such key. Raises ValueError."""
    if entry.get(key) is None:
        return None
    values = entry[key]
    if not isinstance(values, list) or not values:
        raise ValueError(f'{place}: "{key}" must be a list of texts, got {values!r:.40}')
    read = []
    for value in values:
        if value is None and may_be_null:
            read.append(None)
        elif isinstance(value, str):
            read.append(whole_characters(value))
        else:
            raise ValueError(f'{place}: "{key}" must be a list of texts, one is {value!r:.40}')
    return read


def stored_scores(entry: dict, n: int) -> dict[str, list]:
    """The scores that a model gave the answers, where the line holds them as evaluate.py writes them."""
    scores = entry.get("scores")
    if not isinstance(scores, dict):
        return {}
    stored = {}
    for name, (passes, _) in MODEL_SCORES.items():
        values = scores.get(name)
        if isinstance(values, list) and len(values) == n and all(map(passes, values)):
            stored[name] = values
    return stored


def stored_choice(entry: dict, n: int) -> dict:
    """{"choice": which of its answers the model took}, as evaluate.py's --choose leaves it; {} without."""
    if "choice" not in entry:
        return {}
    choice = entry["choice"]
    is_place = choice is None or (type(choice) is int and 0 <= choice < n)
    return {"choice": choice} if is_place else {}


def whole_characters(text: str) -> str:
    """The text, with the sign for what can't be read in place of half characters."""
    return HALF_CHARACTER.sub("\ufffd", text)


# ------------------------------------------------------------------------------------------------------------
# An image of --data


class Finder:
    """Finds a line's image among those of datasets: by its id, or by a path that ends as the image's."""

    def __init__(self, truths: dict[str, dict[str, str]]):
        self.images = {}  # dataset -> what an image may be called -> its id
        for dataset, images in truths.items():
            prefix = f"{Path(dataset).as_posix()}/"
            paths = {image.removeprefix(prefix): image for image in images}
            self.images[dataset] = paths | {image: image for image in images}

    def find(self, place: str, name: str, dataset: str | None, has_truth: bool) -> tuple[str, str]:
        """(dataset, id) of the image that a line calls `name`. dataset: what the line says, if anything;
        has_truth: whether it says the truth, which is compared. Raises ValueError where there is none, or
        more than one, or where none is sure."""
        if dataset is not None and dataset not in self.images:
            raise ValueError(f"{place} is of {dataset}: --data has {', '.join(self.images)}")
        found = []
        for each in self.images if dataset is None else [dataset]:
            image = self.longest_match(name, self.images[each])
            if image is not None:
                found.append((each, image))

        # Folders that the dataset doesn't know may be another's: "flowers/1.jpg" is no "cars/1.jpg".
        if len(found) == 1 and not has_truth:
            [(each, image)] = found
            if not name.endswith(image) and image.removeprefix(f"{each}/") != name:
                raise ValueError(f'{place}: {name} may be {image} of {each}, and has no "truth" to tell by')

        if not found:
            raise ValueError(f"{place}: {name} is no image of {dataset or ', '.join(self.images)}")
        if len(found) > 1:
            both = " and of ".join(each for each, _ in found)
            raise ValueError(f'{place}: {name} is an image of {both}: say which with "dataset"')
        return found[0]

    def longest_match(self, name: str, images: dict[str, str]) -> str | None:
        """The id of the image whose name is the longest end of this path."""
        parts = name.split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if end in images:
                return images[end]
        return None


def refuse_other_truth(place: str, answered: Answered, image: str, truth: str) -> None:
    """Raises ValueError where a line has another truth than its image, or nobody has one."""
    if answered.unreadable:
        return
    if not truth:
        raise ValueError(f'{place}: {image} has no "truth"')
    # lmms-owc's files call a car with its year first.
    said = normalize_label(year_first(answered.label))
    if answered.label and said != normalize_label(year_first(truth)):
        raise ValueError(f"{place}: the truth of {image} is {answered.label!r:.60}, it should be "
                         f"{truth!r:.60}")
