"""Language inclusion: does a language model find the truth in an answer? (evaluate.py --language-inclusion)

    inclusion = load_inclusion("meta-llama/Llama-3.2-3B-Instruct", "cuda")
    inclusion(["golden retriever"], [["a Labrador", "A retriever, golden.", None]])     # [[0, 1, 0]]

lmms-owc's LI. Where this departs from it: the question is in our own words and asks for yes or no, and the
likelier of the two is the reply, so that every answer has one (there: words, of which only a 1 counts). The
same pair is asked once, and equal names never. A malformed answer holds nothing.
"""

from judge import Pair, first_line, normalize_label
from judges.packed import PackedJudge

QUESTION = """Somebody looked at a photo and said what is in it.
Label of the photo: "{truth}"
What was said: "{answer}"

Does what was said describe the thing that the label names, hold that name or a synonym of it, or name a \
kind of it, the label being a wider word? Reply with one word, yes or no."""


class InclusionModel(PackedJudge):
    """A chat model that says yes or no. As a judge's, its replies are scored side by side."""
    labels = ("no", "No", "yes", "Yes")

    def turns(self, pair: Pair) -> list[dict]:
        truth, answer = pair
        return [{"role": "user", "content": QUESTION.format(truth=truth, answer=answer)}]

    def __call__(self, truths: list[str], answers: list[list[str | None]]) -> list[list[int]]:
        """1 for each answer that holds its image's truth, else 0. Raises OSError where the model returns
        NaN."""
        # Each image's pairs, without what could speak to the model; None where there is no answer.
        groups = []
        for truth, own in zip(truths, answers, strict=True):
            label = normalize_label(truth)
            groups.append([None if answer is None else (label, normalize_label(answer)) for answer in own])

        # Each different pair is asked about once, and equal names never.
        held = {None: 0}
        for pairs in groups:
            for pair in pairs:
                if pair is not None:
                    held[pair] = int(pair[0] == pair[1])
        asked = [pair for pair, is_held in held.items() if pair is not None and not is_held]
        if asked:
            held |= dict(zip(asked, self.says_yes(asked)))

        scores = []
        for pairs in groups:
            scores.append([held[pair] for pair in pairs])
        return scores

    def says_yes(self, pairs: list[Pair]) -> list[int]:
        """Whether yes is likelier than no, small and large first letter together."""
        logprobs = self.logprobs(pairs)                                       # (pairs, 4)
        if logprobs.isnan().any():
            raise OSError("the model of --language-inclusion returned NaN")
        no = logprobs[:, :2].logsumexp(dim=1)                                 # (pairs,)
        yes = logprobs[:, 2:].logsumexp(dim=1)
        return (yes > no).int().tolist()


def load_inclusion(name: str, device) -> InclusionModel:
    """name: a chat model's folder or hub name. Raises OSError."""
    try:
        return InclusionModel.load(name, device)
    except Exception as error:  # whatever transformers or the model says
        raise OSError(f"cannot load the model {name!r} of --language-inclusion: "
                      f"{first_line(error)}") from None
