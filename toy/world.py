"""The embedded world: its pictures, its labels and its taxonomy."""

import hashlib

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from toy.shapes import COLOURS, DOMAINS, FAMILIES, NO_COLOUR, TINTS

SIZE = 48  # pixels


# What befalls a picture, with its share; the same law in every domain and every split.
FATES = {"clear": .50, "occluded": .16, "grey": .10, "dim": .12, "far": .12}
FAINT = .12                       # below this saturation a colour counts as hidden (it can still be guessed)
COARSE_TRUTHS = .06               # share of the pictures whose given label is the family's name only


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
