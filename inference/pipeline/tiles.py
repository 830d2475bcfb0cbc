"""Cuts an image into the parts that a network looks at, so that small objects stay large enough.

Slicing with a look at the whole: Akyon et al., Slicing Aided Hyper Inference, 2022.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from inference.pipeline.letterbox import Letterbox
from inference.pipeline.options import DetectionOptions, Tiling

AUTO_OVERLAP = 0.2
# An image that the network's input holds at this scale or better is looked at whole.
_AUTO_SMALLEST_SCALE = 0.8
MAX_PARTS = 1024
"""Of one image; an image that needs more is cut into larger tiles."""


# A box this close to a tile's edge, in pixels of the input, is taken for one that goes on beyond.
_EDGE_PIXELS = 2.0
# Of the overlap: what is larger may be cut by every tile, so that only the whole image shows it.
_LARGE = 0.8


class Part(NamedTuple):
    """One look at an image: a rectangle of it, in pixels, and how it lies in the input.

    An object that is smaller than the overlap of the tiles is whole in one of them at least.
    Hence the whole image only counts for boxes whose longer side has `least_pixels` or more,
    and a box of less than `fragment_pixels` is a fragment when it reaches beyond `inner_xyxy`,
    the tile without the rim along its neighbours.
    """

    left_top: tuple[int, int]
    right_bottom: tuple[int, int]
    letterbox: Letterbox
    least_pixels: float = 0.0
    fragment_pixels: float = 0.0
    inner_xyxy: tuple[float, float, float, float] = (-np.inf, -np.inf, np.inf, np.inf)

    def counts(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of these boxes (n, 4), in pixels of the image, this part is the one to tell of."""
        longer = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1, initial=0)
        is_fragment = self.cuts(boxes_xyxy) & (longer < self.fragment_pixels)
        return (longer >= self.least_pixels) & ~is_fragment

    def cuts(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Which of these boxes (n, 4) reach an edge beyond which a neighbour sees more."""
        left, top, right, bottom = self.inner_xyxy
        starts_before = (boxes_xyxy[:, :2] < (left, top)).any(axis=1)
        ends_behind = (boxes_xyxy[:, 2:] > (right, bottom)).any(axis=1)
        return np.asarray(starts_before | ends_behind)


def plan(size_wh: tuple[int, int], options: DetectionOptions) -> list[Part]:
    """The parts of an image of this size: the whole first, then its tiles row by row.

    Tiles have `tile` pixels of the original on each side ("auto": as many as the input) and are
    brought to the size of the input. The last of a row or column is moved back into the image
    rather than padded, so that all have one shape.
    """
    tiling = _chosen(size_wh, options)
    if tiling is None or max(size_wh) <= tiling.tile:
        return [Part((0, 0), size_wh, Letterbox.fit(size_wh, options.image_size))]
    overlap_pixels = tiling.tile * tiling.overlap
    whole = Part(
        (0, 0),
        size_wh,
        Letterbox.fit(size_wh, options.image_size),
        least_pixels=_LARGE * overlap_pixels,
    )
    columns, rows = (_starts(side, tiling) for side in size_wh)
    tile_wh = min(size_wh[0], tiling.tile), min(size_wh[1], tiling.tile)
    letterbox = Letterbox.fit(tile_wh, options.image_size)
    rim = _EDGE_PIXELS * tile_wh[0] / letterbox.resized_wh[0]

    def tile(left: int, top: int) -> Part:
        right, bottom = left + tile_wh[0], top + tile_wh[1]
        inner_xyxy = (
            left + rim if left > 0 else -np.inf,
            top + rim if top > 0 else -np.inf,
            right - rim if right < size_wh[0] else np.inf,
            bottom - rim if bottom < size_wh[1] else np.inf,
        )
        return Part(
            (left, top),
            (right, bottom),
            letterbox,
            fragment_pixels=overlap_pixels,
            inner_xyxy=inner_xyxy,
        )

    return [whole, *(tile(left, top) for top in rows for left in columns)]


def part_count(size_wh: tuple[int, int], options: DetectionOptions) -> int:
    """How many times the network runs for an image of this size."""
    tiling = _chosen(size_wh, options)
    if tiling is None or max(size_wh) <= tiling.tile:
        return 1
    columns, rows = (len(_starts(side, tiling)) for side in size_wh)
    return 1 + columns * rows


def _chosen(size_wh: tuple[int, int], options: DetectionOptions) -> Tiling | None:
    if options.tiling == "off":
        return None
    if isinstance(options.tiling, Tiling):
        return options.tiling
    if options.image_size >= _AUTO_SMALLEST_SCALE * max(size_wh):
        return None
    tile = options.image_size
    while True:
        tiling = Tiling(tile, AUTO_OVERLAP)
        columns, rows = (len(_starts(side, tiling)) for side in size_wh)
        if columns * rows < MAX_PARTS:
            return tiling
        tile *= 2


def _starts(side_pixels: int, tiling: Tiling) -> list[int]:
    """Where the tiles along one side begin: as few as cover it, spread evenly."""
    room = side_pixels - tiling.tile
    if room <= 0:
        return [0]
    step = max(1.0, tiling.tile * (1 - tiling.overlap))
    count = int(np.ceil(room / step)) + 1
    return [round(room * index / (count - 1)) for index in range(count)]
