"""The odds' curve as an SVG: correctness against specificity, with the other methods as points.

Two panels: all points, and what stands close to the curve, enlarged. In the second the names are a column
beside the panel, each tied to its point by a line: they can't cover each other.
"""

from collections.abc import Callable
from html import escape

HEIGHT = 420
PANEL = 300    # pixels, width of a panel
FIRST = 60     # left edge of the first panel
SECOND = 430   # of the second
NAMES = 775    # of the column of names
WIDTH = 900
TOP = 50
BOTTOM = 360
LINE = 17      # from one name in the column to the next
AROUND = 0.25  # of the curve's extent, that the enlarged panel shows on each side of it

RED = "#c33"
BLUE = "#357"

Point = tuple[float, float]  # (specificity, correctness), both in [0, 1]
Box = tuple[Point, Point]    # of the smallest and of the largest values


def curve_svg(points: dict[str, Point], curve: list[str]) -> str:
    """curve: the methods that a line joins, in its order. Returns the figure as text."""
    whole = whole_box(list(points.values()))
    close = close_box([points[name] for name in curve])
    near = [name for name, point in points.items() if is_inside(point, close)]
    far = [name for name in points if name not in near]

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="11">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']

    # The first panel names what the second doesn't show.
    place = placing(whole, FIRST)
    lines += axes(place, whole, digits=1)
    lines += frame(place, close)
    lines += drawing(place, points, curve, list(points))
    for name in far:
        x, y = place(points[name])
        lines.append(text(x + 7, y - 5, name))

    # The second names its points in a column, from the most correct on.
    place = placing(close, SECOND)
    lines += axes(place, close, digits=2)
    lines += drawing(place, points, curve, near)
    near.sort(key=lambda name: -points[name][1])
    for number, name in enumerate(near):
        x, y = place(points[name])
        line_y = TOP + LINE * number
        lines.append(f'<path d="M{x:.1f} {y:.1f}L{NAMES - 5} {line_y - 4}" stroke="#bbb" stroke-width=".7"/>')
        lines.append(text(NAMES, line_y, name, RED if name in curve else BLUE))
    return "\n".join([*lines, "</svg>"]) + "\n"


def whole_box(points: list[Point]) -> Box:
    """From the tenth below the points to 1."""
    left = int(10 * min(x for x, _ in points)) / 10
    bottom = int(10 * min(y for _, y in points)) / 10
    return (min(left, 0.9), min(bottom, 0.9)), (1.0, 1.0)


def close_box(points: list[Point]) -> Box:
    """Around the curve's points, at least .02 on each side."""
    smallest = []
    largest = []
    for values in zip(*points):
        margin = max(0.02, AROUND * (max(values) - min(values)))
        smallest.append(min(values) - margin)
        largest.append(max(values) + margin)
    return tuple(smallest), tuple(largest)


def is_inside(point: Point, box: Box) -> bool:
    (left, bottom), (right, top) = box
    return left <= point[0] <= right and bottom <= point[1] <= top


def placing(box: Box, edge: int) -> Callable[[Point], Point]:
    """What turns a point into pixels of the panel whose left edge that is."""
    (left, bottom), (right, top) = box

    def place(point: Point) -> Point:
        across = (point[0] - left) / (right - left)
        up = (point[1] - bottom) / (top - bottom)
        return edge + across * PANEL, BOTTOM - up * (BOTTOM - TOP)

    return place


def axes(place: Callable, box: Box, digits: int) -> list[str]:
    """The panel's two axes, a number at every fifth of them, and what they measure."""
    (left, bottom), (right, top) = box
    x0, y0 = place((left, bottom))
    x1, y1 = place((right, top))
    lines = [f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="black"/>']
    for fifth in range(6):
        across = left + (right - left) * fifth / 5
        up = bottom + (top - bottom) * fifth / 5
        x, y = place((across, up))
        lines.append(text(x, y0 + 16, f"{across:.{digits + 1}f}", anchor="middle"))
        lines.append(text(x0 - 6, y + 4, f"{up:.{digits + 1}f}", anchor="end"))
    lines.append(text((x0 + x1) / 2, y0 + 36, "specificity", anchor="middle"))
    lines.append(text(x0, y1 - 14, "correctness", anchor="middle"))
    return lines


def frame(place: Callable, box: Box) -> list[str]:
    """What the other panel shows, as a dashed box."""
    smallest, largest = box
    x0, y0 = place(smallest)
    x1, y1 = place(largest)
    return [f'<path d="M{x0:.1f} {y0:.1f}H{x1:.1f}V{y1:.1f}H{x0:.1f}Z" fill="none" stroke="#999" '
            'stroke-dasharray="3 3"/>']


def drawing(place: Callable, points: dict[str, Point], curve: list[str], shown: list[str]) -> list[str]:
    """The curve, and a dot for each method that is shown."""
    path = " ".join("{:.1f},{:.1f}".format(*place(points[name])) for name in curve)
    lines = [f'<polyline points="{path}" fill="none" stroke="{RED}" stroke-width="2"/>']
    for name in shown:
        x, y = place(points[name])
        colour = RED if name in curve else BLUE
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
    return lines


def text(x: float, y: float, words: str, colour: str = "black", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'
