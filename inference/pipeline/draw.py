"""Draws detections into a copy of the image so that small vehicles stay visible."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont

from datasets.media.planes import Colours, Plane, Planes
from inference.pipeline.options import DISPLAY_CONFIDENCE
from inference.pipeline.types import UNTRACKED, Detections, Image

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
# A label of a large photograph takes a megabyte, so what is kept is counted in bytes.
_KEPT_LABEL_BYTES = 32 * 1024**2

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values that were made before, at most so many bytes of them; any thread may ask."""

    def __init__(self, limit_bytes: int, bytes_of: Callable[[Value], int]) -> None:
        self._limit_bytes = limit_bytes
        self._bytes_of = bytes_of
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.held_bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of a key, which is made when it is not there; the idlest ones make room."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values and self._bytes_of(value) <= self._limit_bytes:
                self._values[key] = value
                self.held_bytes += self._bytes_of(value)
            while self.held_bytes > self._limit_bytes:
                _, dropped = self._values.popitem(last=False)
                self.held_bytes -= self._bytes_of(dropped)
        return value


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
    hundredths, or to the number of the track that stands in front of both where there is one, and
    then goes, the most confident detections choosing first.
    `image_rgb` uint8 (h, w, 3) is left as it is.
    """
    canvas = np.ascontiguousarray(image_rgb).copy()
    marks = _marks(canvas.shape[:2], detections.above(minimum_confidence), class_names)
    for (left, top, right, bottom), colour in marks.boxes:
        cv2.rectangle(canvas, (left, top), (right, bottom), colour, marks.line_pixels)
    for (left, top), chip in marks.chips:
        canvas[top : top + chip.shape[0], left : left + chip.shape[1]] = chip
    return canvas


def draw_on_planes(
    planes: Planes,
    detections: Detections,
    class_names: Sequence[str],
    *,
    minimum_confidence: float = DISPLAY_CONFIDENCE,
) -> None:
    """The same into a picture of a video, whose planes are changed, without a way over RGB.

    Colour comes in blocks of two by two pixels, so lines and labels may lie a pixel further out.
    """
    height, width = planes.y.shape
    marks = _marks((height, width), detections.above(minimum_confidence), class_names)
    colours = planes.colours
    thick = marks.line_pixels
    margin = _margin_pixels(thick)
    for (left, top, right, bottom), rgb in marks.boxes:
        yuv = _in_colours(rgb, colours)
        # Around the object: the first pixel of the lines before it, the last of those behind it.
        x0, y0 = left + margin - thick, top + margin - thick
        x1, y1 = right - margin + 1 + thick, bottom - margin + 1 + thick
        if thick % 2 == 0:  # whole blocks
            x0, y0, x1, y1 = x0 - x0 % 2, y0 - y0 % 2, x1 + x1 % 2, y1 + y1 % 2
        _fill(planes, (x0, y0, x1, y0 + thick), yuv)
        _fill(planes, (x0, y1 - thick, x1, y1), yuv)
        _fill(planes, (x0, y0, x0 + thick, y1), yuv)
        _fill(planes, (x1 - thick, y0, x1, y1), yuv)
    for (left, top), chip in marks.chips:
        _paste(planes, left - left % 2, top - top % 2, chip)


def _fill(planes: Planes, area_xyxy: tuple[int, int, int, int], yuv: tuple[int, int, int]) -> None:
    """Fill a rectangle, the end not included, as far as it lies in the picture."""
    height, width = planes.y.shape
    left, top = max(area_xyxy[0], 0), max(area_xyxy[1], 0)
    right, bottom = min(area_xyxy[2], width), min(area_xyxy[3], height)
    if left >= right or top >= bottom:
        return
    planes.y[top:bottom, left:right] = yuv[0]
    blocks = slice(top // 2, (bottom + 1) // 2), slice(left // 2, (right + 1) // 2)
    planes.u[blocks], planes.v[blocks] = yuv[1], yuv[2]


def _paste(planes: Planes, left: int, top: int, chip: Image) -> None:
    """Put a label at an even place; it lies in the picture wholly."""
    key = chip.tobytes(), chip.shape[:2], planes.colours
    y, u, v = _kept_chip_planes.get(key, lambda: _chip_planes(chip, planes.colours))
    planes.y[top : top + y.shape[0], left : left + y.shape[1]] = y
    blocks = slice(top // 2, top // 2 + u.shape[0]), slice(left // 2, left // 2 + u.shape[1])
    planes.u[blocks], planes.v[blocks] = u, v


def _chip_planes(chip: Image, colours: Colours) -> tuple[Plane, ...]:
    height, width = chip.shape[:2]
    yuv = colours.of_rgb(chip)
    # The colour of a block of two by two pixels is their mean.
    blocks = yuv.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3)).round()
    chroma = blocks.astype(np.uint8)
    return np.ascontiguousarray(yuv[..., 0]), chroma[..., 1].copy(), chroma[..., 2].copy()


def _bytes_with_key(planes: tuple[Plane, ...]) -> int:
    """Of a label's planes and of the pixels in RGB that they are known by: three for one of y."""
    return 3 * planes[0].nbytes + sum(plane.nbytes for plane in planes)


