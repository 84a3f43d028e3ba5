"""The words of captions that may name what a picture shows: the candidates of CaSED (cased.py).

    candidates(["Mallards on a lake", "a mallard, swimming"])                  # ["mallard"]

The rules and their order are those of CaSED's release. Two of its packages are not used here: in place of a
tagger of parts of speech a list of words is dropped, and in place of inflect a few rules know plurals.
"""

import re
from collections import Counter

FALLBACK = "object"  # the candidate of captions without one

# What captions say of themselves.
META_WORDS = frozenset("""
    image photo picture thumbnail logo symbol clipart portrait painting illustration icon profile
""".split())

# What a tagger would not call a noun, an adjective or a participle. The verbs are those of captions, without
# those that are also names ("fly", "roll").
NO_CANDIDATES = frozenset("""
    a an the this that these those each every both either neither all any some none another
    i you he she it we they me him her us them my your his its our their mine yours hers ours theirs
    myself yourself himself herself itself ourselves themselves who whom whose which what
    someone something anyone anything everyone everything nobody nothing
    and but nor yet for because although though unless until till while whereas whether than since
    with without from into onto over under above below between among through across against along around
    about after before behind beside besides beyond during inside outside near off out per toward towards
    upon via within throughout despite except amid like
    not very also just only now then here there too still even ever never always often almost quite really
    away together again once soon already perhaps maybe however therefore thus instead sometimes usually
    when where why how
    one two three four five six seven eight nine ten hundred thousand million
    are was were has have had does did can could will would shall should may might must
    dont doesnt didnt isnt arent wasnt werent cant couldnt wont wouldnt ive youre theyre thats
    show see get got make made take took give gave find found go goes went come came sit sat stand stood
    look hold held wear wore let put keep kept say said know knew think thought want need become became
    seem contain include feature enjoy
""".split())

# Names that end in s, and plurals that none of the rules below knows.
NO_PLURALS = frozenset("""
    lens gas canvas atlas bias chaos christmas texas james mercedes jeans
""".split())
IRREGULAR = {"leaves": "leaf", "wolves": "wolf", "knives": "knife", "halves": "half", "shelves": "shelf",
             "loaves": "loaf", "calves": "calf", "hooves": "hoof", "scarves": "scarf", "buses": "bus",
             "irises": "iris", "crocuses": "crocus", "cactuses": "cactus", "hibiscuses": "hibiscus",
             "walruses": "walrus", "lenses": "lens"}


def candidates(captions: list[str]) -> list[str]:
    """The words that name a picture perhaps, by the captions near it, each once in their order."""
    # In one text, so that a word counts wherever it stands.
    words = clean(" ".join(captions)).split()
    words = [singular(word) for word in words]
    words = [word for word in words if word not in META_WORDS]

    # Those that are said twice or more; all, where none is. (Words like "the" count here, as in the release.)
    counts = Counter(words)
    most = max(counts.values(), default=0)
    frequent = [word for word in words if counts[word] >= min(2, most)]

    found = [word for word in frequent if word not in NO_CANDIDATES]
    return list(dict.fromkeys(found)) or [FALLBACK]


def clean(text: str) -> str:
    """The words of captions in lower case, without what is none, in the release's order."""
    text = re.sub(r"<[^>]+>", "", text)           # "<PERSON> at the lake"
    text = re.sub(r"http\S+", "", text)           # "see https://a.com/b"
    text = re.sub(r"[^\w\s.'&-]", "", text)       # "lake!" -> "lake"
    text = re.sub(r"\.\w+", "", text)             # "lake.jpg" -> "lake"
    text = re.sub(r"[_-]", " ", text)             # "blue-eyed_grass" -> "blue eyed grass"
    text = " ".join(word for word in text.split() if len(word) >= 3)
    text = re.sub(r"[^a-zA-Z\s]", "", text)       # "737" -> "", "A380" -> "A", "don't" -> "dont"
    return text.lower()


def singular(word: str) -> str:
    """A plural's singular, any other word as it is. Those in -ies and -oes stay, as in the release."""
    if word in NO_PLURALS or word in NO_CANDIDATES:
        return word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if not word.endswith("s") or word.endswith(("ss", "us", "is", "ies", "oes")):
        return word
    if word.endswith(("ches", "shes", "sses", "xes", "zzes")):
        return word[:-2]
    return word[:-1]
