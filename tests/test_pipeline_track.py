"""Boxes of one object get one id through a video, and no two objects share one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.pipeline import track
from inference.pipeline.track import Tracker, track_frames
from inference.pipeline.track_quality import TrackedFrame, tracking_score
from inference.pipeline.types import UNTRACKED, Detections, FrameDetections
from inference.scenes import draw_video_scene

CAR_WH = np.array([40.0, 20.0])
FRAMES_PER_SECOND = 25


def detections(centres, confidences=None):
    """Cars of the usual size around centres (n, 2)."""
    centres = np.asarray(centres, float).reshape(-1, 2)
    boxes = np.concatenate((centres - CAR_WH / 2, centres + CAR_WH / 2), axis=1)
    if confidences is None:
        confidences = np.full(len(centres), 0.9)
    return Detections(
        np.zeros(len(centres), np.int16),
        np.asarray(confidences, np.float32),
        boxes.astype(np.float32),
    )


def video(found_by_frame, *, stride=1):
    """Frames at 25 a second, every `stride`-th of them looked at."""
    return [
        FrameDetections(index, index / FRAMES_PER_SECOND, found_by_frame[index])
        for index in range(0, len(found_by_frame), stride)
    ]


def ids_of(found_by_frame, *, stride=1):
    return [ids.tolist() for _, ids in track_frames(video(found_by_frame, stride=stride))]


def driving(frame_count, starts, velocities):
    """Centres of cars by frame, velocities in pixels a second."""
    starts, velocities = np.asarray(starts, float), np.asarray(velocities, float)
    return [starts + velocities * index / FRAMES_PER_SECOND for index in range(frame_count)]


@pytest.mark.parametrize("stride", [1, 2, 5, 10])
def test_cars_keep_their_ids_whatever_the_order_of_their_boxes(stride):
    rng = np.random.default_rng(3)
    centres = driving(60, [[0, 0], [400, 60], [200, 300]], [[120, 0], [-120, 0], [0, 0]])
    orders = [rng.permutation(3) for _ in centres]
    found = [detections(places[order]) for places, order in zip(centres, orders, strict=True)]
    first, *later = ids_of(found, stride=stride)
    name_of = dict(zip(orders[0], first, strict=True))
    assert sorted(first) == [1, 2, 3]
    for order, ids in zip(orders[::stride][1:], later, strict=True):
        assert ids == [name_of[car] for car in order]


def test_row_of_cars_is_followed_though_the_next_one_is_nearer_to_the_old_place():
    # 50 pixels between two frames, and the cars of the row are 62 to 85 apart.
    starts = [[x, 0] for x in (0, 70, 132, 217, 290, 360)]
    found = [detections(places) for places in driving(60, starts, [[125, 0]] * 6)]
    assert ids_of(found, stride=10) == [[1, 2, 3, 4, 5, 6]] * 6


@pytest.mark.parametrize("comes_nearer", [True, False])
def test_car_that_comes_or_goes_quickly_keeps_its_id(comes_nearer):
    # Every 5th frame shows it a quarter larger than before, or a fifth smaller.
    widths = 24 * 1.25 ** np.arange(9.0)
    tracker, ids = Tracker(), []
    for index, width in enumerate(widths if comes_nearer else widths[::-1]):
        centre, half = np.array([640 + 3 * width, 200 + 4 * width]), np.array([width, width]) / 2
        box = np.concatenate((centre - half, centre + half)).astype(np.float32)
        found = Detections(np.zeros(1, np.int16), np.full(1, 0.9, np.float32), box[None])
        ids += tracker.update(5 * index / FRAMES_PER_SECOND, found).tolist()
    assert ids == [1] * 9


def test_car_that_is_hidden_for_a_moment_keeps_its_id():
    centres = driving(50, [[0, 0]], [[150, 0]])
    found = [detections(places) for places in centres]
    found[20:35] = [Detections.empty()] * 15
    ids = ids_of(found)
    assert ids[:20] + ids[35:] == [[1]] * 35
    assert ids[20:35] == [[]] * 15


def test_car_that_comes_back_after_long_is_another():
    found = [detections([[0, 0]])] * 3 + [Detections.empty()] * 40 + [detections([[0, 0]])] * 2
    assert ids_of(found)[-2:] == [[2], [2]]


def test_doubtful_box_continues_a_track_and_begins_none():
    found = [
        detections([[0, 0], [300, 0]], [0.9, 0.2]),
        detections([[2, 0], [300, 0]], [0.15, 0.2]),
        detections([[4, 0], [300, 0]], [0.8, 0.2]),
    ]
    assert ids_of(found) == [[1, UNTRACKED]] * 3


def test_box_too_doubtful_for_anything_has_no_id():
    found = [detections([[0, 0]]), detections([[1, 0]], [0.07]), detections([[2, 0]])]
    assert ids_of(found) == [[1], [UNTRACKED], [1]]


def test_clock_that_stands_or_runs_back_breaks_nothing():
    found = detections([[0, 0], [100, 0]])
    frames = [FrameDetections(index, seconds, found) for index, seconds in enumerate((1, 1, 0, 0))]
    assert [ids.tolist() for _, ids in track_frames(frames)] == [[1, 2]] * 4


def test_variable_rate_is_followed_by_its_clock():
    seconds = [0, 0.04, 0.08, 0.12, 0.5, 0.54, 0.9]
    frames = [
        FrameDetections(index, time, detections([[200 * time, 0], [200 * time - 90, 0]]))
        for index, time in enumerate(seconds)
    ]
    assert [ids.tolist() for _, ids in track_frames(frames)] == [[1, 2]] * 7


@pytest.mark.parametrize("pause_seconds", [2, 20, 3600])
def test_after_a_pause_a_car_elsewhere_is_another_and_a_parked_one_is_not(pause_seconds):
    tracker = Tracker()
    for index in range(50):
        assert tracker.update(index / 25, detections([[100, 100]])).tolist() == [1]
    after = 2 + pause_seconds
    assert tracker.update(after, detections([[1500, 800], [101, 100]])).tolist() == [2, 1]


def test_frames_that_are_far_apart_from_some_time_on_are_no_pauses():
    tracker = Tracker()
    seconds = [index / 25 for index in range(20)] + [20.0 + index * 5 for index in range(20)]
    # So fast that a second's motion is far from where it is after five.
    ids = [tracker.update(at, detections([[60 * at, 100]])).tolist() for at in seconds]
    assert ids[:20] == [[1]] * 20
    assert len({tuple(one) for one in ids[24:]}) == 1


def test_objects_that_are_gone_take_no_memory():
    tracker = Tracker()
    for index in range(400):  # a new car every frame, each seen once
        tracker.update(index / FRAMES_PER_SECOND, detections([[500 * index, 0]]))
    assert tracker.update(16.0, detections([[0, 0]])).tolist() == [401]
    assert tracker.followed_count <= FRAMES_PER_SECOND + 2


def test_clock_that_stands_does_not_let_tracks_grow_without_end(monkeypatch):
    monkeypatch.setattr(track, "MAX_TRACKS", 10)
    tracker = Tracker()
    followed = [0.0, 0.0]
    for index in range(1, 40):  # four new cars every frame, and one that stays
        strangers = [[500 * (4 * index + lane), 0] for lane in range(4)]
        ids = tracker.update(0.0, detections([followed, *strangers]))
        assert ids[0] == 1
        assert tracker.followed_count <= 10 + len(ids)
    # Who was seen last is still known.
    assert tracker.update(0.0, detections(strangers)).tolist() == ids[1:].tolist()


@st.composite
def scattered_frames(draw):
    """A few frames of up to 12 boxes anywhere, also on top of each other."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    frames = []
    for _ in range(draw(st.integers(1, 6))):
        count = draw(st.integers(0, 12))
        confidences = np.sort(rng.uniform(0.05, 1, count))[::-1]
        frames.append(detections(rng.integers(0, 8, (count, 2)) * 15, confidences))
    return frames


