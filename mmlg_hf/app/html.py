"""The parts of the page that are drawn here: what a size costs, the bars of two sizes, pictures found, a sentence.

Whatever a user typed or a file is called goes through `escape`.
"""

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from .sizes import Grown

STYLE = """
.gradio-container {max-width: 1080px !important; margin: 0 auto !important; padding-top: 12px !important}
#mmlg-head h1 {font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.02em}
#mmlg-head p {margin: 0; color: var(--body-text-color-subdued); max-width: 46rem}
.mmlg-a {--mmlg: #0f766e; --mmlg-soft: #0f766e1f} .mmlg-b {--mmlg: #c2410c; --mmlg-soft: #c2410c1f}
.dark .mmlg-a {--mmlg: #2dd4bf; --mmlg-soft: #2dd4bf24} .dark .mmlg-b {--mmlg: #fb923c; --mmlg-soft: #fb923c24}
.mmlg-size {border-top: 3px solid var(--mmlg) !important; --slider-color: var(--mmlg)}
.mmlg-size input[type=range] {min-width: 0; width: 100%; flex: 1 1 0}
.mmlg-size .styler {background: var(--block-background-fill) !important}
#mmlg-picture img {object-fit: contain}
.mmlg-facts {display: grid; grid-template-columns: repeat(auto-fit, minmax(clamp(5.4rem, (23.5rem - 100%) * 999, 45%), 1fr)); gap: 8px; padding: 2px 4px}
.mmlg-facts b {display: block; font-size: 1.05rem; color: var(--mmlg); font-variant-numeric: tabular-nums; white-space: nowrap}
.mmlg-facts span {font-size: .8rem; color: var(--body-text-color-subdued); line-height: 1.2; display: block}
.mmlg-note {grid-column: 1 / -1; font-size: .78rem; color: var(--body-text-color-subdued); margin-top: 4px}
.mmlg-legend {display: flex; gap: 18px; font-size: .85rem; margin: 0 0 10px; flex-wrap: wrap}
.mmlg-legend i {display: inline-block; width: 11px; height: 11px; border-radius: 3px; background: var(--mmlg); margin-right: 6px}
.mmlg-label {margin-bottom: 12px} .mmlg-label h3 {font-size: .95rem; font-weight: 600; margin: 0 0 3px; overflow-wrap: anywhere}
.mmlg-bar {display: grid; grid-template-columns: 1fr 4.2rem; align-items: center; gap: 8px; height: 19px}
.mmlg-bar div {background: var(--mmlg-soft); border-radius: 4px; height: 11px; overflow: hidden}
.mmlg-bar div i {display: block; height: 100%; background: var(--mmlg); border-radius: 4px}
.mmlg-bar span {font-size: .85rem; text-align: right; font-variant-numeric: tabular-nums}
.mmlg-bar.best span {font-weight: 700; color: var(--mmlg)}
.mmlg-found {display: grid; grid-template-columns: 1fr 1fr; gap: 18px}
.mmlg-found section > h3 {border-bottom: 2px solid var(--mmlg); padding-bottom: 4px; margin: 0 0 8px; font-size: .95rem}
.mmlg-found ol {display: grid; grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); gap: 10px; list-style: none; margin: 0; padding: 0}
.mmlg-found img {width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; border-radius: 8px; border: 1px solid var(--border-color-primary); display: block}
.mmlg-found li {font-size: .75rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; margin: 0}
.mmlg-found li b {display: block; font-size: .85rem; font-variant-numeric: tabular-nums}
.mmlg-sentence {border-left: 3px solid #dc2626; background: #dc262614; border-radius: 4px; padding: 8px 12px; margin: 0; overflow-wrap: anywhere}
.mmlg-hint {color: var(--body-text-color-subdued); margin: 0}
footer {display: none !important}
@media (max-width: 640px) {
  .mmlg-found {gap: 10px} .mmlg-found ol {grid-template-columns: 1fr 1fr; gap: 6px}
}
"""  # noqa: E501
_THUMBNAIL = 208


def facts(grown: Grown) -> str:
    """What a size costs."""
    shown = (
        (f"{grown.parameters / 1e6:.2f} M", "parameters"),
        (f"{grown.megabytes:.1f} MB", "in float32"),
        (_time(grown.milliseconds_picture), "a picture"),
        (_time(grown.milliseconds_text), "a text"),
    )
    cells = "".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in shown)
    note = f"{grown.depth} layers, {grown.width} wide, grown in {grown.seconds:.2f} s"
    return f'<div class="mmlg-facts">{cells}<div class="mmlg-note">{note}</div></div>'


def _time(milliseconds: float) -> str:
    """Milliseconds in as few letters as the page has room for, also on a slow machine."""
    if milliseconds >= 999.5:
        return f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.1f} ms" if milliseconds < 99.95 else f"{milliseconds:.0f} ms"


def bars(sizes: Sequence[Grown], labels: Sequence[str], shares: Sequence[Sequence[float]]) -> str:
    """Each label with a bar for each size, those first that the sizes together find likeliest.

    Args:
        shares: for each size the labels' probabilities.
    """
    together = [sum(of_label) for of_label in zip(*shares, strict=True)]
    rows = []
    for index in sorted(range(len(labels)), key=lambda index: -together[index]):
        row = "".join(_bar(side, own[index], max(own)) for side, own in zip("ab", shares, strict=True))
        rows.append(f'<div class="mmlg-label"><h3>{escape(labels[index])}</h3>{row}</div>')
    return legend(sizes) + "".join(rows)


def _bar(side: str, share: float, most: float) -> str:
    best = " best" if share == most else ""
    return (
        f'<div class="mmlg-bar mmlg-{side}{best}"><div><i style="width:{100 * share:.1f}%"></i></div>'
        f"<span>{100 * share:.1f} %</span></div>"
    )


def legend(sizes: Sequence[Grown]) -> str:
    """Which colour is which size."""
    parts = (f'<span class="mmlg-{side}"><i></i>{grown.title}</span>' for side, grown in zip("ab", sizes, strict=True))
    return f'<div class="mmlg-legend">{"".join(parts)}</div>'


def found(sizes: Sequence[Grown], columns: Sequence[Sequence[tuple[str, Image.Image, float]]]) -> str:
    """The pictures that each size found: name, picture and cosine, best first."""
    sections = []
    for side, grown, column in zip("ab", sizes, columns, strict=True):
        items = "".join(
            f'<li title="{escape(name)}"><img src="{_data(picture)}" alt="{escape(name)}">'
            f"<b>{cosine:.2f}</b>{escape(name)}</li>"
            for name, picture, cosine in column
        )
        sections.append(f'<section class="mmlg-{side}"><h3>{grown.title}</h3><ol>{items}</ol></section>')
    return f'<div class="mmlg-found">{"".join(sections)}</div>'


def sentence(text: object) -> str:
    """What is wrong, as the command line says it."""
    words = str(text)
    return f'<p class="mmlg-sentence" role="alert">{escape(words[:1].upper() + words[1:])}.</p>'


def hint(text: str) -> str:
    """What to do, where there is nothing to show yet."""
    return f'<p class="mmlg-hint">{escape(text)}</p>'


def _data(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
