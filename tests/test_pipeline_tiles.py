"""An image is cut into parts that cover it, overlap as asked for and share one input size."""

import tracemalloc
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.pipeline import detector
from inference.pipeline.detector import YoloDetector
from inference.pipeline.heads import Candidates
from inference.pipeline.layout import View, lay_out
from inference.pipeline.merge import iou_matrix
from inference.pipeline.options import DetectionOptions, Tiling
from inference.pipeline.tiles import MAX_PARTS, part_count, plan
from inference.scenes import draw_scene, match_boxes
from tests.pipeline_fakes import real_detector, small_detector


def rectangles(parts):
    return [(*part.left_top, *part.right_bottom) for part in parts]


def options(tiling, image_size=640):
    return DetectionOptions(image_size=image_size, tiling=tiling)


def test_without_tiling_the_whole_image_is_the_only_part():
    assert rectangles(plan((4000, 3000), options("off"))) == [(0, 0, 4000, 3000)]


def test_tiles_follow_the_whole_image_row_by_row():
    parts = plan((1000, 640), options(Tiling(640, 0.2)))
    assert rectangles(parts) == [(0, 0, 1000, 640), (0, 0, 640, 640), (360, 0, 1000, 640)]
    assert [part.letterbox.input_wh for part in parts] == [(640, 416), (640, 640), (640, 640)]


def test_tiles_of_a_photograph_of_eight_megapixels():
    parts = plan((3264, 2448), options(Tiling(640, 0.2)))
    assert len(parts) == 1 + 7 * 5
    assert rectangles(parts)[1] == (0, 0, 640, 640)
    assert rectangles(parts)[-1] == (3264 - 640, 2448 - 640, 3264, 2448)


@pytest.mark.parametrize(
    ("size_wh", "sides"),
    [
        ((640, 480), {}),
        ((641, 480), {480: 2}),
        ((1280, 720), {480: 4 * 2}),
        ((1920, 1080), {480: 5 * 3, 960: 3 * 2}),
        ((4000, 2250), {480: 11 * 6, 960: 5 * 3, 1920: 3 * 2}),
        ((30_000, 20_000), {1920: 20 * 13, 3840: 10 * 7, 7680: 5 * 4, 15_360: 3 * 2}),
    ],
)
def test_auto_takes_tiles_of_several_sizes_for_what_the_input_would_shrink(size_wh, sides):
    chosen = options("auto")
    whole, *tiles = rectangles(plan(size_wh, chosen))
    assert whole == (0, 0, *size_wh)
    found = Counter(max(right - left, bottom - top) for left, top, right, bottom in tiles)
    assert found == sides
    assert part_count(size_wh, chosen) == 1 + len(tiles) <= MAX_PARTS


@given(
    size_wh=st.tuples(st.integers(700, 9000), st.integers(100, 9000)),
    box_wh=st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_object_of_any_size_is_told_of_by_a_part_that_shows_it_large_enough(size_wh, box_wh, place):
    box_wh = [min(side, whole) for side, whole in zip(box_wh, size_wh, strict=True)]
    spans = zip(place, size_wh, box_wh, strict=True)
    left, top = (round(where * (whole - side)) for where, whole, side in spans)
    box = np.array([[left, top, left + box_wh[0], top + box_wh[1]]], np.float32)

    def is_told(part):
        begins_within = (box[0, :2] >= part.left_top).all()
        return begins_within and (box[0, 2:] <= part.right_bottom).all() and part.counts(box)[0]

    parts = [part for part in plan(size_wh, options("auto")) if is_told(part)]
    letterboxes = [part.letterbox for part in parts]
    longer = max(box_wh)
    shown = [longer * one.resized_wh[0] / one.size_wh[0] for one in letterboxes]
    assert max(shown, default=0) >= min(31.0, longer)


@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    tile=st.integers(160, 900),
    overlap=st.floats(0, 0.5),
)
def test_tiles_cover_every_pixel_and_overlap_at_least_as_asked(width, height, tile, overlap):
    chosen = options(Tiling(tile, overlap), 320)
    whole, *tiles = plan((width, height), chosen)
    assert rectangles([whole]) == [(0, 0, width, height)]
    assert part_count((width, height), chosen) == 1 + len(tiles)
    if max(width, height) <= tile:
        assert tiles == []
        return
    assert len({part.letterbox.input_wh for part in tiles}) == 1
    for axis, side in ((0, width), (1, height)):
        spans = sorted({(part.left_top[axis], part.right_bottom[axis]) for part in tiles})
        assert spans[0][0] == 0
        assert spans[-1][1] == side
        assert {end - start for start, end in spans} == {min(side, tile)}
        for (_, end), (start, _) in pairwise(spans):
            assert end - start >= int(tile * overlap) - 1


