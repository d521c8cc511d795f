"""detect.py's pictures: a panel draws what matplotlib's Axes draw, to the pixel."""

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.testing import assert_allclose, assert_array_equal
from overviews import strip
from pytest import approx

from pipeline.figures import STYLE
from recording import panel, picture

SIZE_IN = 6, 3
TOP_IN, HEIGHT_IN = 0.5, 2
X, Y = (-1, 9), (-2, 4)
TIME = np.linspace(-3, 12, 400)       # beyond both edges
WAVE = 4 * np.sin(TIME)
EDGES = np.linspace(0, 8, 6)
VALUES = np.array([1, 3, 0, 9, 2.0])


def pixels(draw):
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE_IN, dpi=100)
        draw(figure)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba()).astype(int)


def in_panel(draw):
    return pixels(lambda figure: draw(panel.Panel(figure, TOP_IN, HEIGHT_IN, X, Y)))


def in_axes(draw):
    def make(figure):
        box = (panel.LEFT, 1 - (TOP_IN + HEIGHT_IN) / SIZE_IN[1], panel.RIGHT - panel.LEFT,
               HEIGHT_IN / SIZE_IN[1])
        ax = figure.add_axes(box)
        ax.set_axis_off()
        draw(ax)
        ax.set(xlim=X, ylim=Y)
    return pixels(make)


@pytest.mark.parametrize("name, in_one, in_other", [
    ("line", lambda box: box.line(TIME, WAVE, linewidth=1),
     lambda ax: ax.plot(TIME, WAVE, linewidth=1)),
    ("points", lambda box: box.line(TIME, WAVE, "."), lambda ax: ax.plot(TIME, WAVE, ".")),
    ("both", lambda box: box.line(TIME[::20], WAVE[::20], ".", linestyle="-"),
     lambda ax: ax.plot(TIME[::20], WAVE[::20], ".-")),
    ("across", lambda box: box.across(1.3, linestyle="--"),
     lambda ax: ax.axhline(1.3, linestyle="--")),
    ("along the top", lambda box: box.along_top(EDGES, marker="v"),
     lambda ax: ax.plot(EDGES, [1] * len(EDGES), "v", clip_on=False,
                        transform=ax.get_xaxis_transform())),
    ("steps", lambda box: box.steps(VALUES, EDGES, "red"),
     lambda ax: ax.stairs(VALUES, EDGES, fill=True, color="red")),
    ("span", lambda box: box.span(2, 3.7, alpha=0.3, linewidth=0),
     lambda ax: ax.axvspan(2, 3.7, alpha=0.3, linewidth=0)),
    ("text", lambda box: box.text(box.x_px(3), box.y_px(1), "3 at 1"),
     lambda ax: ax.text(3, 1, "3 at 1"))])
def test_a_panel_draws_what_axes_draw(name, in_one, in_other):
    drawn = in_panel(in_one)
    assert (drawn < 255).any()
    # a place may be rounded to the neighbouring pixel
    differs = np.abs(drawn - in_axes(in_other)).max(axis=-1) > 40
    assert differs.mean() < 1e-4


def test_ticks_are_round_inside_the_scale_and_zero_is_not_negative():
    ticks = panel.ticks_between(-0.37, 1.2, 5)
    assert_allclose(ticks, [0, 0.5, 1], atol=1e-12)
    assert [panel.number(tick) for tick in (-0.0, -0.5, 20000)] == ["0", "\N{MINUS SIGN}0.5",
                                                                    "20000"]


@pytest.mark.parametrize("values, expected", [
    ([1, np.nan, 3], (0.9, 3.1)), ([np.nan], (-0.05, 1.05)), ([], (-0.05, 1.05)),
    ([5, 5], (4.75, 5.25)), ([0, 0], (-0.05, 0.05)), ([2, np.inf], (1.9, 2.1))])
def test_a_scale_has_room_for_what_is_known(values, expected):
    assert_allclose(picture.scale_of(np.array(values, float)), expected)


def test_panels_stand_one_under_the_other():
    figure = Figure(figsize=SIZE_IN, dpi=100)
    upper, lower = picture.stacked(figure, 0.5, (1, 0.8), 0.2, X, (Y, (0, 1)))
    assert_allclose([upper.top, upper.bottom, lower.top, lower.bottom], [250, 150, 130, 50])
    assert_array_equal([upper.x, upper.y, lower.y], [X, Y, (0, 1)])


def test_of_a_short_recording_the_signal_is_drawn_and_where_it_is_flagged():
    lines = strip().findobj(Line2D)
    shown, = [line for line in lines if len(line.get_xydata()) == 3000]
    width_px = (panel.RIGHT - panel.LEFT) * picture.WIDTH_IN * picture.DPI
    assert np.ptp(shown.get_xdata()) == approx(width_px * 29.99 / 30)
    above, = [line for line in lines if line.get_marker() == "v"]
    flagged, = [line for line in lines if line.get_marker() == "^"]
    assert above.get_xdata().tolist() == flagged.get_xdata().tolist() != []
