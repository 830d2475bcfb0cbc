"""The seam between the pipeline and whatever network runs behind it."""

from collections.abc import Sequence
from typing import Protocol

from inference.pipeline.types import Detections, Image


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