@given(
    long_side=st.integers(1, 100_000),
    short_side=st.integers(1, 700),
    is_wide=st.booleans(),
    tiling=st.one_of(
        st.sampled_from(["off", "auto"]),
        st.builds(Tiling, st.integers(160, 2048), st.floats(0, 0.5)),
    ),
)
def test_parts_are_as_many_as_are_counted(long_side, short_side, is_wide, tiling):
    size_wh = (long_side, short_side) if is_wide else (short_side, long_side)
    assert part_count(size_wh, options(tiling)) == len(plan(size_wh, options(tiling)))


@pytest.mark.parametrize(
    ("tiling", "expected"),
    [(Tiling(160, 0.5), 2_500_000), (Tiling(640, 0.2), 390_626), ("auto", 1018)],
)
def test_tiles_are_counted_without_a_list_of_them(tiling, expected):
    """A picture of such a shape is a small file, and the process that serves pages counts."""
    tracemalloc.start()
    count = part_count((200_000_000, 1), options(tiling))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == expected
    assert peak_bytes < 100_000


def test_part_is_laid_out_as_the_image_that_it_shows():
    image = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
    parts = plan((900, 700), options(Tiling(320, 0.25), 320))[1:]
    inputs = lay_out([View(image, part) for part in parts])
    for part, seen in zip(parts, inputs, strict=True):
        left, top = part.left_top
        np.testing.assert_array_equal(seen, image[top : top + 320, left : left + 320])


@pytest.mark.parametrize(
    ("box", "part", "counts"),
    [
        ((100, 100, 140, 120), "whole", False),  # the tiles show it larger
        ((100, 100, 250, 120), "whole", True),  # it may be cut by every tile
        ((100, 100, 140, 120), "tile", True),
        ((620, 100, 640, 120), "tile", False),  # goes on in the next tile, which shows all of it
        ((440, 100, 640, 120), "tile", True),  # too long to be whole in the next tile
        ((0, 100, 20, 120), "tile", True),  # cut by the image, not by the tile
    ],
)
def test_part_tells_of_what_it_shows_best(box, part, counts):
    whole, tile, _ = plan((1000, 640), options(Tiling(640, 0.2)))
    chosen = whole if part == "whole" else tile
    assert chosen.counts(np.array([box], np.float32)).tolist() == [counts]


def test_vehicles_too_small_for_the_whole_image_are_found_in_tiles_once_each():
    # Drawn for an input of 1280 pixels: at 320 they shrink to some six pixels.
    scene = draw_scene(11, (1280, 720), 8, input_size=1280)
    network = small_detector().network
    whole = small_detector().detect([scene.image])[0].above(0.25)
    chosen = DetectionOptions(image_size=320, tiling=Tiling(320, 0.2))
    tiled = YoloDetector(network, chosen).detect([scene.image])[0].above(0.25)
    assert match_boxes(scene.boxes_xyxy, whole.boxes_xyxy)[0] < 4
    found, _ = match_boxes(scene.boxes_xyxy, tiled.boxes_xyxy)
    assert found >= 7
    # Roofs in a tile without a vehicle may be taken for one; a vehicle has no second box.
    touching = iou_matrix(tiled.boxes_xyxy, scene.boxes_xyxy).max(axis=1) > 0
    assert touching.sum() == found


def test_large_vehicle_survives_tiles_that_each_show_a_part_of_it():
    scene = draw_scene(12, (640, 360), 4)
    large = scene.image.repeat(3, axis=0).repeat(3, axis=1)
    sides = scene.boxes_xyxy[:, 2:] - scene.boxes_xyxy[:, :2]
    assert sides.max(axis=1).min() * 3 > 1.5 * 320 * 0.1
    chosen = DetectionOptions(image_size=448, tiling=Tiling(320, 0.1))
    tiled = YoloDetector(real_detector().network, chosen).detect([large])[0].above(0.25)
    found, false = match_boxes(scene.boxes_xyxy * 3, tiled.boxes_xyxy)
    assert found >= 3
    assert false <= 1


