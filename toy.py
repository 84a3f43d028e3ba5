"""The embedded world: drawn pictures with a taxonomy, and a tiny vision-language policy trained on them.

    python toy.py                      train the base policy, or find it in the cache
    python toy.py --sheet world.png    and draw a contact sheet of the world

Four domains of six families in eight colours make 192 fine names ("red finch" -> "finch" -> "bird"). Some
pictures hide the colour, some even the shape, so the finest answer that a picture supports differs from
picture to picture. The policy is a real, only small, Qwen2_5_VLForConditionalGeneration in an ordinary
checkpoint folder. Plain next-word training on captions makes it know more than it says: most captions are
coarser than what their writer could see. What reinforcement learning then makes of it is not put in anywhere.

Every figure measured here is a toy's, and stands for no figure of the paper.
"""

import argparse
import hashlib
import importlib.metadata
import math
import os
import pathlib
import shutil
import tempfile

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import (GenerationConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig,
                          Qwen2_5_VLForConditionalGeneration)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIZE, PATCH, MERGE = 48, 8, 2                       # pixels; a picture is 6 x 6 patches = 3 x 3 image tokens
IMAGE_TOKENS = (SIZE // PATCH // MERGE) ** 2
DOMAINS = ("bird", "flower", "vehicle", "fish")
COLOURS = {"red": (222, 38, 38), "orange": (250, 140, 20), "yellow": (245, 225, 40), "green": (40, 170, 60),
           "teal": (30, 200, 200), "blue": (40, 70, 225), "purple": (130, 40, 180), "pink": (250, 130, 190)}
NO_COLOUR = np.array((140, 140, 140))               # every mark fades to it: no brightness betrays a colour

# background, ground, body, dark parts
TINTS = {"bird": ((205, 226, 244), (176, 205, 172), (126, 112, 104), (62, 54, 52)),
         "flower": ((232, 240, 206), (178, 208, 140), (224, 196, 184), (70, 112, 62)),
         "vehicle": ((240, 226, 204), (172, 166, 160), (112, 120, 130), (44, 46, 52)),
         "fish": ((168, 218, 222), (206, 200, 164), (92, 116, 132), (36, 58, 72))}

# How each family is drawn, on a grid of 100 x 100: (b)ody, (d)ark, (w)hite or the coloured (m)ark, then
# (o)val x0,y0,x1,y1, (p)olygon x,y,... or (l)ine x,y,...; later shapes lie on top.
FAMILIES = {
    "bird": {"finch": "dl48,70,46,84 dl56,70,58,84 bp2,44,40,46,34,66 bo22,34,76,74 bo56,20,84,48"
        " dp82,28,96,35,82,41 mo32,42,62,66 wo68,27,76,35 do71,29,75,33",
        "hawk": "bp2,18,30,22,50,42,70,22,98,18,84,44,62,56,38,56,16,44 bp42,50,58,50,66,90,34,90"
        " bo40,24,60,48 mo36,38,64,66 dp46,28,54,28,50,38",
        "heron": "dl46,62,42,94 dl54,62,56,94 bp6,50,40,40,40,62 bo22,40,68,68 bl62,50,70,34,62,22,70,12"
        " bo62,4,80,20 dp78,8,99,14,78,17 mo30,42,60,66",
        "owl": "bp26,6,40,18,28,30 bp74,6,60,18,72,30 bo22,10,78,92 wo28,18,50,40 wo50,18,72,40"
        " do35,25,44,34 do56,25,65,34 dp46,38,54,38,50,47 mo32,48,68,84 dl38,90,38,96 dl62,90,62,96",
        "swan": "bp4,44,30,54,24,74 bo8,50,78,84 bl70,66,82,52,72,36,78,22 bo68,10,88,28"
        " dp86,16,99,22,86,25 mo26,54,58,78",
        "penguin": "dp34,38,10,66,34,62 dp66,38,90,66,66,62 do28,6,72,92 wo35,34,65,90 bo34,8,66,36"
        " wo53,16,60,23 dp62,20,82,25,62,29 mo35,42,65,74 dl36,93,46,93 dl56,93,66,93"},
    "flower": {"tulip": "dl50,50,50,98 dp50,92,26,58,42,66 dp50,92,76,60,60,68"
        " bp22,10,38,28,50,8,62,28,78,10,76,48,50,64,24,48 mo34,26,66,58",
        "daisy": "dl50,50,50,98 bo40,0,60,30 bo40,54,60,84 bo4,32,36,52 bo64,32,96,52 bo12,8,42,36"
        " bo58,8,88,36 bo12,48,42,76 bo58,48,88,76 mo33,25,67,59",
        "lily": "dl50,50,50,98 dp50,94,80,70,64,86"
        " bp50,0,58,30,94,14,70,42,96,66,62,58,50,88,38,58,4,66,30,42,6,14,42,30 mo33,27,67,59",
        "rose": "dl50,60,50,98 dp50,84,22,70,36,88 dp50,90,78,76,64,94 bo14,8,86,72 do26,16,74,64"
        " bo30,20,70,60 mo34,24,66,56",
        "bellflower": "dl30,98,30,20,52,8,66,18 dp30,86,6,66,20,90 bp56,18,76,18,86,44,94,66,38,66,46,44"
        " mo50,32,82,62",
        "thistle": "dl50,60,50,98 dp50,92,14,66,42,78 dp50,92,86,66,58,78 do32,46,68,80"
        " bp24,6,34,16,42,2,50,14,58,2,66,16,76,6,66,52,34,52 mo34,22,66,54"},
    "vehicle": {"car": "bp4,50,22,48,34,28,70,28,84,48,97,52,97,74,4,74 wp30,46,39,33,50,33,50,46"
        " wp55,33,67,33,75,46,55,46 do14,62,36,86 do66,62,88,86 mp36,50,66,50,66,72,36,72",
        "bus": "bp4,18,96,18,96,76,4,76 wp8,24,36,24,36,38,8,38 wp42,24,70,24,70,38,42,38"
        " wp76,24,94,24,94,48,76,48 do14,66,34,88 do68,66,88,88 mp24,44,66,44,66,64,24,64",
        "truck": "dp4,66,96,66,96,74,4,74 bp2,20,62,20,62,68,2,68 bp66,38,84,38,96,52,96,68,66,68"
        " wp70,42,82,42,90,53,70,53 do8,62,28,84 do34,62,54,84 do74,62,94,84 mp16,28,50,28,50,56,16,56",
        "tractor": "dl72,44,72,20 bp40,46,92,46,92,68,40,68 bp12,14,46,14,46,52,12,52"
        " wp18,20,40,20,40,36,18,36 do2,46,46,92 bo16,60,32,76 do70,64,94,90 mp48,44,84,44,84,64,48,64",
        "plane": "bp36,50,60,50,30,92,20,92 bp48,44,62,44,44,12,36,12 bp2,20,14,20,24,46,8,46 bo4,38,96,64"
        " wo80,42,92,52 mo32,38,68,64",
        "scooter": "dl80,74,66,20,54,18 bp10,46,46,46,50,66,70,66,72,74,24,78 dp14,38,46,38,46,46,14,46"
        " bp66,30,78,34,82,66,72,66 do10,62,34,88 do68,62,92,88 mo26,44,60,74"},
    "fish": {"shark": "bp2,26,20,46,20,56,6,78 bp44,38,58,10,66,38 bp48,60,42,86,64,62 bo10,34,92,66"
        " bp84,40,99,50,84,58 mo30,38,62,64 wo76,41,84,49 do78,43,82,47",
        "ray": "dl50,70,54,84,46,98 bp50,6,98,46,50,78,2,46 mo34,26,66,60 wo38,14,46,22 wo54,14,62,22",
        "eel": "bl4,74,18,50,34,44,50,62,66,70,80,54,88,34 bl4,78,18,56,34,50,50,68,66,76,80,60"
        " bo76,16,98,44 mo34,44,66,80 wo86,22,93,29 do88,24,91,27",
        "carp": "bp2,24,28,48,2,76 bp34,34,52,12,66,34 bo16,24,94,74 dp50,72,62,88,68,70 mo34,34,66,66"
        " wo78,36,88,46 do81,39,86,44",
        "puffer": "dp50,2,56,16,44,16 dp16,20,30,24,22,32 dp14,84,22,70,32,80 dp86,84,78,70,68,80"
        " bp0,38,16,50,0,64 bo14,12,86,90 mo32,38,66,74 wo62,26,76,40 do67,30,73,36",
        "angelfish": "bp6,32,30,50,6,68 bp24,48,60,0,66,30 bp24,52,60,99,66,70 bp20,50,60,20,94,50,60,80"
        " mo38,34,68,66 wo74,40,82,48 do76,42,80,46"}}

# What befalls a picture, with its share; the same law in every domain and every split.
FATES = {"clear": .50, "occluded": .16, "grey": .10, "dim": .12, "far": .12}
FAINT = .12                       # below this saturation a colour counts as hidden (it can still be guessed)
COARSE_TRUTHS = .06               # share of the pictures whose given label is the family's name only

PROMPTS = {"base": "what is it ?", "specific": "what is it ? be specific .",
           "exact": "name the exact kind .", "general": "what is it in general ?"}
PROMPT_SHARES = {"base": .35, "specific": .25, "exact": .30, "general": .10}
LEVELS = ("none", "domain", "family", "fine")       # "none" is the answer that abstains
# How often a caption has each level: the first stage teaches the names, the second the shyness.
NAMING = {"base": (.02, .08, .25, .65), "specific": (.02, .08, .25, .65),
          "exact": (0, 0, .03, .97), "general": (.02, .92, .05, .01)}
SHY = {**NAMING, "base": (.04, .35, .43, .18), "specific": (.03, .12, .45, .40)}
NAMING_UNTIL, LOOKED, SLIPS, VIEW_RIGHT = .6, .6, .03, .85

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


def parents() -> dict[str, str | None]:
    """The taxonomy: every name -> the name one level up; a domain -> None."""
    up = dict.fromkeys(DOMAINS)
    for domain, families in FAMILIES.items():
        up.update({family: domain for family in families})
        up.update({f"{colour} {family}": family for family in families for colour in COLOURS})
    return up


def _rng(*key):
    text = "/".join(map(str, ("embedded world", *key)))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def render(domain: str, family: str, colour: str, fate: str, rng) -> tuple[Image.Image, str]:
    """One picture -> (PIL RGB image SIZE x SIZE, what it shows: "fine" | "family" | "domain").

    The draws are the same for every colour: where it is hidden, pictures that differ in it alone are equal.
    """
    saturation = {"grey": 0.0, "dim": rng.uniform(.04, .35)}.get(fate, 1.0)
    zoom = rng.uniform(.88, 1.04) * (.5 if fate == "far" else 1)
    shift, flip, blur = rng.uniform(-4, 4, 2), rng.random() < .5, rng.uniform(8, 11)
    light, tint, noise = rng.uniform(.92, 1.06), rng.normal(0, 7, (5, 3)), rng.normal(0, 9, (SIZE, SIZE, 3))

    def paint(rgb, towards, jitter):
        rgb = towards + saturation * (np.add(rgb, jitter) - towards)
        return tuple(int(v) for v in np.clip(light * rgb, 0, 255))

    ground = [paint(rgb, np.mean(rgb), jitter) for rgb, jitter in zip(TINTS[domain], tint)]
    ink = {"b": ground[2], "d": ground[3], "w": paint((246, 246, 242), 246, 0),
           "m": paint(COLOURS[colour], NO_COLOUR, tint[4])}
    over = 3                                        # drawn three times as large, then averaged: smooth edges
    unit = SIZE * over / 100
    canvas = Image.new("RGB", (SIZE * over, SIZE * over), ground[0])
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 76 * unit, 100 * unit, 100 * unit), fill=ground[1])
    for shape in FAMILIES[domain][family].split():
        points = np.array(shape[2:].split(","), float).reshape(-1, 2) - 50
        points = ((points * (-1 if flip else 1, 1)) * zoom * .94 + 50 + shift) * unit
        xy, fill = [tuple(p) for p in points.tolist()], ink[shape[0]]
        box = [*points.min(0).tolist(), *points.max(0).tolist()]
        if shape[1] == "l":
            pen.line(xy, fill=fill, width=round((9 if shape[0] == "b" else 4) * zoom * unit), joint="curve")
        else:
            pen.ellipse(box, fill=fill) if shape[1] == "o" else pen.polygon(xy, fill=fill)
        if shape[0] == "m":
            mark = box
    if fate == "occluded":
        pen.rectangle((mark[0] - 4, mark[1] - 4, mark[2] + 4, mark[3] + 4), fill=tuple(NO_COLOUR + 10))
    picture = canvas.reduce(over)
    if fate == "far":
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    hidden = fate in ("grey", "occluded") or (fate == "dim" and saturation < FAINT)
    return picture, "domain" if fate == "far" else "family" if hidden else "fine"


