"""Writes parts of images into the input of a network; needs OpenCV, which planning does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from inference.pipeline.letterbox import PADDING_GREY, Letterbox
from inference.pipeline.tiles import Part
from inference.pipeline.types import Image


class View(NamedTuple):
    """A part together with the image that it is a part of."""

    image: Image
    part: Part

    def lay_into(self, target: Image) -> None:
        """Writes the part as the network sees it into `target` (input h, input w, 3)."""
        (left, top), (right, bottom) = self.part.left_top, self.part.right_bottom
        lay_into(self.part.letterbox, self.image[top:bottom, left:right], target)


def lay_out(views: Sequence[View]) -> npt.NDArray[np.uint8]:
    """The input of a network: RGB, (n, height, width, 3); all parts have one input size."""
    width, height = views[0].part.letterbox.input_wh
    inputs = np.empty((len(views), height, width, 3), np.uint8)
    for view, target in zip(views, inputs, strict=True):
        view.lay_into(target)
    return inputs


def lay_into(letterbox: Letterbox, image: Image, target: Image) -> None:
    """Writes the resized `image` and its grey margin into `target` (input h, input w, 3)."""
    left, top = letterbox.left_top
    width, height = letterbox.resized_wh
    if (image.shape[1], image.shape[0]) != letterbox.resized_wh:
        image = cv2.resize(image, letterbox.resized_wh, interpolation=cv2.INTER_LINEAR)
    target[:top] = PADDING_GREY
    target[top + height :] = PADDING_GREY
    target[top : top + height, :left] = PADDING_GREY
    target[top : top + height, left + width :] = PADDING_GREY
    target[top : top + height, left : left + width] = image
