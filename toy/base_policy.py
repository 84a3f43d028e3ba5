"""The embedded world's policy: a tiny, but real, Qwen2.5-VL trained on captions."""

import hashlib
import importlib.metadata
import math
import os
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import (GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from toy.captions import NAMING, NAMING_UNTIL, PROMPT_SHARES, PROMPTS, SHY, caption
from toy.shapes import DOMAINS
from toy.world import SIZE, _facts, _rng, parents, render

READ = ("base_policy", "captions", "shapes", "world")  # the files that decide what is trained
PATCH, MERGE = 8, 2  # a picture is 6 x 6 patches = 3 x 3 image tokens

IMAGE_TOKENS = (SIZE // PATCH // MERGE) ** 2
STEPS, BATCH, PICTURES, RATE = 580, 48, 3000, 2e-3  # steps, captions a step, pictures a domain, peak rate
PAD, START, END, IMAGE, UNK = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<unk>"
VISION = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE, "<|video_pad|>")
SPECIAL = (PAD, START, END, *VISION, UNK)
CHAT_TEMPLATE = (                                   # in the shape of Qwen2.5-VL's, without a system message
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, split at white space; the specials are Qwen's, the answer tags are ordinary words."""
    text = "user assistant <think> </think> <answer> </answer> none i see grey , clear hazy view"
    words = list(dict.fromkeys(" ".join([*PROMPTS.values(), *parents(), text]).split())) + list(SPECIAL)
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=END, pad_token=PAD, unk_token=UNK, padding_side="left",
        extra_special_tokens=[START, *VISION], model_max_length=512, chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False)


def prompt_ids(words, question: str) -> list[int]:
    """The ids the policy reads: the rendered chat, its image placeholder widened to IMAGE_TOKENS."""
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = words.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return words(text.replace(IMAGE, IMAGE * IMAGE_TOKENS)).input_ids


def image_processor() -> Qwen2VLImageProcessorPil:
    """Qwen's own, set to leave 48 x 48 as it is (other sizes are resized to it) and to scale to about +-2."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH, temporal_patch_size=2, merge_size=MERGE, image_mean=[128 / 255] * 3,
        image_std=[64 / 255] * 3, size={"shortest_edge": SIZE * SIZE, "longest_edge": SIZE * SIZE})


def patches(pixels: np.ndarray) -> torch.Tensor:
    """The processor's pixel_values in bulk: uint8 (B, 48, 48, 3) -> float32 (B*36, 3*2*8*8)."""
    side = SIZE // PATCH // MERGE
    x = (torch.from_numpy(np.array(pixels, np.float32)) - 128) / 64
    x = x.view(-1, side, MERGE, PATCH, side, MERGE, PATCH, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    x = x.reshape(-1, 3, 1, PATCH, PATCH).expand(-1, 3, 2, PATCH, PATCH)      # a still is two equal frames
    return x.reshape(len(x), -1)


def build_model(words) -> Qwen2_5_VLForConditionalGeneration:
    """An untrained Qwen2.5-VL of 0.6 M parameters, weights drawn from torch's current random state."""
    ids = {w: words.convert_tokens_to_ids(w) for w in SPECIAL}
    # std .05 instead of .02: at this width .02 leaves the logits so flat that the colours are never learnt
    spread = {"initializer_range": .05}
    config = Qwen2_5_VLConfig(
        text_config=dict(
            vocab_size=len(words), hidden_size=96, intermediate_size=288, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None,
            eos_token_id=ids[END], pad_token_id=ids[PAD], **spread,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]}),
        vision_config=dict(
            depth=2, hidden_size=64, num_heads=4, intermediate_size=128, out_hidden_size=96,
            patch_size=PATCH, spatial_merge_size=MERGE, temporal_patch_size=2, window_size=SIZE,
            fullatt_block_indexes=[0, 1], **spread),
        image_token_id=ids[IMAGE], video_token_id=ids["<|video_pad|>"], tie_word_embeddings=False,
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"], **spread)
    model = Qwen2_5_VLForConditionalGeneration._from_config(
        config, attn_implementation="sdpa", dtype=torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=[ids[END], ids[PAD]], pad_token_id=ids[PAD])
    return model


def collate(words, questions: list[str], captions: list[str]) -> tuple:
    """Questions and their captions -> input_ids, labels, mm_token_type_ids, each (B, L), padded on the right.

    Labels are the caption's tokens and the end token, -100 elsewhere. No token looks to its right, so the
    padding needs no mask. Without mm_token_type_ids image tokens silently get 1-D positions.
    """
    asked = {q: prompt_ids(words, q) for q in set(questions)}
    rows = [(asked[q], words(f"{c} {END}").input_ids) for q, c in zip(questions, captions)]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), width), words.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (p, c) in enumerate(rows):
        ids[i, :len(p) + len(c)] = torch.tensor(p + c)
        labels[i, len(p):len(p) + len(c)] = torch.tensor(c)
    return ids, labels, (ids == words.convert_tokens_to_ids(IMAGE)).long()


