"""Decodes the pictures of videos; the only module of the service that does.

Counting and reading run through the same generator, so that they always agree.
"""

import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from datasets.media.container import (
    DECODER_THREADS,
    PROGRESS_EVERY_FRAMES,
    OpenVideo,
    average_rate_fps,
    check_size,
    frames_cut_away,
    opened_video,
    packets_of,
    raise_if_out_of_memory,
)
from datasets.media.errors import MediaError, refused
from datasets.media.images import thumbnail_of
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.painting import (
    Decoded,
    Painter,
    Turning,
    VideoFrame,
    colours_of,
    has_plain_rows,
    rows_of,
)
from datasets.media.seeking import Candidate, CandidateCollector, SeekPlan, SeekPoint
from datasets.media.timing import MAX_SANE_GAP_SECONDS, FrameClock, StampChoice

# Where seeking does not work it lands far away, and each trial decodes all that lies between.
_MOST_FRAMES_BEFORE_A_POINT = 300
_SEEK_LEADS_SECONDS = (0, 2)
_MOST_FAILED_TRIALS = 3
# Containers count a frame more or less than decoders do; only what is beyond is told as lost.
_UNTOLD_LOSS = 0.01


@dataclass(frozen=True)
class VideoFacts:
    """What is known of a video after every frame of it was decoded.

    `size_wh` is that of the upright picture in stored pixels (non-square pixels are not
    stretched). `rotation_degrees` says how far the stored picture was turned clockwise to stand
    upright: 0, 90, 180 or 270. `container` is the word of `sniff`. `warning` is a sentence about
    what is damaged, empty when nothing is. `seek_plan`: where decoding can begin, if anywhere but
    at the first frame.
    """

    size_wh: tuple[int, int]
    frame_count: int
    duration_seconds: float
    average_rate_fps: float
    codec: str
    container: str
    rotation_degrees: int
    has_audio: bool
    warning: str = ""
    seek_plan: SeekPlan | None = field(default=None, compare=False)
    thumbnail_jpeg: bytes | None = field(default=None, compare=False, repr=False)


class _SeekMissedError(Exception):
    """Seeking did not lead to the frame that it led to when it was tried."""


