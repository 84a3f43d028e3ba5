"""A contact sheet of the embedded world: what its families look like, and what becomes of the pictures.

    python -m toy --sheet world.png
"""

from PIL import Image, ImageDraw, ImageFont

from support.files import replacing
from toy.shapes import COLOURS, DOMAINS, FAMILIES
from toy.world import SIZE, draw, render, rng_for

CELL = 3 * SIZE  # pixels: a picture, three times as large
COLUMN = CELL + 10
ROW = CELL + 42  # two lines of text under each picture
TOP = 40  # room for the headings
LEFT = 10  # where the left side begins
COUNT = 6  # pictures in a row of each side
RIGHT = LEFT + int((COUNT + .5) * COLUMN)  # where the right side begins
WIDTH = int((2 * COUNT + .6) * COLUMN)


def families(domain: str, row: int) -> list[tuple[Image.Image, str, str]]:
    """Each family of a domain in clear view, in one of the colours -> (picture, name, note)."""
    cells = []
    colours = list(COLOURS)
    for i, family in enumerate(FAMILIES[domain]):
        # steps of 2 and 3: neighbours differ, beside and below, and every colour comes up
        colour = colours[(2 * i + 3 * row) % len(colours)]
        picture, _ = render(domain, family, colour, "clear", rng_for("sheet", family))
        cells.append((picture, f"{colour} {family}", domain))
    return cells


def as_they_come(domain: str) -> list[tuple[Image.Image, str, str]]:
    """The first training pictures of a domain, whatever befell them -> (picture, label, note)."""
    cells = []
    for i in range(COUNT):
        picture, label, shows = draw(domain, "train", i)
        cells.append((picture, label, f"shows: {shows}"))
    return cells


def contact_sheet(path) -> None:
    """Saves a PNG of the world: a domain's families on the left, its pictures as they come on the right.
    Raises OSError where it can't be written, ValueError for the name of no kind of picture."""
    height = TOP + len(DOMAINS) * ROW
    sheet = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    small = ImageFont.load_default(14)

    def paste_row(cells, x: int, y: int) -> None:
        for i, (picture, label, note) in enumerate(cells):
            left = x + i * COLUMN
            enlarged = picture.resize((CELL, CELL), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (left, y))
            pen.text((left, y + CELL + 1), label, "black", font)
            pen.text((left, y + CELL + 20), note, "grey", small)

    # Two headings, then a row for each domain, its left and its right side.
    pen.text((LEFT, 10), "the families, each in one of the eight colours", "black", font)
    pen.text((RIGHT, 10), "pictures as they come: label, and what can be seen", "black", font)
    for row, domain in enumerate(DOMAINS):
        y = TOP + row * ROW
        paste_row(families(domain, row), LEFT, y)
        paste_row(as_they_come(domain), RIGHT, y)
    with replacing(path) as temporary:
        sheet.save(temporary)
