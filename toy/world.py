"""The embedded world: small drawn pictures, their labels, and the tree that the labels form.

Why it is here. A real run needs a GPU, a data set and hours. In this world the same code trains a tiny policy
on a laptop in minutes, and the world holds what the method is about: pictures in which the finest name can be
seen, and pictures in which it can't. There a guess is mostly wrong and a coarser name is right, so a good
answer is as specific as the picture allows, and no more.

What is in it. Four domains: bird, flower, vehicle, fish. Six families in each: finch, owl, ... Eight colours.
A picture shows one family with a coloured mark on its body. Both together are the fine name, "red finch", one
of 192. The domains share the colours but no family: training on birds can bring the other domains no names,
only a habit, how specific to be.

The tree is red finch -> finch -> bird. To a picture whose truth is "red finch"

    "red finch" is Specific          "none" is Abstain
    "finch"     is Less Specific     "blue finch", "owl", "tulip" are Wrong
    "bird"      is Generic

More Specific is possible only where the given label is the family's name alone, on six pictures of a hundred.

Each picture meets one fate. The shares are the same in every domain and every split:

    fate       share   what happens                      what can be seen
    clear       .50    nothing                           the fine name
    occluded    .16    a grey box hides the mark         the family
    grey        .10    all colour is gone                the family
    dim         .12    4 to 35 % of the colour is left   the fine name; below 12 % the family
    far         .12    half as large, and blurred        the domain, by its tints

In all, the pixels carry the fine name in .59 of the pictures, the family only in .29, the domain only in .12.

A picture has no file: it is drawn anew whenever it is read, from a random generator that its domain, split
and number decide. `python -m toy --sheet world.png` draws a sheet of them. This file needs no torch.

It is a toy. What is measured on it stands for none of the paper's figures.
"""

import hashlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from toy.shapes import COLOURS, DOMAINS, FAMILIES, NO_COLOUR, TINTS, WHITE, Shape, drawing

SIZE = 48  # pixels, each way
SPLITS = ("base", "train", "val", "test")  # "base" is what the base policy learns from

# What befalls a picture, with its share.
FATES = {"clear": .50, "occluded": .16, "grey": .10, "dim": .12, "far": .12}
FAINT = .12  # below this saturation a colour counts as hidden (it can still be guessed)
COARSE_TRUTHS = .06  # share of the pictures whose label is the family's name only

OVER = 3  # pictures are drawn three times as large, then averaged: smooth edges
UNIT = SIZE * OVER / 100  # pixels of the large picture to one unit of a drawing
LINE_WIDTH = {"b": 9, "d": 4}  # in units of a drawing, by ink

# ------------------------------------------------------------------------------------------------------------
# Names


def parents() -> dict[str, str | None]:
    """The taxonomy: every name -> the name one level up; a domain -> None."""
    up = {}
    for domain in DOMAINS:
        up[domain] = None
    for domain, families in FAMILIES.items():
        for family in families:
            up[family] = domain
        for family in families:
            for colour in COLOURS:
                up[f"{colour} {family}"] = family
    return up


# ------------------------------------------------------------------------------------------------------------
# One picture


class Weather(NamedTuple):
    """What chance does to a picture, apart from what it is of."""

    saturation: float  # 1: full colours, 0: grey
    zoom: float
    shift: np.ndarray  # (2,) x and y, in units of a drawing
    flip: bool  # left and right exchanged
    blur: float  # pixels; used on "far" pictures alone
    light: float  # brightness, 1 as the tables have it
    jitter: np.ndarray  # (5, 3) added to RGB: background, ground, body, dark parts, mark
    noise: np.ndarray  # (SIZE, SIZE, 3) added to the pixels


def draw_weather(fate: str, rng: np.random.Generator) -> Weather:
    """Draws a picture's weather. Each fate makes the same draws, whether it needs them or not.

    The order of the draws decides every picture. What has been measured was measured on these pictures: in
    another order all of it would be stale.
    """
    dimmed = rng.uniform(.04, .35)
    saturation = {"grey": 0.0, "dim": dimmed}.get(fate, 1.0)
    zoom = rng.uniform(.88, 1.04)
    if fate == "far":
        zoom = zoom * .5
    shift = rng.uniform(-4, 4, 2)
    flip = rng.random() < .5
    blur = rng.uniform(8, 11)
    light = rng.uniform(.92, 1.06)
    jitter = rng.normal(0, 7, (5, 3))
    noise = rng.normal(0, 9, (SIZE, SIZE, 3))
    return Weather(saturation, zoom, shift, flip, blur, light, jitter, noise)


def in_weather(rgb, grey, jitter, weather: Weather) -> tuple[int, ...]:
    """A colour as a picture shows it: three numbers from 0 to 255. Without saturation it is `grey`.

    rgb: (3,); grey: a number or (3,); jitter: a number or (3,).
    """
    jittered = np.add(rgb, jitter)
    faded = grey + weather.saturation * (jittered - grey)
    lit = np.clip(weather.light * faded, 0, 255)
    return tuple(int(value) for value in lit)


def choose_inks(domain: str, colour: str, weather: Weather) -> dict[str, tuple[int, ...]]:
    """The colours a picture is painted with: by the letters of toy.shapes, "background" and "ground"."""
    inks = {}
    # The domain's tints fade to a grey of their own brightness.
    for ink, tint, jitter in zip(("background", "ground", "b", "d"), TINTS[domain], weather.jitter):
        inks[ink] = in_weather(tint, np.mean(tint), jitter, weather)
    inks["w"] = in_weather(WHITE, max(WHITE), 0, weather)
    # All marks fade to one and the same grey: a yellow that is gone must not still be the lightest.
    inks["m"] = in_weather(COLOURS[colour], NO_COLOUR, weather.jitter[4], weather)
    return inks


