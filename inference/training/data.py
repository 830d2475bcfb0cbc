"""What is trained on: labelled photographs, drawn scenes and regions surely without vehicles.

Pictures are decoded once and kept in memory as RGB uint8 (h, w, 3), beside halves of themselves,
so that a crop that is scaled down does not read every pixel of its source.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from inference.pipeline.types import Image
from inference.scenes import Scene, draw_scene, draw_video_scene

Boxes = npt.NDArray[np.float32]

_NO_BOXES: Boxes = np.zeros((0, 4), np.float32)

CLASS_NAMES = ("car", "truck", "bus", "minibus")
_FEWEST_LABELLED_PIXELS = 3.0
_LEAST_HALVED_SIDE = 400
_TRAFFIC_SECONDS = 2.5  # after which the vehicles of a still scene have met others
# Vehicles that the labels leave out (mostly cut by the photograph's edge or parked far away), as
# boxes in pixels by photograph. They are neither right nor wrong: training covers them.
_UNLABELLED = Path(__file__).with_name("unlabelled.json")
# What the first weights, and later ones, took for vehicles and is none, in the same form: places
# worth to be looked at again. Those of photographs with vehicles were sorted by eye.
_MISTAKES = Path(__file__).with_name("mistakes.json")
# The road photographs show vehicles from the side, without labels. These bands, shares of the
# height, hold none: sky, trees and houses above the horizon, bare road below it.
_BARE_BANDS = {
    "image_test_1": ((0.0, 0.62), (0.79, 1.0)),
    "image_test_2": ((0.0, 0.70), (0.85, 1.0)),
    "image_test_3": ((0.0, 0.54), (0.73, 0.90)),
    "image_test_4": ((0.0, 0.60), (0.88, 1.0)),
    "image_test_5": ((0.0, 0.58), (0.79, 1.0)),
    "image_test_6": ((0.0, 0.54), (0.80, 0.93)),
}


@dataclass(frozen=True)
class Picture:
    """One source of crops.

    `levels`: the image RGB uint8 (h, w, 3) and its halves, the largest first. `boxes_xyxy`
    (n, 4) and `class_ids` (n,) in pixels of the first; `neutral_xyxy` (m, 4): vehicles without a
    label; `mistaken_xyxy` (k, 4): what is easily taken for a vehicle.
    """

    name: str
    levels: tuple[Image, ...]
    boxes_xyxy: Boxes
    class_ids: npt.NDArray[np.int64]
    neutral_xyxy: Boxes
    mistaken_xyxy: Boxes

    @property
    def size_wh(self) -> tuple[int, int]:
        """Of the image in its own pixels."""
        return self.levels[0].shape[1], self.levels[0].shape[0]

    @property
    def sequence(self) -> str:
        """Whose neighbouring frames resemble this one."""
        return sequence_of(self.name)


@dataclass(frozen=True)
class Sources:
    """Labelled photographs, drawn scenes with labels, and pictures without any vehicle."""

    photographs: tuple[Picture, ...]
    scenes: tuple[Picture, ...]
    backgrounds: tuple[Picture, ...]


def sequence_of(name: str) -> str:
    """The name of the sequence to which a photograph belongs; neighbours resemble each other.

    >>> [sequence_of(name) for name in ("MOS155", "MOS93", "DJI_0005-0018", "DJI_0028")]
    ['MOS155-179', 'MOS74-93', 'DJI_0005', 'DJI_0028']
    """
    found = re.fullmatch(r"MOS(\d+)", name)
    if found:
        return "MOS74-93" if int(found[1]) < 100 else "MOS155-179"
    return re.sub(r"(?<=\d)-\d+$", "", name)


def load_photographs(folder: Path, *, held_out: Sequence[str] = ()) -> tuple[Picture, ...]:
    """The photographs of `folder/images` with `folder/labels` in YOLO's format, by name.

    `held_out`: names of sequences that are left out. Classes beyond CLASS_NAMES count as
    vehicles without a label. Raises FileNotFoundError without photographs or without labels, and
    ValueError for a sequence that there is none of: what was mistyped would be trained on.
    """
    paths = sorted((folder / "images").iterdir())
    sequences = {sequence_of(path.stem) for path in paths}
    if unknown := sorted(set(held_out) - sequences):
        raise ValueError(
            f"There is no sequence {', '.join(unknown)}, only {', '.join(sorted(sequences))}."
        )
    neutral, mistaken = _boxes_of(_UNLABELLED), _boxes_of(_MISTAKES)
    pictures = [
        _labelled(path, folder / "labels" / f"{path.stem}.txt", neutral, mistaken)
        for path in paths
        if sequence_of(path.stem) not in held_out
    ]
    if not pictures:
        raise FileNotFoundError(f"There are no photographs in {folder / 'images'}.")
    return tuple(pictures)


def load_bare_regions(folder: Path) -> tuple[Picture, ...]:
    """The bands of the road photographs in `folder` in which there is no vehicle."""
    mistaken = _boxes_of(_MISTAKES)
    bands = [
        (f"{path.stem}-{index}", band)
        for path in sorted(folder.glob("image_test_*.jpg"))
        for index, band in enumerate(_bands(path))
    ]
    return tuple(
        picture_of(name, band, mistaken_xyxy=mistaken.get(name, _NO_BOXES)) for name, band in bands
    )


def draw_scenes(seeds: Iterable[int], vehicle_counts: Sequence[int]) -> tuple[Picture, ...]:
    """Drawn streets, one per seed, with the numbers of vehicles taken in turn."""
    return tuple(
        _drawn(f"scene-{seed}", draw_scene(seed, vehicle_count=count))
        for seed, count in zip(seeds, itertools.cycle(vehicle_counts), strict=False)
    )


def draw_traffic(seeds: Iterable[int], vehicle_counts: Sequence[int]) -> tuple[Picture, ...]:
    """A frame of a drawn video per seed, in which vehicles pass each other, as close as they do.

    In `draw_scenes` no two boxes overlap by much, so who learns from that alone takes the gap
    between two vehicles side by side for a third.
    """
    pictures = []
    for seed, count in zip(seeds, itertools.cycle(vehicle_counts), strict=False):
        frames = draw_video_scene(
            seed, 2, vehicle_count=count, frames_per_second=1 / _TRAFFIC_SECONDS
        )
        *_, later = frames
        pictures.append(_drawn(f"traffic-{seed}", later))
    return tuple(pictures)


def _drawn(name: str, scene: Scene) -> Picture:
    return picture_of(name, scene.image, scene.boxes_xyxy, scene.class_ids.astype(int))


def picture_of(
    name: str,
    image: Image,
    boxes_xyxy: Boxes | None = None,
    class_ids: npt.NDArray[np.int64] | None = None,
    *,
    neutral_xyxy: Boxes | None = None,
    mistaken_xyxy: Boxes | None = None,
) -> Picture:
    """A picture with its halves; without boxes it is a background."""
    levels = [np.ascontiguousarray(image)]
    while min(levels[-1].shape[:2]) >= 2 * _LEAST_HALVED_SIDE:
        height, width = levels[-1].shape[:2]
        levels.append(
            cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        )
    return Picture(
        name,
        tuple(levels),
        _NO_BOXES if boxes_xyxy is None else boxes_xyxy,
        np.zeros(0, np.int64) if class_ids is None else class_ids,
        _NO_BOXES if neutral_xyxy is None else neutral_xyxy,
        _NO_BOXES if mistaken_xyxy is None else mistaken_xyxy,
    )


def _labelled(
    image_path: Path, label_path: Path, neutral: dict[str, Boxes], mistaken: dict[str, Boxes]
) -> Picture:
    image = _read(image_path)
    rows = np.array([line.split() for line in label_path.read_text().splitlines()], np.float32)
    rows = rows.reshape(-1, 5)
    scale = np.array([image.shape[1], image.shape[0]], np.float32)
    centres, sizes = rows[:, 1:3] * scale, rows[:, 3:] * scale
    boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
    known = (rows[:, 0] < len(CLASS_NAMES)) & (sizes.min(axis=1) >= _FEWEST_LABELLED_PIXELS)
    name = image_path.stem
    return picture_of(
        name,
        image,
        boxes[known],
        rows[known, 0].astype(np.int64),
        neutral_xyxy=np.concatenate((neutral.get(name, _NO_BOXES), boxes[~known])),
        mistaken_xyxy=mistaken.get(name, _NO_BOXES),
    )


def _boxes_of(path: Path) -> dict[str, Boxes]:
    """Boxes (n, 4) in pixels by the name of their picture."""
    return {
        name: np.array(boxes, np.float32).reshape(-1, 4)
        for name, boxes in json.loads(path.read_text()).items()
    }


def _read(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise FileNotFoundError(f"{path.name} is no readable photograph.")
    return image


def _bands(path: Path) -> list[Image]:
    image = _read(path)
    height = image.shape[0]
    return [
        image[round(low * height) : round(high * height)]
        for low, high in _BARE_BANDS.get(path.stem, ())
    ]
