"""When each frame of a video is shown: stored clocks run backwards, jump, or are not there."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from datasets.media.container import PROGRESS_EVERY_FRAMES, OpenVideo, opened_video, packets_of
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits

_WITHOUT_TIMES_OF_SHOWING = {"avi", "asf"}
# A jump of the clock beyond this is a damaged or restarted time stamp, not a long frame.
MAX_SANE_GAP_SECONDS = 24 * 3600.0
# Files of these can be put behind each other byte by byte, and each keeps its own clock.
_APPENDED_FORMATS = {"mpegts", "mpeg"}
_MOST_RECORDINGS = 1000  # a clock that jumps more often is of no use


class StampChoice:
    """Chooses between a frame's own time stamp and that of its packet, as libavcodec does.

    The kind that ran backwards more often is not believed. AVI and ASF store no times of showing:
    what is made up for them runs backwards where pictures are stored out of order (H.264), while
    the stamps of the packets, handed through the decoder, do not. There those are believed first,
    put off by as much as the first frame's own time is: a decoder hands frames out late.
    """

    def __init__(self, container_format: str) -> None:
        self._last: list[int | None] = [None, None]
        self._faults = [int(container_format in _WITHOUT_TIMES_OF_SHOWING), 0]
        self._delay: int | None = None

    def of(self, frame: Any) -> int | None:
        """The stamp of the next frame, in units of its time base; None where it has none."""
        stamps = (frame.pts, frame.dts)
        for kind, stamp in enumerate(stamps):
            if stamp is not None:
                last = self._last[kind]
                self._faults[kind] += last is not None and stamp <= last
                self._last[kind] = stamp
        pts, dts = stamps
        if pts is None or dts is None:
            return dts if pts is None else pts
        if self._delay is None:
            self._delay = pts - dts
        return dts + self._delay if self._faults[0] > self._faults[1] else pts


class FrameClock:
    """Gives every frame its time in seconds since the first, never running backwards.

    A missing time stamp is replaced by the frame rate; where the stored clock jumps backwards or
    absurdly far ahead (recordings put together, wrapped counters), it goes on from where it was.
    """

    def __init__(self, frame_seconds: float) -> None:
        self._frame_seconds = frame_seconds
        self._shift_seconds = 0.0
        self._last_seconds: float | None = None
        self.was_corrected = False

    def resume(self, *, first_stamp_seconds: float, stamp_seconds: float) -> None:
        """Go on in the middle of a video whose stored clock needs no correction."""
        self._shift_seconds = -first_stamp_seconds
        self._last_seconds = stamp_seconds + self._shift_seconds

    def tell(self, stamp_seconds: float | None) -> float:
        """The time of the next frame in seconds since the first."""
        if self._last_seconds is None:
            self._shift_seconds = -(stamp_seconds or 0.0)
            self._last_seconds = 0.0
            self.was_corrected = stamp_seconds is None
            return 0.0
        expected_seconds = self._last_seconds + self._frame_seconds
        if stamp_seconds is None:
            seconds = expected_seconds
            self.was_corrected = True
        else:
            seconds = stamp_seconds + self._shift_seconds
            if not 0 <= seconds - self._last_seconds <= MAX_SANE_GAP_SECONDS:
                self._shift_seconds = expected_seconds - stamp_seconds
                seconds = expected_seconds
                self.was_corrected = True
        self._last_seconds = seconds
        return seconds


class ClockJump(NamedTuple):
    """Where the stored clock of the pictures jumps, as between recordings put together.

    The last packet before it lies at `before_byte` of the file, the first one after it at
    `after_byte`. From there on, a stored time and `shift_seconds` is the time on the clock of the
    beginning; on that, the first picture is shown at `begin_seconds`.
    """

    before_byte: int
    after_byte: int
    shift_seconds: float
    begin_seconds: float


@dataclass
class _Recording:
    """Packets of pictures whose clock does not jump: their bytes and their stamps of showing."""

    begin_byte: int
    end_byte: int
    last_dts: int
    first_pts: int
    last_pts: int


def clock_jumps(
    path: Path,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_progress: Callable[[int], None] | None = None,
) -> list[ClockJump]:
    """Where the stored clock of the pictures jumps and goes on, as `FrameClock` mends it.

    The file is read without decoding. `on_progress` is called now and then with the number of
    packets read. Raises MediaError as `iter_frames` does.
    """
    with opened_video(path, None, limits) as video:
        if video.format not in _APPENDED_FORMATS or video.stream.time_base is None:
            return []
        recordings = _recordings(video, float(video.stream.time_base), on_progress)
        jumps: list[ClockJump] = []
        shift = 0.0
        for last, this in pairwise(recordings):
            last_seconds = float(last.last_pts * video.stream.time_base)
            first_seconds = float(this.first_pts * video.stream.time_base)
            if not 0 <= first_seconds - last_seconds <= MAX_SANE_GAP_SECONDS:
                begin = last_seconds + shift + video.frame_seconds
                shift = begin - first_seconds
                jumps.append(ClockJump(last.end_byte, this.begin_byte, shift, begin))
        return jumps


def _recordings(
    video: OpenVideo, tick_seconds: float, on_progress: Callable[[int], None] | None
) -> list[_Recording]:
    """The recordings of a file in their order; none where they are too many to be true."""
    recordings: list[_Recording] = []
    longest_step = MAX_SANE_GAP_SECONDS / tick_seconds
    position = 0
    with closing(packets_of(video)) as packets:
        for count, packet in enumerate(packets, 1):
            if on_progress is not None and count % PROGRESS_EVERY_FRAMES == 0:
                on_progress(count)
            if packet is None:
                break
            position = max(position, packet.pos or 0)
            if packet.pts is None or packet.dts is None:
                continue
            this = recordings[-1] if recordings else None
            if this is None or not 0 <= packet.dts - this.last_dts <= longest_step:
                if len(recordings) == _MOST_RECORDINGS:
                    return []
                this = _Recording(position, position, packet.dts, packet.pts, packet.pts)
                recordings.append(this)
            this.end_byte, this.last_dts = position, packet.dts
            this.first_pts = min(this.first_pts, packet.pts)
            this.last_pts = max(this.last_pts, packet.pts)
    return recordings
