"""The embedded world's policy: a tiny, but real, Qwen2.5-VL trained on captions.

As a library: `base_policy(seed)` gives the folder of its checkpoint, which transformers reads like any other.
The first call trains it, in a minute or two on one CPU thread; later ones find it in the cache. From a shell,
in the repository's folder: `python -m toy`.

A picture of 48 x 48 pixels is 6 x 6 patches, and 2 x 2 of them make an image token: 9 image tokens. Shapes:
B pictures or captions, L tokens of a prompt with its caption.
"""

import contextlib
import hashlib
import importlib.metadata
import math
import os
import pathlib
import shutil
import tempfile
import time

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import (GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from toy.captions import NAMING, NAMING_UNTIL, PROMPT_SHARES, PROMPTS, SHY, caption
from toy.shapes import DOMAINS
from toy.world import SIZE, facts, parents, render, rng_for

# How it sees.
PATCH = 8  # pixels, each way
MERGE = 2  # patches to an image token, each way
FRAMES = 2  # Qwen2.5-VL reads videos: a still is two equal frames
PATCHES = SIZE // PATCH  # to a side
SIDE = PATCHES // MERGE  # image tokens to a side
IMAGE_TOKENS = SIDE ** 2
GRID = (1, PATCHES, PATCHES)  # image_grid_thw of a picture

# How it learns.
STEPS = 580
BATCH = 48  # captions a step
PICTURES = 3000  # a domain
RATE = 2e-3  # the highest learning rate
WARMUP = 50  # steps

# How it reads and writes: Qwen's special tokens under Qwen's names.
PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"
IMAGE = "<|image_pad|>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE, "<|video_pad|>")
UNK = "<unk>"
SPECIAL = (PAD, START, END, *VISION, UNK)

# In the shape of Qwen2.5-VL's own, without a system message.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# ------------------------------------------------------------------------------------------------------------
# Words and patches


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, split at white space; the specials are Qwen's, the answer tags are ordinary words."""
    text = "user assistant <think> </think> <answer> </answer> none i see grey , clear hazy view"
    world_text = " ".join([*PROMPTS.values(), *parents(), text])
    vocabulary = {}
    for word in [*world_text.split(), *SPECIAL]:
        vocabulary.setdefault(word, len(vocabulary))

    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNK,
        padding_side="left",
        extra_special_tokens=[START, *VISION],
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def prompt_ids(tokenizer, question: str) -> list[int]:
    """The ids the policy reads: the rendered chat, its image placeholder widened to IMAGE_TOKENS."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    widened = text.replace(IMAGE, IMAGE * IMAGE_TOKENS)
    return tokenizer(widened).input_ids


def collate(tokenizer, questions: list[str], captions: list[str]) -> tuple[torch.Tensor, ...]:
    """Questions and their captions -> input_ids, labels, mm_token_type_ids, each (B, L), padded on the right.

    Labels are the caption's tokens and the end token, -100 elsewhere. No token looks to its right, so the
    padding needs no mask. Without mm_token_type_ids image tokens silently get 1-D positions.
    """
    prompts = {question: prompt_ids(tokenizer, question) for question in set(questions)}
    rows = []
    for question, text in zip(questions, captions):
        answer = tokenizer(f"{text} {END}").input_ids
        rows.append((prompts[question], answer))

    width = max(len(prompt) + len(answer) for prompt, answer in rows)  # L
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)  # (B, L)
    labels = torch.full((len(rows), width), -100)  # (B, L)
    for i, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        input_ids[i, :end] = torch.tensor(prompt + answer)
        labels[i, len(prompt):end] = torch.tensor(answer)
    image_id = tokenizer.convert_tokens_to_ids(IMAGE)
    mm_token_type_ids = (input_ids == image_id).long()  # (B, L)
    return input_ids, labels, mm_token_type_ids


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's own, set to leave 48 x 48 as it is (other sizes are resized to it) and to scale to about +-2."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        temporal_patch_size=FRAMES,
        merge_size=MERGE,
        image_mean=[128 / 255] * 3,
        image_std=[64 / 255] * 3,
        size={"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE},
    )


def patches(pixels: np.ndarray) -> torch.Tensor:
    """The processor's pixel_values in bulk: uint8 (B, 48, 48, 3) -> float32 (B*36, 3*2*8*8)."""
    x = torch.from_numpy(np.array(pixels, np.float32))
    x = (x - 128) / 64  # (B, 48, 48, 3)
    # The patches of one image token stand together: token by token, and within it patch by patch.
    x = x.view(-1, SIDE, MERGE, PATCH, SIDE, MERGE, PATCH, 3)  # (B, y: 3, 2, 8, x: 3, 2, 8, rgb)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # (B, token y, token x, patch y, patch x, rgb, 8, 8)
    x = x.reshape(-1, 3, 1, PATCH, PATCH)  # (B*36, 3, 1, 8, 8)
    x = x.expand(-1, 3, FRAMES, PATCH, PATCH)  # (B*36, 3, 2, 8, 8)
    return x.reshape(len(x), -1)  # (B*36, 384)


# ------------------------------------------------------------------------------------------------------------
# The model


def build_model(tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained Qwen2.5-VL of 0.6 M parameters, weights drawn from torch's current random state."""
    ids = {word: tokenizer.convert_tokens_to_ids(word) for word in SPECIAL}
    ends = [ids[END], ids[PAD]]
    # std .05 instead of .02: at this width .02 leaves the logits so flat that the colours are never learnt
    spread = .05
    text_config = dict(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=ids[END],
        pad_token_id=ids[PAD],
        initializer_range=spread,
        # time, height and width share the 12 frequencies of a head of 24
        rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
    )
    vision_config = dict(
        depth=2,
        hidden_size=64,
        num_heads=4,
        intermediate_size=128,
        out_hidden_size=96,
        patch_size=PATCH,
        spatial_merge_size=MERGE,
        temporal_patch_size=FRAMES,
        window_size=SIZE,
        fullatt_block_indexes=[0, 1],
        initializer_range=spread,
    )
    config = Qwen2_5_VLConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=ids[IMAGE],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        initializer_range=spread,
    )
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        config, attn_implementation="sdpa", dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ids[PAD])
    return model


