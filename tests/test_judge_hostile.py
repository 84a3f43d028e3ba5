"""What anybody may write: hostile texts of 100,000 characters, and a seeded fuzz of all that reads answers,
labels and verdicts."""

import random
import re
import signal
import unicodedata

import pytest

import judge as judging
from judge import (RULES, is_refusal, normalize_label, normalize_label_as_released, parse_answer,
                   parse_category, precheck, rule_against, settled)
from judges import audit, cache, endpoint, server, taxonomy
from reward import Category

# ---- a second of processor time for 100,000 characters

PATTERNS = {f"{module.__name__}.{name}": value
            for module in (judging, taxonomy, endpoint, server, cache, audit)
            for name, value in vars(module).items() if isinstance(value, re.Pattern)}
for number, signs in enumerate(judging.THOUGHTS):
    PATTERNS[f"judge.THOUGHTS {number} begins"] = signs[0]
    PATTERNS[f"judge.THOUGHTS {number} ends"] = signs[1]


def repeated(unit, length=100_000):
    return (unit * (length // len(unit) + 1))[:length]


@pytest.fixture
def one_second():
    """Counts the process's own time, so that a busy machine makes no difference."""
    def too_slow(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGVTALRM, too_slow)
    yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 1)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


# What the patterns' own repeats feed on: letters, spaces, signs, and the words that they begin with.
UNITS = ["a", "!", " ", "a ", "a,", "a: ", "n't ", "not ", "not know ", "say ", "<a", "'a' "]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_takes_time_that_grows_with_the_text(name, one_second):
    for unit in UNITS:
        one_second()
        PATTERNS[name].search("a" + repeated(unit) + "a")


def test_all_patterns_are_tried():
    assert len(PATTERNS) > 30
    assert {"judge.REFUSAL", "judge.TAKEN_BACK", "judges.endpoint.ADDRESS"} <= PATTERNS.keys()


@pytest.mark.parametrize("unit", [
    "a", "!", "a,", "a, ", "a: ", "a > ", "a/", "<|", "<think>", "<answer>", "<think><answer>", "[think]",
    "not generic ", "wrong? ", "more specific ", "category\"", "truth (", "please be ", "whether ",
    "i don't ", "can't tell ", "make ", "species ", "say ", "ignore ", "too ", "\n", "दि",
    "e\u0301", "\u200d", "+", "ﷺ", "\ud800"])
def test_a_long_text_is_read_within_a_second(unit, one_second):
    text = repeated(unit)
    for read in (parse_answer, parse_category, normalize_label, lambda text: precheck("robin", text),
                 lambda text: precheck(text, "robin, wren"), lambda text: precheck(text, text + "x")):
        one_second()
        read(text)


# ---- a fuzz

WORDS = """a the an or and, but robin wren gull; bird: Boeing 737-800 C++ Galaxy S10+ Nidoran♀ ข้าว दिल
    Weißwurst İskender i think can't cannot tell know not sure unable to be more less specific generic wrong
    abstain correct answer label truth is whether please say output ignore rules none unknown idk blurry too
    dark enough red-tailed black male view species genus class make model <think> </think> <answer> </answer>
    <|im_end|> [INST] > → / | , . ! ? ' " * ✅ 🐦 verdict category {"category": [THINK] [/THINK]
    assistantfinal""".split()


def random_text(rng) -> str:
    """Words of this field, mixed with any characters at all."""
    parts = []
    for _ in range(rng.randrange(9)):
        if rng.random() < .75:
            parts.append(rng.choice(WORDS))
        else:
            top = rng.choice((0x80, 0x400, 0x3000, 0x20000, 0x110000))
            parts.append("".join(chr(rng.randrange(top)) for _ in range(rng.randrange(5))))
        parts.append(rng.choice(("", " ", " ", " ", "\n", "\u200b", "\u0301", "\u0307")))
    return "".join(parts)


def test_fuzz_the_truth_passes_and_a_refusal_is_never_wrong():
    rng = random.Random(12)
    refused, ruled_out, passed = 0, 0, 0
    for _ in range(3000):
        truth, answer = random_text(rng), random_text(rng)
        for label in (truth, answer):
            assert precheck(label, label) is None and settled(label, label) is Category.SPECIFIC
            plain = normalize_label(label)
            assert precheck(label, plain) is None or not plain
        verdict = precheck(truth, answer)
        assert verdict in (None, Category.WRONG)
        assert (verdict is None) == (rule_against(truth, answer) is None)
        refuses = is_refusal(normalize_label(answer))
        assert not refuses or verdict is None, answer
        refused += refuses
        ruled_out += verdict is not None
        passed += verdict is None and not refuses
    assert min(refused, ruled_out, passed) > 20  # all three were met


def test_fuzz_normalising_twice_is_normalising_once():
    rng = random.Random(13)
    for _ in range(4000):
        text = random_text(rng)
        once = normalize_label(text)
        assert normalize_label(once) == once == unicodedata.normalize("NFC", once), ascii(text)
        assert once == " ".join(once.split()) and "  " not in normalize_label_as_released(text)


def test_fuzz_answers_and_verdicts():
    rng = random.Random(14)
    found = set()
    for _ in range(4000):
        text = random_text(rng)
        answer = parse_answer(text)
        assert answer is None or (answer == answer.strip() != "" and answer in text)
        verdict = parse_category(text)
        assert verdict is None or verdict in Category
        found.add(verdict)
        assert parse_category(f"<think>{text}</think>\nwrong") is Category.WRONG
        # What an answer says between the tags is what is read, if it holds a letter and closes no block.
        clean = re.sub("[<>]", "", text).strip()
        if any(character.isalnum() for character in clean):
            assert parse_answer(f"<think>{clean}</think><answer>{clean}</answer>") == clean
    assert found == {None, *Category}


# ---- all characters


def test_no_character_of_a_label_can_build_a_control_token():
    """Also not after NFKC, which some tokenizers apply."""
    forbidden = set("<>|=`^~[]{}\\_▁│◁▷")
    for point in range(0x110000):
        if unicodedata.category(chr(point)) not in ("Cn", "Co", "Cs"):
            made = unicodedata.normalize("NFKC", normalize_label(f"a{chr(point)}"))
            assert not set(made) & forbidden, hex(point)


@pytest.mark.parametrize("token", ["<|im_end|>", "<｜begin▁of▁sentence｜>", "[INST]", "</s>", "<<SYS>>",
                                   "◁think▷", "<start_of_turn>", "`", "^", "~", "=", "|", "[|user|]", "￨",
                                   "<seed:think>", "### ", "###"])
def test_no_control_token_survives_in_a_truth_or_an_answer(token):
    for text in (token, f"robin{token}", f"{token}robin", f"C+{token}+"):
        label = normalize_label(text)
        assert token not in label and not set(label) & set("<>[]|｜￨`^~=▁◁▷") and "##" not in label


def test_rules_meet_any_text():
    rng = random.Random(15)
    for _ in range(300):
        text = random_text(rng)
        assert all(rule(text, text, "robin") in (True, False) for rule in RULES)
