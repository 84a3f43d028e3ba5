"""How the embedded world is drawn: its domains, its colours, and the outlines of its families.

A family is a drawing of a few flat shapes, written in a little language so that it fits on a few lines. A
shape is two letters and its numbers; spaces stand between shapes only, and later shapes lie on top:

    bo22,34,76,74               an oval in the body's colour, in the box from (22, 34) to (76, 74)
    dp82,28,96,35,82,41         a dark polygon with three corners (a beak)
    dl48,70,46,84               a dark line from one point to the next (a leg)

    first letter, the ink       b  body    d  dark    w  white    m  the mark
    second letter, the kind     o  oval in the box x0,y0,x1,y1    p  polygon x,y,...    l  line x,y,...

x runs to the right and y down, both from 0 to 100, whatever the size of the picture. Each drawing has exactly
one mark. The mark carries the colour, and nothing else does: "red finch" is a finch with a red mark.
"""

from typing import NamedTuple

import numpy as np

DOMAINS = ("bird", "flower", "vehicle", "fish")

# The colours of the mark, shared by all domains.
COLOURS = {
    "red": (222, 38, 38),
    "orange": (250, 140, 20),
    "yellow": (245, 225, 40),
    "green": (40, 170, 60),
    "teal": (30, 200, 200),
    "blue": (40, 70, 225),
    "purple": (130, 40, 180),
    "pink": (250, 130, 190),
}

# A mark that fades, fades to this grey. All colours share it, so no brightness betrays a colour that is gone.
NO_COLOUR = np.array((140, 140, 140))

WHITE = (246, 246, 242)  # eyes, windows, a penguin's front

# The domain's own tints: background, ground, body, dark parts. They are what a blurred picture still tells.
TINTS = {
    "bird": ((205, 226, 244), (176, 205, 172), (126, 112, 104), (62, 54, 52)),
    "flower": ((232, 240, 206), (178, 208, 140), (224, 196, 184), (70, 112, 62)),
    "vehicle": ((240, 226, 204), (172, 166, 160), (112, 120, 130), (44, 46, 52)),
    "fish": ((168, 218, 222), (206, 200, 164), (92, 116, 132), (36, 58, 72)),
}

