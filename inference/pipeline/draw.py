"""Draws detections into a copy of the image so that small vehicles stay visible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from inference.pipeline.types import Detections, Image

DISPLAY_CONFIDENCE = 0.25

# Hues that neither asphalt nor roofs nor grass have, bright enough for dark text.
_COLOURS_RGB: tuple[tuple[int, int, int], ...] = (
    (255, 205, 30),
    (255, 105, 180),
    (40, 220, 255),
    (190, 150, 255),
    (150, 255, 90),
    (255, 150, 60),
    (90, 170, 255),
    (245, 245, 245),
)
_INK_RGB = (20, 20, 24)
_GAP_PIXELS = 1


def draw(
    image_rgb: Image,
    detections: Detections,
    class_names: Sequence[str],
    *,
    minimum_confidence: float = DISPLAY_CONFIDENCE,
) -> Image:
    """A copy of the image with a box around each detection and a label beside it.

    Lines grow with the image; a class always has the same colour. A label lies outside all boxes
    and labels: where there is no room for class and confidence it shrinks to the confidence in
    hundredths, and then goes, the most confident detections choosing first. `image_rgb` uint8
    (h, w, 3) is left as it is.
    """
    shown = detections.above(minimum_confidence)
    canvas = np.ascontiguousarray(image_rgb).copy()
    height, width = canvas.shape[:2]
    line_pixels = max(1, round(min(height, width) / 600))
    boxes = _outlines(shown.boxes_xyxy, line_pixels)
    # The least confident first, so that the most confident box lies on top.
    for index in np.argsort(shown.confidences, kind="stable"):
        left, top, right, bottom = (int(side) for side in boxes[index])
        colour = class_colour(int(shown.class_ids[index]))
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, line_pixels)
    _draw_labels(canvas, shown, boxes, class_names, max(10, round(min(height, width) / 64)))
    return canvas


def class_colour(class_id: int) -> tuple[int, int, int]:
    """The RGB colour of a class, the same in every image."""
    return _COLOURS_RGB[class_id % len(_COLOURS_RGB)]


def _outlines(boxes_xyxy: npt.NDArray[np.float32], line_pixels: int) -> npt.NDArray[np.int32]:
    """Whole-pixel boxes whose lines lie around the object instead of on it."""
    margin = (line_pixels + 1) // 2
    outer = np.concatenate(
        (np.floor(boxes_xyxy[:, :2]) - margin, np.ceil(boxes_xyxy[:, 2:]) + margin - 1), axis=1
    )
    return outer.astype(np.int32)


def _draw_labels(
    canvas: Image,
    shown: Detections,
    boxes: npt.NDArray[np.int32],
    class_names: Sequence[str],
    text_pixels: int,
) -> None:
    taken = [tuple(int(side) for side in box) for box in boxes]
    occupied = np.array(taken, np.int32).reshape(-1, 4)
    for index in np.argsort(-shown.confidences, kind="stable"):
        class_id, confidence = int(shown.class_ids[index]), float(shown.confidences[index])
        name = class_names[class_id] if class_id < len(class_names) else f"class {class_id}"
        colour = class_colour(class_id)
        for text in (f"{name} {confidence:.2f}", f"{confidence * 100:.0f}"):
            chip = _chip(text, text_pixels, colour)
            place = _free_place(boxes[index], chip.shape[:2], occupied, canvas.shape[:2])
            if place is not None:
                left, top = place
                bottom, right = top + chip.shape[0], left + chip.shape[1]
                canvas[top:bottom, left:right] = chip
                occupied = np.vstack((occupied, [[left, top, right, bottom]]))
                break


def _free_place(
    box: npt.NDArray[np.int32],
    chip_hw: tuple[int, int],
    occupied: npt.NDArray[np.int32],
    canvas_hw: tuple[int, int],
) -> tuple[int, int] | None:
    """Left and top of a place beside the box that covers no box and no label, if there is one."""
    height, width = chip_hw
    for left, top in _places_beside(box, height, width):
        right, bottom = left + width, top + height
        if left < 0 or top < 0 or right > canvas_hw[1] or bottom > canvas_hw[0]:
            continue
        apart = (
            (occupied[:, 2] < left)
            | (occupied[:, 0] >= right)
            | (occupied[:, 3] < top)
            | (occupied[:, 1] >= bottom)
        )
        if apart.all():
            return left, top
    return None


def _places_beside(
    box: npt.NDArray[np.int32], height: int, width: int
) -> Iterator[tuple[int, int]]:
    left, top, right, bottom = (int(side) for side in box)
    above, below = top - height - _GAP_PIXELS, bottom + 1 + _GAP_PIXELS
    yield left, above
    yield right + 1 - width, above
    yield left, below
    yield right + 1 - width, below
    yield right + 1 + _GAP_PIXELS, top
    yield left - width - _GAP_PIXELS, top


@lru_cache(maxsize=4096)
def _chip(text: str, text_pixels: int, colour: tuple[int, int, int]) -> Image:
    """A small picture of the text; labels repeat from frame to frame, so they are kept."""
    font = ImageFont.load_default(size=text_pixels)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = _vertical_extent(text_pixels)
    padding = max(1, text_pixels // 6)
    size = (round(right - left) + 2 * padding, descent - ascent + 2 * padding)
    chip = PilImage.new("RGB", size, colour)
    ImageDraw.Draw(chip).text((padding - left, padding - ascent), text, font=font, fill=_INK_RGB)
    return np.asarray(chip)


@lru_cache(maxsize=64)
def _vertical_extent(text_pixels: int) -> tuple[int, int]:
    # The same for every text, so that labels have one height.
    _, top, _, bottom = ImageFont.load_default(size=text_pixels).getbbox("bdkt0123456789")
    return round(top), round(bottom)
