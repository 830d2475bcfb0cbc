"""Turns what a YOLOv8 head returns into candidate boxes, in full precision.

Both runtimes end here. Decoding is ours, because Ultralytics decodes boxes in the network's own
precision, which in half precision has steps of a whole pixel beyond 1024.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from inference.pipeline.options import STRIDES

MAX_CANDIDATES = 30_000  # of one input, as in Ultralytics, and of all inputs of one image


class Candidates(NamedTuple):
    """Boxes of one input above the confidence floor, before any merging.

    `class_ids` int64 (n,), `confidences` float32 (n,), `boxes_xyxy` float32 (n, 4) in pixels of
    the input. `is_cut` bool (n,): whether the object seems to go on beyond the input, which only
    whoever has cut the image can tell.
    """

    class_ids: npt.NDArray[np.int64]
    confidences: npt.NDArray[np.float32]
    boxes_xyxy: npt.NDArray[np.float32]
    is_cut: npt.NDArray[np.bool_]

    @classmethod
    def whole(
        cls,
        class_ids: npt.NDArray[np.int64],
        confidences: npt.NDArray[np.float32],
        boxes_xyxy: npt.NDArray[np.float32],
    ) -> Candidates:
        """None of which is cut, as far as a network knows."""
        return cls(class_ids, confidences, boxes_xyxy, np.zeros(len(confidences), np.bool_))

    @classmethod
    def none(cls) -> Candidates:
        """No candidate."""
        nothing = np.zeros(0, np.float32)
        return cls.whole(np.zeros(0, np.int64), nothing, nothing.reshape(0, 4))

    @classmethod
    def joined(cls, several: Sequence[Candidates]) -> Candidates:
        """All of at least one."""
        return cls(*(np.concatenate(arrays) for arrays in zip(*several, strict=True)))

    def best(self, count: int) -> Candidates:
        """The `count` most confident ones, in no particular order."""
        if len(self.confidences) <= count:
            return self
        return self.chosen(np.argpartition(-self.confidences, count)[:count])

    def chosen(self, rows: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Candidates:
        """Those of these rows, a mask or indices."""
        return Candidates(
            self.class_ids[rows], self.confidences[rows], self.boxes_xyxy[rows], self.is_cut[rows]
        )


def decode(
    logits: torch.Tensor,
    distances: torch.Tensor,
    *,
    input_wh: tuple[int, int],
    confidence_floor: float,
) -> list[Candidates]:
    """Candidates of every input of a batch.

    `logits` (n, classes, cells), `distances` (n, 4 * bins, cells), on any device. A cell's box
    lies `distance * stride` to each side of its centre, a distance being the expectation over
    its bins: Li et al., Generalized Focal Loss, 2020, equation 4.
    """
    with torch.inference_mode():
        best, classes = logits.max(dim=1)
        floor_logit = math.log(confidence_floor / (1 - confidence_floor))
        images, cells = (best > floor_logit).nonzero(as_tuple=True)
        centres, strides = _grid(input_wh, str(logits.device))
        bins = distances.shape[1] // 4
        weights = distances[images, :, cells].float().view(-1, 4, bins).softmax(dim=-1)
        sides = (weights * torch.arange(bins, device=weights.device)).sum(dim=-1)
        sides = sides * strides[cells, None]
        boxes = torch.cat((centres[cells] - sides[:, :2], centres[cells] + sides[:, 2:]), dim=1)
        confidences = best[images, cells].float().sigmoid()
        found = (classes[images, cells], confidences, boxes)
        class_ids, scores, boxes_xyxy = (part.cpu().numpy() for part in found)
        # Rows come ordered by image, so that each image's own are a slice.
        ends = torch.bincount(images, minlength=len(logits)).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    return [
        Candidates.whole(class_ids[a:b], scores[a:b], boxes_xyxy[a:b]).best(MAX_CANDIDATES)
        for a, b in zip(starts, ends, strict=True)
    ]


@lru_cache(maxsize=64)  # that of the largest input takes a megabyte, and there are thousands
def _grid(input_wh: tuple[int, int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres (cells, 2) in pixels and strides (cells,) of the network's output cells."""
    centres, steps = [], []
    for stride in STRIDES:
        across, down = input_wh[0] // stride, input_wh[1] // stride
        y, x = torch.meshgrid(torch.arange(down), torch.arange(across), indexing="ij")
        centres.append((torch.stack((x, y), dim=-1).view(-1, 2) + 0.5) * stride)
        steps.append(torch.full((across * down,), float(stride)))
    return torch.cat(centres).to(device), torch.cat(steps).to(device)
