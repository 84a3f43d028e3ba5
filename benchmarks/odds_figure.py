"""The odds' curve as an SVG: correctness against specificity, with the other methods as points."""

from html import escape

WIDTH = 640
HEIGHT = 420
MARGIN = 56  # pixels around the axes


def curve_svg(points: dict[str, tuple[float, float]], curve: list[str]) -> str:
    """points: method -> (specificity, correctness), both in [0, 1]; curve: the methods that a line joins, in
    its order. Returns the figure as text."""
    # The axes end at the next tenth beyond the points.
    left = int(10 * min(x for x, _ in points.values())) / 10
    bottom = int(10 * min(y for _, y in points.values())) / 10

    def place(point: tuple[float, float]) -> tuple[float, float]:
        """Pixels of a point."""
        across = (point[0] - left) / max(1 - left, 0.1)
        up = (point[1] - bottom) / max(1 - bottom, 0.1)
        return MARGIN + across * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - up * (HEIGHT - 2 * MARGIN)

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
             'font-family="sans-serif" font-size="11">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    x0, y0 = place((left, bottom))
    x1, y1 = place((1, 1))
    lines.append(f'<path d="M{x0:.1f} {y1:.1f}V{y0:.1f}H{x1:.1f}" fill="none" stroke="black"/>')
    lines += ticks(place, left, bottom)

    # The curve below the points, so that their names stay readable.
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in [place(points[name]) for name in curve])
    lines.append(f'<polyline points="{path}" fill="none" stroke="#c33" stroke-width="2"/>')
    for name, point in points.items():
        x, y = place(point)
        colour = "#c33" if name in curve else "#357"
        lines.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        lines.append(f'<text x="{x + 6:.1f}" y="{y - 5:.1f}">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>"]) + "\n"


def ticks(place, left: float, bottom: float) -> list[str]:
    """A number at each tenth of both axes, and what they measure."""
    lines = []
    for tenth in range(11):
        value = tenth / 10
        if value >= left:
            x, y = place((value, bottom))
            lines.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:.1f}</text>')
        if value >= bottom:
            x, y = place((left, value))
            lines.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    lines.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 12}" text-anchor="middle">specificity</text>')
    lines.append(f'<text x="16" y="{HEIGHT / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 16 {HEIGHT / 2})">correctness</text>')
    return lines