@given(scattered_frames(), st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=60)
def test_no_id_is_twice_in_a_frame_and_every_confident_box_has_one(found, stride):
    ids = ids_of(found, stride=stride)
    for frame, of_frame in zip(found[::stride], ids, strict=True):
        given_ids = [one for one in of_frame if one != UNTRACKED]
        assert len(set(given_ids)) == len(given_ids)
        confident = frame.confidences >= np.float32(0.25)
        assert all(one > 0 for one, sure in zip(of_frame, confident, strict=True) if sure)
    assert ids == ids_of(found, stride=stride)  # a pass made again gives the same


def tracked(*found_ids):
    """Two true cars that are found where they are, under these ids."""
    boxes = detections([[0, 0], [100, 0]]).boxes_xyxy
    true_ids = np.array([7, 8], np.int32)
    return [TrackedFrame(boxes, true_ids, boxes, np.array(ids, np.int32)) for ids in found_ids]


def test_right_ids_score_one():
    score = tracking_score(tracked((1, 2), (1, 2)))
    assert (score.idf1, score.id_switches, score.true_count) == (1.0, 0, 4)


def test_exchanged_ids_cost_both_cars():
    score = tracking_score(tracked((1, 2), (1, 2), (1, 2), (2, 1)))
    assert (score.idf1, score.id_switches) == (0.75, 2)


def test_drawn_street_knows_its_vehicles_by_name():
    frames = list(draw_video_scene(12, 40, (320, 180), 6, frames_per_second=2))
    first, second = frames[:2]
    assert len(set(first.object_ids.tolist())) == len(first.object_ids) == 6
    parked = [
        (one, other)
        for one, box in zip(first.object_ids, first.boxes_xyxy, strict=True)
        for other, later in zip(second.object_ids, second.boxes_xyxy, strict=True)
        if np.array_equal(box, later)
    ]
    assert parked
    assert all(one == other for one, other in parked)
    # Who returns to the picture after leaving it is somebody else.
    assert max(frames[-1].object_ids) >= 6
