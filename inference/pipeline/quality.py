"""Counts what a detector finds: in drawn streets, and in a labelled video.

    python -m inference.pipeline.quality inference/weights/YOLO8s_FSR.pt
    python -m inference.pipeline.quality WEIGHTS --video VIDEO --labels "labels/MOS*.txt"

Labels are in YOLO's format, one file per frame in the order of their names. Classes do not count:
a found box is right when it overlaps a true one of its own by at least half.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.media.video import iter_frames
from inference.pipeline.detector import Detector
from inference.pipeline.network import load_detector
from inference.pipeline.options import (
    DEFAULT_IMAGE_SIZE,
    DEFAULT_IOU,
    DISPLAY_CONFIDENCE,
    DetectionOptions,
)
from inference.pipeline.types import Image
from inference.scenes import Boxes, draw_scene, match_boxes

_FIRST_UNSEEN_SEED = 1000


@dataclass
class Score:
    """True boxes, those found among them, and false boxes, summed over pictures."""

    true_count: int = 0
    found_count: int = 0
    false_count: int = 0
    fewest_found_share: float = 1.0
    most_false: int = 0
    seconds: float = 0.0
    picture_count: int = 0

    def add(self, true_xyxy: Boxes, found_xyxy: Boxes, seconds: float) -> None:
        """Counts one picture; boxes (n, 4) and (m, 4) in its pixels."""
        found, false = match_boxes(true_xyxy, found_xyxy)
        self.true_count += len(true_xyxy)
        self.found_count += found
        self.false_count += false
        self.fewest_found_share = min(self.fewest_found_share, found / max(len(true_xyxy), 1))
        self.most_false = max(self.most_false, false)
        self.seconds += seconds
        self.picture_count += 1

    def __str__(self) -> str:
        recall = self.found_count / max(self.true_count, 1)
        precision = self.found_count / max(self.found_count + self.false_count, 1)
        return (
            f"{self.picture_count} pictures, {self.true_count} vehicles: recall {recall:.1%}, "
            f"precision {precision:.1%}; in the worst picture {self.fewest_found_share:.0%} found, "
            f"in the worst {self.most_false} false; "
            f"{1000 * self.seconds / max(self.picture_count, 1):.0f} ms a picture"
        )


def score(detector: Detector, pictures: Iterable[tuple[Image, Boxes]], confidence: float) -> Score:
    """What the detector finds with at least this confidence in pictures with their true boxes."""
    total = Score()
    for image, true_xyxy in pictures:
        start = time.perf_counter()
        found = detector.detect([image])[0].above(confidence)
        total.add(true_xyxy, found.boxes_xyxy, time.perf_counter() - start)
    return total


def drawn_pictures(count: int, image_size: int) -> Iterator[tuple[Image, Boxes]]:
    """Drawn streets from seeds that nothing was adjusted on."""
    for seed in range(_FIRST_UNSEEN_SEED, _FIRST_UNSEEN_SEED + count):
        scene = draw_scene(seed, input_size=image_size)
        yield scene.image, scene.boxes_xyxy


def labelled_pictures(video: Path, labels: list[Path]) -> Iterator[tuple[Image, Boxes]]:
    """Frames of a video with the boxes of their label files. Cyclists (class 4) are left out."""
    for frame, path in zip(iter_frames(video), labels, strict=True):
        rows = np.loadtxt(path, ndmin=2).reshape(-1, 5)
        rows = rows[rows[:, 0] != 4]
        scale = np.array([frame.image.shape[1], frame.image.shape[0]])
        centres, sizes = rows[:, 1:3] * scale, rows[:, 3:] * scale
        boxes = np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)
        yield frame.image, boxes.astype(np.float32)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--video", type=Path, help="a labelled video, instead of drawn streets")
    parser.add_argument("--labels", help="the pattern of its label files, one per frame")
    parser.add_argument("--scenes", type=int, default=20, help="how many streets to draw")
    parser.add_argument("--image-size", type=int, nargs="+", default=[DEFAULT_IMAGE_SIZE])
    parser.add_argument("--iou", type=float, default=DEFAULT_IOU, help="of merging")
    parser.add_argument("--confidence", type=float, default=DISPLAY_CONFIDENCE)
    options = parser.parse_args(arguments)
    if (options.video is None) != (options.labels is None):
        parser.error("--video and --labels go together")
    for image_size in options.image_size:
        detector = load_detector(
            options.weights, options=DetectionOptions(image_size=image_size, iou=options.iou)
        )
        detector.warm_up()
        if options.video is None:
            pictures, count = drawn_pictures(options.scenes, image_size), options.scenes
        else:
            labels = _files(options.labels)
            pictures, count = labelled_pictures(options.video, labels), len(labels)
        bar = tqdm(pictures, total=count, disable=not sys.stderr.isatty(), leave=False)
        line = (
            f"{options.weights.stem}, {image_size} px: {score(detector, bar, options.confidence)}"
        )
        sys.stdout.write(line + "\n")


def _files(pattern: str) -> list[Path]:
    """Files of a pattern; names are ordered by their numbers, MOS99 before MOS100."""
    path = Path(pattern)
    found = path.parent.glob(path.name)
    return sorted(found, key=lambda file: (len(file.name), file.name))


if __name__ == "__main__":
    main()
