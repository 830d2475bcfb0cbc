"""The seam between the pipeline and whatever network runs behind it."""

from collections.abc import Sequence
from typing import Protocol

from inference.pipeline.types import Detections, Image

# Measured on the 25 street frames with the first weights (inference/weights/YOLO8s_FSR.md): at
# 640 pixels 72% of the vehicles are found, at 768 90%, for 1.4 times the time. Two neighbouring
# small vehicles seldom overlap, so boxes that overlap by half are the same one.
DEFAULT_IMAGE_SIZE = 768
DEFAULT_IOU = 0.5
DEFAULT_CONFIDENCE_FLOOR = 0.05
DEFAULT_MAX_DETECTIONS = 500


class Detector(Protocol):
    """Finds objects in images; tests pass a fake, the workers `network.load_detector`'s."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names behind the class ids, in their order."""

    @property
    def preferred_batch_size(self) -> int:
        """How many images at a time run fastest here."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        """One `Detections` per image, in order.

        `images`: RGB uint8 of any sizes, also mixed; boxes come back in the pixels of each.
        """
