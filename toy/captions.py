"""What the embedded world's captioners write: the questions, and answers shyer than what they saw."""

PROMPTS = {"base": "what is it ?", "specific": "what is it ? be specific .",
           "exact": "name the exact kind .", "general": "what is it in general ?"}
PROMPT_SHARES = {"base": .35, "specific": .25, "exact": .30, "general": .10}
LEVELS = ("none", "domain", "family", "fine")       # "none" is the answer that abstains
# How often a caption has each level: the first stage teaches the names, the second the shyness.
NAMING = {"base": (.02, .08, .25, .65), "specific": (.02, .08, .25, .65),
          "exact": (0, 0, .03, .97), "general": (.02, .92, .05, .01)}
SHY = {**NAMING, "base": (.04, .35, .43, .18), "specific": (.03, .12, .45, .40)}
NAMING_UNTIL, LOOKED, SLIPS, VIEW_RIGHT = .6, .6, .03, .85


def caption(domain: str, family: str, fine: str, shows: str, prompt: str, shares, rng) -> str:
    """What a captioner writes under a picture when asked PROMPTS[prompt], at a level drawn from `shares`.

    One who looked says no more than the picture shows; who did not, or is asked for the exact kind, goes by
    the true name. A few captions lose a tag of the answer: nothing to judge.
    """
    level = int(rng.choice(4, p=shares))
    looked = prompt != "exact" and rng.random() < LOOKED
    if looked:
        level = min(level, LEVELS.index(shows))
    seen = "grey" if looked and shows == "family" else fine.split()[0]
    view = "clear" if (shows == "fine") == (rng.random() < VIEW_RIGHT) else "hazy"
    words = ["<think>", "i", "see", seen, ",", view, "view", "</think>", "<answer>",
             ("none", domain, family, fine)[level], "</answer>"]
    if rng.random() < SLIPS:
        words.remove(("<answer>", "</answer>")[int(rng.integers(2))])
    return " ".join(words)