# ------------------------------------------------------------------------------------------------------------
# Its training


def draw_base_pictures(seed: int, count: int) -> tuple[np.ndarray, list[tuple[str, str, str, str]]]:
    """The first `count` base pictures of each domain -> pixels (4 * count, 48, 48, 3) uint8, and what a
    captioner knows of each: its domain, its family, its fine name, what it shows."""
    pixels = []
    subjects = []
    for domain in DOMAINS:
        for i in range(count):
            known = facts(domain, "base", i, seed)
            picture, shows = render(domain, known.family, known.colour, known.fate, known.rng)
            pixels.append(np.asarray(picture))
            subjects.append((domain, known.family, f"{known.colour} {known.family}", shows))
    return np.stack(pixels), subjects


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to a twentieth. step: 0, 1, ..."""
    cosine = .05 + .95 * (1 + math.cos(math.pi * step / steps)) / 2
    return RATE * min(1, (step + 1) / WARMUP) * cosine


def train(tokenizer, seed: int, steps: int, progress: bool) -> Qwen2_5_VLForConditionalGeneration:
    """Plain supervised training of a fresh model on the base pictures, captions written anew at every use."""
    pixels, subjects = draw_base_pictures(seed, min(PICTURES, steps * BATCH))
    rng = rng_for("captions", seed)
    kinds = list(PROMPT_SHARES)
    kind_shares = list(PROMPT_SHARES.values())
    grid = torch.tensor([GRID] * BATCH)  # (B, 3)

    model = build_model(tokenizer).train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(.9, .98), weight_decay=.01)
    bar = tqdm(range(steps), "base policy", disable=not progress)
    for step in bar:
        # Pictures and questions at random, and what the captioners answer: names first, shyness later.
        rows = rng.integers(len(subjects), size=BATCH)  # (B,)
        asked = rng.choice(kinds, size=BATCH, p=kind_shares)  # (B,)
        mix = NAMING if step < NAMING_UNTIL * steps else SHY
        texts = []
        for row, kind in zip(rows, asked):
            texts.append(caption(*subjects[row], kind, mix[kind], rng))
        questions = [PROMPTS[kind] for kind in asked]
        input_ids, labels, mm_token_type_ids = collate(tokenizer, questions, texts)  # (B, L) each

        # The loss of the captions' tokens, each predicted from what stands before it.
        output = model(
            input_ids=input_ids,
            mm_token_type_ids=mm_token_type_ids,
            pixel_values=patches(pixels[rows]),
            image_grid_thw=grid,
            use_cache=False,
        )
        predictions = output.logits[:, :-1].flatten(0, 1)  # (B*(L-1), V)
        targets = labels[:, 1:].flatten()  # (B*(L-1),)
        loss = torch.nn.functional.cross_entropy(predictions, targets)

        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


# ------------------------------------------------------------------------------------------------------------
# Its checkpoint

PARTIAL = ".partial-"  # how the folders begin that are not yet whole
READ = ("base_policy", "captions", "shapes", "world")  # the files that decide what is trained


def checkpoint_name(seed: int, steps: int) -> str:
    """The checkpoint's folder, by all that decides its weights: the files that training reads, the seed, the
    steps, the versions of torch and transformers. An edit of one of the files means a new training."""
    folder = pathlib.Path(__file__).parent
    parts = [(folder / f"{name}.py").read_text(encoding="utf-8") for name in READ]
    parts += [str(seed), str(steps)]
    parts += [importlib.metadata.version(name) for name in ("torch", "transformers")]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return f"toy-base-seed{seed}-{digest[:16]}"


def write_checkpoint(folder: pathlib.Path, seed: int, steps: int, progress: bool) -> None:
    """Trains a policy and writes model, tokenizer and image processor as transformers reads them. Leaves
    torch's random state and its number of threads as they were."""
    tokenizer = build_tokenizer()
    threads = torch.get_num_threads()
    try:
        # more threads would add the same numbers in another order: other bits
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            model = train(tokenizer, seed, steps, progress)
    finally:
        torch.set_num_threads(threads)
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        image_processor().save_pretrained(folder)
    except Exception as error:  # a full disk, for which each library has an error of its own
        raise OSError(f"cannot write the base policy into {folder.parent}: {error}") from None


def clear_leftovers(cache: pathlib.Path) -> None:
    """Removes what killed trainings have left. One that still runs is not as old as a day."""
    for partial in cache.glob(PARTIAL + "*"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - partial.stat().st_mtime > 24 * 3600:
                shutil.rmtree(partial)


def base_policy(seed: int = 0, cache=None, progress: bool = True, steps: int = STEPS) -> pathlib.Path:
    """Trains the base policy of a seed, or finds it in the cache -> its checkpoint folder.

    cache: ~/.cache/speciarl unless given. One thread, own seed: the same checkpoint bit for bit on one
    machine. It is written aside and renamed whole, so a killed run leaves nothing that passes for a
    checkpoint, and two runs may overlap. Raises OSError where the cache can't be written.
    """
    try:
        cache = pathlib.Path(cache or "~/.cache/speciarl").expanduser()
        folder = cache / checkpoint_name(seed, steps)
        if folder.is_dir():
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        clear_leftovers(cache)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=PARTIAL, dir=cache))
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise OSError(f"cannot keep the embedded world's policy in {cache or '~/.cache/speciarl'} ({error}): "
                      "set HOME to a folder that can be written") from None
    try:
        write_checkpoint(partial, seed, steps, progress)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