def place(points: np.ndarray, weather: Weather) -> np.ndarray:
    """Points of a drawing, (K, 2) from 0 to 100 -> pixels of the large picture, (K, 2)."""
    centred = points - 50
    if weather.flip:
        centred = centred * (-1, 1)
    # .94 leaves a margin for the shift
    placed = centred * weather.zoom * .94 + 50 + weather.shift
    return placed * UNIT


def box_around(points: np.ndarray) -> list[float]:
    """The box x0, y0, x1, y1 that holds the points, (K, 2)."""
    return [*points.min(0).tolist(), *points.max(0).tolist()]


def paint_shape(pen: ImageDraw.ImageDraw, shape: Shape, points: np.ndarray, fill, zoom: float) -> None:
    """Paints one shape of a drawing. points: (K, 2), where it lies in the large picture."""
    corners = [tuple(point) for point in points.tolist()]
    if shape.kind == "o":
        pen.ellipse(box_around(points), fill=fill)
    elif shape.kind == "p":
        pen.polygon(corners, fill=fill)
    else:
        width = round(LINE_WIDTH[shape.ink] * zoom * UNIT)
        pen.line(corners, fill=fill, width=width, joint="curve")


def hide(pen: ImageDraw.ImageDraw, box: list[float]) -> None:
    """A grey board over the mark, a little larger than it."""
    x0, y0, x1, y1 = box
    pen.rectangle((x0 - 4, y0 - 4, x1 + 4, y1 + 4), fill=tuple(NO_COLOUR + 10))


def add_noise(picture: Image.Image, noise: np.ndarray) -> Image.Image:
    """noise: (SIZE, SIZE, 3), in steps of 0 to 255."""
    pixels = np.clip(np.asarray(picture) + noise, 0, 255)  # (SIZE, SIZE, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def what_it_shows(fate: str, saturation: float) -> str:
    """The finest level that the pixels carry: "fine", "family" or "domain"."""
    if fate == "far":
        return "domain"
    if fate in ("grey", "occluded"):
        return "family"
    if fate == "dim" and saturation < FAINT:
        return "family"
    return "fine"


def render(domain: str, family: str, colour: str, fate: str, rng) -> tuple[Image.Image, str]:
    """One picture -> (PIL RGB image SIZE x SIZE, what it shows: "fine" | "family" | "domain").

    The draws are the same for every colour: where it is hidden, pictures that differ in it alone are equal.
    """
    weather = draw_weather(fate, rng)
    inks = choose_inks(domain, colour, weather)

    # A background, and the ground under it all.
    canvas = Image.new("RGB", (SIZE * OVER, SIZE * OVER), inks["background"])
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, 76 * UNIT, 100 * UNIT, 100 * UNIT), fill=inks["ground"])

    # The family, shape upon shape. One of the shapes is the mark.
    for shape in drawing(domain, family):
        points = place(shape.points, weather)
        paint_shape(pen, shape, points, inks[shape.ink], weather.zoom)
        if shape.ink == "m":
            mark = box_around(points)

    # What hides it. The box goes over the whole drawing, the blur over the picture in its own size.
    if fate == "occluded":
        hide(pen, mark)
    picture = canvas.reduce(OVER)
    if fate == "far":
        picture = picture.filter(ImageFilter.GaussianBlur(weather.blur))
    picture = add_noise(picture, weather.noise)
    return picture, what_it_shows(fate, weather.saturation)


# ------------------------------------------------------------------------------------------------------------
# The pictures of a split


class Facts(NamedTuple):
    """What a picture is of."""

    family: str
    colour: str
    fate: str
    label: str  # the truth as a data set gives it: the fine name, or the family's only
    rng: np.random.Generator  # what it is then drawn with


def rng_for(*key) -> np.random.Generator:
    """The random generator of a key: the same numbers for it in every process, unlike those of hash()."""
    parts = [str(part) for part in ("embedded world", *key)]
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def facts(domain: str, split: str, index: int, seed: int = 0) -> Facts:
    """What picture `index` of a split is of. Raises ValueError for an unknown domain or split."""
    if domain not in DOMAINS or split not in SPLITS:
        raise ValueError(f"no toy pictures of {domain!r} {split!r}")
    key = [domain, split, index]
    if split == "base":
        key.append(seed)
    rng = rng_for(*key)

    family = str(rng.choice(list(FAMILIES[domain])))
    colour = str(rng.choice(list(COLOURS)))
    fate = str(rng.choice(list(FATES), p=list(FATES.values())))
    label = f"{colour} {family}"
    if rng.random() < COARSE_TRUTHS:
        label = family
    return Facts(family, colour, fate, label, rng)


def label(domain: str, split: str, index: int) -> str:
    """The truth of a picture: its fine name, or for a few pictures the family's only (COARSE_TRUTHS)."""
    return facts(domain, split, index).label


def draw(domain: str, split: str, index: int, seed: int = 0) -> tuple[Image.Image, str, str]:
    """Picture `index` of a split ("base" | "train" | "val" | "test") -> (PIL RGB 48 x 48, label, shows).

    All follows from sha256 of the arguments. The policy's `seed` changes the "base" pictures alone, which it
    learns from. `shows` is the finest level the pixels carry: "fine", "family" or "domain".
    """
    known = facts(domain, split, index, seed)
    picture, shows = render(domain, known.family, known.colour, known.fate, known.rng)
    return picture, known.label, shows
