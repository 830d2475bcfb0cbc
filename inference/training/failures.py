"""What a detector does worst, in streets and clutter that were drawn for nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from inference.pipeline.detector import Detector
from inference.pipeline.options import DEFAULT_IMAGE_SIZE
from inference.pipeline.types import Image
from inference.scenes import Boxes, draw_scene, pair_boxes
from inference.training.clutter import draw_clutter

# Neither training nor tests nor other measurements use these.
FIRST_STREET_SEED = 4_000_000
FIRST_CLUTTER_SEED = 5_000_000
_VEHICLE_COUNTS = (10, 24, 14)
# The longer side at which vehicles are 15 to 40 pixels long: at the default size they are that
# long, or half or a third of it, which is where they begin to be missed.
_PLANNED_PIXELS = (DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE * 2, DEFAULT_IMAGE_SIZE * 3)
_COLOURS_RGB = {"found": (60, 220, 60), "missed": (255, 40, 40), "false": (255, 225, 30)}
_LINE_PIXELS = 2
_QUALITIES = (70, 55, 40, 25)
_SMALLER = 0.8


@dataclass(frozen=True)
class DrawnPicture:
    """A picture RGB uint8 (h, w, 3) under its name, and its true boxes (n, 4) in pixels."""

    name: str
    image: Image
    boxes_xyxy: Boxes


@dataclass(frozen=True)
class Outcome:
    """What became of a picture: boxes (n, 4) in pixels that are right, missed and false."""

    picture: DrawnPicture
    found_xyxy: Boxes
    missed_xyxy: Boxes
    false_xyxy: Boxes

    @property
    def mistake_count(self) -> int:
        """Missed and false boxes."""
        return len(self.missed_xyxy) + len(self.false_xyxy)

    @property
    def is_street(self) -> bool:
        """Whether there is a vehicle in it."""
        return len(self.picture.boxes_xyxy) > 0


def drawn_pictures(street_count: int, clutter_count: int) -> Iterator[DrawnPicture]:
    """Streets with vehicles of usual and of smaller sizes, then pictures without any vehicle."""
    for index in range(street_count):
        seed = FIRST_STREET_SEED + index
        scene = draw_scene(
            seed,
            vehicle_count=_VEHICLE_COUNTS[index // len(_PLANNED_PIXELS) % len(_VEHICLE_COUNTS)],
            input_size=_PLANNED_PIXELS[index % len(_PLANNED_PIXELS)],
        )
        yield DrawnPicture(f"street {seed}", scene.image, scene.boxes_xyxy)
    seeds = range(FIRST_CLUTTER_SEED, FIRST_CLUTTER_SEED + clutter_count)
    for seed, one in zip(seeds, draw_clutter(seeds), strict=True):
        yield DrawnPicture(f"clutter {seed}", one.levels[0], one.boxes_xyxy)


def look_at(
    detector: Detector, pictures: Iterable[DrawnPicture], confidence: float
) -> list[Outcome]:
    """What the detector finds in each picture with at least this confidence, of any class."""
    outcomes = []
    for picture in pictures:
        found_xyxy = detector.detect([picture.image])[0].above(confidence).boxes_xyxy
        pairs = pair_boxes(picture.boxes_xyxy, found_xyxy)
        missed = np.ones(len(picture.boxes_xyxy), bool)
        false = np.ones(len(found_xyxy), bool)
        for true_index, found_index in pairs:
            missed[true_index] = false[found_index] = False
        outcomes.append(
            Outcome(picture, found_xyxy[~false], picture.boxes_xyxy[missed], found_xyxy[false])
        )
    return outcomes


def worst(outcomes: Iterable[Outcome], count: int) -> list[Outcome]:
    """At most so many, those with the most mistakes first; none without a mistake.

    Of several one is a street, if there is a mistake in any: clutter has more mistakes, and only
    streets have vehicles to miss.
    """
    ranked = sorted(
        (one for one in outcomes if one.mistake_count),
        key=lambda one: (-one.mistake_count, one.picture.name),
    )
    shown, rest = ranked[:count], ranked[count:]
    if count > 1 and not any(one.is_street for one in shown):
        shown[-1:] = [one for one in rest if one.is_street][:1] or shown[-1:]
    return shown


def draw_outcome(outcome: Outcome) -> Image:
    """A copy with boxes: green around vehicles that were found, red if missed, yellow if false."""
    canvas = np.ascontiguousarray(outcome.picture.image).copy()
    for kind, boxes in (
        ("found", outcome.found_xyxy),
        ("missed", outcome.missed_xyxy),
        ("false", outcome.false_xyxy),
    ):
        for left, top, right, bottom in _around(boxes).tolist():
            cv2.rectangle(canvas, (left, top), (right, bottom), _COLOURS_RGB[kind], _LINE_PIXELS)
    return canvas


def _around(boxes_xyxy: Boxes) -> npt.NDArray[np.int32]:
    """Whole-pixel boxes whose lines lie around the objects instead of on them."""
    outer = (np.floor(boxes_xyxy[:, :2]) - _LINE_PIXELS, np.ceil(boxes_xyxy[:, 2:]) + _LINE_PIXELS)
    return np.concatenate(outer, axis=1).astype(np.int32)


def as_webp(image: Image, limit_bytes: int) -> bytes:
    """The picture in at most so many bytes: less exact first, then smaller."""
    while True:
        for quality in _QUALITIES:
            bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            _, encoded = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])
            if encoded.size <= limit_bytes or min(image.shape[:2]) <= 1:
                return encoded.tobytes()
        size_wh = (int(image.shape[1] * _SMALLER), int(image.shape[0] * _SMALLER))
        image = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA).astype(np.uint8)
