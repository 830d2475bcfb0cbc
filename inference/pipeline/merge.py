"""Reduces many overlapping candidate boxes to one per object.

Three rules, all greedy from the most confident candidate on. Non-maximum suppression ("nms") drops
what overlaps a kept box. Non-maximum merging ("nmm") lets the kept box grow around it, which makes
one whole object of the parts that neighbouring tiles show. Voting ("vote") moves the kept box to
the mean of those that nearly agree with it: Gidaris and Komodakis, Object Detection via a
Multi-region and Semantic Segmentation-aware CNN Model, 2015, section 5.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from inference.pipeline.options import (
    DEFAULT_IOU,
    MAX_DETECTIONS_LIMIT,
    MergeRule,
    OverlapMetric,
)

Indices = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]

_NOBODY = -1
_PIECE = 0.7  # of a piece lies within the whole
_MOST_WHOLES, _CUT_AT_A_TIME = 1000, 256  # bounds the memory of a crowd
_AGREEMENT = 0.7  # the intersection over union from which on a dropped box has a vote


def iou_matrix(boxes_xyxy: npt.NDArray[Any], others_xyxy: npt.NDArray[Any]) -> Floats:
    """Intersection over union of every box (n, 4) with every other (m, 4), shape (n, m).

    Boxes without an area have an overlap of 0 with everything, themselves included.
    """
    return overlap_matrix(boxes_xyxy, others_xyxy, metric="iou")


def overlap_matrix(
    boxes_xyxy: npt.NDArray[Any], others_xyxy: npt.NDArray[Any], *, metric: OverlapMetric
) -> Floats:
    """Intersection of every box (n, 4) with every other (m, 4), as a share: shape (n, m).

    `metric`: of the union of both ("iou") or of the smaller one ("ios"). Boxes without an area
    have an overlap of 0 with everything, themselves included.
    """
    boxes, others = boxes_xyxy.astype(np.float64), others_xyxy.astype(np.float64)
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    sides -= np.maximum(boxes[:, None, :2], others[None, :, :2])
    np.maximum(sides, 0, out=sides)
    intersections = sides[..., 0] * sides[..., 1]
    areas, other_areas = _areas(boxes)[:, None], _areas(others)[None, :]
    if metric == "ios":
        whole = np.minimum(areas, other_areas)
    else:
        whole = areas + other_areas - intersections
    return _shares(intersections, whole)


def merge(
    class_ids: npt.NDArray[np.integer],
    confidences: npt.NDArray[np.float32],
    boxes_xyxy: npt.NDArray[np.float32],
    *,
    rule: MergeRule = "nms",
    metric: OverlapMetric = "iou",
    iou: float = DEFAULT_IOU,
    max_detections: int = MAX_DETECTIONS_LIMIT,
    one_class_per_object: bool = False,
) -> tuple[Indices, npt.NDArray[np.float32]]:
    """Indices (k,) of the candidates kept, the most confident first, and their boxes (k, 4).

    A candidate goes when a more confident one that was kept before overlaps it by more than
    `iou`, measured by `metric`. Only candidates of one class are compared;
    `one_class_per_object` drops those of other classes as well, always by their intersection over
    union, so that a car beside a slanting bus does not count as a part of it. Under the rule
    "nmm" a kept box becomes, in the order of their confidences, the union with each candidate of
    its class that it has dropped and that overlaps, as it has grown by then, by more than `iou`;
    under "vote" it becomes the mean, weighted by confidence, of itself and those dropped ones that
    agree with it; under "nms" the boxes come back as they were.

    `class_ids` (n,), `confidences` (n,), `boxes_xyxy` (n, 4). Equal confidences are ordered by
    class and coordinates, so that the result does not depend on the order of the candidates.
    Candidates are sorted along one axis, so that only near ones are compared.
    """
    order = np.lexsort((*boxes_xyxy.T[::-1], class_ids, -confidences))
    ranked = boxes_xyxy[order].astype(np.float64)
    field = _Field(class_ids[order], ranked, metric=metric, iou=iou, mixed=one_class_per_object)
    kept, owners = _suppress(field, max_detections)
    if rule == "nmm":
        _grow(kept, owners, class_ids[order], ranked, metric=metric, iou=iou)
    elif rule == "vote":
        _vote(kept, owners, confidences[order], ranked)
    return order[kept], ranked[kept].astype(np.float32)


def are_fragments(
    class_ids: npt.NDArray[np.integer],
    confidences: npt.NDArray[np.float32],
    boxes_xyxy: npt.NDArray[np.float32],
    is_cut: npt.NDArray[np.bool_],
    *,
    one_class_per_object: bool = False,
) -> npt.NDArray[np.bool_]:
    """Which candidates (n,) are pieces of objects that are there as a whole.

    A tile that is smaller than an object shows a piece of it, whose overlap with the whole is too
    little for suppression. It goes where most of it lies within an uncut box that is larger, of
    its class (of any, with `one_class_per_object`) and at least half as certain. `is_cut` (n,):
    which boxes end at a tile's edge.
    """
    fragments = np.zeros(len(confidences), np.bool_)
    cut = np.flatnonzero(is_cut)
    if not len(cut):
        return fragments
    areas = _areas(boxes_xyxy.astype(np.float64))
    large = np.flatnonzero(~is_cut & (areas > areas[cut].min()))
    large = large[np.argsort(-confidences[large], kind="stable")[:_MOST_WHOLES]]
    for rows in np.array_split(cut, len(cut) // _CUT_AT_A_TIME + 1):
        # The smaller one is the piece, so the share is that of the piece.
        within = overlap_matrix(boxes_xyxy[rows], boxes_xyxy[large], metric="ios") >= _PIECE
        within &= areas[large] > areas[rows, None]
        within &= confidences[large] >= confidences[rows, None] / 2
        if not one_class_per_object:
            within &= class_ids[large] == class_ids[rows, None]
        fragments[rows] = within.any(axis=1)
    return fragments


class _Field:
    """Candidates in the order of their ranks, and laid out so that near ones lie side by side.

    The layout is a sort by group (the class, unless classes are mixed) and by the nearer edge of
    one axis: whatever can overlap a candidate enough lies in one slice of it.
    """

    def __init__(
        self,
        class_ids: npt.NDArray[np.integer],
        boxes: Floats,
        *,
        metric: OverlapMetric,
        iou: float,
        mixed: bool,
    ) -> None:
        self._metric = metric
        self._iou = iou
        groups = (
            np.zeros(len(boxes), np.intp) if mixed else np.unique(class_ids, return_inverse=True)[1]
        )
        layouts = [
            _slices(boxes[:, axis], boxes[:, axis + 2], groups, metric, iou) for axis in (0, 1)
        ]
        # A row of boxes is best cut across its length, and so is a column.
        places, self.starts, self.ends = min(layouts, key=lambda one: (one[2] - one[1]).sum())
        self.ranks = places
        laid_out = boxes[places]
        self._left, self._top, self._right, self._bottom = np.ascontiguousarray(laid_out.T)
        self._area = _areas(laid_out)
        self._class = class_ids[places] if mixed else None
        self.place_of_rank = np.empty_like(places)
        self.place_of_rank[places] = np.arange(len(places))

    def overlapping(self, place: int, start: int, end: int) -> npt.NDArray[np.bool_]:
        """Which candidates of the places from `start` to `end` the one at `place` suppresses."""
        near = slice(start, end)
        widths = np.minimum(self._right[near], self._right[place])
        widths -= np.maximum(self._left[near], self._left[place])
        heights = np.minimum(self._bottom[near], self._bottom[place])
        heights -= np.maximum(self._top[near], self._top[place])
        intersections = np.maximum(widths, 0) * np.maximum(heights, 0)
        areas, area = self._area[near], self._area[place]
        whole = areas + area - intersections
        if self._metric == "ios":
            smaller = np.minimum(areas, area)
            if self._class is None:
                whole = smaller
            else:
                whole = np.where(self._class[near] == self._class[place], smaller, whole)
        return _shares(intersections, whole) > self._iou


def _slices(
    near_edges: Floats,
    far_edges: Floats,
    groups: Indices,
    metric: OverlapMetric,
    iou: float,
) -> tuple[Indices, Indices, Indices]:
    """The candidates sorted along an axis and, by their rank, where each one's neighbours lie."""
    places = np.lexsort((near_edges, groups))
    if not len(places):
        return places, places, places
    lengths = far_edges - near_edges
    reach = np.full_like(lengths, lengths.max())
    if metric == "iou" and iou > 0:
        # Boxes that share more than `iou` of their union differ by less than that in length. The
        # margin is far beyond what rounding can amount to.
        reach = np.minimum(reach, lengths / iou * 1.001)
    # Groups are set so far apart that no slice reaches into the next.
    lowest = near_edges.min()
    step = 2 * (far_edges.max() - lowest + lengths.max() + 1)
    offsets = groups * step - lowest
    keys = (near_edges + offsets)[places]
    starts = np.searchsorted(keys, near_edges - reach + offsets - 0.001, side="left")
    ends = np.searchsorted(keys, far_edges + offsets + 0.001, side="right")
    return places, starts, ends


