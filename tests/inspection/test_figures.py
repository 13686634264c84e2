"""Figures: what is drawn is what was given; nothing global is left behind."""

from __future__ import annotations

from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot

from mtlzoo.inspection.figures import (
    density_lines,
    image_of,
    overlap_dots,
    pattern_bars,
    pattern_colours,
    ticket_panels,
)
from mtlzoo.inspection.sharing import sharing_of, total
from mtlzoo.inspection.tickets import TicketSearch

RNG = np.random.default_rng(0)


def parts_of(*tasks: str):
    parts = [sharing_of(RNG.random((len(tasks), 8, 6)) < 0.5, f"trunk_{i}", tasks) for i in range(2)]
    return [*parts, total(parts)]


@pytest.mark.parametrize("tasks", [("a",), ("a", "b"), ("a", "b", "c")])
def test_bars_are_as_long_as_their_shares(tasks):
    parts = parts_of(*tasks)
    (axes,) = pattern_bars(parts).axes
    drawn = {bars.get_label(): [bar.get_width() for bar in bars] for bars in axes.containers}
    assert drawn.keys() == pattern_colours(tasks).keys()
    for name, widths in drawn.items():
        np.testing.assert_allclose(widths, [part.shares[name] for part in parts])
    for row in range(3):
        assert sum(widths[row] for widths in drawn.values()) == pytest.approx(1)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["trunk_0", "trunk_1", "all layers"]


def test_dots_lie_at_the_overlaps():
    parts = parts_of("a", "b", "c")
    figure = overlap_dots(parts)
    for index, axes in enumerate(figure.axes):
        drawn = {c.get_label(): c.get_offsets()[:, 0] for c in axes.collections if hasattr(c, "get_sizes")}
        np.testing.assert_allclose(drawn["measured"], [part.overlaps[index].jaccard for part in parts])
        np.testing.assert_allclose(drawn["independent masks"], [part.overlaps[index].independent for part in parts])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a and b", "a and c", "b and c"]


def test_lines_go_through_the_densities():
    densities = {"click": [0.9, float("nan"), 0.5], "conversion": [0.8, 0.4, 0.2]}
    (axes,) = density_lines(densities, best_epoch=2).axes
    *lines, best = axes.get_lines()
    for line, values in zip(lines, densities.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert best.get_xdata()[0] == 2


def test_the_chosen_ticket_is_marked():
    rounds = [{"density": 1.0, "value": 0.4}, {"density": 0.5, "value": 0.3}, {"density": 0.25, "value": None}]
    searches = {
        task: TicketSearch.model_validate({"rounds": rounds, "chosen": chosen})
        for task, chosen in (("click", 1), ("cart", 0), ("view", 1), ("conversion", 0))
    }
    figure = ticket_panels(searches, "validation loss")
    assert len(figure.axes) == 4
    for axes, search in zip(figure.axes, searches.values(), strict=True):
        line = axes.get_lines()[0]
        np.testing.assert_array_equal(line.get_xdata(), [1.0, 0.5, 0.25])
        np.testing.assert_array_equal(line.get_ydata(), [0.4, 0.3, np.nan])
        expected = (rounds[search.chosen]["density"], rounds[search.chosen]["value"])
        assert tuple(axes.collections[0].get_offsets()[0]) == expected
    assert b"<svg" in image_of(figure)


def test_images_are_whole_and_the_same_every_time():
    first, second = (image_of(pattern_bars(parts)) for parts in [parts_of("a", "b")] * 2)
    assert first == second
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert image_of(density_lines({"a": [0.5]}), "png").startswith(b"\x89PNG")


def test_names_are_drawn_as_they_are_written():
    parts = [sharing_of(RNG.random((2, 4, 4)) < 0.5, "trunk $x_1$ <b>", ("$a", "<b>"))]
    (axes,) = pattern_bars(parts).axes
    assert not axes.get_yticklabels()[0].get_parse_math()
    assert ElementTree.fromstring(image_of(overlap_dots(parts))).tag.endswith("svg")


def test_nothing_global_changes():
    before = dict(mpl.rcParams)
    image_of(overlap_dots(parts_of("a", "b")))
    assert dict(mpl.rcParams) == before
    assert pyplot.get_fignums() == []