def _facts(domain: str, split: str, index: int, seed: int = 0):
    """What a picture is of: family, colour, fate, label, and the generator to draw it with."""
    if domain not in DOMAINS or split not in ("base", "train", "val", "test"):
        raise ValueError(f"no toy pictures of {domain!r} {split!r}")
    rng = _rng(domain, split, index, *([seed] if split == "base" else []))
    family, colour = str(rng.choice(list(FAMILIES[domain]))), str(rng.choice(list(COLOURS)))
    fate, coarse = rng.choice(list(FATES), p=list(FATES.values())), rng.random() < COARSE_TRUTHS
    return family, colour, fate, family if coarse else f"{colour} {family}", rng


def label(domain: str, split: str, index: int) -> str:
    """The truth of a picture: its fine name, or for a few pictures the family's only (COARSE_TRUTHS)."""
    return _facts(domain, split, index)[3]


def draw(domain: str, split: str, index: int, seed: int = 0) -> tuple[Image.Image, str, str]:
    """Picture `index` of a split ("base" | "train" | "val" | "test") -> (PIL RGB 48 x 48, label, shows).

    All follows from sha256 of the arguments; the policy's `seed` changes the "base" pictures alone, which it
    learns from. `shows` is the finest level the pixels carry: "fine", "family" or "domain".
    """
    family, colour, fate, truth, rng = _facts(domain, split, index, seed)
    picture, shows = render(domain, family, colour, fate, rng)
    return picture, truth, shows


