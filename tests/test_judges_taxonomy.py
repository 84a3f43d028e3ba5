"""TaxonomyJudge: verdicts from a tree of names, and which names are alike."""

import json

import pytest

from judges.taxonomy import TaxonomyJudge
from reward import Category

W, A, G, L, S, M = Category

TREE = {"Bird": None, "Gull": "Bird", "Larus": "Gull", "Herring Gull": "Larus", "American Herring Gull":
        "herring gull", "Ring-billed Gull": "Larus", "Rose": "Flower", "Unknown warrior": "Rose",
        "F/A-18": "fighter", "Nothing": "Unknown warrior"}
TAXONOMY = TaxonomyJudge(TREE, {"Larus argentatus": "Herring gull", "silver gull (old name)": "herring gull",
                                "seagull": "gull"})


@pytest.mark.parametrize("truth, answer, verdict", [
    ("Herring Gull", "herring gull!", S), ("herring gull", "Larus argentatus", S),
    ("Larus argentatus", "Herring_gull", S), ("silver gull old name", "larus argentatus", S),
    ("Herring Gull", "larus", L), ("Herring Gull", "Gull", G), ("Herring Gull", "SEAGULL", G),
    ("Herring Gull", "bird", G), ("larus", "gull", L), ("larus", "seagull", L),
    ("gull", "bird", G),             # the root rule: a parent that is the root is Generic
    ("rose", "flower", G), ("F/A-18", "fighter", G), ("F/A-18", "f a-18", S),   # a root by having no entry
    ("unknown warrior", "rose", L), ("unknown warrior", "Flower", G),
    ("Herring Gull", "American herring gull", M), ("bird", "ring-billed gull", M), ("flower", "rose", M),
    ("Herring Gull", "ring-billed gull", W), ("Herring Gull", "rose", W), ("Herring Gull", "a gull", G),
    ("Herring Gull", "???", W), ("Herring Gull", "gull or rose", W),
    ("Herring Gull", "none", A), ("Herring Gull", "I don't know.", A),
    ("rose", "unknown warrior", M), ("rose", "nothing", M), ("larus", "nothing", W),   # a name in the tree
    ("dodo", "dodo", S), ("dodo", "unknown", A), ("dodo", "bird", None), ("dodo", "herring gull", None),
])
def test_taxonomy_rules(truth, answer, verdict):
    assert TAXONOMY([(truth, answer)]) == [verdict]


def test_taxonomy_keeps_the_order_of_its_pairs():
    assert TAXONOMY([("larus", "gull"), ("larus", "rose"), ("dodo", "gull")]) == [L, W, None]
    assert TAXONOMY([]) == []


@pytest.mark.parametrize("tree", [{"a": "b", "b": "a"}, {"a": "A"}, {"x": "a", "a": "b", "b": "c", "c": "a"}])
def test_a_circle_is_refused(tree):
    with pytest.raises(ValueError, match="circle"):
        TaxonomyJudge(tree)


def test_taxonomy_from_json(tmp_path):
    path = tmp_path / "tree.json"
    path.write_text(json.dumps({"parents": {"a": "b", "b": "c"}, "synonyms": {"ä": "a"}}), encoding="utf-8")
    assert TaxonomyJudge.from_json(path)([("a", "Ä"), ("a", "b"), ("a", "c")]) == [S, L, G]
    path.write_text(json.dumps({"parents": {"a": "b"}}))
    assert TaxonomyJudge.from_json(path)([("a", "b")]) == [G]
    for wrong in ([], {"a": "b"}, {"parents": ["a"]}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="expected"):
            TaxonomyJudge.from_json(path)


@pytest.mark.parametrize("truth, answer, verdict", [
    ("A-10", "10", W), ("A-10", "an A-10", S), ("A-Class", "class", W), ("a-10", "A 10", S)])
def test_an_a_with_a_dash_is_no_article(truth, answer, verdict):
    assert TaxonomyJudge({"A-10": "aircraft", "A-Class": "car", "car": None})([(truth, answer)]) == [verdict]


# ---- names that are alike

ALIKE = TaxonomyJudge(
    {"rose": "flower", "primrose": "flower", "cherry": "fruit", "magpie": "crow family",
    "raven": "crow family",
     "crow family": "bird", "red-winged finch": "bird", "quiche": "dish", "potato": "dish", "shoe": "thing",
     "iris": "flower", "walrus": "animal", "fox": "animal", "axe": "thing", "dish": "thing", "tit": "bird",
     "Bass": "fish", "lens": "thing", "len": "dish", "Abyssinian": "cat", "Shih Tzu": "dog"},
    {"tits": "tit", "gracula": "magpie", "fruits": "fruit", "Egyptian-goose": "bird"})


@pytest.mark.parametrize("truth, answer, verdict", [
    ("rose", "roses", S), ("rose", "The Roses", S), ("primrose", "primroses", S), ("cherry", "cherries", S),
    ("magpie", "magpies", S), ("magpie", "a Magpie!", S), ("quiche", "some quiches", S), ("shoe", "shoes", S),
    ("potato", "potatoes", S), ("iris", "irises", S), ("iris", "the iris", S), ("walrus", "walruses", S),
    ("fox", "foxes", S), ("axe", "axes", S), ("cherry", "fruits", G), ("cherry", "a fruit", G),
    ("red-winged finch", "Red winged finches", S), ("red winged finch", "red\u2013winged\u2014finch", S),
    ("The red-winged finches", "red-winged finch", S), ("magpie", "Graculas", S),
    ("magpie", "crow families", L),
    ("magpie", "some birds", G), ("raven", "magpies", W), ("birds", "ravens", M), ("tit", "a tit", S),
    ("tit", "the tits", S), ("ABYSSINIAN", "abyssinians", S), ("Shih-Tzu", "a shih tzu", S),
    ("Egyptian goose", "an egyptian-goose", S), ("magpie", "magpie or raven", W),
    ("magpie", "ravens, magpies", W),
    ("lens", "lens", S), ("lens", "the lens", W), ("len", "lens", W), ("bass", "the bass", S),
    ("dodo", "dodos", S), ("dodo", "the dodo", S), ("dodo", "I cannot tell, sorry", A),
    ("dodo", "roses", None),
])
def test_articles_plurals_dashes_and_case_do_not_matter(truth, answer, verdict):
    assert ALIKE([(truth, answer)])[0] is verdict
