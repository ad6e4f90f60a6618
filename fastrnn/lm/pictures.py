"""Line pictures, as PNG and SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from fastrnn.lm.checkpoint import write_file

ENDINGS = ("png", "svg")


def draw_lines(lines: dict[str, list[float]], across: str, up: str, path: Path) -> None:
    """Draw one line of values for each name, over 1, 2, 3 ...

    Args:
        lines: values by name.
        across: label of the axis of places.
        up: label of the axis of values.
        path: file to write, without its ending.
    """
    figure, axis = new_figure(7, 4)
    for name, values in lines.items():
        axis.plot(range(1, len(values) + 1), values, label=name)
    axis.set_xlabel(across)
    axis.set_ylabel(up)
    axis.grid(alpha=0.3)
    axis.legend()
    save_figure(figure, path)


def new_figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes."""
    # Here and not above: matplotlib takes about a second to import, and most runs draw once.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG and SVG; `path` lacks the ending."""
    for ending in ENDINGS:
        content = io.BytesIO()
        # No date in the SVG: the same values give the same file.
        metadata = {"Date": None} if ending == "svg" else {}
        figure.savefig(content, format=ending, dpi=120, metadata=metadata)
        write_file(path.with_name(f"{path.name}.{ending}"), content.getvalue())
