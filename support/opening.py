"""Opens what a command line names: the policy, the judge, the question.

As a library: `policy = load_policy("toy")`, `question = question_for("base", ["toy-bird"])`. train.py and
evaluate.py open things here, and so agree on the names, the defaults, and what belongs to the embedded world.
`trust` ends either of them where the judge they opened is gone, `require_readable` where the images are.
"""

from pathlib import Path

import torch

import policy as policies
from judge import Judge, open_judge, read_names, read_text
from judges.taxonomy import TaxonomyJudge
from lora import adapter_config, load_adapter
from rollout import PROMPTS
from toy import base_policy, captions, world

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"              # the paper's policy
JUDGE = "Qwen/Qwen3-4B-Instruct-2507"              # a judge that fits beside it on one GPU
VERDICTS = "~/.cache/speciarl/verdicts.sqlite"     # where judges remember what they said
QUESTION = "question.txt"                          # what a run keeps of a question that came from a file
TOY_SETS = [f"toy-{domain}" for domain in world.DOMAINS]


def is_toy(names: list[str]) -> bool:
    """Whether all these datasets are the embedded world's."""
    return all(name == "toy" or name.startswith("toy-") for name in names)


def is_toy_model(model: str) -> bool:
    """Whether a checkpoint is the embedded world's base policy, by its name or the folder it is kept in."""
    return model == "toy" or Path(model).name.startswith("toy-base-seed")


def adapter_folder(name: str) -> str:
    """The folder of an adapter: a run's folder stands for the adapter in it. "none", the base, stays."""
    inside = Path(name) / "adapter"
    if name != "none" and inside.is_dir():
        return str(inside)
    return name


def base_models(adapters: list[str]) -> list[str]:
    """The checkpoints that the adapters were trained on, each once, as far as they say. Raises OSError where
    an adapter is not there, ValueError where it is broken."""
    configs = [adapter_config(adapter) for adapter in adapters if adapter != "none"]
    bases = {config.get("base_model_name_or_path") for config in configs}
    return sorted(bases - {None, ""})


def choose_model(named: str | None, bases: list[str], datasets: list[str]) -> str:
    """The checkpoint to evaluate: the one that is named, the adapters' base, or what suits the datasets (none
    where pictures are answered). Raises ValueError where the adapters have different bases."""
    if named:
        return named
    if len(bases) > 1:
        raise ValueError(f"these adapters have different bases, --model must say which: {', '.join(bases)}")
    if bases:
        return bases[0]
    if datasets and is_toy(datasets):
        return "toy"
    return MODEL


def question_for(prompt: str, names: list[str], run: Path | None = None) -> str:
    """The text of a question for these datasets: a named one, else a text file's. run: the folder of a run
    that goes on; it has kept that text. Raises ValueError or OSError.

    The embedded world's policy knows a few words only and has its own wording.
    """
    if is_toy(names):
        if prompt not in captions.PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}: the embedded world's are "
                             f"{', '.join(captions.PROMPTS)}")
        return captions.PROMPTS[prompt]
    if prompt in PROMPTS:
        return PROMPTS[prompt]
    if run is not None and (run / QUESTION).exists():
        return read_text(run / QUESTION, "the question")
    if not prompt or not Path(prompt).exists():
        raise ValueError(f"unknown prompt {prompt!r}: choose one of {', '.join(PROMPTS)}, or a text file")
    return read_text(prompt, "the question")


def load_judge(name: str, options, device) -> Judge:
    """A judge by what judge.open_judge knows, and "taxonomy" (the embedded world's tree); several vote.

    options: anything with the command line's judge_model, judge_prompt, judge_key_file, judge_timeout,
    judge_patience, judge_workers, judge_tokens and judge_cache (a file, or "none"). Raises ValueError or
    OSError.
    """
    known = {"taxonomy": TaxonomyJudge(world.parents())}
    cache = None
    # Trees remember nothing: they are faster than a cache would be.
    only_trees = all(each.where in known or each.where.endswith(".json") for each in read_names(name))
    if options.judge_cache != "none" and not only_trees:
        cache = verdict_file(options.judge_cache)
    return open_judge(name, options.judge_model, options.judge_prompt, options.judge_key_file, cache, device,
                      options.judge_timeout, options.judge_patience, options.judge_workers,
                      options.judge_tokens, known)


def verdict_file(name: str) -> Path:
    """The file that verdicts are remembered in; its folder is made. Raises OSError where it can't be."""
    try:
        file = Path(name).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OSError(f"cannot remember verdicts in {name} ({error}): --judge-cache FILE names another "
                      "place, --judge-cache none remembers none") from None
    return file


class JudgeFailed(Exception):
    """Too large a share of verdicts is missing to go on."""


def trust(judge: Judge, failed: int, total: int, most: float, what: str) -> None:
    """Raises JudgeFailed where more than the share `most` of `total` things judged has no verdict."""
    if failed <= most * total:
        return
    message = f"the judge failed on {failed} of {total} {what}"
    why = getattr(judge, "last_error", "")
    if why:
        message += f" ({why})"
    raise JudgeFailed(message)


class ImagesUnreadable(OSError):
    """Too large a share of the images can't be read to go on."""


def require_readable(unreadable: list[str], total: int, most: float, what: str) -> None:
    """Raises ImagesUnreadable where more than the share `most` of `total` images can't be read. unreadable: a
    line for each of these."""
    if len(unreadable) > most * total:
        raise ImagesUnreadable(f"{len(unreadable)} of {total} images of {what} can't be read, "
                               f"--max-unreadable is {most} ({unreadable[0]})")


def load_policy(name: str, seed: int = 0, adapter=None, max_pixels: int | None = None) -> policies.Policy:
    """"toy" (the embedded world's base policy of that seed), or a checkpoint from a folder or the hub.

    With the adapter in the folder `adapter` if one is given. On a GPU in bfloat16; on a CPU, and the small
    one anywhere, in float32. Raises ValueError or OSError.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")  # float32 is float32: no TF32 on a GPU

    if name == "toy":
        path = base_policy.base_policy(seed)
        dtype = torch.float32
        if device == "cpu":
            torch.set_num_threads(1)  # so small a model that threads would only wait for each other
    else:
        path = name
        dtype = torch.bfloat16 if device == "cuda" else torch.float32

    policy = policies.load(path, device, dtype, max_pixels)
    if adapter is not None:
        load_adapter(policy.model, adapter)
    return policy