def iter_frames(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the word of `Sniffed.format`
    first_frame_index: int = 0,
    max_frames: int | None = None,
    frame_stride: int = 1,
    seek_plan: SeekPlan | None = None,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_progress: Callable[[int], None] | None = None,
    decoder_threads: int = DECODER_THREADS,
) -> Iterator[VideoFrame]:
    """Decode a video frame by frame, in constant memory; closing the iterator closes the file.

    `format` is what `sniff` told (it is sniffed when missing). Given are, from
    `first_frame_index` on, the frames whose index is a multiple of `frame_stride`, at most
    `max_frames` of them. Those before are passed over: decoding begins at the last point of
    `seek_plan` before them, or else with the video, which is the only way to reach a frame
    exactly in every codec. A damaged packet is skipped, a damaged tail ends the video.
    Transparent pixels are put over white. `on_progress` is called now and then with the number of
    frames decoded so far, those passed over included; what it raises ends the decoding and passes
    through. More `decoder_threads` decode a sound video faster, and a damaged one may then have
    another number of frames than `count_frames` told. Raises MediaError: 400 for a container
    that cannot be opened, 415 for something that is no video, 422 for a video without pictures,
    with pictures above `limits.max_frame_pixels` or without a decoder.
    """
    if max_frames is not None and max_frames <= 0:
        with opened_video(path, format, limits):
            return
    painter = Painter()
    given = 0
    first_wanted = -(-first_frame_index // frame_stride) * frame_stride
    with closing(
        _decoded_from(
            path, format, limits, decoder_threads, plan=seek_plan, first_frame_index=first_wanted
        )
    ) as decoded:
        for count, item in enumerate(decoded, 1):
            if on_progress is not None and count % PROGRESS_EVERY_FRAMES == 0:
                on_progress(count)
            painter.see(item)
            if item.frame_index < first_frame_index or item.frame_index % frame_stride:
                continue
            yield painter.frame(item)
            del item
            given += 1
            if given == max_frames:
                return


def _decoded_from(
    path: Path,
    container_format: str | None,
    limits: MediaLimits,
    decoder_threads: int,
    *,
    plan: SeekPlan | None,
    first_frame_index: int,
) -> Generator[Decoded, None, None]:
    """Decode from the last point before a frame; from the beginning where seeking misses it."""
    point = plan.point_before(first_frame_index) if plan else None
    if plan is not None and point is not None:
        try:
            with (
                opened_video(path, container_format, limits, decoder_threads) as video,
                closing(_decode_from_point(video, plan, point)) as decoded,
            ):
                yield from decoded
                return
        except _SeekMissedError:
            pass  # nothing was given yet
    with (
        opened_video(path, container_format, limits, decoder_threads) as video,
        closing(_decode(video)) as decoded,
    ):
        yield from decoded


def count_frames(
    path: Path,
    *,
    format: str | None = None,  # noqa: A002 - the word of `Sniffed.format`
    limits: MediaLimits = DEFAULT_LIMITS,
    on_progress: Callable[[int], None] | None = None,
) -> VideoFacts:
    """Decode every frame, without turning it into RGB, and tell what was found.

    `on_progress` is called now and then with the number of frames decoded so far. What the
    container promises is not believed. Raises MediaError as `iter_frames` does, and 422 for a
    video without a single frame or with more than `limits.max_frames` (`limits.max_gif_frames`).
    """
    with opened_video(path, format, limits) as video, closing(_decode(video)) as decoded:
        max_frames = limits.max_gif_frames if video.format == "gif" else limits.max_frames
        # There is a first frame, or the decoding raises. One that cannot be painted is not billed.
        first = last = next(decoded)
        thumbnail_jpeg = thumbnail_of(Painter().paint(first))
        collector = CandidateCollector()
        _collect(collector, video, first, first)
        for last in decoded:
            if last.frame_index >= max_frames:
                raise refused(
                    "too_many_frames", f"The video has more than {max_frames} frames, the limit."
                )
            if on_progress is not None and last.frame_index % PROGRESS_EVERY_FRAMES == 0:
                on_progress(last.frame_index)
            _collect(collector, video, first, last)
        count = last.frame_index + 1
        last_frame_seconds = _frame_seconds(last.frame, video.stream) or video.frame_seconds
        duration_seconds = last.time_seconds + last_frame_seconds
        return VideoFacts(
            size_wh=first.turn.size_wh(first.frame.width, first.frame.height),
            frame_count=count,
            duration_seconds=duration_seconds,
            average_rate_fps=average_rate_fps(video.stream, count, duration_seconds),
            codec=video.stream.codec_context.codec.canonical_name,
            container=video.format,
            rotation_degrees=first.turn.clockwise_degrees,
            has_audio=video.has_audio,
            warning=_damage(video, count, frames_cut_away(path, video, limits)),
            seek_plan=collector.plan(_tried_points(video, collector.candidates)),
            thumbnail_jpeg=thumbnail_jpeg,
        )


def _damage(video: OpenVideo, frame_count: int, cut_away_count: int) -> str:
    """A sentence about what is missing of a video, as far as its container tells."""
    promised = video.stream.frames - cut_away_count - video.hidden_count
    lost = promised - frame_count
    if lost > 0 and (video.is_damaged or lost > 1 + _UNTOLD_LOSS * promised):
        return f"The video is damaged: {lost} of its {promised} frames could not be decoded."
    if video.is_damaged:
        return "The video is damaged: a part of it could not be decoded."
    return ""


def _collect(
    collector: CandidateCollector, video: OpenVideo, first: Decoded, item: Decoded
) -> None:
    """Note where decoding might begin, as long as the video is like its first frame."""
    frame = item.frame
    if (
        video.is_damaged
        or item.was_time_corrected
        or frame.is_corrupt
        or item.turn != first.turn
        or (frame.width, frame.height) != (first.frame.width, first.frame.height)
        or frame.format.name != first.frame.format.name
        or colours_of(frame) != colours_of(first.frame)
        or frame.time_base not in (None, video.stream.time_base)
        or not has_plain_rows(frame)
    ):
        collector.give_up()
    if collector.see(item.frame_index, pts=frame.pts, is_key=frame.key_frame):
        collector.follow(_checksum(frame))


def _checksum(frame: Any) -> int:
    """Of the visible pixels of a decoded frame, as far as a row of each plane has them first."""
    checksum = 0
    for plane in frame.planes:
        checksum = zlib.crc32(np.ascontiguousarray(rows_of(plane)).data, checksum)
    return checksum


def _tried_points(video: OpenVideo, candidates: Sequence[Candidate]) -> list[SeekPoint]:
    """The points from which decoding gives the same frames as decoding the whole did."""
    points: list[SeekPoint] = []
    failed_trials = 0
    for candidate in candidates:
        if video.is_damaged or failed_trials == _MOST_FAILED_TRIALS:
            break
        try:
            found = []
            with closing(_frames_from_point(video, candidate.point)) as frames:
                for frame in frames:
                    found.append((frame.pts, _checksum(frame)))
                    if len(found) == len(candidate.followers):
                        break
        except _SeekMissedError:
            found = []
        if found == candidate.followers:
            points.append(candidate.point)
        else:
            failed_trials += 1
    return points


def _frames_from_point(video: OpenVideo, point: SeekPoint) -> Generator[Any, None, None]:
    """The decoder's frames from a point on; raises _SeekMissedError when it is not met.

    Transport streams have no index: seeking lands behind the point there, so a second attempt
    aims before it.
    """
    time_base = video.stream.time_base
    for lead_seconds in _SEEK_LEADS_SECONDS:
        lead = round(lead_seconds / time_base) if time_base else 0
        try:
            video.container.seek(point.pts - lead, stream=video.stream, backward=True)
        except av.FFmpegError as error:
            raise_if_out_of_memory(error)
            continue
        with closing(_raw_frames(video)) as frames:
            found = _passed_to(frames, point)
            if found is not None:
                yield found
                del found
                yield from frames
                return
    raise _SeekMissedError


def _passed_to(frames: Iterator[Any], point: SeekPoint) -> Any | None:
    """The frame of a point, those before it passed over; None if it does not come."""
    for frame in islice(frames, _MOST_FRAMES_BEFORE_A_POINT):
        if frame.pts is None or frame.pts > point.pts:
            return None
        if frame.pts == point.pts:
            return frame
    return None


def _decode_from_point(
    video: OpenVideo, plan: SeekPlan, point: SeekPoint
) -> Generator[Decoded, None, None]:
    """As `_decode`, from a tried point on."""
    time_base = video.stream.time_base
    if time_base is None:
        raise _SeekMissedError
    clock = FrameClock(video.frame_seconds)
    clock.resume(
        first_stamp_seconds=float(plan.first_pts * time_base),
        stamp_seconds=float(point.pts * time_base),
    )
    with closing(_frames_from_point(video, point)) as frames:
        yield from _numbered(video, frames, clock, first_frame_index=point.frame_index)


def first_stamp_seconds(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> float:
    """The stored time of the first frame, from which the times of all are counted.

    Raises MediaError as `iter_frames` does.
    """
    with opened_video(path, None, limits) as video, closing(_decode(video)) as decoded:
        return _stamp_seconds(next(decoded).frame, video.stream) or 0.0


def _decode(video: OpenVideo) -> Generator[Decoded, None, None]:
    """Every frame that decodes, in the order of showing; the one place where frames are made."""
    is_empty = True
    with closing(_raw_frames(video)) as frames:
        for item in _numbered(video, frames, FrameClock(video.frame_seconds)):
            is_empty = False
            yield item
            del item
    if is_empty:
        raise refused("no_frames", "Not a single frame of the video could be decoded.")


def _numbered(
    video: OpenVideo, frames: Iterable[Any], clock: FrameClock, *, first_frame_index: int = 0
) -> Generator[Decoded, None, None]:
    """The decoder's frames with their number, their time and how they are to be turned."""
    turning, choice = Turning(), StampChoice(video.format)
    for frame_index, frame in enumerate(frames, first_frame_index):
        check_size(frame.width, frame.height, video.max_pixels)
        time_seconds = clock.tell(_seconds(choice.of(frame), frame, video.stream))
        turn = turning.of(frame)
        aspect = 1 / video.pixel_aspect if turn.transpose else video.pixel_aspect
        yield Decoded(frame_index, time_seconds, frame, turn, aspect, clock.was_corrected)
        del frame


def _raw_frames(video: OpenVideo) -> Generator[Any, None, None]:
    with closing(packets_of(video)) as packets:
        for packet in packets:
            try:
                frames = video.stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                # What is damaged is left out; most codecs go on at the next packet.
                raise_if_out_of_memory(error)
                video.is_damaged = True
                continue
            while frames:
                yield frames.pop(0)


def _stamp_seconds(frame: Any, stream: VideoStream) -> float | None:
    """The time stamp of the first frame of a video."""
    return _seconds(frame.pts if frame.pts is not None else frame.dts, frame, stream)


def _seconds(stamp: int | None, frame: Any, stream: VideoStream) -> float | None:
    """A stamp in seconds; the last frames, given up at the end, do not know their time base."""
    time_base = frame.time_base or stream.time_base
    return None if stamp is None or time_base is None else float(stamp * time_base)


def _frame_seconds(frame: Any, stream: VideoStream) -> float | None:
    time_base = frame.time_base or stream.time_base
    if not frame.duration or time_base is None:
        return None
    seconds = float(frame.duration * time_base)
    return seconds if 0 < seconds <= MAX_SANE_GAP_SECONDS else None


__all__ = ["MediaError", "VideoFacts", "VideoFrame", "count_frames", "iter_frames"]