_kept_chip_planes: Kept[tuple[Plane, ...]] = Kept(_KEPT_LABEL_BYTES, _bytes_with_key)


@lru_cache(maxsize=64)
def _in_colours(rgb: tuple[int, int, int], colours: Colours) -> tuple[int, int, int]:
    y, u, v = colours.of_rgb(np.array(rgb, np.uint8))
    return int(y), int(u), int(v)


@dataclass(frozen=True)
class _Marks:
    """What is drawn, wherever it is drawn: whole-pixel boxes, and labels with their places."""

    line_pixels: int
    boxes: list[tuple[tuple[int, int, int, int], tuple[int, int, int]]]
    chips: list[tuple[tuple[int, int], Image]]


def _marks(size_hw: tuple[int, ...], shown: Detections, class_names: Sequence[str]) -> _Marks:
    line_pixels = max(1, round(min(size_hw) / 600))
    outlines = _outlines(shown.boxes_xyxy, line_pixels)
    # The least confident first, so that the most confident box lies on top.
    boxes = [
        (tuple(outlines[index].tolist()), class_colour(int(shown.class_ids[index])))
        for index in np.argsort(shown.confidences, kind="stable")
    ]
    text_pixels = max(10, round(min(size_hw) / 64))
    return _Marks(line_pixels, boxes, _labels(size_hw, shown, outlines, class_names, text_pixels))


def class_colour(class_id: int) -> tuple[int, int, int]:
    """The RGB colour of a class, the same in every image."""
    return _COLOURS_RGB[class_id % len(_COLOURS_RGB)]


def _margin_pixels(line_pixels: int) -> int:
    """How far the middle of a line lies from the object that it must not cover."""
    return (line_pixels + 1) // 2


def _outlines(boxes_xyxy: npt.NDArray[np.float32], line_pixels: int) -> npt.NDArray[np.int32]:
    """Whole-pixel boxes whose lines lie around the object instead of on it."""
    margin = _margin_pixels(line_pixels)
    outer = np.concatenate(
        (np.floor(boxes_xyxy[:, :2]) - margin, np.ceil(boxes_xyxy[:, 2:]) + margin - 1), axis=1
    )
    return outer.astype(np.int32)


def _labels(
    size_hw: tuple[int, ...],
    shown: Detections,
    boxes: npt.NDArray[np.int32],
    class_names: Sequence[str],
    text_pixels: int,
) -> list[tuple[tuple[int, int], Image]]:
    """Labels for which there is room, with the left and top of each."""
    labels = []
    occupied = np.concatenate((boxes, np.zeros_like(boxes)))  # room for a label of each box
    count = len(boxes)
    for index in np.argsort(-shown.confidences, kind="stable"):
        class_id, confidence = int(shown.class_ids[index]), float(shown.confidences[index])
        name = class_names[class_id] if class_id < len(class_names) else f"class {class_id}"
        long, short = f"{name} {confidence:.2f}", f"{confidence * 100:.0f}"
        if shown.track_ids is not None and shown.track_ids[index] != UNTRACKED:
            short = f"#{shown.track_ids[index]}"
            long = f"{short} {long}"
        colour = class_colour(class_id)
        for text in (long, short):
            chip = _chip(text, text_pixels, colour)
            place = _free_place(boxes[index], chip.shape[:2], occupied[:count], size_hw)
            if place is not None:
                left, top = place
                occupied[count] = left, top, left + chip.shape[1], top + chip.shape[0]
                count += 1
                labels.append((place, chip))
                break
    return labels


def _free_place(
    box: npt.NDArray[np.int32],
    chip_hw: tuple[int, ...],
    occupied: npt.NDArray[np.int32],
    canvas_hw: tuple[int, ...],
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


def _chip(text: str, text_pixels: int, colour: tuple[int, int, int]) -> Image:
    """A small picture of the text; labels repeat from frame to frame, so they are kept."""
    key = text, text_pixels, colour
    return kept_chips.get(key, lambda: _drawn_chip(text, text_pixels, colour))


def _drawn_chip(text: str, text_pixels: int, colour: tuple[int, int, int]) -> Image:
    font = ImageFont.load_default(size=text_pixels)
    left, _, right, _ = font.getbbox(text)
    ascent, descent = _vertical_extent(text_pixels)
    padding = max(1, text_pixels // 6)
    size = (round(right - left) + 2 * padding, descent - ascent + 2 * padding)
    size = (size[0] + size[0] % 2, size[1] + size[1] % 2)  # whole blocks of a video's colours
    chip = PilImage.new("RGB", size, colour)
    ImageDraw.Draw(chip).text((padding - left, padding - ascent), text, font=font, fill=_INK_RGB)
    return np.asarray(chip)


kept_chips: Kept[Image] = Kept(_KEPT_LABEL_BYTES, lambda chip: chip.nbytes)


@lru_cache(maxsize=64)
def _vertical_extent(text_pixels: int) -> tuple[int, int]:
    # The same for every text, so that labels have one height.
    _, top, _, bottom = ImageFont.load_default(size=text_pixels).getbbox("bdkt0123456789")
    return round(top), round(bottom)
