"""A figure in three forms: inline SVG that follows the page's colours, an SVG file, a PNG file.

Drawn with Matplotlib's own objects on an off-screen canvas, one drawing for all forms. The inline form has no
background and no fixed ink: what was drawn in the palette's colours becomes variables of the page's style, so that it
is readable in light and in dark.
"""

import io
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from markupsafe import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f24"
FAINT = "#d0d5da"
PALE = "#e8f1ec"
COLOURS = ("#0072b2", "#d55e00", "#00805f", "#b04a8c", "#a86f00", "#2a86b8", "#6b5bd2", "#7a7a7a")
"""After Okabe and Ito, "Color universal design", 2008; darkened to a contrast of 3 on white."""
MARKERS = "osD^vPX*"
WIDTH = 4.4
"""Inches: text of 10 points is then readable on a telephone too."""
_DPI = 130
_PAPER = "paper"
_VARIABLES = {INK: "currentColor", FAINT: "var(--grid)", PALE: "var(--claimed)"} | {
    colour: f"var(--c{index})" for index, colour in enumerate(COLOURS)
}
_LOCK = threading.Lock()  # Matplotlib reads its settings from one global place
Draw: TypeAlias = Callable[["Figure"], None]


@dataclass(frozen=True)
class Picture:
    """A figure with what it says in words: `alt` for those who cannot see it, `caption` for everyone.

    `name` is that of its files, without suffix; `height` is in inches.
    """

    name: str
    title: str
    alt: str
    caption: str
    height: float
    draw: Draw
    width: float = WIDTH
    drawn: list["Figure"] = field(default_factory=list, compare=False, repr=False)
    texts: list[str] = field(default_factory=list, compare=False, repr=False)

    def png(self) -> bytes:
        """The PNG file, on white."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        content = io.BytesIO()
        with _LOCK:
            figure = self._figure()
            figure.set_dpi(_DPI)  # drawing an SVG sets it to 72
            FigureCanvasAgg(figure).print_png(content, metadata={"Software": None, "Title": self.title})
        return content.getvalue()

    def svg(self) -> bytes:
        """The SVG file, on white; the same bytes for the same data."""
        return self._svg().encode()

    def inline(self) -> str:
        """The SVG element for the page: no background, the page's colours, ids of its own, no script and no links."""
        text = self._svg()
        text = text[text.index("<svg") :]
        text = re.sub(rf'<g id="{_PAPER}">.*?</g>', "", text, count=1, flags=re.S)
        text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", text, flags=re.S)
        box = re.search(r'viewBox="([^"]+)"', text)
        label = escape(f"{self.title}. {self.alt}")
        head = f'<svg viewBox="{box[1] if box else ""}" role="img" aria-label="{label}">'
        text = self._own_ids(text[text.index(">") + 1 :].replace("xlink:href", "href"))
        for colour, variable in _VARIABLES.items():
            text = text.replace(colour, variable)
        return head + re.sub(r"\n\s*", "\n", text)

    def _own_ids(self, text: str) -> str:
        """Ids that nothing refers to go, the others get the figure's name: a page may not have one twice."""
        used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
        text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
        text = re.sub(r' id="([^"]*)"', rf' id="{self.name}-\1"', text)
        return re.sub(r'(href="|url\()#', rf"\1#{self.name}-", text)

    def _svg(self) -> str:
        """The SVG file's text; drawn once."""
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        if self.texts:
            return self.texts[0]
        content = io.StringIO()
        settings = {"svg.hashsalt": self.name, "svg.fonttype": "none", "svg.id": None}
        with _LOCK, matplotlib.rc_context(settings):
            FigureCanvasSVG(self._figure()).print_svg(content, metadata={"Date": None, "Creator": None})
        self.texts.append(content.getvalue())
        return self.texts[0]

    def _figure(self) -> "Figure":
        """The drawing, made once and laid out once, by one measure for all forms."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        if not self.drawn:
            figure = Figure(figsize=(self.width, self.height), dpi=_DPI, layout="constrained")
            FigureCanvasAgg(figure)
            figure.patch.set_gid(_PAPER)
            self.draw(figure)
            if (engine := figure.get_layout_engine()) is not None:
                engine.execute(figure)
                figure.set_layout_engine("none")
            self.drawn.append(figure)
        return self.drawn[0]


def style(axes: "Axes", *, grid: str = "y") -> None:
    """Ink, grid and frame of the page's figures; texts of users are never read as mathematics."""
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=FAINT, linewidth=0.7)  # type: ignore[arg-type]
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(colors=INK, which="both", labelsize=9.5)
    for label in (axes.xaxis.label, axes.yaxis.label, axes.title):
        label.set_color(INK)
        label.set_fontsize(10)
        label.set_parse_math(False)
    for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        tick.set_parse_math(False)


def legend(axes: "Axes", *, columns: int = 2) -> None:
    """Names of the arms below the axes, each once."""
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    if not entries:
        return
    made = axes.figure.legend(
        list(entries.values()), list(entries), loc="outside lower left", ncols=columns, frameon=False, fontsize=9.5
    )
    for text in made.get_texts():
        text.set_parse_math(False)
        text.set_color(INK)


def legend_height(names: int, columns: int = 2) -> float:
    """Inches that a legend of so many names takes."""
    return 0.22 * -(-names // columns) + 0.1


def short(text: str, most: int = 28) -> str:
    """A name cut from the left where it is a long path."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def look(arms: list[str]) -> Mapping[str, tuple[str, str]]:
    """Colour and marker of every arm, the same in all figures; none means anything without the other."""
    turns = [divmod(i, len(COLOURS)) for i in range(len(arms))]
    return {arm: (COLOURS[i], MARKERS[(i + turn) % len(MARKERS)]) for arm, (turn, i) in zip(arms, turns, strict=True)}


def line(arms: list[str], arm: str) -> str:
    """Line style of an arm: its colour is that of another one where there are more arms than colours."""
    return ("-", "--", ":", "-.")[arms.index(arm) // len(COLOURS) % 4]
