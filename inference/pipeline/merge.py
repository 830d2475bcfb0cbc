"""Reduces many overlapping candidate boxes to one per object (non-maximum suppression)."""

import numpy as np
import numpy.typing as npt

from inference.pipeline.options import DEFAULT_IOU, MAX_DETECTIONS_LIMIT

Indices = npt.NDArray[np.intp]

# Candidates are compared in blocks: large enough that numpy's overhead vanishes, small enough
# that a block's matrix of overlaps stays in the processor's cache.
_BLOCK_LENGTH = 256


def iou_matrix(
    boxes_xyxy: npt.NDArray[np.float32], others_xyxy: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Intersection over union of every box (n, 4) with every other (m, 4), shape (n, m).

    Boxes without an area have an overlap of 0 with everything, themselves included.
    """
    left_top = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    right_bottom = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    sides = np.maximum(right_bottom - left_top, 0)
    intersection = sides[..., 0] * sides[..., 1]
    union = _areas(boxes_xyxy)[:, None] + _areas(others_xyxy)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def merge(
    class_ids: npt.NDArray[np.integer],
    confidences: npt.NDArray[np.float32],
    boxes_xyxy: npt.NDArray[np.float32],
    *,
    iou: float = DEFAULT_IOU,
    max_detections: int = MAX_DETECTIONS_LIMIT,
) -> Indices:
    """Indices of the boxes to keep, the most confident first, at most `max_detections`.

    Greedy suppression within each class: a box goes when one of its class that was kept before
    it overlaps it by more than `iou`. `class_ids` (n,), `confidences` (n,), `boxes_xyxy` (n, 4).
    Equal confidences are ordered by class and coordinates, so that the boxes kept do not depend
    on the order in which they came. Candidates are taken in blocks, and the work ends as soon
    as `max_detections` are kept, because later ones are less confident than all of these.
    """
    order = np.lexsort((*boxes_xyxy.T[::-1], class_ids, -confidences))
    kept: list[Indices] = []
    kept_count = 0
    for start in range(0, len(order), _BLOCK_LENGTH):
        block = order[start : start + _BLOCK_LENGTH]
        for earlier in kept:
            overlaps = _suppressions(class_ids, boxes_xyxy, block, earlier, iou)
            block = block[~overlaps.any(axis=1)]
        block = _merge_block(class_ids, boxes_xyxy, block, iou)[: max_detections - kept_count]
        if len(block):
            kept.append(block)
            kept_count += len(block)
        if kept_count >= max_detections:
            break
    return np.concatenate(kept) if kept else np.zeros(0, np.intp)


def _merge_block(
    class_ids: npt.NDArray[np.integer],
    boxes_xyxy: npt.NDArray[np.float32],
    block: Indices,
    iou: float,
) -> Indices:
    overlaps = _suppressions(class_ids, boxes_xyxy, block, block, iou)
    alive = np.ones(len(block), bool)
    # Only boxes that overlap a later one can change anything.
    for position in np.flatnonzero(np.triu(overlaps, 1).any(axis=1)):
        if alive[position]:
            alive[position + 1 :] &= ~overlaps[position, position + 1 :]
    return block[alive]


def _suppressions(
    class_ids: npt.NDArray[np.integer],
    boxes_xyxy: npt.NDArray[np.float32],
    first: Indices,
    second: Indices,
    iou: float,
) -> npt.NDArray[np.bool_]:
    same_class = class_ids[first][:, None] == class_ids[second][None, :]
    return same_class & (iou_matrix(boxes_xyxy[first], boxes_xyxy[second]) > iou)


def _areas(boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return sides[:, 0] * sides[:, 1]
