"""A judge that knows a tree of names: exact verdicts, no model."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from judge import Pair, _Settled, is_refusal, normalize_label
from reward import Category


def _fold(name: str) -> str:
    """A normalised name without article, dashes and plural: "the red-winged hawks" -> "red winged hawk"."""
    name = " ".join(re.split(r"[\s‐-―-]+", re.sub(r"^(?:an?|the|some) (?=.)", "", name)))  # but "a-10"
    name = re.sub(r"ies?$", "y", name)
    return re.sub(r"(?:(?<=[sxzo])|(?<=[cs]h))es?$|(?<![sui])s$", "", name)  # "rose", "roses": "ros"


class TaxonomyJudge(_Settled):
    """Exact verdicts from a tree of names; case, articles, dashes and regular plurals don't matter.

    parents: name -> parent, None or no entry for a root. synonyms: other name -> name in the tree. The truth
    or its synonym is Specific; a refusal that is no name in the tree Abstain; a root above the truth Generic;
    its parent Less Specific; any higher Generic; below the truth More Specific; the rest Wrong. A truth that
    the tree does not hold can only be matched or refused. Raises ValueError for a tree with a circle."""
    last_error = "a truth that the tree does not hold"

    def __init__(self, parents: Mapping[str, str | None], synonyms: Mapping[str, str] | None = None):
        tree = {normalize_label(n): normalize_label(p or "") for n, p in parents.items()}
        exact = {normalize_label(n): normalize_label(s) for n, s in (synonyms or {}).items()}
        self.paths, folded = {}, {}  # a name's path to its root
        for name in {*tree, *tree.values()} - {""}:
            path = self.paths[name] = [name]
            while above := tree.get(path[-1]):
                if above in path:
                    raise ValueError(f"the taxonomy has a circle through {above!r}")
                path.append(above)
            exact[name] = name
        for name, meant in exact.items():  # two names that fold alike are known in full only
            folded[_fold(name)] = meant if folded.get(_fold(name), meant) == meant else None
        self.meant, self.key = folded | exact, repr([parents, synonyms])

    @classmethod
    def from_json(cls, path) -> "TaxonomyJudge":
        """A file {"parents": {name: parent or null}, "synonyms": {other name: name}}; no synonyms is fine."""
        try:
            tree = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(tree["parents"], tree.get("synonyms"))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as e:
            raise ValueError(f'{path}: expected {{"parents": {{name: parent or null}}}} ({e!r})') from None

    def _ask(self, clean: Sequence[Pair]) -> list[Category | None]:
        return [self._look_up(*pair) for pair in clean]

    def _look_up(self, truth: str, answer: str) -> Category | None:
        refuses = is_refusal(answer)
        truth, answer = (self.meant.get(n) or self.meant.get(_fold(n)) or _fold(n) for n in (truth, answer))
        if answer == truth:
            return Category.SPECIFIC
        if refuses and answer not in self.paths:
            return Category.ABSTAIN
        if truth not in self.paths:
            return None
        if answer in (path := self.paths[truth]):
            return Category.LESS_SPECIFIC if answer == path[1] != path[-1] else Category.GENERIC
        return Category.MORE_SPECIFIC if truth in self.paths.get(answer, ()) else Category.WRONG
