"""What the embedded world's captioners write: the text that its base policy learns from.

    what is it ?  ->  <think> i see red , clear view </think> <answer> finch </answer>

SpeciaRL starts from a model that knows the fine names but, asked plainly, mostly says less than it knows.
This shyness comes from the captioners here. The answer in a caption has a level, from "none" (it abstains) to
the fine name. Asked plainly, captioners often give a coarse name, most of all in the later captions; asked
for the exact kind, they nearly always give the fine one.
"""

PROMPTS = {
    "base": "what is it ?",
    "specific": "what is it ? be specific .",
    "exact": "name the exact kind .",
    "general": "what is it in general ?",
}

# How often each of them is asked.
PROMPT_SHARES = {"base": .35, "specific": .25, "exact": .30, "general": .10}

# The levels of an answer, the coarsest first; "none" is the answer that abstains.
LEVELS = ("none", "domain", "family", "fine")

# How often a caption has each level. The first captions teach the names ...
NAMING = {
    "base": (.02, .08, .25, .65),
    "specific": (.02, .08, .25, .65),
    "exact": (0, 0, .03, .97),
    "general": (.02, .92, .05, .01),
}
NAMING_UNTIL = .6  # share of the training

# ... the later ones the shyness. Shy captions alone have too few colours in them to learn from.
SHY = {
    "base": (.04, .35, .43, .18),
    "specific": (.03, .12, .45, .40),
    "exact": NAMING["exact"],
    "general": NAMING["general"],
}

LOOKED = .6  # share of the captioners who look at the picture
VIEW_RIGHT = .85  # share of the captions that are right about the view
SLIPS = .03  # share of the captions that lose a tag of the answer


def caption(domain: str, family: str, fine: str, shows: str, prompt: str, shares, rng) -> str:
    """What a captioner writes under a picture when asked PROMPTS[prompt], at a level drawn from `shares`.

    domain, family, fine: the picture's true names. shows: the finest level that can be seen on it. One who
    looked says no more than the picture shows; who did not, or is asked for the exact kind, goes by the true
    name. A few captions lose a tag of the answer: nothing to judge.
    """
    level = int(rng.choice(len(LEVELS), p=shares))

    looked = prompt != "exact" and rng.random() < LOOKED
    if looked:
        level = min(level, LEVELS.index(shows))

    # The colour in the thought is the true one, unless one looked and saw none.
    seen = fine.split()[0]
    if looked and shows == "family":
        seen = "grey"

    view_is_clear = shows == "fine"
    told_right = rng.random() < VIEW_RIGHT
    view = "clear" if view_is_clear == told_right else "hazy"

    answer = ("none", domain, family, fine)[level]
    words = ["<think>", "i", "see", seen, ",", view, "view", "</think>", "<answer>", answer, "</answer>"]
    if rng.random() < SLIPS:
        lost = ("<answer>", "</answer>")[int(rng.integers(2))]
        words.remove(lost)
    return " ".join(words)
