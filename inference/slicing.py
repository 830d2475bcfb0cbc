"""Cuts the files of a job into work units: batches of images and ranges of a video's frames."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from inference.pipeline.options import DEFAULT_IMAGE_SIZE, DetectionOptions
from inference.pipeline.tiles import part_count

MAX_SPAN_FRAMES = 8192
"""Of a range, looked at or not: to pass over a frame, it has to be decoded as well."""


@dataclass(frozen=True)
class FrameRange:
    """Frames from `first_frame_index` to before `end_frame_index`, `frame_count` of them looked at.

    With a stride only those frames are looked at whose index in the video is a multiple of it.
    """

    first_frame_index: int
    end_frame_index: int
    frame_count: int


def network_looks(
    size_wh: tuple[int, int], options: DetectionOptions, *, fixed_size: int | None
) -> int:
    """The network's work for an image of this size, in looks of DEFAULT_IMAGE_SIZE; at least 1.

    Each tile is a look, and one at twice the input size counts for four. `fixed_size`: the side of
    the network's input in pixels where it is fixed, to which every smaller part is padded.
    """
    parts = part_count(size_wh, options)
    side = fixed_size or options.image_size
    return max(1, round(parts * side**2 / DEFAULT_IMAGE_SIZE**2))


def sampled_count(frame_count: int, *, stride: int) -> int:
    """How many of so many frames are looked at when every `stride`-th is."""
    return -(-frame_count // stride)


def frame_ranges(
    *, frame_count: int, seek_indexes: Sequence[int], max_frames: int, stride: int
) -> list[FrameRange]:
    """The ranges in which a video of `frame_count` frames is looked at, in order, without gaps.

    A range begins at the first frame or at one of the ascending `seek_indexes`, where decoding
    can begin: so no frame is decoded twice. It is as long as possible while at most `max_frames`
    of its frames are looked at and it spans at most MAX_SPAN_FRAMES; longer only where no seek
    point comes in time, so that a video without any stays in one piece, and by frames at its end
    that nobody looks at. Every range has at least one frame that is looked at.
    """
    max_span = min(max_frames * stride, MAX_SPAN_FRAMES)
    cuts = [index for index in seek_indexes if 0 < index < frame_count]
    ranges: list[FrameRange] = []
    first = 0
    while first < frame_count:
        end = _range_end(first, frame_count, cuts, max_span)
        count = sampled_count(end, stride=stride) - sampled_count(first, stride=stride)
        if count or not ranges:
            ranges.append(FrameRange(first, end, count))
        else:  # nothing is looked at here; the range before takes the frames in
            before = ranges.pop()
            ranges.append(FrameRange(before.first_frame_index, end, before.frame_count))
        first = end
    return ranges


def _range_end(first: int, frame_count: int, cuts: Sequence[int], max_span: int) -> int:
    """The last cut within the span, else the next one after it, else the end of the video."""
    if frame_count - first <= max_span:
        return frame_count
    after = bisect_right(cuts, first + max_span)
    if after and cuts[after - 1] > first:
        return cuts[after - 1]
    return cuts[after] if after < len(cuts) else frame_count
