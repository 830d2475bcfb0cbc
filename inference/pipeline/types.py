"""The values that pass between the steps of the pipeline; no vendor's type appears in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
"""RGB picture, shape (height, width, 3), upright."""


UNTRACKED = 0
"""The track id of a doubtful box that belongs to no track."""


def _no_class_ids() -> npt.NDArray[np.int16]:
    return np.zeros(0, np.int16)


def _no_confidences() -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32)


def _no_boxes() -> npt.NDArray[np.float32]:
    return np.zeros((0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Detections:
    """What was found in one image, the most confident first as detectors deliver it.

    `class_ids` int16 (n,), `confidences` float32 (n,) in [0, 1], `boxes_xyxy` float32 (n, 4) as
    left, top, right, bottom in pixels of the upright original. `track_ids` int32 (n,): the object
    of a video that each is, UNTRACKED for none; None where nothing was tracked. The arrays are made
    read-only.
    Raises ValueError when the arrays do not fit together or hold impossible values.
    """

    class_ids: npt.NDArray[np.int16] = field(default_factory=_no_class_ids)
    confidences: npt.NDArray[np.float32] = field(default_factory=_no_confidences)
    boxes_xyxy: npt.NDArray[np.float32] = field(default_factory=_no_boxes)
    track_ids: npt.NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        expected: tuple[tuple[str, type[np.generic]], ...] = (
            ("class_ids", np.int16),
            ("confidences", np.float32),
            ("boxes_xyxy", np.float32),
        )
        if self.track_ids is not None:
            expected = (*expected, ("track_ids", np.int32))
        for name, dtype in expected:
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                raise ValueError(f"{name} must be an array of {np.dtype(dtype).name}")
        count = len(self.class_ids)
        if self.class_ids.shape != (count,) or self.confidences.shape != (count,):
            raise ValueError("class_ids and confidences must have the shape (n,)")
        if self.boxes_xyxy.shape != (count, 4):
            raise ValueError("boxes_xyxy must have the shape (n, 4)")
        if self.track_ids is not None and self.track_ids.shape != (count,):
            raise ValueError("track_ids must have the shape (n,)")
        self._check_values()
        for name, _ in expected:
            # A view is frozen, so that the caller's own array stays writable.
            frozen = getattr(self, name).view()
            frozen.flags.writeable = False
            object.__setattr__(self, name, frozen)

    def _check_values(self) -> None:
        if (self.class_ids < 0).any():
            raise ValueError("class_ids must not be negative")
        # Written so that NaN, which fails every comparison, is refused as well.
        if not ((self.confidences >= 0) & (self.confidences <= 1)).all():
            raise ValueError("confidences must lie in [0, 1]")
        if not np.isfinite(self.boxes_xyxy).all():
            raise ValueError("boxes_xyxy must be finite")
        if not (self.boxes_xyxy[:, 2:] >= self.boxes_xyxy[:, :2]).all():
            raise ValueError("boxes_xyxy must run from left to right and from top to bottom")

    def __len__(self) -> int:
        return len(self.class_ids)

    @classmethod
    def empty(cls) -> Detections:
        """Nothing found."""
        return cls()

    def above(self, confidence: float) -> Detections:
        """Those of at least this confidence, in the same order."""
        # Compared in float32: a stored 0.25 must be found by a question for 0.25, and 0.7 as well.
        return self._kept(self.confidences >= np.float32(confidence))

    def of_classes(self, class_ids: Collection[int]) -> Detections:
        """Those of these classes, in the same order."""
        return self._kept(np.isin(self.class_ids, list(class_ids)))

    def without(self, class_ids: Collection[int]) -> Detections:
        """Those of other classes, in the same order."""
        return self._kept(~np.isin(self.class_ids, list(class_ids)))

    def _kept(self, keep: npt.NDArray[np.bool_]) -> Detections:
        return Detections(
            self.class_ids[keep],
            self.confidences[keep],
            self.boxes_xyxy[keep],
            None if self.track_ids is None else self.track_ids[keep],
        )


@dataclass(frozen=True)
class FrameDetections:
    """The detections of one frame; an image is its own frame 0 at 0 seconds."""

    frame_index: int
    time_seconds: float
    detections: Detections


@dataclass(frozen=True)
class MediaSummary:
    """What a finished file amounted to: frames processed, size of the first, whether drawn."""

    frame_count: int
    size_wh: tuple[int, int]
    annotated: bool
