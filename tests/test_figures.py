"""How a picture is saved."""

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline import figures


def test_a_quick_picture_is_smaller_and_loses_no_colour(tmp_path):
    def draw():
        figure = Figure(figsize=(4, 3), dpi=figures.DPI)
        ax = figure.subplots()
        ax.plot(np.random.default_rng(0).normal(size=3000), color=figures.GREY, linewidth=0.5)
        # one small mark of each: rare, and told apart by colour
        for place, (color, _) in enumerate(figures.CLASSES.values()):
            ax.plot(place, 6, "s", color=color, markersize=5)
        return figure

    figures.save(tmp_path / "quick.png", draw, quickly=True)
    with matplotlib.rc_context(figures.STYLE | figures.QUICK):
        canvas = FigureCanvasAgg(draw())
        canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    Image.fromarray(drawn).save(tmp_path / "all.png", compress_level=3)

    with Image.open(tmp_path / "quick.png") as image:
        difference = np.asarray(image.convert("RGB")).astype(int) - drawn
    assert np.abs(difference).max() < 20
    assert (tmp_path / "quick.png").stat().st_size < (tmp_path / "all.png").stat().st_size / 2
