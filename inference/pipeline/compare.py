"""What two detectors found in the same picture: matched pairs, and what only one of them saw."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from inference.pipeline.merge import iou_matrix
from inference.pipeline.types import Detections, Image

Indices = npt.NDArray[np.intp]
Boxes = npt.NDArray[np.float32]

# Apart for people with any kind of colour vision, and light enough for dark letters.
FIRST_RGB, SECOND_RGB, BOTH_RGB = (255, 150, 0), (60, 190, 255), (225, 225, 225)
_INK_RGB = (20, 20, 24)


class Matching(NamedTuple):
    """Positions among the first and the second detections: pairs (n, 2), and those left over."""

    pairs: Indices
    only_first: Indices
    only_second: Indices


def match(first: Detections, second: Detections, *, iou: float) -> Matching:
    """Pairs of one object, one to one, the greatest overlap first, from `iou` on.

    Classes do not count: two detectors may call the same vehicle by different names.
    """
    overlaps = iou_matrix(first.boxes_xyxy, second.boxes_xyxy)
    rows, columns = np.nonzero(overlaps >= np.float32(iou))
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(len(first), bool), np.ones(len(second), bool)
    pairs = []
    for row, column in zip(rows[order], columns[order], strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            pairs.append((row, column))
    return Matching(
        np.array(pairs, np.intp).reshape(-1, 2),
        np.flatnonzero(free_rows),
        np.flatnonzero(free_columns),
    )


def draw_difference(
    image: Image,
    *,
    both: Boxes,
    only_first: Boxes,
    only_second: Boxes,
    names: tuple[str, str],
    largest_side_pixels: int,
) -> Image:
    """A picture, shrunk to `largest_side_pixels`, with what one or both have found in it.

    Boxes (n, 4) are in pixels of the given image, RGB uint8 (h, w, 3). A strip above the picture
    tells the colours: what only one has found is drawn thick, what both have thin.
    """
    # Pictures are drawn in a child process; who only matches boxes needs no image library.
    import cv2

    scale = min(1.0, largest_side_pixels / max(image.shape[:2]))
    size_wh = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    picture = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    thick = max(2, round(max(size_wh) / 600))
    for boxes, colour, line in (
        (both, BOTH_RGB, 1),
        (only_first, FIRST_RGB, thick),
        (only_second, SECOND_RGB, thick),
    ):
        for left, top, right, bottom in np.rint(boxes * scale).astype(int).tolist():
            corners = (left - line, top - line), (right + line, bottom + line)
            cv2.rectangle(picture, *corners, colour, line)
    legend = (
        (f"only {names[0]}: {len(only_first)}", FIRST_RGB),
        (f"only {names[1]}: {len(only_second)}", SECOND_RGB),
        (f"both: {len(both)}", BOTH_RGB),
    )
    return np.concatenate((_strip(legend, size_wh[0]), picture))


def _strip(legend: tuple[tuple[str, tuple[int, int, int]], ...], width: int) -> Image:
    """The words on grounds of their colours, one after another, on as many lines as it takes."""
    text_pixels = max(12, min(22, width // 45))
    font = ImageFont.load_default(size=text_pixels)
    line_height, gap = round(text_pixels * 1.6), round(text_pixels * 0.5)
    places, x, y = [], gap, gap
    for text, colour in legend:
        chip_width = round(font.getlength(text)) + 2 * gap
        if x > gap and x + chip_width > width - gap:
            x, y = gap, y + line_height + gap
        places.append((text, colour, (x, y, x + chip_width, y + line_height)))
        x += chip_width + gap
    strip = PilImage.new("RGB", (width, y + line_height + gap), _INK_RGB)
    pen = ImageDraw.Draw(strip)
    for text, colour, box in places:
        pen.rectangle(box, fill=colour)
        pen.text((box[0] + gap, (box[1] + box[3]) / 2), text, font=font, fill=_INK_RGB, anchor="lm")
    return np.asarray(strip)
