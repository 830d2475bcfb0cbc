"""Many overlapping candidates become one box per object."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.pipeline.merge import are_fragments, iou_matrix, merge, overlap_matrix
from inference.pipeline.types import Detections

RULES = st.fixed_dictionaries(
    {
        "rule": st.sampled_from(["nms", "nmm"]),
        "metric": st.sampled_from(["iou", "ios"]),
        "iou": st.sampled_from([0.0, 0.3, 0.5, 0.7, 1.0]),
        "one_class_per_object": st.booleans(),
    }
)


@st.composite
def candidates(draw):
    """Up to 60 boxes in a small heap, a row or a column, so that many overlap, also with equal
    confidences, with wide ones among them and some without an area."""
    count = draw(st.integers(0, 60))
    field_wh = draw(st.sampled_from([(40, 40), (300, 0), (0, 300), (3, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    left_top = rng.uniform(-10, field_wh, (count, 2))
    sides = rng.uniform(0, 20, (count, 2)) * rng.choice([0, 1, 1, 1, 1, 8], (count, 1))
    boxes = np.concatenate((left_top, left_top + sides), axis=1).astype(np.float32)
    if draw(st.booleans()):
        boxes = boxes.round()
    return rng.integers(0, 3, count), (rng.integers(1, 20, count) / 20).astype(np.float32), boxes


def squares(*corners_and_sides):
    """Boxes (n, 4) from left, top and side."""
    rows = [(x, y, x + side, y + side) for x, y, side in corners_and_sides]
    return np.array(rows, np.float32)


def rows(class_ids, confidences, merged):
    keep, boxes = merged
    return [
        (int(class_ids[i]), float(confidences[i]), *map(float, box))
        for i, box in zip(keep, boxes, strict=True)
    ]


def share(box, other, metric):
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (box, other)]
    whole = min(areas) if metric == "ios" else sum(areas) - width * height
    return width * height / whole


def merged_one_by_one(class_ids, confidences, boxes, *, rule, metric, iou, one_class_per_object):
    """The definition, written as plainly as possible: indices and boxes."""
    boxes = [tuple(map(float, box)) for box in boxes]
    dropped_by = {}
    order = sorted(range(len(boxes)), key=lambda i: (-confidences[i], class_ids[i], *boxes[i]))
    for i in order:
        for j, dropped in dropped_by.items():
            alike = class_ids[i] == class_ids[j]
            if not alike and not one_class_per_object:
                continue
            if share(boxes[i], boxes[j], metric if alike else "iou") > iou:
                dropped.append(i)
                break
        else:
            dropped_by[i] = []
    grown = dict(enumerate(boxes))
    for j, dropped in dropped_by.items():
        for i in dropped:
            fits = class_ids[i] == class_ids[j] and share(boxes[i], grown[j], metric) > iou
            if rule == "nmm" and fits:
                (a, b, c, d), (x1, y1, x2, y2) = grown[j], boxes[i]
                grown[j] = min(a, x1), min(b, y1), max(c, x2), max(d, y2)
    return list(dropped_by), [grown[j] for j in dropped_by]


def test_iou_of_two_half_overlapping_squares_is_a_third():
    pair = squares((0, 0, 2), (1, 0, 2))
    assert iou_matrix(pair, pair).tolist() == [
        [1, pytest.approx(1 / 3)],
        [pytest.approx(1 / 3), 1],
    ]


def test_small_square_inside_a_large_one_overlaps_all_of_the_smaller():
    pair = squares((0, 0, 10), (2, 2, 5))
    assert overlap_matrix(pair, pair, metric="ios").tolist() == [[1, 1], [1, 1]]
    assert overlap_matrix(pair, pair, metric="iou").tolist() == [[1, 0.25], [0.25, 1]]


@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_box_without_area_overlaps_nothing(metric):
    point = np.array([[1, 1, 1, 1]], np.float32)
    assert overlap_matrix(point, point, metric=metric).tolist() == [[0]]


def test_weaker_of_two_overlapping_boxes_of_a_class_goes():
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    keep, kept = merge(np.zeros(3, int), np.array([0.6, 0.9, 0.3], np.float32), boxes, iou=0.5)
    assert keep.tolist() == [1, 2]
    assert kept.tolist() == boxes[[1, 2]].tolist()


def test_overlapping_boxes_of_different_classes_both_stay():
    boxes = squares((0, 0, 10), (0, 0, 10))
    keep, _ = merge(np.array([0, 1]), np.array([0.6, 0.9], np.float32), boxes, iou=0.5)
    assert keep.tolist() == [1, 0]


def test_object_of_one_class_keeps_the_more_confident_of_two_classes():
    boxes, confidences = squares((0, 0, 10), (0, 1, 10)), np.array([0.6, 0.9], np.float32)
    keep, kept = merge(
        np.array([0, 1]), confidences, boxes, rule="nmm", iou=0.5, one_class_per_object=True
    )
    assert keep.tolist() == [1]
    assert kept.tolist() == [[0, 1, 10, 11]]  # it grows around its own class only


def test_car_within_the_box_of_a_slanting_bus_stays_though_boxes_are_measured_over_the_smaller():
    boxes, confidences = squares((0, 0, 40), (25, 2, 12)), np.array([0.9, 0.8], np.float32)
    classes = np.array([2, 0])
    keep, _ = merge(classes, confidences, boxes, metric="ios", one_class_per_object=True)
    assert keep.tolist() == [0, 1]
    same_class, _ = merge(np.zeros(2, int), confidences, boxes, metric="ios")
    assert same_class.tolist() == [0]


def test_halves_of_a_bus_in_neighbouring_tiles_grow_into_the_whole():
    halves = np.array([[0, 0, 60, 20], [35, 0, 100, 20]], np.float32)
    confidences = np.array([0.8, 0.7], np.float32)
    keep, kept = merge(np.zeros(2, int), confidences, halves, rule="nmm", metric="ios", iou=0.4)
    assert keep.tolist() == [0]
    assert kept.tolist() == [[0, 0, 100, 20]]


def test_box_that_the_grown_one_hardly_overlaps_is_dropped_without_growing_it():
    # Both overlap the kept one by over half; the third does not overlap what that has become.
    boxes = np.array([[10, 0, 20, 10], [0, 0, 17, 10], [13, 0, 23, 10]], np.float32)
    confidences = np.array([0.9, 0.8, 0.7], np.float32)
    keep, kept = merge(np.zeros(3, int), confidences, boxes, rule="nmm", iou=0.34)
    assert keep.tolist() == [0]
    assert kept.tolist() == [[0, 0, 20, 10]]


def test_voting_moves_a_box_to_the_mean_of_those_that_agree_with_it():
    boxes = np.array([[0, 0, 10, 10], [2, 0, 12, 10], [6, 0, 16, 10], [40, 0, 50, 10]], np.float32)
    confidences = np.array([0.5, 0.25, 0.125, 0.75], np.float32)
    # The second overlaps the first by 2/3 of their union: it is dropped, and has no vote.
    keep, kept = merge(np.zeros(4, int), confidences, boxes, rule="vote", iou=0.2)
    assert keep.tolist() == [3, 0]
    assert kept.tolist() == [[40, 0, 50, 10], [0, 0, 10, 10]]
    boxes[1] = [1, 0, 11, 10]  # now 9/11: it has half the weight of the first
    _, kept = merge(np.zeros(4, int), confidences, boxes, rule="vote", iou=0.2)
    assert kept[1].tolist() == pytest.approx([1 / 3, 0, 10 + 1 / 3, 10])


@given(candidates(), RULES)
@settings(deadline=None, max_examples=100)
def test_voting_keeps_what_suppression_keeps_and_moves_it_only_a_little(given_candidates, rules):
    rules = {**rules, "rule": "vote"}
    keep, boxes = merge(*given_candidates, **rules)
    suppressed, unmoved = merge(*given_candidates, **{**rules, "rule": "nms"})
    assert keep.tolist() == suppressed.tolist()
    for box, before in zip(boxes, unmoved, strict=True):
        assert (box[2:] >= box[:2]).all()
        if np.prod(before[2:] - before[:2]) > 0:
            assert share(box, before, "iou") > 0.6


def test_voting_does_not_depend_on_the_order_of_the_candidates():
    rng = np.random.default_rng(5)
    left_top = rng.uniform(0, 60, (400, 2))
    boxes = np.concatenate((left_top, left_top + 20), axis=1).astype(np.float32)
    confidences = rng.random(400).astype(np.float32)
    class_ids = rng.integers(0, 3, 400)
    order = rng.permutation(400)
    keep, kept = merge(class_ids, confidences, boxes, rule="vote")
    again, kept_again = merge(class_ids[order], confidences[order], boxes[order], rule="vote")
    assert order[again].tolist() == keep.tolist()
    np.testing.assert_allclose(kept_again, kept, rtol=1e-6)


@pytest.mark.parametrize("rule", ["nms", "nmm", "vote"])
def test_no_candidates_give_no_boxes(rule):
    empty = Detections.empty()
    keep, boxes = merge(empty.class_ids, empty.confidences, empty.boxes_xyxy, rule=rule)
    assert keep.tolist() == []
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float32


def test_only_the_most_confident_are_kept_beyond_the_limit():
    boxes = np.array([[i * 20, 0, i * 20 + 10, 10] for i in range(1000)], np.float32)
    confidences = np.linspace(0.1, 0.9, 1000).astype(np.float32)
    keep, _ = merge(np.zeros(1000, int), confidences, boxes, max_detections=3)
    assert keep.tolist() == [999, 998, 997]


@given(candidates(), RULES)
@settings(deadline=None, max_examples=200)
def test_merging_follows_its_definition(given_candidates, rules):
    keep, boxes = merge(*given_candidates, **rules)
    expected_keep, expected_boxes = merged_one_by_one(*given_candidates, **rules)
    class_ids, confidences, _ = given_candidates
    assert rows(class_ids, confidences, (keep, boxes)) == rows(
        class_ids, confidences, (expected_keep, expected_boxes)
    )


@given(candidates(), RULES, st.integers(1, 8))
@settings(deadline=None, max_examples=50)
def test_limit_cuts_off_the_least_confident_and_changes_no_other(given_candidates, rules, limit):
    keep, boxes = merge(*given_candidates, **rules, max_detections=limit)
    all_kept, all_boxes = merge(*given_candidates, **rules)
    assert keep.tolist() == all_kept[:limit].tolist()
    assert boxes.tolist() == all_boxes[:limit].tolist()


@given(candidates())
@settings(deadline=None, max_examples=50)
def test_suppressing_twice_changes_nothing(given_candidates):
    keep, _ = merge(*given_candidates, iou=0.5)
    once = [part[keep] for part in given_candidates]
    assert merge(*once, iou=0.5)[0].tolist() == list(range(len(keep)))


@given(candidates(), RULES, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_order_of_the_candidates_does_not_matter(given_candidates, rules, random):
    order = list(range(len(given_candidates[0])))
    random.shuffle(order)
    shuffled = tuple(part[order] for part in given_candidates)
    assert rows(*given_candidates[:2], merge(*given_candidates, **rules)) == rows(
        *shuffled[:2], merge(*shuffled, **rules)
    )


@given(candidates(), RULES)
@settings(deadline=None, max_examples=50)
def test_boxes_that_merging_keeps_cover_the_candidates_they_come_from(given_candidates, rules):
    keep, boxes = merge(*given_candidates, **rules)
    candidates_xyxy = given_candidates[2][keep]
    assert (boxes[:, :2] <= candidates_xyxy[:, :2]).all()
    assert (boxes[:, 2:] >= candidates_xyxy[:, 2:]).all()
    assert (np.diff(given_candidates[1][keep]) <= 0).all()


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


class TestFragments:
    """A tile showed 180 of the 400 pixels of a truck that the whole image shows."""

    TRUCK, PIECE = (100, 100, 500, 180), (100, 102, 280, 178)

    def fragments(self, *, confidences=(0.6, 0.9), class_ids=(1, 1), is_cut=(False, True), **rest):
        boxes = np.array(rest.pop("boxes", (self.TRUCK, self.PIECE)), np.float32)
        return are_fragments(
            np.array(class_ids), np.array(confidences, np.float32), boxes, np.array(is_cut), **rest
        ).tolist()

    def test_piece_of_an_object_that_is_there_as_a_whole_goes(self):
        assert self.fragments() == [False, True]

    def test_suppression_alone_would_have_kept_both(self):
        boxes = np.array((self.TRUCK, self.PIECE), np.float32)
        assert iou_matrix(boxes[:1], boxes[1:]) < 0.5

    def test_box_that_no_edge_cuts_stays_wherever_it_lies(self):
        assert self.fragments(is_cut=(False, False)) == [False, False]

    def test_piece_stays_when_the_whole_is_much_less_certain(self):
        assert self.fragments(confidences=(0.44, 0.9)) == [False, False]

    def test_piece_of_another_class_goes_where_an_object_has_one_class(self):
        assert self.fragments(class_ids=(1, 2)) == [False, False]
        assert self.fragments(class_ids=(1, 2), one_class_per_object=True) == [False, True]

    def test_neighbour_that_lies_mostly_outside_stays(self):
        beside = (400, 150, 580, 226)
        assert self.fragments(boxes=(self.TRUCK, beside)) == [False, False]

    def test_pieces_do_not_drop_each_other(self):
        assert self.fragments(is_cut=(True, True)) == [False, False]

    def test_nothing_has_no_fragments(self):
        assert self.fragments(confidences=(), class_ids=(), is_cut=(), boxes=np.zeros((0, 4))) == []

    def test_crowd_of_pieces_is_judged_as_one_by_one(self):
        rng = np.random.default_rng(1)
        corners = rng.uniform(0, 300, (900, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(5, 90, (900, 2))), axis=1)
        confidences, is_cut = rng.random(900), rng.random(900) < 0.7
        expected = [
            bool(is_cut[i])
            and any(
                not is_cut[j]
                and np.prod(boxes[j, 2:] - boxes[j, :2]) > np.prod(boxes[i, 2:] - boxes[i, :2])
                and confidences[j] >= confidences[i] / 2
                and share(boxes[i], boxes[j], "ios") >= 0.7
                for j in range(900)
            )
            for i in range(900)
        ]
        found = are_fragments(
            np.zeros(900, np.int64),
            confidences,  # type: ignore[arg-type]
            boxes,  # type: ignore[arg-type]
            is_cut,
        )
        assert 100 < sum(expected) < 600
        assert found.tolist() == expected
