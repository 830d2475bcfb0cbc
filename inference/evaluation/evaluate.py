"""Runs a detector over labelled images and scores what it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from datasets.media.errors import MediaError
from datasets.media.images import read_image
from inference.evaluation.data import LabelledData, LabelledImage
from inference.evaluation.errors import EvaluationDataError
from inference.evaluation.metrics import Scores, score
from inference.pipeline.detector import Detector
from inference.pipeline.types import Image

Progress = Callable[[Iterable[LabelledImage]], Iterable[LabelledImage]]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a detector, under the name of how it was run, and the time it took."""

    name: str
    scores: Scores
    seconds: float


def evaluate(
    detector: Detector, data: LabelledData, *, name: str, progress: Progress = lambda images: images
) -> Evaluation:
    """Find what is in every image, and score it, but for classes that `data` ignore.

    The class ids of `data` are those of the detector (`data.for_model`). As many images are in
    memory as the detector looks at together. `progress` may watch the images go by. Raises
    EvaluationDataError for an image that cannot be read, or is not of the size that its labels
    are for.
    """
    sizes_wh: list[tuple[int, int]] = []

    def read(labelled: LabelledImage) -> Image:
        image = _read(labelled)
        sizes_wh.append((image.shape[1], image.shape[0]))
        return image

    start = time.perf_counter()
    found = [
        detections.without(data.ignored_ids)
        for _, detections in detector.stream(progress(data.images), read)
    ]
    seconds = time.perf_counter() - start
    return Evaluation(name, score(data.images, sizes_wh, found, detector.class_names), seconds)


def _read(labelled: LabelledImage) -> Image:
    try:
        image = read_image(labelled.path)
    except (MediaError, OSError) as error:
        raise EvaluationDataError(f"{labelled.path} cannot be read: {error}") from error
    size_wh = (image.shape[1], image.shape[0])
    if labelled.size_wh is not None and labelled.size_wh != size_wh:
        labelled_size = " x ".join(map(str, labelled.size_wh))
        raise EvaluationDataError(
            f"{labelled.path} is {size_wh[0]} x {size_wh[1]} pixels, its labels are for "
            f"{labelled_size}."
        )
    return image
