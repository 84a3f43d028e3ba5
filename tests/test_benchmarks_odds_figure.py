"""The odds' figure: each method is named once, where it can be read, and stands where its figures say."""

import re
from xml.etree import ElementTree

from benchmarks.odds_figure import close_box, curve_svg, placing

CURVE = {"paper": (0.90, 0.80), "odds 1": (0.89, 0.86), "odds 4": (0.84, 0.88)}
POINTS = CURVE | {"base <shy>": (0.65, 0.82), "graded": (0.88, 0.86)}


def test_names_and_places():
    svg = curve_svg(POINTS, list(CURVE))
    texts = [element for element in ElementTree.fromstring(svg) if element.tag.endswith("text")]
    named = [element for element in texts if element.text in POINTS]
    assert sorted(element.text for element in named) == sorted(POINTS)

    # The column: from the most correct on, a line apart.
    column = [element for element in named if element.get("x") == "775.0"]
    assert [element.text for element in column][0] == "odds 4" and len(column) == 4
    heights = [float(element.get("y")) for element in column]
    assert all(b - a == 17 for a, b in zip(heights, heights[1:]))

    # .06 wide and .08 high: .02 more on each side, so 300 pixels are .1 and 310 are .12.
    assert [round(value, 9) for corner in close_box(list(CURVE.values())) for value in corner] == [
        0.82, 0.78, 0.92, 0.9]
    x, y = placing(close_box(list(CURVE.values())), 430)((0.84, 0.88))
    assert abs(x - 490) < 1e-6 and abs(y - (360 - 310 * 10 / 12)) < 1e-6
    assert f'cx="{x:.1f}" cy="{y:.1f}"' in svg
    assert len(re.findall("<polyline", svg)) == 2
