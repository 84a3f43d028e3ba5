"""Reading a verdict in a judge model's words."""

import json
from pathlib import Path

import pytest

from judge import parse_category
from reward import Category

W, A, G, L, S, M = Category
BY_NAME = {c.label: c for c in Category} | {None: None}

VERDICTS = {
    "wrong": [
        "**Wrong**", "Answer: wrong", "['wrong']", "wrong - a cat is no dog", "wrong – a cat is no dog",
        "wrong\n\nThe answer names another bird.", "1. wrong", "Final verdict: **wrong**.",
        "This is wrong, not generic.", "Wrong, because the answer names another species.",
        "<|im_start|>assistant\nwrong<|im_end|>", "(wrong)", "Category = wrong", "Label: wrong",
        "Okay. wrong", "The verdict is wrong", '{"answer": "wrong"}',
        "First I thought generic. Verdict: wrong", "wrong wrong wrong", "wrong!", "WRONG ✗",
        "Result: wrong", "Category:\nwrong", "### Verdict\nwrong", '"Category": "wrong"',
        '{"classification": "wrong", "confidence": 0.9}',
        '{"classification": "wrong"} {"classification": "wrong"}', "classification:wrong",
        "Wrong\tbecause", "wrong, it is a cat", "Generic? No. The answer is wrong."],
    "abstain": [
        "Verdict: abstain", "This would be an abstain.", "{'label': 'abstain'}",
        "The answer abstains, so abstain."],
    "generic": [
        "Category: Generic.", "The answer is generic.", '```json\n{"classification": "generic"}\n```',
        "- generic", "\\text{generic}", "It is not specific, it is generic.",
        "Generic, since bird is far wider.",
        "Since 'bird' is much wider than 'robin', the answer is generic.", "“generic”",
        "category -> generic", "The correct category is: generic",
        '{"verdict": "generic", "prediction": "specific heat"}', "</think>generic",
        "generic; the label is a robin", "not wrong, it is generic", "The category should be generic",
        "Option: generic", "<category>generic</category>", "not specific or less specific, just generic"],
    "less specific": [
        "Category: **less specific**", "The category is less specific.", '{"category": "Less Specific"}',
        "less_specific", "Less-specific", "$\\boxed{\\text{less specific}}$",
        "It isn't wrong; it is less specific.", "not generic but less specific",
        "The answer is less specific than the true label.", "'less specific'.",
        "Classification — less specific",
        '{"reason": "a gull is wider, so less specific", "verdict": "less specific"}',
        "<think>\nspecific or generic?\n</think>\nless specific",
        "The answer could be generic or less specific. Category: less specific",
        "The true label is more specific, so the answer is less specific.",
        "The label is more specific than the answer, i.e. less specific.", "less  specific",
        "Less specific\nThe answer is the genus.",
        "true label: generic drug\nanswer: medicine\nverdict: less specific",
        "It is neither wrong nor more specific, it is less specific.",
        "The answer names a wider group: less specific"],
    "specific": [
        "Specific.", "specific", "`specific`", "=> specific",
        "The answer is neither wrong nor generic: specific", "specific<|im_end|>", "Ｓｐｅｃｉｆｉｃ",
        "[specific]", "Judgement: specific", "Sure! The category is **specific**.",
        "Specific (same bird).", "Both mean the same, hence specific.", "✅ specific", "specific ✓",
        "assistant\nspecific", "Choice: specific", "Is it wrong? No, it is specific.",
        "not wrong or generic; it is specific"],
    "more specific": [
        "I would classify this as more specific.", '["more specific"]', "MORE_SPECIFIC",
        "Final answer: more specific", "the prediction is more specific than the label",
        '{"category": "more_specific"}', "I'd say it's more specific.",
        "It is more specific, not less specific.", "More specific: the label is generic.",
        "The answer adds the breed (a beagle), so it is more specific."],
    None: [
        "generic\n\nwrong\nabstain", "It's wrong. A generic answer would be bird.", "", "less", "more",
        "abst",
        "gener", "wron", "not specific", "not wrong", "It is not generic.", "isn't wrong",
        "This is not really specific", "never generic", "neither wrong nor generic", "wrong or generic",
        "generic/less specific", "It could be specific or wrong.", "specific, more specific",
        "the ground truth is more specific", "The true label is more specific.",
        "The label is less specific than the answer.", "the reference is much more specific",
        "The truth was more specific", '{"prediction": "wrong"}',
        '{"ground_truth": "generic drug", "answer": ', "<think>\nwrong", "<think>generic</think>",
        "<think>a</think><think>wrong", "same thing as the true label", "vehicle",
        'The correct answer is "animal"', "The classification category for the prediction is", "wrongly",
        "specifics", "generically", "unspecific", "nonspecific", "non-specific", "non-generic",
        "specificity", "abstained", "abstention", "correct", "I don't know", "n/a", "null",
        '{"classification": null}', '{"classification": ""}',
        '{"classification": "specific", "category": "wrong"}', '{"classification": "not specific"}',
        "The answer cannot be wrong.", "The answer is hardly specific", "It can't be generic",
        "no category", "Is it wrong?", "wrong? specific?",
        "specific, less specific, generic, more specific, wrong, abstain",
        "- specific\n- more specific\n- less specific\n- generic\n- abstain\n- wrong",
        "without being wrong", "The answer is not necessarily wrong",
        "True label: generic drug\nAnswer: aspirin", "more or less specific", "more general",
        "less generic", "more generic", "The ground truth label is more specific than the answer.",
        "doesn't seem generic", "not at all generic", "far from wrong", "not wrong but not specific",
        "nothing wrong here", "Not Wrong", "nothing is wrong", "the category is not wrong",
        "Category: not wrong", '{"category": "wrong or generic"}', "The label is more specific",
        "too generic or too specific", "right", "wrоng", "specific</think>", "not specific or generic",
        "not wrong or generic", "The truth, a robin, is more specific.",
        "The label 'robin' is more specific.", "The true label (a robin) is more specific",
        "The label names a more specific bird.", "The reference has a more specific name",
        "The ground truth is specific", "The true label is generic", "less\nspecific\nor\nmore specific",
        "Would it be generic? Or wrong?", '{"ground_truth": "generic drug", "prediction": "wrong number"',
        "It is not less specific.", "less", "I would not say it is... ", "more specific or specific",
        "<think>generic</think>\n<think>wrong", "wrong?", "Verdict: less specific/generic",
        "more specific\nless specific",
        "Verdict: less specific or generic", "I don't think this is specific", "I would not call it wrong."],
}


