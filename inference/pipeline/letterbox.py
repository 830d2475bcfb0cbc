"""Fits an image into the network's input and takes boxes back to the image's own pixels.

The arithmetic is that of `ultralytics.data.augment.LetterBox(auto=True)` and
`ultralytics.utils.ops.scale_boxes`, with which the weights were trained; a test compares both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from inference.pipeline.options import STRIDE_PIXELS

PADDING_GREY = 114


@dataclass(frozen=True)
class Letterbox:
    """How one image size is laid into the network's input; sizes in pixels."""

    size_wh: tuple[int, int]
    resized_wh: tuple[int, int]
    left_top: tuple[int, int]
    input_wh: tuple[int, int]

    @classmethod
    def fit(cls, size_wh: tuple[int, int], image_size: int) -> Letterbox:
        """The longer side becomes `image_size`, the shorter the next multiple of the stride."""
        width, height = size_wh
        scale = min(image_size / width, image_size / height)
        resized = max(round(width * scale), 1), max(round(height * scale), 1)
        padding = tuple((image_size - side) % STRIDE_PIXELS / 2 for side in resized)
        # Half a pixel of padding goes to the right and to the bottom.
        before = tuple(round(half - 0.1) for half in padding)
        after = tuple(round(half + 0.1) for half in padding)
        return cls(
            size_wh=size_wh,
            resized_wh=resized,
            left_top=(before[0], before[1]),
            input_wh=(resized[0] + before[0] + after[0], resized[1] + before[1] + after[1]),
        )

    def to_image(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Boxes (n, 4) in the input's pixels as boxes in the image's, which may reach beyond it."""
        scale = np.array(self.resized_wh, np.float32) / np.array(self.size_wh, np.float32)
        corners = boxes_xyxy.reshape(-1, 2, 2) - np.array(self.left_top, np.float32)
        return (corners / scale).reshape(-1, 4).astype(np.float32, copy=False)


def clipped(
    boxes_xyxy: npt.NDArray[np.float32], size_wh: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """Boxes (n, 4) as far as they lie on an image of this size."""
    return np.clip(boxes_xyxy, 0, np.array([*size_wh, *size_wh], np.float32))


def has_area(boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which of these boxes (n, 4) are wider and higher than nothing."""
    return np.asarray((boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1))
