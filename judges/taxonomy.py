"""A judge that knows a tree of names: exact verdicts, no model.

    python judge.py --judge tree.json --ask robin birds

with {"parents": {"robin": "thrush", "thrush": "bird", "bird": null}, "synonyms": {"redbreast": "robin"}} in
tree.json.
"""

import json
import re
from collections.abc import Mapping, Sequence

from judge import BaseJudge, Pair, is_refusal, normalize_label, read_file
from reward import Category

PLURAL_ENDING = re.compile(r"""
    (?: (?<=[sxzo]) | (?<=[cs]h) ) es? $        # "foxes" -> "fox", "finches" -> "finch"
  | (?<![sui]) s $                              # "hawks" -> "hawk"; but not "grass", "walrus", "iris"
    """, re.VERBOSE)


def fold(name: str) -> str:
    """A normalised name without article, dashes and plural: "the red-winged hawks" -> "red winged hawk"."""
    name = re.sub(r"^(?:an?|the|some) (?=.)", "", name)  # "a finch"; but not "a-10"
    name = " ".join(re.split(r"[\s‐-―-]+", name))
    name = re.sub(r"ies?$", "y", name)  # "cherries" -> "cherry"
    return PLURAL_ENDING.sub("", name)  # "rose" and "roses" are both "ros"


def path_to_root(name: str, parents: Mapping[str, str]) -> list[str]:
    """[name, its parent, ..., its root]. Raises ValueError for a circle."""
    path = [name]
    above = parents.get(name)
    while above:
        if above in path:
            raise ValueError(f"the taxonomy has a circle through {above!r}")
        path.append(above)
        above = parents.get(above)
    return path


def all_meanings(exact: Mapping[str, str]) -> dict[str, str | None]:
    """Exact names -> name in the tree, and their folded forms too. Names that fold alike and mean different
    things are known in full only."""
    folded = {}
    for name, meant in exact.items():
        known = folded.get(fold(name), meant)
        is_clear = known == meant
        folded[fold(name)] = meant if is_clear else None
    return {**folded, **exact}


class TaxonomyJudge(BaseJudge):
    """Exact verdicts from a tree of names; case, articles, dashes and regular plurals don't matter.

    parents: name -> parent, None or no entry for a root. synonyms: other name -> name in the tree. The truth
    or its synonym is Specific; a refusal that is no name in the tree Abstain; a root above the truth Generic;
    its parent Less Specific; any higher Generic; below the truth More Specific; the rest Wrong. A truth that
    the tree does not hold can only be matched or refused. Raises ValueError for a tree with a circle."""
    last_error = "a truth that the tree does not hold"

    def __init__(self, parents: Mapping[str, str | None], synonyms: Mapping[str, str] | None = None):
        self.key = repr([parents, synonyms])
        tree = {}
        for name, parent in parents.items():
            tree[normalize_label(name)] = normalize_label(parent or "")
        names = dict.fromkeys([*tree, *tree.values()])
        names.pop("", None)  # what a root has for a parent
        self.paths = {name: path_to_root(name, tree) for name in names}

        exact = {}
        for other_name, name in (synonyms or {}).items():
            exact[normalize_label(other_name)] = normalize_label(name)
        for name in names:  # a name of the tree's own wins over a synonym
            exact[name] = name
        self.meanings = all_meanings(exact)

    @classmethod
    def from_json(cls, path) -> "TaxonomyJudge":
        """A file {"parents": {name: parent or null}, "synonyms": {other name: name}}; no synonyms is fine."""
        try:
            tree = json.loads(read_file(path))
            return cls(tree["parents"], tree.get("synonyms"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            why = f"{type(e).__name__}: {e}"[:200]
            raise ValueError(f'{path}: expected {{"parents": {{name: parent or null}}}} ({why})') from None

    def ask(self, pairs: Sequence[Pair]) -> list[Category | None]:
        return [self.look_up(truth, answer) for truth, answer in pairs]

    def meaning(self, name: str) -> str:
        """The tree's own name for a normalised one; its folded form where the tree knows none."""
        return self.meanings.get(name) or self.meanings.get(fold(name)) or fold(name)

    def look_up(self, truth: str, answer: str) -> Category | None:
        refuses = is_refusal(answer)
        truth = self.meaning(truth)
        answer = self.meaning(answer)
        if answer == truth:
            return Category.SPECIFIC
        if refuses and answer not in self.paths:
            return Category.ABSTAIN
        if truth not in self.paths:
            return None

        # Above the truth: its parent is Less Specific, but a root is too wide for that.
        path = self.paths[truth]
        if answer in path:
            parent = path[1]
            root = path[-1]
            if answer == parent and answer != root:
                return Category.LESS_SPECIFIC
            return Category.GENERIC

        # Below the truth, or beside it.
        path_of_answer = self.paths.get(answer, [])
        if truth in path_of_answer:
            return Category.MORE_SPECIFIC
        return Category.WRONG