def _suppress(field: _Field, max_detections: int) -> tuple[Indices, Indices]:
    """The ranks kept, ascending, and by rank the position in them of the one that dropped it."""
    count = len(field.ranks)
    owners = np.full(count, _NOBODY, np.intp)  # by place
    kept: list[int] = []
    starts, ends, places = (
        part.tolist() for part in (field.starts, field.ends, field.place_of_rank)
    )
    for rank, place in enumerate(places):
        if owners[place] != _NOBODY:
            continue
        if len(kept) == max_detections:
            break
        start, end = starts[rank], ends[rank]
        owners[place] = len(kept)
        if end - start > 1:
            near = owners[start:end]
            near[field.overlapping(place, start, end) & (near == _NOBODY)] = len(kept)
        kept.append(rank)
    return np.array(kept, np.intp), owners[field.place_of_rank]


def _grow(
    kept: Indices,
    owners: Indices,
    class_ids: npt.NDArray[np.integer],
    boxes: Floats,
    *,
    metric: OverlapMetric,
    iou: float,
) -> None:
    """Let the kept boxes grow in place around those that they dropped; all are given by rank.

    One after the other, because each step depends on the one before; plain numbers are several
    times faster than arrays of one.
    """
    dropped = owners != _NOBODY
    dropped[kept] = False
    ranks = np.flatnonzero(dropped)
    ranks = ranks[class_ids[ranks] == class_ids[kept[owners[ranks]]]]
    grown = [tuple(box) for box in boxes[kept].tolist()]
    for owner, (left, top, right, bottom) in zip(
        owners[ranks].tolist(), boxes[ranks].tolist(), strict=True
    ):
        x1, y1, x2, y2 = grown[owner]
        # Never without an area: it overlaps the box that dropped it, around which this has grown.
        intersection = (min(right, x2) - max(left, x1)) * (min(bottom, y2) - max(top, y1))
        area, grown_area = (right - left) * (bottom - top), (x2 - x1) * (y2 - y1)
        whole = min(area, grown_area) if metric == "ios" else area + grown_area - intersection
        if intersection / whole > iou:
            grown[owner] = min(left, x1), min(top, y1), max(right, x2), max(bottom, y2)
    if len(kept):
        boxes[kept] = grown