@pytest.mark.parametrize("name, text", [(name, text) for name, texts in VERDICTS.items() for text in texts])
def test_parse_category(name, text):
    assert parse_category(text) is BY_NAME[name]


def test_parse_category_on_collected_outputs():
    lines = (Path(__file__).parent / "judge_verdicts.jsonl").read_text(encoding="utf-8").splitlines()
    cases = [json.loads(line) for line in lines]
    assert len(cases) == 30
    assert [(c["raw"], parse_category(c["raw"])) for c in cases] == [(c["raw"], BY_NAME[c["category"]])
                                                                     for c in cases]


@pytest.mark.parametrize("category", Category)
def test_every_category_in_every_dress(category):
    for dress in ("{}", "{}.", "**{}**", "Category: {}", '{{"category": "{}"}}', "<answer>{}</answer>",
                  "\n {}\n", "The answer is {}.", "{}\n\nbecause of the genus",
                  "<think>wrong or generic</think>{}"):
        for name in (category.label, category.label.upper(), category.name, category.label.replace(" ", "-")):
            assert parse_category(dress.format(name)) is category, (dress, name)
    assert parse_category(f"not {category.label}") is None
    for cut in range(1, len(category.label)):        # a reply cut off in a word
        assert parse_category(category.label[:cut]) is None


@pytest.mark.parametrize("text, verdict", [
    (r"less\_specific", L), ("**less** specific", L), (r"\boxed{less\ specific}", L),
    ("Generic, because 'bird' is much less specific than 'robin'", G),
    ("truth: beagle | prediction: dog | verdict: less specific", L), ("generic, specific or wrong", None)])
def test_marked_up_and_explained_verdicts(text, verdict):
    assert parse_category(text) == verdict


@pytest.mark.parametrize("text", ["nor wrong", "it is no generic", "instead of wrong", "rather than wrong",
                                  "the target is more specific", "the label seems specific",
                                  "the label gives a specific name", "the label being specific"])
def test_what_is_taken_back_is_no_verdict(text):
    assert parse_category(text) is None


@pytest.mark.parametrize("text", ["not wrong and generic", "not wrong so generic", "not wrong hence generic",
                                  "not wrong thus generic", "not wrong therefore generic", "no doubt generic",
                                  "not the bird because generic", "not the bird which makes it generic"])
def test_a_negation_ends_where_the_sentence_turns(text):
    assert parse_category(text) == G


# ---- words that are no verdict, and thoughts