# domain -> family -> its drawing
FAMILIES = {
    "bird": {
        "finch":
            "dl48,70,46,84 dl56,70,58,84 bp2,44,40,46,34,66 bo22,34,76,74 bo56,20,84,48 dp82,28,96,35,82,41"
            " mo32,42,62,66 wo68,27,76,35 do71,29,75,33",
        "hawk":
            "bp2,18,30,22,50,42,70,22,98,18,84,44,62,56,38,56,16,44 bp42,50,58,50,66,90,34,90 bo40,24,60,48"
            " mo36,38,64,66 dp46,28,54,28,50,38",
        "heron":
            "dl46,62,42,94 dl54,62,56,94 bp6,50,40,40,40,62 bo22,40,68,68 bl62,50,70,34,62,22,70,12"
            " bo62,4,80,20 dp78,8,99,14,78,17 mo30,42,60,66",
        "owl":
            "bp26,6,40,18,28,30 bp74,6,60,18,72,30 bo22,10,78,92 wo28,18,50,40 wo50,18,72,40 do35,25,44,34"
            " do56,25,65,34 dp46,38,54,38,50,47 mo32,48,68,84 dl38,90,38,96 dl62,90,62,96",
        "swan":
            "bp4,44,30,54,24,74 bo8,50,78,84 bl70,66,82,52,72,36,78,22 bo68,10,88,28 dp86,16,99,22,86,25"
            " mo26,54,58,78",
        "penguin":
            "dp34,38,10,66,34,62 dp66,38,90,66,66,62 do28,6,72,92 wo35,34,65,90 bo34,8,66,36 wo53,16,60,23"
            " dp62,20,82,25,62,29 mo35,42,65,74 dl36,93,46,93 dl56,93,66,93",
    },
    "flower": {
        "tulip":
            "dl50,50,50,98 dp50,92,26,58,42,66 dp50,92,76,60,60,68"
            " bp22,10,38,28,50,8,62,28,78,10,76,48,50,64,24,48 mo34,26,66,58",
        "daisy":
            "dl50,50,50,98 bo40,0,60,30 bo40,54,60,84 bo4,32,36,52 bo64,32,96,52 bo12,8,42,36 bo58,8,88,36"
            " bo12,48,42,76 bo58,48,88,76 mo33,25,67,59",
        "lily":
            "dl50,50,50,98 dp50,94,80,70,64,86"
            " bp50,0,58,30,94,14,70,42,96,66,62,58,50,88,38,58,4,66,30,42,6,14,42,30 mo33,27,67,59",
        "rose":
            "dl50,60,50,98 dp50,84,22,70,36,88 dp50,90,78,76,64,94 bo14,8,86,72 do26,16,74,64 bo30,20,70,60"
            " mo34,24,66,56",
        "bellflower":
            "dl30,98,30,20,52,8,66,18 dp30,86,6,66,20,90 bp56,18,76,18,86,44,94,66,38,66,46,44"
            " mo50,32,82,62",
        "thistle":
            "dl50,60,50,98 dp50,92,14,66,42,78 dp50,92,86,66,58,78 do32,46,68,80"
            " bp24,6,34,16,42,2,50,14,58,2,66,16,76,6,66,52,34,52 mo34,22,66,54",
    },
    "vehicle": {
        "car":
            "bp4,50,22,48,34,28,70,28,84,48,97,52,97,74,4,74 wp30,46,39,33,50,33,50,46"
            " wp55,33,67,33,75,46,55,46 do14,62,36,86 do66,62,88,86 mp36,50,66,50,66,72,36,72",
        "bus":
            "bp4,18,96,18,96,76,4,76 wp8,24,36,24,36,38,8,38 wp42,24,70,24,70,38,42,38"
            " wp76,24,94,24,94,48,76,48 do14,66,34,88 do68,66,88,88 mp24,44,66,44,66,64,24,64",
        "truck":
            "dp4,66,96,66,96,74,4,74 bp2,20,62,20,62,68,2,68 bp66,38,84,38,96,52,96,68,66,68"
            " wp70,42,82,42,90,53,70,53 do8,62,28,84 do34,62,54,84 do74,62,94,84 mp16,28,50,28,50,56,16,56",
        "tractor":
            "dl72,44,72,20 bp40,46,92,46,92,68,40,68 bp12,14,46,14,46,52,12,52 wp18,20,40,20,40,36,18,36"
            " do2,46,46,92 bo16,60,32,76 do70,64,94,90 mp48,44,84,44,84,64,48,64",
        "plane":
            "bp36,50,60,50,30,92,20,92 bp48,44,62,44,44,12,36,12 bp2,20,14,20,24,46,8,46 bo4,38,96,64"
            " wo80,42,92,52 mo32,38,68,64",
        "scooter":
            "dl80,74,66,20,54,18 bp10,46,46,46,50,66,70,66,72,74,24,78 dp14,38,46,38,46,46,14,46"
            " bp66,30,78,34,82,66,72,66 do10,62,34,88 do68,62,92,88 mo26,44,60,74",
    },
    "fish": {
        "shark":
            "bp2,26,20,46,20,56,6,78 bp44,38,58,10,66,38 bp48,60,42,86,64,62 bo10,34,92,66"
            " bp84,40,99,50,84,58 mo30,38,62,64 wo76,41,84,49 do78,43,82,47",
        "ray":
            "dl50,70,54,84,46,98 bp50,6,98,46,50,78,2,46 mo34,26,66,60 wo38,14,46,22 wo54,14,62,22",
        "eel":
            "bl4,74,18,50,34,44,50,62,66,70,80,54,88,34 bl4,78,18,56,34,50,50,68,66,76,80,60 bo76,16,98,44"
            " mo34,44,66,80 wo86,22,93,29 do88,24,91,27",
        "carp":
            "bp2,24,28,48,2,76 bp34,34,52,12,66,34 bo16,24,94,74 dp50,72,62,88,68,70 mo34,34,66,66"
            " wo78,36,88,46 do81,39,86,44",
        "puffer":
            "dp50,2,56,16,44,16 dp16,20,30,24,22,32 dp14,84,22,70,32,80 dp86,84,78,70,68,80"
            " bp0,38,16,50,0,64 bo14,12,86,90 mo32,38,66,74 wo62,26,76,40 do67,30,73,36",
        "angelfish":
            "bp6,32,30,50,6,68 bp24,48,60,0,66,30 bp24,52,60,99,66,70 bp20,50,60,20,94,50,60,80"
            " mo38,34,68,66 wo74,40,82,48 do76,42,80,46",
    },
}


class Shape(NamedTuple):
    """One shape of a drawing."""

    ink: str  # "b" | "d" | "w" | "m"
    kind: str  # "o" | "p" | "l"
    points: np.ndarray  # (K, 2) x and y; an oval has the two corners of its box


def drawing(domain: str, family: str) -> list[Shape]:
    """The shapes of a family, the lowest first."""
    shapes = []
    for word in FAMILIES[domain][family].split():
        numbers = np.array(word[2:].split(","), float)
        points = numbers.reshape(-1, 2)
        shapes.append(Shape(word[0], word[1], points))
    return shapes