class CrowdedNetwork:
    """Finds the same crowd in every part, each box a little more certain than the one before."""

    class_names = ("car",)
    lanes, batch_size = 2, 4
    device = "cpu"

    def __init__(self, count):
        corners = np.stack([10 * np.arange(count) % 120, 12 * np.arange(count) % 130], axis=1)
        boxes = np.concatenate((corners + 8, corners + 12), axis=1).astype(np.float32)
        confidences = np.linspace(0.1, 0.9, count, dtype=np.float32)
        self.crowd = Candidates.whole(np.zeros(count, np.int64), confidences, boxes)

    def candidates(self, views, confidence_floor):
        return [self.crowd] * len(views)


def test_crowded_parts_take_no_more_memory_the_more_they_are(monkeypatch):
    """Only the best of all parts count, so only these are held: here 2,000 of 1.2 million."""
    monkeypatch.setattr(detector, "MAX_CANDIDATES", 2000)
    chosen = DetectionOptions(image_size=160, tiling=Tiling(160, 0.0), max_detections=100)
    network = CrowdedNetwork(2000)
    peaks = []
    for side in (160 * 2, 160 * 24):
        crowded = YoloDetector(network, chosen)
        image = np.zeros((side, side, 3), np.uint8)
        tracemalloc.start()
        (found,) = crowded.detect([image])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.confidences.min() > 0.89
        assert len(found) > 4
    assert peaks[1] < peaks[0] + 4 * 2**20  # all candidates would be 32 MiB


def test_best_of_all_parts_are_kept_in_whatever_part_they_are(monkeypatch):
    chosen = DetectionOptions(image_size=160, tiling=Tiling(160, 0.0))
    image = np.zeros((640, 640, 3), np.uint8)
    (unlimited,) = YoloDetector(CrowdedNetwork(13), chosen).detect([image])
    monkeypatch.setattr(detector, "MAX_CANDIDATES", 20)
    (limited,) = YoloDetector(CrowdedNetwork(13), chosen).detect([image])
    assert len(limited) == 20 < len(unlimited)
    assert limited.confidences.tolist() == unlimited.confidences[:20].tolist()


def test_progress_is_told_within_an_image_of_many_parts():
    crowded = YoloDetector(CrowdedNetwork(5), options(Tiling(160, 0.0), image_size=160))
    image = np.zeros((640, 640, 3), np.uint8)  # 17 parts, in batches of four
    told = []
    stream = crowded.stream([image], lambda one: one, on_progress=lambda: told.append("part"))
    assert len(next(stream)[1]) > 0
    assert told == ["part"] * 5


def test_progress_that_raises_ends_the_work_within_an_image():
    network = CrowdedNetwork(5)
    seen = []
    candidates = network.candidates
    network.candidates = lambda views, floor: seen.append(len(views)) or candidates(views, floor)

    def stop():
        raise InterruptedError

    crowded = YoloDetector(network, options(Tiling(160, 0.0), image_size=160))
    image = np.zeros((160 * 12, 160 * 12, 3), np.uint8)
    with pytest.raises(InterruptedError):
        list(crowded.stream([image], lambda one: one, on_progress=stop))
    assert sum(seen) < 145 / 2


@pytest.mark.parametrize(("held_images", "sizes"), [(100, {4}), (6, {2}), (1, {1})])
def test_batches_are_small_where_images_are_so_large_that_few_can_be_held(
    monkeypatch, held_images, sizes
):
    """A batch that never fills up would let the network wait for all others to be done."""
    network, asked = CrowdedNetwork(2), []
    network.lanes = 1
    find = network.candidates
    monkeypatch.setattr(
        network, "candidates", lambda views, floor: asked.append(len(views)) or find(views, floor)
    )
    images = [np.zeros((160, 160, 3), np.uint8)] * 8
    monkeypatch.setattr(detector, "HELD_BYTES", held_images * images[0].nbytes)
    assert len(YoloDetector(network, DetectionOptions(image_size=160)).detect(images)) == 8
    assert set(asked) == sizes