def _vote(
    kept: Indices, owners: Indices, confidences: npt.NDArray[np.float32], boxes: Floats
) -> None:
    """Move the kept boxes in place to where those that agree with them lie; all by rank."""
    ranks = np.flatnonzero(owners != _NOBODY)
    voters, theirs = boxes[ranks], boxes[kept[owners[ranks]]]
    sides = np.minimum(voters[:, 2:], theirs[:, 2:]) - np.maximum(voters[:, :2], theirs[:, :2])
    intersections = np.maximum(sides, 0).prod(axis=1)
    unions = _areas(voters) + _areas(theirs) - intersections
    # A kept box votes for itself, also when it has no area.
    agrees = (_shares(intersections, unions) >= _AGREEMENT) | (ranks == kept[owners[ranks]])
    ranks = ranks[agrees]
    weights = np.bincount(owners[ranks], confidences[ranks], len(kept))
    sums = np.zeros((len(kept), 4))
    np.add.at(sums, owners[ranks], boxes[ranks] * confidences[ranks, None])
    # Boxes without any confidence stay where they are.
    moved = weights > 0
    boxes[kept[moved]] = sums[moved] / weights[moved, None]


def _shares(intersections: Floats, whole: Floats) -> Floats:
    return np.divide(intersections, whole, out=np.zeros_like(intersections), where=whole > 0)


def _areas(boxes_xyxy: Floats) -> Floats:
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    return sides[:, 0] * sides[:, 1]
