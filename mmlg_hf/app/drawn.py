"""Example pictures, drawn: a shirt, a shoe, a watch and a bag on white, as a shop shows them."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

_SIDE, _LARGE = 240, 960
_Points = list[tuple[float, float]]


def draw_examples(folder: Path) -> list[Path]:
    """Draw the examples into a folder; return their files."""
    drawn = {"shirt": _shirt, "shoe": _shoe, "watch": _watch, "bag": _bag}
    paths = []
    for name, draw in drawn.items():
        large = Image.new("RGB", (_LARGE, _LARGE), "white")
        draw(ImageDraw.Draw(large))
        path = folder / f"{name}.png"
        large.filter(ImageFilter.GaussianBlur(2)).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS).save(path)
        paths.append(path)
    return paths


def _scaled(points: _Points) -> _Points:
    return [(_LARGE * x, _LARGE * y) for x, y in points]


def _shirt(draw: ImageDraw.ImageDraw) -> None:
    body = [(0.36, 0.14), (0.20, 0.21), (0.06, 0.42), (0.19, 0.50), (0.27, 0.41), (0.27, 0.88), (0.73, 0.88)]
    body += [(0.73, 0.41), (0.81, 0.50), (0.94, 0.42), (0.80, 0.21), (0.64, 0.14)]
    draw.polygon(_scaled(body), fill="#23508e")
    draw.polygon(_scaled([(0.27, 0.41), (0.27, 0.88), (0.33, 0.88), (0.33, 0.36)]), fill="#1c4276")
    draw.polygon(_scaled([(0.73, 0.41), (0.73, 0.88), (0.67, 0.88), (0.67, 0.36)]), fill="#1c4276")
    draw.pieslice(_scaled([(0.37, 0.03), (0.63, 0.25)]), 0, 180, fill="#e8e6e1")
    draw.arc(_scaled([(0.36, 0.02), (0.64, 0.26)]), 0, 180, fill="#163862", width=18)


def _shoe(draw: ImageDraw.ImageDraw) -> None:
    upper = [(0.06, 0.42), (0.12, 0.38), (0.28, 0.44), (0.40, 0.40), (0.52, 0.44), (0.70, 0.54), (0.88, 0.58)]
    draw.polygon(_scaled([*upper, (0.95, 0.66), (0.95, 0.70), (0.06, 0.70)]), fill="#27408b")
    draw.rounded_rectangle(_scaled([(0.05, 0.68), (0.96, 0.745)]), 30, fill="#dddddd")
    for step in range(4):
        x, y = 0.46 + 0.06 * step, 0.43 + 0.03 * step
        draw.line(_scaled([(x, y), (x - 0.06, y + 0.08)]), fill="white", width=14)


def _watch(draw: ImageDraw.ImageDraw) -> None:
    for top, low in ((0.02, 0.34), (0.66, 0.98)):
        draw.rounded_rectangle(_scaled([(0.38, top), (0.62, low)]), 30, fill="#c9cbd0")
    draw.ellipse(_scaled([(0.24, 0.24), (0.76, 0.76)]), fill="#9a9ca1")
    draw.ellipse(_scaled([(0.28, 0.28), (0.72, 0.72)]), fill="#17181c")
    draw.rounded_rectangle(_scaled([(0.755, 0.47), (0.80, 0.53)]), 8, fill="#9a9ca1")
    for box in (
        (0.49, 0.31, 0.51, 0.36),
        (0.49, 0.64, 0.51, 0.69),
        (0.31, 0.49, 0.36, 0.51),
        (0.64, 0.49, 0.69, 0.51),
    ):
        draw.rectangle([_LARGE * value for value in box], fill="#d9dade")
    draw.line(_scaled([(0.5, 0.5), (0.5, 0.36)]), fill="#f1f1f3", width=12)
    draw.line(_scaled([(0.5, 0.5), (0.61, 0.56)]), fill="#f1f1f3", width=14)


def _bag(draw: ImageDraw.ImageDraw) -> None:
    draw.arc(_scaled([(0.30, 0.06), (0.70, 0.66)]), 180, 360, fill="#6d1f2b", width=30)
    draw.polygon(_scaled([(0.16, 0.36), (0.84, 0.36), (0.91, 0.88), (0.09, 0.88)]), fill="#a03044")
    draw.polygon(_scaled([(0.16, 0.36), (0.84, 0.36), (0.80, 0.56), (0.20, 0.56)]), fill="#872638")
    draw.rounded_rectangle(_scaled([(0.46, 0.52), (0.54, 0.60)]), 12, fill="#d9b45c")
