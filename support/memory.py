"""How many answers are decoded at a time: on a GPU what its memory allows, on a CPU a fixed number.

    rows = rows_at_a_time(policy, judge, question, n=8, images=256, max_new_tokens=512, max_pixels=401408)

The arithmetic is `rows_that_fit`. It takes the card's whole memory and sizes that are known beforehand, not
what is free at the moment: a run that goes on decodes in the same rounds as one that was never interrupted.
"""

import math

import torch
from PIL import Image
from torch import nn

from judges.vote import members
from policy import Policy, processor_inputs
from rollout import PROMPT_TOKENS_AT_ONCE, PROMPTS_AT_ONCE, SAMPLER_BYTES
from support.checkpoints import render_question

CPU_ROWS = 512  # where nothing else is said
USABLE = 0.92   # of a card: the rest goes to the CUDA context and to gaps between tensors
PLANNED_PIXELS = 512 * 28 * 28  # of an image, where no limit is set: larger ones go fewer at a time
SHAPES = (1 / 2, 2 / 3, 3 / 4, 1, 4 / 3, 3 / 2, 2)  # of images, width by height


def rows_at_a_time(policy: Policy, judge, question: str, n: int, images: int, max_new_tokens: int,
                   max_pixels: int | None, most: int | None = None, beside=None) -> int:
    """Answers to decode at a time, at most `most`: n to each of `images` images. beside: another model that
    stays on the card, held as a judge's is. The longest prompt that was reckoned with is noted in the policy:
    a round of longer ones has fewer rows."""
    device = torch.device(policy.device)
    if device.type != "cuda":
        return most or CPU_ROWS
    card = torch.cuda.get_device_properties(device).total_memory
    held = held_bytes(policy.model) + judge_bytes(judge) + judge_bytes(beside)
    prompt = longest_prompt(policy, question, max_pixels or PLANNED_PIXELS)
    policy.planned_prompt = prompt
    fit = rows_that_fit(policy.model, card, held, prompt, n, images, max_new_tokens)
    return min(fit, most or fit)


def rows_that_fit(model: nn.Module, card: int, held: int, prompt: int, n: int, images: int,
                  max_new_tokens: int) -> int:
    """How many rows a card of that many bytes decodes at a time: whole groups of n, at most those of all
    images, at least 1.

    held: bytes of all that stays on the card; prompt: tokens of the longest prompt. A row is counted at
    max_new_tokens, which it may come to, with its share of the prompt that its group has in common.
    """
    config = model.get_decoder().config
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    item = next(model.get_decoder().parameters()).element_size()          # bytes of a number
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * dim * item  # its keys and values

    # What a row takes: its own tokens, its share of a prompt, its logits twice (the model's, and a float32
    # copy), and one layer's scores and weights with their temporaries, six float32 numbers each.
    row = (max_new_tokens + prompt / n) * token
    row += config.vocab_size * (item + 4)
    row += heads * (max_new_tokens + prompt) * 6 * 4

    # What is there beside the rows: the embeddings of all prompts (and Qwen3-VL's deeper features, each as
    # large), the forward of some of them (four tensors as wide as an MLP at a time), and the sampler's
    # temporaries.
    vision = getattr(model.config, "vision_config", None)
    deep = getattr(vision, "deepstack_visual_indexes", None) or []
    beside = images * prompt * config.hidden_size * item * (1 + len(deep))
    beside += min(PROMPTS_AT_ONCE * prompt, PROMPT_TOKENS_AT_ONCE) * 4 * config.intermediate_size * item
    beside += SAMPLER_BYTES

    fit = int((USABLE * card - held - beside) / row)
    fit = min(fit, images * n)
    if fit > n:
        fit -= fit % n
    return max(1, fit)


def held_bytes(model: nn.Module) -> int:
    """A model's weights. Of those that are trained also the gradient, AdamW's two moments, and a copy in two
    bytes a number for decoding."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
        if parameter.requires_grad:
            total += parameter.numel() * (3 * parameter.element_size() + 2)
    return total


def judge_bytes(judge) -> int:
    """The weights of the judges in this process, also behind a file of verdicts and in a vote."""
    total = 0
    for member in members(judge):
        inner = getattr(member, "judge", member)
        model = getattr(inner, "model", None)
        if isinstance(model, nn.Module):
            total += held_bytes(model)
    return total


def longest_prompt(policy: Policy, question: str, max_pixels: int) -> int:
    """Tokens of the question with an image of that many pixels, of the usual shapes the one with the most."""
    text = render_question(policy.processor, question)
    lengths = []
    for ratio in SHAPES:
        height = math.isqrt(int(max_pixels / ratio))
        image = Image.new("RGB", (max_pixels // height, height))
        lengths.append(processor_inputs(policy, text, image)["input_ids"].shape[1])
    return max(lengths)
