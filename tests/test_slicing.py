"""Videos are cut where decoding can begin, without gaps, into ranges of bounded length."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.pipeline.options import DetectionOptions, Tiling
from inference.slicing import FrameRange, frame_ranges, network_looks, sampled_count


def ranges(frame_count, seek_indexes=(), max_frames=512, stride=1):
    return frame_ranges(
        frame_count=frame_count, seek_indexes=seek_indexes, max_frames=max_frames, stride=stride
    )


def test_short_video_is_one_range():
    assert ranges(512, [128, 256]) == [FrameRange(0, 512, 512)]


def test_video_without_seek_points_stays_in_one_piece():
    assert ranges(100_000) == [FrameRange(0, 100_000, 100_000)]


def test_range_ends_at_the_last_seek_point_that_fits():
    assert ranges(1200, [150, 400, 500, 650, 1000]) == [
        FrameRange(0, 500, 500),
        FrameRange(500, 1000, 500),
        FrameRange(1000, 1200, 200),
    ]


def test_rest_that_fits_is_cut_no_more():
    assert ranges(1000, [500, 700]) == [FrameRange(0, 500, 500), FrameRange(500, 1000, 500)]


def test_range_may_end_after_its_first_frame():
    assert ranges(2, [1], max_frames=1) == [FrameRange(0, 1, 1), FrameRange(1, 2, 1)]


def test_range_grows_to_the_next_seek_point_where_none_fits():
    assert ranges(2000, [900, 1300]) == [
        FrameRange(0, 900, 900),
        FrameRange(900, 1300, 400),
        FrameRange(1300, 2000, 700),
    ]


def test_stride_counts_the_frames_that_are_looked_at():
    assert ranges(100, [12, 25, 60], max_frames=3, stride=10) == [
        FrameRange(0, 25, 3),
        FrameRange(25, 60, 3),
        FrameRange(60, 100, 4),
    ]


def test_frames_that_nobody_looks_at_make_no_range_of_their_own():
    assert ranges(25, [3, 6, 9, 21], max_frames=1, stride=10) == [
        FrameRange(0, 9, 1),
        FrameRange(9, 25, 2),
    ]


def test_range_spans_no_more_frames_than_are_decoded_in_a_bounded_time():
    seek_indexes = sorted({*range(256, 100_000, 256), 8193})
    assert ranges(30_000, seek_indexes, stride=10_000) == [
        FrameRange(0, 8192, 1),
        FrameRange(8192, 16_384, 1),
        FrameRange(16_384, 30_000, 1),  # whose last frames nobody looks at, nor decodes
    ]
    assert ranges(30_000, stride=10_000) == [FrameRange(0, 30_000, 3)]


@pytest.mark.parametrize(
    ("size_wh", "tiling", "image_size", "looks"),
    [
        ((640, 480), "off", 768, 1),
        ((1920, 1080), "auto", 768, 15),
        ((1920, 1080), "off", 1536, 4),
        ((1920, 1080), "off", 160, 1),
        ((7680, 4320), Tiling(640), 1280, 378),
    ],
)
def test_work_of_the_network_is_counted_in_looks_at_the_default_size(
    size_wh, tiling, image_size, looks
):
    options = DetectionOptions(tiling=tiling, image_size=image_size)
    assert network_looks(size_wh, options, fixed_size=None) == looks


@pytest.mark.parametrize(
    ("image_size", "fixed_size", "looks"),
    [(160, None, 44), (160, 160, 44), (160, 1280, 2847), (768, 1280, 2847), (1280, 1280, 2847)],
)
def test_every_part_is_as_much_work_as_a_fixed_input(image_size, fixed_size, looks):
    options = DetectionOptions(tiling=Tiling(160, 0.0), image_size=image_size)
    assert network_looks((5000, 5000), options, fixed_size=fixed_size) == looks


@given(
    frame_count=st.integers(1, 3000),
    cuts=st.sets(st.integers(0, 3200), max_size=60),
    max_frames=st.integers(1, 600),
    stride=st.integers(1, 40),
)
def test_ranges_cover_every_frame_once_and_begin_at_seek_points(
    frame_count, cuts, max_frames, stride
):
    found = ranges(frame_count, sorted(cuts), max_frames, stride)
    assert found[0].first_frame_index == 0
    assert found[-1].end_frame_index == frame_count
    for one, following in itertools.pairwise(found):
        assert one.end_frame_index == following.first_frame_index
        assert following.first_frame_index in cuts
    for one in found:
        looked_at = range(one.first_frame_index, one.end_frame_index)
        assert one.frame_count == sum(index % stride == 0 for index in looked_at) > 0
        inner = [cut for cut in cuts if one.first_frame_index < cut < one.end_frame_index]
        if one.frame_count > max_frames:  # only where no seek point came in time
            first = one.first_frame_index
            assert not [cut for cut in inner if cut - first <= max_frames * stride]
    assert sum(one.frame_count for one in found) == sampled_count(frame_count, stride=stride)
