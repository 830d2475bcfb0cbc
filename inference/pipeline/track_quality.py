"""Measures tracking on drawn streets whose vehicles are known by name.

    python -m inference.pipeline.track_quality inference/weights/YOLO8s_FSR.pt

Each street is looked at with the real network once; the tracker then gets every frame, every 2nd,
5th and 10th. IDF1 (Ristani et al. 2016) is the share of boxes whose id is right all the way; an id
switch is a vehicle that is found under another id than the last time it was found.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from inference.pipeline.merge import iou_matrix
from inference.pipeline.network import load_detector
from inference.pipeline.options import DISPLAY_CONFIDENCE
from inference.pipeline.track import track_frames
from inference.pipeline.types import Detections, FrameDetections
from inference.scenes import Boxes, draw_video_scene

Ids = npt.NDArray[np.int32]

STRIDES = (1, 2, 5, 10)
_FIRST_UNSEEN_SEED = 2000
_FRAMES_PER_SECOND = 25.0
_LEAST_IOU = 0.5


@dataclass(frozen=True)
class TrackedFrame:
    """True and found boxes of one frame, with the ids of both."""

    true_xyxy: Boxes
    true_ids: Ids
    found_xyxy: Boxes
    found_ids: Ids


@dataclass(frozen=True)
class TrackingScore:
    """How well ids were kept."""

    idf1: float
    id_switches: int
    true_count: int
    found_count: int


def tracking_score(frames: Sequence[TrackedFrame]) -> TrackingScore:
    """IDF1 and id switches over the frames of one video.

    For IDF1 each true id is given one found id, the whole video through, so that most boxes agree.
    """
    agreeing: dict[tuple[int, int], int] = {}
    last_id: dict[int, int] = {}
    switches = 0
    for frame in frames:
        overlaps = iou_matrix(frame.true_xyxy, frame.found_xyxy)
        close = overlaps >= _LEAST_IOU
        for row, column in zip(*np.nonzero(close), strict=True):
            pair = int(frame.true_ids[row]), int(frame.found_ids[column])
            agreeing[pair] = agreeing.get(pair, 0) + 1
        for row, column in zip(*linear_sum_assignment(-overlaps * close), strict=True):
            if close[row, column]:
                true_id, found_id = int(frame.true_ids[row]), int(frame.found_ids[column])
                switches += last_id.get(true_id, found_id) != found_id
                last_id[true_id] = found_id
    true_count = sum(len(frame.true_ids) for frame in frames)
    found_count = sum(len(frame.found_ids) for frame in frames)
    true_names = sorted({pair[0] for pair in agreeing})
    found_names = sorted({pair[1] for pair in agreeing})
    table = np.zeros((len(true_names), len(found_names)))
    for (true_id, found_id), count in agreeing.items():
        table[true_names.index(true_id), found_names.index(found_id)] = count
    right = table[linear_sum_assignment(-table)].sum()
    idf1 = 2 * right / max(true_count + found_count, 1)
    return TrackingScore(float(idf1), switches, true_count, found_count)


def tracked(
    truths: Sequence[tuple[Boxes, Ids]], found: Sequence[Detections], *, stride: int
) -> list[TrackedFrame]:
    """Every `stride`-th frame with the ids that the tracker gives to what was found in it."""
    indexes = range(0, len(found), stride)
    frames = (FrameDetections(i, i / _FRAMES_PER_SECOND, found[i]) for i in indexes)
    result = []
    for frame, ids in track_frames(frames):
        shown = frame.detections.confidences >= np.float32(DISPLAY_CONFIDENCE)
        true_xyxy, true_ids = truths[frame.frame_index]
        result.append(
            TrackedFrame(true_xyxy, true_ids, frame.detections.boxes_xyxy[shown], ids[shown])
        )
    return result


def main(arguments: list[str] | None = None) -> None:
    """The command line; see the head of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--streets", type=int, default=5)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--vehicles", type=int, default=20)
    options = parser.parse_args(arguments)
    detector = load_detector(options.weights)
    scores: dict[int, list[TrackingScore]] = {stride: [] for stride in STRIDES}
    bar = tqdm(total=options.streets * options.frames, disable=not sys.stderr.isatty(), leave=False)
    for seed in range(_FIRST_UNSEEN_SEED, _FIRST_UNSEEN_SEED + options.streets):
        truths, found = [], []
        for scene in draw_video_scene(
            seed,
            options.frames,
            vehicle_count=options.vehicles,
            frames_per_second=_FRAMES_PER_SECOND,
        ):
            truths.append((scene.boxes_xyxy, scene.object_ids))
            found.extend(detector.detect([scene.image]))
            bar.update()
        for stride in STRIDES:
            scores[stride].append(tracking_score(tracked(truths, found, stride=stride)))
    bar.close()
    for stride, of_stride in scores.items():
        boxes = sum(score.true_count for score in of_stride)
        switches = sum(score.id_switches for score in of_stride)
        idf1 = np.mean([score.idf1 for score in of_stride])
        worst = min(score.idf1 for score in of_stride)
        sys.stdout.write(
            f"every {stride:2d}. frame: IDF1 {idf1:.3f} (worst street {worst:.3f}), "
            f"{switches} id switches in {boxes} boxes\n"
        )


if __name__ == "__main__":
    main()
