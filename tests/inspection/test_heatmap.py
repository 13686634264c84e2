"""Cells of a heat map, against loops over their connections; its picture, against the cells."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from mtlzoo.inspection.figures import image_of, pattern_colours
from mtlzoo.inspection.heatmap import MOST_CELLS, cells_of, colours_of, heat_map, unit_order
from mtlzoo.inspection.sharing import pattern_map, pattern_names

RNG = np.random.default_rng(0)
TASKS = ("click", "conversion")


def random_masks(*shape: int) -> np.ndarray:
    return RNG.random(shape) < 0.4


@pytest.mark.parametrize("shape", [(5, 3), (128, 128), (300, 129), (129, 1000)])
@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_a_cell_holds_the_shares_of_its_connections(shape, tasks):
    masks = random_masks(tasks, *shape)
    rows = RNG.permutation(shape[0])
    cells = cells_of(masks, rows)
    patterns = pattern_map(masks)[rows][:, unit_order(masks)]
    height, width = (math.ceil(n / MOST_CELLS) for n in shape)
    assert (cells.inputs_per_row, cells.units_per_column) == (height, width)
    assert cells.shares.shape[:2] == (math.ceil(shape[0] / height), math.ceil(shape[1] / width))
    assert max(cells.shares.shape[:2]) <= MOST_CELLS
    for i, j in {(0, 0), (1, 1), (cells.shares.shape[0] - 1, cells.shares.shape[1] - 1)}:
        block = patterns[i * height : (i + 1) * height, j * width : (j + 1) * width]
        expected = [(block == p).mean() for p in range(len(pattern_names([""] * tasks)))]
        np.testing.assert_allclose(cells.shares[i, j], expected)


def test_a_row_is_a_field_wherever_its_inputs_lie():
    masks = random_masks(2, 7, 4)
    fields = ["user", "user", "price", "item", "user", "item", "price"]
    cells = cells_of(masks, fields=fields)
    assert cells.row_names == ("user", "price", "item")
    assert cells.inputs_per_row == 3
    patterns = pattern_map(masks)[:, unit_order(masks)]
    for row, name in enumerate(cells.row_names):
        own = patterns[[i for i, field in enumerate(fields) if field == name]]
        for p in range(4):
            np.testing.assert_allclose(cells.shares[row, :, p], (own == p).mean(axis=0))


def test_more_fields_than_rows_become_blocks():
    cells = cells_of(random_masks(2, 200, 4), fields=[f"field_{i}" for i in range(200)])
    assert cells.row_names == ()
    assert cells.shares.shape == (100, 4, 4)


def test_units_are_ordered_from_the_first_task_to_the_last():
    masks = np.zeros((2, 3, 4), bool)
    masks[0, :, 2] = masks[1, :, 0] = True  # unit 2 is click's, unit 0 conversion's, 1 and 3 are dead
    assert unit_order(masks).tolist() == [2, 1, 3, 0]


def test_colours_are_mixed_by_shares():
    half = np.zeros((2, 256, 1), bool)
    half[0, ::2] = True  # each cell: one connection of click's, one dead
    colours = colours_of(cells_of(half), TASKS)
    palette = pattern_colours(TASKS)
    expected = (np.array(to_rgb(palette["click only"])) + to_rgb(palette["dead"])) / 2
    np.testing.assert_allclose(colours, np.broadcast_to(expected, (128, 1, 3)))


def test_the_picture_has_the_colours_of_the_cells():
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :, :2] = masks[1, :, 1:3] = True  # units: click's, shared, conversion's, dead
    figure = heat_map(cells_of(masks), TASKS)
    pixels = np.asarray(Image.open(io.BytesIO(image_of(figure, "png"))).convert("RGB"))
    (axes,) = figure.axes
    box = axes.get_window_extent().transformed(figure.dpi_scale_trans.inverted())
    middle = pixels.shape[0] - int(160 * (box.y0 + box.y1) / 2)
    places = [int(160 * (box.x0 + (box.x1 - box.x0) * (column + 0.5) / 4)) for column in range(4)]
    palette = pattern_colours(TASKS)
    # In the order of `unit_order`, the dead unit stands behind the shared one: both favour neither task.
    expected = [palette[name] for name in ("click only", "shared", "dead", "conversion only")]
    for place, colour in zip(places, expected, strict=True):
        np.testing.assert_allclose(pixels[middle, place] / 255, to_rgb(colour), atol=0.01)
