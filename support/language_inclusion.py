"""Language inclusion: does a language model find the truth in an answer? (evaluate.py --language-inclusion)

    inclusion = load_inclusion("meta-llama/Llama-3.2-3B-Instruct", "cuda")
    inclusion(["golden retriever"], [["a Labrador", "A retriever, golden.", None]])     # [[0, 1, 0]]

lmms-owc's LI. Where this departs from it: the question is in our own words and asks for yes or no, and the
likelier of the two is the reply, so that every answer has one (there: words, of which only a 1 counts). The
same pair is asked once. A malformed answer holds nothing.
"""

from judge import Pair, first_line, normalize_label
from judges.packed import PackedJudge

INSTRUCTIONS = """Somebody looked at a photo and said what is in it. You get the photo's label and what was \
said. Reply yes if what was said describes the thing that the label names, holds that name or a synonym of \
it, or is a kind of it, the label being a wider word. Else reply no. Reply with one word."""


class InclusionModel(PackedJudge):
    """A chat model that says yes or no. As a judge's, its replies are scored side by side."""
    labels = ("no", "yes")

    def turns(self, pair: Pair) -> list[dict]:
        truth, answer = pair
        return [{"role": "user", "content": f"{INSTRUCTIONS}\n\nLabel: {truth}\nSaid: {answer}"}]

    def __call__(self, truths: list[str], answers: list[list[str | None]]) -> list[list[int]]:
        """1 for each answer that holds its image's truth, else 0. Raises OSError where the model returns
        NaN."""
        # Each different pair once, without what could speak to the model.
        pairs = {}
        for truth, own in zip(truths, answers, strict=True):
            for answer in own:
                if answer is not None:
                    pairs[truth, answer] = normalize_label(truth), normalize_label(answer)
        asked = list(dict.fromkeys(pairs.values()))
        replies = {}
        if asked:
            logprobs = self.logprobs(asked)                                       # (pairs, 2)
            if logprobs.isnan().any():
                raise OSError("the model of --language-inclusion returned NaN")
            replies = dict(zip(asked, logprobs.argmax(dim=1).tolist()))

        scores = []
        for truth, own in zip(truths, answers):
            scores.append([0 if answer is None else replies[pairs[truth, answer]] for answer in own])
        return scores


def load_inclusion(name: str, device) -> InclusionModel:
    """name: a chat model's folder or hub name. Raises OSError."""
    try:
        return InclusionModel.load(name, device)
    except Exception as error:  # whatever transformers or the model says
        raise OSError(f"cannot load the model {name!r} of --language-inclusion: "
                      f"{first_line(error)}") from None
