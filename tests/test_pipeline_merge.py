"""Many overlapping candidates become one box per object."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.pipeline.merge import iou_matrix, merge
from inference.pipeline.types import Detections


@st.composite
def candidates(draw):
    """Up to 60 boxes on a small field, so that many overlap, also with equal confidences."""
    count = draw(st.integers(0, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    left_top = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate((left_top, left_top + rng.uniform(0, 20, (count, 2))), axis=1)
    return (
        rng.integers(0, 3, count),
        (rng.integers(1, 20, count) / 20).astype(np.float32),
        boxes.astype(np.float32),
    )


def rows(class_ids, confidences, boxes, keep):
    return [(int(class_ids[i]), float(confidences[i]), *map(float, boxes[i])) for i in keep]


def merged_one_by_one(class_ids, confidences, boxes, iou):
    """The definition, written as plainly as possible."""
    kept = []
    order = sorted(
        range(len(boxes)), key=lambda i: (-confidences[i], class_ids[i], *boxes[i].tolist())
    )
    for i in order:
        if not any(
            class_ids[i] == class_ids[j] and iou_matrix(boxes[[i]], boxes[[j]])[0, 0] > iou
            for j in kept
        ):
            kept.append(i)
    return kept


def test_iou_of_two_half_overlapping_squares_is_a_third():
    squares = np.array([[0, 0, 2, 2], [1, 0, 3, 2]], np.float32)
    assert iou_matrix(squares, squares).tolist() == [
        [1, pytest.approx(1 / 3)],
        [pytest.approx(1 / 3), 1],
    ]


def test_box_without_area_overlaps_nothing():
    point = np.array([[1, 1, 1, 1]], np.float32)
    assert iou_matrix(point, point).tolist() == [[0]]


def test_weaker_of_two_overlapping_boxes_of_a_class_goes():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    keep = merge(np.zeros(3, int), np.array([0.6, 0.9, 0.3], np.float32), boxes, iou=0.5)
    assert keep.tolist() == [1, 2]


def test_overlapping_boxes_of_different_classes_both_stay():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    keep = merge(np.array([0, 1]), np.array([0.6, 0.9], np.float32), boxes, iou=0.5)
    assert keep.tolist() == [1, 0]


def test_no_candidates_give_no_boxes():
    empty = Detections.empty()
    assert merge(empty.class_ids, empty.confidences, empty.boxes_xyxy).tolist() == []


def test_only_the_most_confident_are_kept_beyond_the_limit():
    boxes = np.array([[i * 20, 0, i * 20 + 10, 10] for i in range(1000)], np.float32)
    confidences = np.linspace(0.1, 0.9, 1000).astype(np.float32)
    keep = merge(np.zeros(1000, int), confidences, boxes, max_detections=3)
    assert keep.tolist() == [999, 998, 997]


def test_blocks_give_what_one_by_one_gives():
    rng = np.random.default_rng(5)
    left_top = rng.uniform(0, 100, (400, 2))  # more than one block of candidates
    boxes = np.concatenate((left_top, left_top + rng.uniform(5, 30, (400, 2))), axis=1)
    boxes = boxes.astype(np.float32)
    class_ids, confidences = rng.integers(0, 2, 400), rng.random(400).astype(np.float32)
    expected = merged_one_by_one(class_ids, confidences, boxes, 0.5)
    assert 50 < len(expected) < 390
    keep = merge(class_ids, confidences, boxes, iou=0.5, max_detections=400)
    assert keep.tolist() == expected


@given(candidates(), st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]))
@settings(deadline=None, max_examples=80)
def test_merging_follows_its_definition(given_candidates, iou):
    keep = merge(*given_candidates, iou=iou)
    expected = merged_one_by_one(*given_candidates, iou)
    assert rows(*given_candidates, keep) == rows(*given_candidates, expected)


@given(candidates())
@settings(deadline=None, max_examples=50)
def test_merging_twice_changes_nothing(given_candidates):
    keep = merge(*given_candidates, iou=0.5)
    once = [part[keep] for part in given_candidates]
    assert merge(*once, iou=0.5).tolist() == list(range(len(keep)))


@given(candidates())
@settings(deadline=None, max_examples=50)
def test_no_two_kept_boxes_of_a_class_overlap_above_the_threshold(given_candidates):
    class_ids, _, boxes = (part[merge(*given_candidates, iou=0.5)] for part in given_candidates)
    for class_id in set(class_ids.tolist()):
        of_class = boxes[class_ids == class_id]
        overlaps = iou_matrix(of_class, of_class) - 2 * np.eye(len(of_class), dtype=np.float32)
        assert overlaps.max() <= 0.5


@given(candidates(), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_order_of_the_candidates_does_not_matter(given_candidates, random):
    order = list(range(len(given_candidates[0])))
    random.shuffle(order)
    shuffled = tuple(part[order] for part in given_candidates)
    keep, keep_shuffled = merge(*given_candidates, iou=0.5), merge(*shuffled, iou=0.5)
    assert rows(*given_candidates, keep) == rows(*shuffled, keep_shuffled)


@given(candidates())
@settings(deadline=None, max_examples=50)
def test_most_confident_candidate_of_each_class_is_kept(given_candidates):
    class_ids, confidences, _ = given_candidates
    keep = merge(*given_candidates, iou=0.5)
    for class_id in set(class_ids.tolist()):
        best = confidences[class_ids == class_id].max()
        assert best in confidences[keep][class_ids[keep] == class_id]
    assert (np.diff(confidences[keep]) <= 0).all()


@pytest.mark.parametrize(
    ("class_ids", "confidences", "boxes", "sentence"),
    [
        ([0.0], [0.5], [[0, 0, 1, 1]], "class_ids must be an array of int16"),
        ([-1], [0.5], [[0, 0, 1, 1]], "class_ids must not be negative"),
        ([0], [1.5], [[0, 0, 1, 1]], r"confidences must lie in \[0, 1\]"),
        ([0], [float("nan")], [[0, 0, 1, 1]], r"confidences must lie in \[0, 1\]"),
        ([0], [0.5], [[0, 0, float("inf"), 1]], "boxes_xyxy must be finite"),
        ([0], [0.5], [[2, 0, 1, 1]], "boxes_xyxy must run from left to right"),
        ([0, 0], [0.5], [[0, 0, 1, 1]], "must have the shape"),
        ([0], [0.5], [[0, 0, 1]], "must have the shape"),
    ],
)
def test_impossible_detections_are_refused(class_ids, confidences, boxes, sentence):
    kind = np.int16 if all(isinstance(c, int) for c in class_ids) else np.float64
    with pytest.raises(ValueError, match=sentence):
        Detections(
            np.array(class_ids, kind),
            np.array(confidences, np.float32),
            np.array(boxes, np.float32),
        )


def test_detections_cannot_be_changed_and_leave_the_callers_array_writable():
    confidences = np.array([0.5], np.float32)
    found = Detections(np.array([0], np.int16), confidences, np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        found.confidences[0] = 0.1
    confidences[0] = 0.25
    assert len(found.above(0.25)) == 1


def test_confidence_of_exactly_the_limit_is_above_it():
    found = Detections(
        np.array([0, 1, 2], np.int16),
        np.array([0.7, 0.25, 0.2499], np.float32),
        np.zeros((3, 4), np.float32),
    )
    assert found.above(0.25).class_ids.tolist() == [0, 1]
    assert found.above(0.7).class_ids.tolist() == [0]
    assert len(Detections.empty().above(0.25)) == 0
