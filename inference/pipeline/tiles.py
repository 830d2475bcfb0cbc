"""Cuts an image into the parts that a network looks at, so that small objects stay large enough.

Slicing with a look at the whole: Akyon et al., Slicing Aided Hyper Inference, 2022. Tiles of
several sizes, of which each is believed about objects of its own size: the image pyramid of Singh
and Davis, An Analysis of Scale Invariance in Object Detection (SNIP), 2018.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inference.pipeline.letterbox import Letterbox
from inference.pipeline.options import DEFAULT_IMAGE_SIZE, DetectionOptions, Tiling

AUTO_OVERLAP = 0.2
# Of the input: the tiles of "auto" show small objects a third larger than they are. Each level
# above has tiles of twice the size, as long as the image is more than a third larger than they.
_AUTO_TILE = 0.75
_AUTO_STEP = 2
_AUTO_NEARLY_WHOLE = 4 / 3
# Longer sides of boxes in pixels of the input. A level is believed about objects from the former,
# the one below it up to the latter, and up to a quarter above the former in the level above.
_LEAST_SHOWN, _MOST_SHOWN, _SHOWN_TWICE = 32.0, 80.0, 1.25
MAX_PARTS = 1024
"""Of one image, at the default size of the input or below; "auto" takes larger tiles for more."""


# A box this close to a tile's edge, in pixels of the input, is taken for one that goes on beyond.
_EDGE_PIXELS = 2.0
# Of the overlap: what is larger may be cut by every tile, so that only the whole image shows it.
_LARGE = 0.8


class Part(NamedTuple):
    """One look at an image: a rectangle of it, in pixels, and how it lies in the input.

    An object that is smaller than the overlap of the tiles is whole in one of them at least.
    Hence the whole image only counts for boxes whose longer side has `least_pixels` or more, a
    tile for those of `most_pixels` or less, and a box of less than `fragment_pixels` is a fragment
    when it reaches beyond `inner_xyxy`, the tile without the rim along its neighbours.
    """

    left_top: tuple[int, int]
    right_bottom: tuple[int, int]
    letterbox: Letterbox
    least_pixels: float = 0.0
    most_pixels: float = np.inf
    fragment_pixels: float = 0.0
    inner_xyxy: tuple[float, float, float, float] = (-np.inf, -np.inf, np.inf, np.inf)

    def counts(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of these boxes (n, 4), in pixels of the image, this part is the one to tell of."""
        longer = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, initial=0)
        is_fragment = self.cuts(boxes_xyxy) & (longer < self.fragment_pixels)
        return (longer >= self.least_pixels) & (longer <= self.most_pixels) & ~is_fragment

    def cuts(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of these boxes (n, 4) reach an edge beyond which a neighbour sees more."""
        left, top, right, bottom = self.inner_xyxy
        starts_before = (boxes_xyxy[:, :2] < (left, top)).any(axis=1)
        ends_behind = (boxes_xyxy[:, 2:] > (right, bottom)).any(axis=1)
        return np.asarray(starts_before | ends_behind)


class _Level(NamedTuple):
    """Tiles of one size, and the boxes that they count for, in pixels of the image."""

    tiling: Tiling
    least_pixels: float = 0.0
    most_pixels: float = np.inf


def plan(size_wh: tuple[int, int], options: DetectionOptions) -> list[Part]:
    """The parts of an image of this size: the whole first, then its tiles row by row.

    Tiles have `tile` pixels of the original on each side and are brought to the size of the
    input; "auto" takes tiles of several sizes. The last of a row or column is moved back into the
    image rather than padded, so that all of a size have one shape.
    """
    levels = _levels(size_wh, options)
    whole = Part((0, 0), size_wh, Letterbox.fit(size_wh, options.image_size))
    if not levels:
        return [whole]
    if options.tiling == "auto":
        least_pixels = _LEAST_SHOWN * _pixels_shown_as_one(size_wh, options)
    else:  # what is smaller is whole in a tile
        least_pixels = _LARGE * _overlap_pixels(levels[0].tiling)
    tiles = (tile for level in levels for tile in _tiles(size_wh, level, options.image_size))
    return [whole._replace(least_pixels=least_pixels), *tiles]


def part_count(size_wh: tuple[int, int], options: DetectionOptions) -> int:
    """How many times the network runs for an image of this size."""
    return 1 + sum(_tile_count(size_wh, level.tiling) for level in _levels(size_wh, options))


def _levels(size_wh: tuple[int, int], options: DetectionOptions) -> list[_Level]:
    """The tiles that an image of this size is cut into beside the whole, the smallest first."""
    if options.tiling == "off":
        return []
    if isinstance(options.tiling, Tiling):
        return [_Level(options.tiling)] if max(size_wh) > options.tiling.tile else []
    tilings = []
    tile = round(_AUTO_TILE * options.image_size)
    while tile * _AUTO_NEARLY_WHOLE < max(size_wh):
        tilings.append(Tiling(tile, AUTO_OVERLAP))
        tile *= _AUTO_STEP
    most_parts = MAX_PARTS * min(1.0, (DEFAULT_IMAGE_SIZE / options.image_size) ** 2)
    while 1 + sum(_tile_count(size_wh, tiling) for tiling in tilings) > most_parts:
        del tilings[0]
    shown_as_one = [tiling.tile / options.image_size for tiling in tilings]
    shown_as_one.append(_pixels_shown_as_one(size_wh, options))
    levels: list[_Level] = []
    for tiling, (pixels, above) in zip(tilings, itertools.pairwise(shown_as_one), strict=True):
        least_pixels = _LEAST_SHOWN * pixels if levels else 0.0
        most_pixels = max(_MOST_SHOWN * pixels, _SHOWN_TWICE * _LEAST_SHOWN * above)
        levels.append(_Level(tiling, least_pixels, most_pixels))
    return levels


def _tiles(size_wh: tuple[int, int], level: _Level, image_size: int) -> Iterator[Part]:
    tiling = level.tiling
    columns, rows = (_starts(side, tiling) for side in size_wh)
    tile_wh = min(size_wh[0], tiling.tile), min(size_wh[1], tiling.tile)
    letterbox = Letterbox.fit(tile_wh, image_size)
    rim = _EDGE_PIXELS * tile_wh[0] / letterbox.resized_wh[0]
    for top, left in itertools.product(rows, columns):
        right, bottom = left + tile_wh[0], top + tile_wh[1]
        inner_xyxy = (
            left + rim if left > 0 else -np.inf,
            top + rim if top > 0 else -np.inf,
            right - rim if right < size_wh[0] else np.inf,
            bottom - rim if bottom < size_wh[1] else np.inf,
        )
        yield Part(
            (left, top),
            (right, bottom),
            letterbox,
            least_pixels=level.least_pixels,
            most_pixels=level.most_pixels,
            fragment_pixels=_overlap_pixels(tiling),
            inner_xyxy=inner_xyxy,
        )


def _pixels_shown_as_one(size_wh: tuple[int, int], options: DetectionOptions) -> float:
    """How many pixels of the whole image, along one side, are one of the input."""
    return max(size_wh) / options.image_size


def _overlap_pixels(tiling: Tiling) -> float:
    return tiling.tile * tiling.overlap


def _tile_count(size_wh: tuple[int, int], tiling: Tiling) -> int:
    columns, rows = (_count_along(side, tiling) for side in size_wh)
    return columns * rows


def _starts(side_pixels: int, tiling: Tiling) -> list[int]:
    """Where the tiles along one side begin: as few as cover it, spread evenly."""
    room, count = side_pixels - tiling.tile, _count_along(side_pixels, tiling)
    return [round(room * index / (count - 1)) for index in range(count)] if count > 1 else [0]


def _count_along(side_pixels: int, tiling: Tiling) -> int:
    """How many tiles cover one side; a side that one covers has room for no other."""
    room = side_pixels - tiling.tile
    step = max(1.0, tiling.tile * (1 - tiling.overlap))
    return 1 if room <= 0 else math.ceil(room / step) + 1
