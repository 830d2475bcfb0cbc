"""What the tests of the pipeline share: the real detector, loaded once, and a fake one."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from datasets.media.video import VideoFrame
from inference.pipeline.detector import YoloDetector
from inference.pipeline.network import Runtime, load_detector
from inference.pipeline.options import DetectionOptions
from inference.pipeline.types import Detections

REPOSITORY = Path(__file__).parent.parent
WEIGHTS = REPOSITORY / "inference" / "weights" / "YOLO8s_FSR.pt"


def digest_on_the_card(weights: Path) -> str:
    """The SHA-256 that the model card beside a weights file names."""
    found = re.search(r"SHA-256 \| `([0-9a-f]{64})`", weights.with_suffix(".md").read_text())
    return found[1] if found else ""


@cache
def real_detector() -> YoloDetector:
    """The committed weights at the default settings, in full precision on the CPU."""
    return load_detector(WEIGHTS, device="cpu", options=DetectionOptions(precision="fp32"))


def small_detector(runtime: Runtime = "auto", **options: Any) -> YoloDetector:
    """The same with a small input, a new one each time: for what does not depend on the input."""
    chosen = DetectionOptions.parse({"precision": "fp32", "image_size": 320, **options})
    return load_detector(WEIGHTS, device="cpu", runtime=runtime, options=chosen)


def shared_data() -> Path | None:
    """The development data beside the repository, if this machine has them."""
    folder = Path(os.environ.get("OD_SHARED_DIR", REPOSITORY.parent / "shared")) / "data"
    return folder if folder.is_dir() else None


class OneByOne:
    """What a fake needs beside `detect` to be a `Detector`."""

    def stream(self, items, image_of, *, on_progress=lambda: None):
        for item in items:
            image = image_of(item)
            found = Detections.empty() if image is None else self.detect([image])[0]
            on_progress()
            del image
            yield item, found
            del item


class FakeDetector(OneByOne):
    """Finds one car in every image, at the image's top left pixel value."""

    class_names = ("car", "truck")

    def __init__(self, on_detect: Callable[[], None] = lambda: None) -> None:
        self.image_count = 0
        self._on_detect = on_detect

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.image_count += len(images)
        self._on_detect()
        return [one_car(float(image[0, 0, 0]) / 255) for image in images]


def one_car(confidence: float = 0.9) -> Detections:
    return Detections(
        np.array([0], np.int16),
        np.array([confidence], np.float32),
        np.array([[4, 6, 20, 16]], np.float32),
    )


def grey_frames(count: int, size_wh: tuple[int, int] = (64, 48)) -> Iterator[VideoFrame]:
    """Frames at 25 a second whose grey tells their number."""
    for index in range(count):
        image = np.full((size_wh[1], size_wh[0], 3), 40 + index % 200, np.uint8)
        yield VideoFrame(index, index / 25, image)