def train(words, seed: int, steps: int, progress: bool) -> Qwen2_5_VLForConditionalGeneration:
    """Plain supervised training of a fresh model on the base pictures, captions written anew at every use."""
    pixels, facts = [], []
    for domain in DOMAINS:
        for i in range(min(PICTURES, steps * BATCH)):
            family, colour, fate, _, generator = _facts(domain, "base", i, seed)
            picture, shows = render(domain, family, colour, fate, generator)
            pixels.append(np.asarray(picture))
            facts.append((domain, family, f"{colour} {family}", shows))
    pixels = np.stack(pixels)
    rng, model, grid = _rng("captions", seed), build_model(words).train(), torch.tensor([[1, 6, 6]] * BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(.9, .98), weight_decay=.01)
    for step in (bar := tqdm(range(steps), "base policy", disable=not progress)):
        rows = rng.integers(len(facts), size=BATCH)
        asked = rng.choice(list(PROMPT_SHARES), size=BATCH, p=list(PROMPT_SHARES.values()))
        mix = NAMING if step < NAMING_UNTIL * steps else SHY
        texts = [caption(*facts[r], kind, mix[kind], rng) for r, kind in zip(rows, asked)]
        ids, labels, types = collate(words, [PROMPTS[kind] for kind in asked], texts)
        logits = model(input_ids=ids, mm_token_type_ids=types, pixel_values=patches(pixels[rows]),
                       image_grid_thw=grid, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        cosine = .05 + .95 * (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 50) * cosine
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def base_policy(seed: int = 0, cache=None, progress: bool = True, steps: int = STEPS) -> pathlib.Path:
    """Train the base policy of a seed, or find it in the cache (~/.cache/speciarl) -> its checkpoint folder.

    The folder's name holds a hash of the files that training reads: an edit there means a new training. It is
    written aside and renamed whole, so a killed run leaves nothing that passes for a checkpoint, and two runs
    may overlap. One thread, own seed: the same checkpoint bit for bit on one machine.
    """
    cache = pathlib.Path(cache or "~/.cache/speciarl").expanduser()
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    sources = [file.read_text(encoding="utf-8") for file in sorted(pathlib.Path(__file__).parent.glob("*.py"))
               if file.stem in READ]
    key = "\n".join([*sources, str(seed), str(steps), *versions])
    folder = cache / f"toy-base-seed{seed}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    words, threads = tokenizer(), torch.get_num_threads()
    partial = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=cache))
    try:
        torch.set_num_threads(1)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(seed)
            train(words, seed, steps, progress).save_pretrained(partial)
        words.save_pretrained(partial)
        image_processor().save_pretrained(partial)
        try:
            os.rename(partial, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(partial, ignore_errors=True)
    return folder
