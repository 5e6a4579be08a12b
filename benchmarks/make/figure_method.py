"""Draw the figure of the README that shows how blocks become layers: `python -m benchmarks.make.figure_method`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

COLORS = {"M": "#7b5ea7", "V": "#2f7fb8", "T": "#d9822b"}
OUTPUT = Path(__file__).parent.parent.parent / "docs" / "method.png"


def box(axes, x, y, width, height, color, text, text_color="white", size=11):
    """Draw one rounded box with text in its middle."""
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.08", fc=color, ec="none")
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", color=text_color, fontsize=size)


def arrow(axes, start, end):
    """Draw a thin grey arrow."""
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": "#888888", "lw": 1.4})


def encoder(axes, x, y, depth, width, block, title):
    """Draw a descendant's encoder: `depth` layers, the shared slope's part growing with l/L."""
    for layer in range(depth):
        share = layer / depth
        bottom = y + layer * 0.36
        axes.add_patch(plt.Rectangle((x, bottom), width * (1 - share / 2), 0.3, fc=COLORS[block], ec="none"))
        axes.add_patch(
            plt.Rectangle((x + width * (1 - share / 2), bottom), width * share / 2, 0.3, fc=COLORS["M"], ec="none")
        )
    axes.text(x + width / 2, y - 0.14, title, ha="center", va="top", fontsize=9, color="#333333")


def main() -> None:
    figure, axes = plt.subplots(figsize=(11, 4.2))
    box(axes, 0.0, 1.2, 1.5, 1.3, "#e4e4e8", "ancestor\n(any CLIP)", "#333333")
    arrow(axes, (1.6, 1.85), (2.5, 1.85))
    axes.text(2.05, 2.0, "extract", ha="center", fontsize=10, color="#555555")
    box(axes, 2.65, 2.35, 1.9, 0.62, COLORS["M"], "M  multimodal")
    box(axes, 2.65, 1.55, 1.9, 0.62, COLORS["V"], "V  image")
    box(axes, 2.65, 0.75, 1.9, 0.62, COLORS["T"], "T  text")
    axes.text(3.6, 3.15, "learngene: one small artifact", ha="center", fontsize=10, color="#333333")
    axes.text(
        3.6, 0.5, r"$W_l = V + \frac{l}{L}\,M$     $W_l = T + \frac{l}{L}\,M$", ha="center", va="top", fontsize=12
    )
    arrow(axes, (4.7, 1.85), (5.6, 1.85))
    axes.text(5.15, 2.0, "grow", ha="center", fontsize=10, color="#555555")
    encoder(axes, 5.9, 0.7, 6, 0.95, "V", "image")
    encoder(axes, 7.0, 0.7, 6, 0.7, "T", "text")
    axes.text(6.8, 3.05, "CLIPModel\n6 layers", ha="center", fontsize=9, color="#333333")
    encoder(axes, 8.2, 0.7, 3, 0.5, "V", "image")
    encoder(axes, 8.85, 0.7, 3, 0.35, "T", "text")
    axes.text(8.7, 1.95, "CLIPModel\n3 layers, half width", ha="center", fontsize=9, color="#333333")
    encoder(axes, 9.9, 0.7, 4, 0.95, "V", "image")
    axes.text(10.4, 2.3, "image classifier\n4 layers", ha="center", fontsize=9, color="#333333")
    axes.set_xlim(-0.1, 11.2)
    axes.set_ylim(0.0, 3.6)
    axes.axis("off")
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
