"""A bar chart as SVG, with a background of its own: to be read on light and on dark pages."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

WIDTH, LABELS, LONGEST, BAR, GAP, HEADING = 760, 320, 360, 16, 6, 34

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f }
.title { font-weight: 600 }
.label { text-anchor: end }
.card { fill: #ffffff; stroke: #d0d7de }
.bar { fill: #afb8c1 }
.floor { fill: #57606a }
.ours { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .card { fill: #161b22; stroke: #30363d }
  .bar { fill: #57606a }
  .floor { fill: #afb8c1 }
  .ours { fill: #4493f8 }
}
"""


def shown(figure: float) -> str:
    """With three digits, or all that stand before the point."""
    return f"{figure:,.{2 if figure < 10 else 1 if figure < 100 else 0}f}"


def bars(title: str, panels: Mapping[str, Mapping[str, float]], *, ours: str, floor: str) -> str:
    """Panels below each other, a bar for each name, each panel on a scale of its own.

    Args:
        title: Of the whole.
        panels: Title of a panel -> name -> figure.
        ours: Names that begin so stand out.
        floor: The name that others are compared with.
    """
    drawn = [f'<text x="20" y="30" class="title">{escape(title)}</text>']
    y = 46
    for panel, figures in panels.items():
        drawn.append(f'<text x="{LABELS}" y="{y + 20}" class="title">{escape(panel)}</text>')
        y += HEADING
        scale = LONGEST / max(figures.values())
        for name, figure in figures.items():
            kind = "ours" if name.startswith(ours) else "floor" if name == floor else "bar"
            length, baseline = max(figure * scale, 1), y + BAR - 3
            drawn += [
                f'<text x="{LABELS - 10}" y="{baseline}" class="label">{escape(name)}</text>',
                f'<rect x="{LABELS}" y="{y}" width="{length:.1f}" height="{BAR}" class="{kind}"/>',
                f'<text x="{LABELS + length + 8:.1f}" y="{baseline}">{shown(figure)}</text>',
            ]
            y += BAR + GAP
    height = y + 14
    return f"""\
<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"
  viewBox="0 0 {WIDTH} {height}" role="img">
<title>{escape(title)}</title>
<style>{STYLE}</style>
<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8" class="card"/>
{chr(10).join(drawn)}
</svg>
"""
