"""Drawn streets have known boxes, and the first weights find what is drawn."""

import numpy as np
import pytest

from inference.pipeline.options import DEFAULT_IMAGE_SIZE
from inference.scenes import draw_scene, draw_video_scene, match_boxes, pair_boxes
from tests.pipeline_fakes import real_detector


@pytest.mark.parametrize("seed", range(900, 906))
def test_drawn_vehicles_are_found_and_nothing_else(seed):
    scene = draw_scene(seed)
    boxes = real_detector().detect([scene.image])[0].above(0.25).boxes_xyxy
    found, false = match_boxes(scene.boxes_xyxy, boxes)
    assert found >= 8
    assert false <= 2


@pytest.mark.parametrize("size_wh", [(1280, 720), (480, 640)])
def test_vehicles_are_15_to_40_pixels_long_in_the_networks_input(size_wh):
    scene = draw_scene(7, size_wh, 6)
    assert scene.image.shape == (size_wh[1], size_wh[0], 3)
    assert scene.image.dtype == np.uint8
    assert scene.boxes_xyxy.shape == (6, 4)
    assert scene.class_ids.tolist() == [0] * 6
    sides = (scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]) * DEFAULT_IMAGE_SIZE / max(size_wh)
    assert sides.max(axis=1).min() >= 15
    assert sides.max() <= 40
    assert scene.boxes_xyxy.min() >= 0
    assert (scene.boxes_xyxy[:, 2:] <= size_wh).all()


def test_true_boxes_stand_where_something_was_drawn():
    with_cars, empty = draw_scene(8, (640, 360), 6), draw_scene(8, (640, 360), 0)
    difference = np.abs(with_cars.image.astype(int) - empty.image).max(axis=2) > 12
    inside = np.zeros_like(difference)
    for left, top, right, bottom in with_cars.boxes_xyxy.round().astype(int):
        inside[top:bottom, left:right] = True
        assert difference[top:bottom, left:right].mean() > 0.2
    near = np.zeros_like(difference)
    for left, top, right, bottom in with_cars.boxes_xyxy.round().astype(int):
        near[max(0, top - 12) : bottom + 12, max(0, left - 12) : right + 12] = True
    assert not difference[~near].any(), "only shadows lie outside the boxes, and close to them"


def test_same_seed_gives_the_same_picture_and_another_seed_another():
    one, same, other = (draw_scene(seed, (320, 180), 3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.boxes_xyxy, same.boxes_xyxy)
    assert (one.image != other.image).any()


def test_picture_without_room_is_refused():
    with pytest.raises(ValueError, match="has room for"):
        draw_scene(1, (320, 180), 500)


def test_vehicles_of_a_video_drive_and_parked_ones_stand():
    frames = list(draw_video_scene(10, 3, (640, 360), 12, frames_per_second=2))
    first, last = frames[0].boxes_xyxy, frames[-1].boxes_xyxy
    assert len(first) == 12
    stayed = match_boxes(first, last, iou=0.99)[0]
    assert 0 < stayed < 12


def test_pairs_are_made_one_to_one():
    true = np.array([[0, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    twice = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60]], np.float32)
    assert match_boxes(true, twice) == (1, 2)
    assert pair_boxes(true, twice[::-1]) == [(0, 2)]
    assert match_boxes(true, true) == (2, 0)
    assert match_boxes(true, np.zeros((0, 4), np.float32)) == (0, 0)
    assert match_boxes(np.zeros((0, 4), np.float32), twice) == (0, 3)


def test_overlap_below_the_threshold_is_no_match():
    true = np.array([[0, 0, 10, 10]], np.float32)
    shifted = np.array([[4, 0, 14, 10]], np.float32)  # overlap 60 / 140
    assert match_boxes(true, shifted) == (0, 1)
    assert match_boxes(true, shifted, iou=0.42) == (1, 0)