@pytest.mark.parametrize("text", [
    "I can't tell if it's wrong or specific.",
    "There is not enough information to call the answer specific.", "Please be more specific.",
    "Something went wrong.", "I don't know whether this is generic or more specific.",
    "I can't tell whether it's wrong, or specific.", "Could you be more specific?",
    "You need to be more specific.", "Be more specific.", "More specific, please.",
    "I need a more specific label.", "Please provide a more specific answer",
    "It is unclear whether the answer is specific.", "Sorry, something went wrong. Please try again.",
    "Error: generic error", "Your question lacks specific details.", "I may be wrong.",
    "Correct me if I'm wrong.", "I might be wrong, but I have no image.", "What went wrong?",
    "I don't know if the category is specific.",
    "It's hard to say if it is generic, less specific or specific", "The answer could be more specific.",
    "It needs to be more specific", "To be specific, the answer names another bird.", "I abstain.",
    "I must abstain from judging.", "I'm not sure if the answer is wrong.", "Not sure whether generic.",
    "It depends on whether the label is specific.", "I cannot determine which one is specific",
    "<thinking>wrong</thinking>", "<thinking>wrong", "[THINK]wrong", "[THINK]wrong[/THINK]",
    "<seed:think>generic</seed:think>", "<|channel|>analysis<|message|>The answer is wrong",
    "<|channel|>analysis<|message|>wrong<|end|>", "analysisThe answer is wrong",
    "A more specific answer is needed.", "A more specific label would be helpful.",
    "There is not enough context to say that the answer is wrong.",
    "I am unable to judge whether the answer is generic", "Something is wrong with the input",
    "◁think▷wrong", "I would need more information to classify it as specific",
    "Can you provide a more specific description?", "Could you please give me something more specific.",
    "There isn't enough detail to say whether the answer is specific or generic, so I can't judge.",
    "It is impossible to determine if it's specific.", "I can't say it is wrong.",
    "I can't say for sure, maybe generic or wrong.", "Whether it is specific is a matter of taste.",
    "If I am wrong, tell me.", "Everything went wrong here.",
    "I don't have enough information to decide if this is wrong.", "You could try to be less specific.",
    "I'm afraid I can't be more specific.", "I was asked to be specific.", "Generic error message.",
    "I do not know the label, it may be specific.", "Nothing more specific can be said.",
    "[THOUGHT] wrong", "<reasoning>specific"])
def test_words_that_are_no_verdict(text):
    assert parse_category(text) is None


@pytest.mark.parametrize("text, verdict", [
    ("LessSpecific", L), ("MoreSpecific", M), ("less-specific.", L), ("Category: MoreSpecific", M),
    ('{"category": "LessSpecific"}', L), ("The answer is MoreSpecific.", M),
    ("<thinking>specific?</thinking>wrong", W), ("[THINK]wrong[/THINK]generic", G),
    ("<seed:think>wrong</seed:think>generic", G),
    ("<|channel|>analysis<|message|>wrong? no<|end|>"
     "<|start|>assistant<|channel|>final<|message|>specific<|return|>", S),
    ("analysisThe answer may be wrong.assistantfinalspecific", S),
    ('<|channel|>final <|constrain|>json<|message|>{"category": "generic"}<|return|>', G),
    ("\"I don't know\" is an abstain", A), ("The answer \"I can't tell\" declines, so abstain.", A),
    ("The prediction 'I do not know' is an abstain.", A), ("I'm not sure, but generic.", G),
    ("I can't see the picture, but the answer is generic.", G),
    ("The answer is not the same bird; it is wrong.", W),
    ("The answer cannot be the same species, so it is wrong.", W),
    ("The answer gives a more specific name.", M), ("◁think▷specific◁/think▷wrong", W),
    ("<thinking>\nwrong\n</thinking>\n\nThe answer is generic.", G), ("It is wrong.", W),
    ("The answer is wrong because it names another species.", W),
    ("The answer is too broad to be the species, hence less specific.", L),
    ("Analysis: the answer is far wider. Verdict: generic", G)])
def test_verdicts_beside_doubts_and_thoughts(text, verdict):
    assert parse_category(text) is verdict


@pytest.mark.parametrize("begin, end", [
    ("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"), ("◁think▷", "◁/think▷"), ("<reasoning>", "</reasoning>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>")])
def test_a_thought_is_no_part_of_the_reply(begin, end):
    for category in Category:
        assert parse_category(f"{begin}wrong or generic{end}{category.label}") is category
        assert parse_category(f"{begin}\n{category.label}\n{end}\n") is None
        assert parse_category(f"{begin}\n{category.label}") is None
        assert parse_category(f"{begin}a{end}{begin}{category.label}") is None


def test_a_reply_without_end_is_no_verdict():
    assert parse_category("wrong, because it is another one. " + "Really. " * 3000) is None
    assert parse_category("<think>" + "Hm. " * 10_000 + "</think>wrong") is W