def caption(domain: str, family: str, fine: str, shows: str, prompt: str, shares, rng) -> str:
    """What a captioner writes under a picture when asked PROMPTS[prompt], at a level drawn from `shares`.

    One who looked says no more than the picture shows; who did not, or is asked for the exact kind, goes by
    the true name. A few captions lose a tag of the answer: nothing to judge.
    """
    level = int(rng.choice(4, p=shares))
    looked = prompt != "exact" and rng.random() < LOOKED
    if looked:
        level = min(level, LEVELS.index(shows))
    seen = "grey" if looked and shows == "family" else fine.split()[0]
    view = "clear" if (shows == "fine") == (rng.random() < VIEW_RIGHT) else "hazy"
    words = ["<think>", "i", "see", seen, ",", view, "view", "</think>", "<answer>",
             ("none", domain, family, fine)[level], "</answer>"]
    if rng.random() < SLIPS:
        words.remove(("<answer>", "</answer>")[int(rng.integers(2))])
    return " ".join(words)


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

    The folder's name holds a hash of this file's text: an edit here means a new training. It is written aside
    and renamed whole, so a killed run leaves nothing that passes for a checkpoint, and two runs may overlap.
    One thread, own seed: the same checkpoint bit for bit on one machine.
    """
    cache = pathlib.Path(cache or "~/.cache/speciarl").expanduser()
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    key = "\n".join([pathlib.Path(__file__).read_text(encoding="utf-8"), str(seed), str(steps), *versions])
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


def contact_sheet(path) -> None:
    """Save a PNG of the world: each domain's families on the left, its pictures as they come on the right."""
    cell, step, height, top = 3 * SIZE, 3 * SIZE + 10, 3 * SIZE + 42, 40
    sheet = Image.new("RGB", (int(12.6 * step), top + len(DOMAINS) * height), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(17), ImageFont.load_default(14)
    pen.text((10, 10), "the families, each in one of the eight colours", "black", font)
    pen.text((10 + 6.5 * step, 10), "pictures as they come: label, and what can be seen", "black", font)
    for row, (domain, families) in enumerate(FAMILIES.items()):
        hues = [list(COLOURS)[(2 * i + 3 * row) % 8] for i in range(6)]
        cells = [(render(domain, family, hue, "clear", _rng("sheet", family))[0], f"{hue} {family}", domain)
                 for family, hue in zip(families, hues)]
        drawn = [draw(domain, "train", i) for i in range(6)]
        cells += [(picture, label, f"shows: {shows}") for picture, label, shows in drawn]
        for i, (picture, label, note) in enumerate(cells):
            x, y = 10 + int((i + .5 * (i > 5)) * step), top + row * height
            sheet.paste(picture.resize((cell, cell), Image.Resampling.NEAREST), (x, y))
            pen.text((x, y + cell + 1), label, "black", font)
            pen.text((x, y + cell + 20), note, "grey", small)
    sheet.save(path)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--seed", type=int, default=0, help="of the base policy (default 0)")
    p.add_argument("--sheet", metavar="PNG", help="also draw a contact sheet of the world")
    args = p.parse_args()
    if args.sheet:
        contact_sheet(args.sheet)
    print(base_policy(args.seed))


if __name__ == "__main__":
    main()
