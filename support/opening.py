"""Opens what a command line names: a policy, a judge, a question; and ends a run whose judge is gone."""

from pathlib import Path

import torch

import policy as policies
from judge import Judge, open_judge
from judges.taxonomy import TaxonomyJudge
from lora import load_adapter
from rollout import PROMPTS
from toy import base_policy, captions, world

MODEL, JUDGE = "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
VERDICTS = "~/.cache/speciarl/verdicts.sqlite"
TOY_SETS = [f"toy-{domain}" for domain in world.DOMAINS]


def is_toy(names: list[str]) -> bool:
    return all(name == "toy" or name.startswith("toy-") for name in names)


def question_for(prompt: str, names: list[str]) -> str:
    """The question's text; the embedded world's policy knows a few words only and has its own wording."""
    prompts = captions.PROMPTS if is_toy(names) else PROMPTS
    if prompt not in prompts:
        raise ValueError(f"unknown prompt {prompt!r}: choose one of {', '.join(prompts)}")
    return prompts[prompt]


def load_judge(name: str, options, device) -> Judge:
    """"taxonomy" (the embedded world's tree), or what judge.open_judge knows. options: the command line's
    judge_... settings."""
    if name == "taxonomy":
        return TaxonomyJudge(world.parents())
    cache = None if options.judge_cache == "none" else Path(options.judge_cache).expanduser()
    return open_judge(name, options.judge_model, options.judge_prompt, options.judge_key_file, cache, device)


class JudgeFailed(Exception):
    """Too large a share of verdicts is missing to go on."""


def trust(judge: Judge, failed: int, total: int, most: float, what: str) -> None:
    """Raises JudgeFailed where more than the share `most` has no verdict."""
    if failed > most * total:
        why = getattr(judge, "last_error", "")
        raise JudgeFailed(f"the judge failed on {failed} of {total} {what}" + (f" ({why})" if why else ""))


def load_policy(name: str, seed: int = 0, adapter=None, max_pixels: int | None = None) -> policies.Policy:
    """"toy" (the embedded world's base policy of that seed), or a checkpoint from a folder or the hub; with
    the adapter in that folder if one is given. On a GPU in bfloat16; on a CPU, and the small one anywhere, in
    float32."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("highest")
    dtype = torch.bfloat16 if device == "cuda" and name != "toy" else torch.float32
    path = base_policy.base_policy(seed) if name == "toy" else name
    if name == "toy" and device == "cpu":
        torch.set_num_threads(1)  # so small a model that threads would only wait for each other
    policy = policies.load(path, device, dtype, max_pixels)
    if adapter is not None:
        load_adapter(policy.model, adapter)
    return policy
