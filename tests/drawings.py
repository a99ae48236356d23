"""What tests look at in a figure."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure


def reaches(figure: Figure) -> float:
    """How many inches anything drawn reaches over the edges of a figure; at most 0 where all of it is seen."""
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return float(np.max([-drawn.x0, -drawn.y0, drawn.x1 - width, drawn.y1 - height]))
