"""Decodes the pictures of videos; the only module of the service that does.

Counting and reading run through the same generator, so that they always agree. Nothing but the
bytes of the one file is ever read: the demuxer is chosen by the sniffed container, never by av's
own guess (which would accept playlists), and the file reaches it as a nameless stream of bytes.
"""

import errno
import io
import threading
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from datasets.media.errors import MediaError, corrupt_file, refused, unsupported_type
from datasets.media.images import thumbnail_of
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.planes import (
    BT709,
    PLAIN_COLOURS,
    SQUARE,
    UNSPECIFIED,
    Colours,
    Plane,
    Planes,
)
from datasets.media.seeking import Candidate, CandidateCollector, SeekPlan, SeekPoint
from datasets.media.sniff import sniff

# The demuxer for each container that `sniff` tells; there is no way to reach another one.
_DEMUXERS = {
    "mp4": "mov",
    "mov": "mov",
    "3gp": "mov",
    "webm": "matroska",
    "matroska": "matroska",
    "avi": "avi",
    "flv": "flv",
    "asf": "asf",
    "mpegts": "mpegts",
    "mpeg": "mpeg",
    "ogg": "ogg",
    "mpegvideo": "mpegvideo",
    "m4v": "m4v",
    "gif": "gif",
}
_READ_BUFFER_BYTES = 64 * 1024
# How many frames of a damaged video decode depends on this number (measured with damaged H.264 and
# AV1), and the upload must bill what the pipeline will see: only sound videos may have another.
DECODER_THREADS = 2
_DEFAULT_RATE_FPS = 25.0
_MAX_SANE_RATE_FPS = 1000.0
_MAX_SANE_ASPECT = 100
_WITHOUT_TIMES_OF_SHOWING = {"avi", "asf"}
# A jump of the clock beyond this is a damaged or restarted time stamp, not a long frame.
MAX_SANE_GAP_SECONDS = 24 * 3600.0
# Files of these can be put behind each other byte by byte, and each keeps its own clock.
_APPENDED_FORMATS = {"mpegts", "mpeg"}
_MOST_RECORDINGS = 1000  # a clock that jumps more often is of no use
_PROGRESS_EVERY_FRAMES = 50
_PLANAR_FORMATS = {"yuv420p", "yuvj420p"}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_FEWEST_COLOUR_COMPONENTS = 3  # less are grey, with transparency or a palette at most
# Where seeking does not work it lands far away, and each trial decodes all that lies between.
_MOST_FRAMES_BEFORE_A_POINT = 300
_SEEK_LEADS_SECONDS = (0, 2)
_MOST_FAILED_TRIALS = 3
# Containers count a frame more or less than decoders do; only what is beyond is told as lost.
_UNTOLD_LOSS = 0.01
# av counts the padding of a picture as well, so its own limit must be wider than ours. It only
# keeps a decoder from reserving absurd amounts of memory before a frame can be measured.
_PADDING_FACTOR = 2
_PADDING_PIXELS = 1024 * 1024


class VideoFrame:
    """A decoded frame.

    `frame_index` counts from 0, `time_seconds` from the first frame and never runs backwards,
    `image` is RGB uint8 of shape (height, width, 3), upright, of one size for the whole video. It
    is made when it is first asked for, and again after `release_image`. `planes` is the same
    picture as the video keeps it, without a copy and not to be written to, where it stands
    upright in 8 bits with colour in a quarter of the pixels; else None. `pixel_aspect` is the
    width of an upright pixel by its height, `colours` is what the numbers of the video mean, as
    that of its first frame; both are one for the whole video.
    """

    def __init__(
        self,
        frame_index: int,
        time_seconds: float,
        image: np.ndarray | None = None,
        *,
        planes: Planes | None = None,
        paint: Callable[[], np.ndarray] | None = None,
        pixel_aspect: Fraction = SQUARE,
        colours: Colours = PLAIN_COLOURS,
    ) -> None:
        """`paint` makes the image where none is given."""
        self.frame_index = frame_index
        self.time_seconds = time_seconds
        self.planes = planes
        self.pixel_aspect = pixel_aspect
        self.colours = colours
        self._image = image
        self._paint = paint

    @property
    def image(self) -> np.ndarray:
        """The picture as RGB uint8 (h, w, 3)."""
        if self._image is None:
            if self._paint is None:
                raise ValueError("This frame has no picture.")
            self._image = self._paint()
        return self._image

    @property
    def held_bytes(self) -> int:
        """The memory of its pixels, as far as they are there now."""
        image_bytes = 0 if self._image is None else self._image.nbytes
        return image_bytes + (self.planes.nbytes if self.planes is not None else 0)

    def release_image(self) -> None:
        """Let go of the memory of an image that can be made again."""
        if self._paint is not None:
            self._image = None


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


@dataclass(frozen=True)
class _Turn:
    """How a stored picture becomes upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def size_wh(self, width: int, height: int) -> tuple[int, int]:
        return (height, width) if self.transpose else (width, height)

    def apply(self, image: np.ndarray) -> np.ndarray:
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)

    @property
    def clockwise_degrees(self) -> int:
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0


_QUARTER_TURNS = (  # clockwise
    _Turn(),
    _Turn(transpose=True, flip_x=True),
    _Turn(flip_x=True, flip_y=True),
    _Turn(transpose=True, flip_y=True),
)


class _NamelessFile(io.RawIOBase):
    """Hands av the bytes of a file and not its name, which it could resolve relative names by."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def close(self) -> None:
        self._file.close()
        super().close()


class _StampChoice:
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


class _FrameClock:
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


@dataclass
class _Decoded:
    """A frame as av gave it, with its place in the video."""

    frame_index: int
    time_seconds: float
    frame: Any
    turn: _Turn
    pixel_aspect: Fraction
    was_time_corrected: bool = False


class _SeekMissedError(Exception):
    """Seeking did not lead to the frame that it led to when it was tried."""


@dataclass
class _OpenVideo:
    """`is_damaged` turns true when something of it cannot be read or decoded.

    `hidden_count`: the packets read so far that an edit list hides, as of a video cut on a phone.
    """

    container: InputContainer
    stream: VideoStream
    format: str
    max_pixels: int
    frame_seconds: float
    has_audio: bool
    pixel_aspect: Fraction
    is_damaged: bool = False
    hidden_count: int = 0


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
        with _opened(path, format, limits):
            return
    painter = _Painter()
    given = 0
    first_wanted = -(-first_frame_index // frame_stride) * frame_stride
    with closing(
        _decoded_from(
            path, format, limits, decoder_threads, plan=seek_plan, first_frame_index=first_wanted
        )
    ) as decoded:
        for count, item in enumerate(decoded, 1):
            if on_progress is not None and count % _PROGRESS_EVERY_FRAMES == 0:
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
) -> Generator[_Decoded, None, None]:
    """Decode from the last point before a frame; from the beginning where seeking misses it."""
    point = plan.point_before(first_frame_index) if plan else None
    if plan is not None and point is not None:
        try:
            with (
                _opened(path, container_format, limits, decoder_threads) as video,
                closing(_decode_from_point(video, plan, point)) as decoded,
            ):
                yield from decoded
                return
        except _SeekMissedError:
            pass  # nothing was given yet
    with (
        _opened(path, container_format, limits, decoder_threads) as video,
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
    with _opened(path, format, limits) as video, closing(_decode(video)) as decoded:
        max_frames = limits.max_gif_frames if video.format == "gif" else limits.max_frames
        # There is a first frame, or the decoding raises. One that cannot be painted is not billed.
        first = last = next(decoded)
        thumbnail_jpeg = thumbnail_of(_Painter().paint(first))
        collector = CandidateCollector()
        _collect(collector, video, first, first)
        for last in decoded:
            if last.frame_index >= max_frames:
                raise refused(
                    "too_many_frames", f"The video has more than {max_frames} frames, the limit."
                )
            if on_progress is not None and last.frame_index % _PROGRESS_EVERY_FRAMES == 0:
                on_progress(last.frame_index)
            _collect(collector, video, first, last)
        count = last.frame_index + 1
        last_frame_seconds = _frame_seconds(last.frame, video.stream) or video.frame_seconds
        duration_seconds = last.time_seconds + last_frame_seconds
        return VideoFacts(
            size_wh=first.turn.size_wh(first.frame.width, first.frame.height),
            frame_count=count,
            duration_seconds=duration_seconds,
            average_rate_fps=_average_rate_fps(video.stream, count, duration_seconds),
            codec=video.stream.codec_context.codec.canonical_name,
            container=video.format,
            rotation_degrees=first.turn.clockwise_degrees,
            has_audio=video.has_audio,
            warning=_damage(video, count),
            seek_plan=collector.plan(_tried_points(video, collector.candidates)),
            thumbnail_jpeg=thumbnail_jpeg,
        )


def _damage(video: _OpenVideo, frame_count: int) -> str:
    """A sentence about what is missing of a video, as far as its container tells."""
    promised = video.stream.frames - video.hidden_count
    lost = promised - frame_count
    if lost > 0 and (video.is_damaged or lost > 1 + _UNTOLD_LOSS * promised):
        return f"The video is damaged: {lost} of its {promised} frames could not be decoded."
    if video.is_damaged:
        return "The video is damaged: a part of it could not be decoded."
    return ""


def _collect(
    collector: CandidateCollector, video: _OpenVideo, first: _Decoded, item: _Decoded
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
        or _colours(frame) != _colours(first.frame)
        or frame.time_base not in (None, video.stream.time_base)
        or not _has_plain_rows(frame)
    ):
        collector.give_up()
    if collector.see(item.frame_index, pts=frame.pts, is_key=frame.key_frame):
        collector.follow(_checksum(frame))


def _checksum(frame: Any) -> int:
    """Of the visible pixels of a decoded frame, as far as a row of each plane has them first."""
    checksum = 0
    for plane in frame.planes:
        checksum = zlib.crc32(np.ascontiguousarray(_rows(plane)).data, checksum)
    return checksum


def _has_plain_rows(frame: Any) -> bool:
    """Whether av can hand out the rows of all planes.

    It cannot where the last row lies first, as in uncompressed AVI, and a palette has none.
    """
    return all(plane.line_size > 0 for plane in frame.planes)


def _rows(plane: Any) -> Plane:
    """The first bytes of each row of a plane, one for each pixel, without a copy; read-only."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    rows.flags.writeable = False
    return rows[: plane.height, : plane.width]


def _colours(frame: Any) -> Colours:
    """What the stored numbers of a frame mean, as far as it is told."""
    pixel = frame.format
    primaries, transfer = int(frame.color_primaries), int(frame.color_trc)
    if pixel.is_rgb or len(pixel.components) < _FEWEST_COLOUR_COMPONENTS:
        # There is no matrix, so they are written as a video of our own making is.
        return Colours(
            primaries=BT709 if primaries == UNSPECIFIED else primaries,
            transfer=BT709 if transfer == UNSPECIFIED else transfer,
        )
    # That it is RGB, as number 0 would say, cannot be true of these planes.
    return Colours(
        matrix=int(frame.colorspace) or UNSPECIFIED,
        primaries=primaries,
        transfer=transfer,
        full_range=pixel.name.startswith("yuvj") or int(frame.color_range) == _FULL_RANGE,
    )


def _tried_points(video: _OpenVideo, candidates: Sequence[Candidate]) -> list[SeekPoint]:
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


def _frames_from_point(video: _OpenVideo, point: SeekPoint) -> Generator[Any, None, None]:
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
            _raise_if_out_of_memory(error)
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
    video: _OpenVideo, plan: SeekPlan, point: SeekPoint
) -> Generator[_Decoded, None, None]:
    """As `_decode`, from a tried point on."""
    time_base = video.stream.time_base
    if time_base is None:
        raise _SeekMissedError
    clock = _FrameClock(video.frame_seconds)
    clock.resume(
        first_stamp_seconds=float(plan.first_pts * time_base),
        stamp_seconds=float(point.pts * time_base),
    )
    with closing(_frames_from_point(video, point)) as frames:
        yield from _numbered(video, frames, clock, first_frame_index=point.frame_index)


class _Painter:
    """Turns decoded frames into upright RGB arrays, all of the size of the first one."""

    def __init__(self) -> None:
        self._tools = threading.local()  # frames may be painted by other threads
        self._size_wh: tuple[int, int] | None = None
        self._pixel_aspect = SQUARE
        self._colours = PLAIN_COLOURS

    def see(self, item: _Decoded) -> tuple[int, int]:
        """Let the first frame decide the size (w, h) of all, whether it is painted or not.

        It decides the shape of their pixels and what their numbers mean as well.
        """
        if self._size_wh is None:
            self._size_wh = item.turn.size_wh(item.frame.width, item.frame.height)
            self._pixel_aspect = item.pixel_aspect
            self._colours = _colours(item.frame)
        return self._size_wh

    def frame(self, item: _Decoded) -> VideoFrame:
        """The frame to be handed out. Raises MediaError 422 if it has no colours."""
        self.see(item)
        planes = self._planes(item)
        return VideoFrame(
            item.frame_index,
            item.time_seconds,
            # Whether it can be painted at all is known only when it was.
            None if planes is not None else self.paint(item),
            planes=planes,
            paint=None if planes is None else lambda: self.paint(item),
            pixel_aspect=self._pixel_aspect,
            colours=self._colours,
        )

    def _planes(self, item: _Decoded) -> Planes | None:
        frame = item.frame
        if (
            frame.format.name not in _PLANAR_FORMATS
            or item.turn != _Turn()
            or self.see(item) != (frame.width, frame.height)
            or frame.width % 2
            or frame.height % 2
            or not _has_plain_rows(frame)
        ):
            return None
        y, u, v = (_rows(plane) for plane in frame.planes)
        return Planes(y, u, v, _colours(frame))

    def paint(self, item: _Decoded) -> np.ndarray:
        """The upright picture, RGB uint8 (h, w, 3). Raises MediaError 422 if it has no colours."""
        width, height = item.turn.size_wh(*self.see(item))
        has_alpha = any(component.is_alpha for component in item.frame.format.components)
        try:
            plain = self._converted(
                item.frame,
                width=width,
                height=height,
                format="rgba" if has_alpha else "rgb24",
                threads=1,
            ).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            _raise_if_out_of_memory(error)
            raise refused(
                "unsupported_codec",
                f"Pictures of the pixel format {item.frame.format.name} cannot be shown.",
            ) from error
        return item.turn.apply(_over_white(plain) if has_alpha else plain)

    def _converted(self, frame: Any, **wanted: Any) -> Any:
        """The frame in another format; colours of a kind that av cannot turn are taken as usual."""
        try:
            return self._reformatter().reformat(frame, **wanted)
        except (av.FFmpegError, ValueError) as error:
            _raise_if_out_of_memory(error)
            matrix = _colours(frame).turned_matrix(frame.height)
            return self._reformatter().reformat(
                frame, src_colorspace=matrix, dst_colorspace=matrix, **wanted
            )

    def _reformatter(self) -> VideoReformatter:
        if not hasattr(self._tools, "reformatter"):
            self._tools.reformatter = VideoReformatter()
        reformatter: VideoReformatter = self._tools.reformatter
        return reformatter


def _over_white(rgba: np.ndarray) -> np.ndarray:
    """Put RGBA uint8 (h, w, 4) over white: RGB uint8 (h, w, 3), rounded to nearest."""
    alpha = rgba[..., 3:].astype(np.uint16)
    blended = rgba[..., :3] * alpha + 255 * (255 - alpha)
    return ((blended + 127) // 255).astype(np.uint8)


@contextmanager
def _opened(
    path: Path,
    container_format: str | None,
    limits: MediaLimits,
    decoder_threads: int = DECODER_THREADS,
) -> Iterator[_OpenVideo]:
    with opened_container(path, container_format, limits) as (container, known_format):
        yield _prepare(container, known_format, limits, decoder_threads)


@contextmanager
def opened_container(
    path: Path, container_format: str | None, limits: MediaLimits
) -> Iterator[tuple[InputContainer, str]]:
    """Open a video file for reading; gives the container and the word of `sniff` for it.

    Raises MediaError: 415 for something that is no video, 400 for what cannot be opened.
    """
    container_format = container_format or _sniffed_video_format(path)
    # av would otherwise wait for ever when it is told to read a file of another kind.
    demuxer = _DEMUXERS.get(container_format)
    if demuxer is None:
        raise unsupported_type(f"{container_format} is no supported video container.")
    with closing(_NamelessFile(path)) as file:
        try:
            container = av.open(
                file,
                mode="r",
                format=demuxer,
                buffer_size=_READ_BUFFER_BYTES,
                metadata_errors="replace",
                io_open=_refuse_to_open,
                options=_decoder_options(limits),
            )
        except (av.FFmpegError, UnicodeError) as error:
            _raise_if_out_of_memory(error)
            raise corrupt_file(
                "The video is damaged or incomplete: it cannot be opened."
            ) from error
        with closing(container):
            yield container, container_format


def first_stamp_seconds(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> float:
    """The stored time of the first frame, from which the times of all are counted.

    Raises MediaError as `iter_frames` does.
    """
    with _opened(path, None, limits) as video, closing(_decode(video)) as decoded:
        return _stamp_seconds(next(decoded).frame, video.stream) or 0.0


def clock_jumps(
    path: Path,
    *,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_progress: Callable[[int], None] | None = None,
) -> list[ClockJump]:
    """Where the stored clock of the pictures jumps and goes on, as `_FrameClock` mends it.

    The file is read without decoding. `on_progress` is called now and then with the number of
    packets read. Raises MediaError as `iter_frames` does.
    """
    with _opened(path, None, limits) as video:
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
    video: _OpenVideo, tick_seconds: float, on_progress: Callable[[int], None] | None
) -> list[_Recording]:
    """The recordings of a file in their order; none where they are too many to be true."""
    recordings: list[_Recording] = []
    longest_step = MAX_SANE_GAP_SECONDS / tick_seconds
    position = 0
    with closing(_packets(video)) as packets:
        for count, packet in enumerate(packets, 1):
            if on_progress is not None and count % _PROGRESS_EVERY_FRAMES == 0:
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


def _sniffed_video_format(path: Path) -> str:
    sniffed = sniff(path)
    if sniffed.kind != "video":
        raise unsupported_type("The file is no video.")
    return sniffed.format


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> Any:
    """Stand in the way of every file or host that a container refers to."""
    raise PermissionError("A video may not refer to another file.")


def _prepare(
    container: InputContainer, container_format: str, limits: MediaLimits, decoder_threads: int
) -> _OpenVideo:
    """Choose the stream, check its size before anything is decoded, and set up its decoder."""
    stream = _video_stream(container)
    context = stream.codec_context
    _check_size(context.width, context.height, limits.max_frame_pixels)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    context.thread_type = "AUTO"
    context.thread_count = decoder_threads
    context.options = _decoder_options(limits)
    rate_fps = _nominal_rate_fps(stream) or _DEFAULT_RATE_FPS
    return _OpenVideo(
        container=container,
        stream=stream,
        format=container_format,
        max_pixels=limits.max_frame_pixels,
        frame_seconds=1.0 / rate_fps,
        has_audio=len(container.streams.audio) > 0,
        pixel_aspect=_pixel_aspect(stream),
    )


def _decoder_options(limits: MediaLimits) -> dict[str, str]:
    return {"max_pixels": str(_PADDING_FACTOR * limits.max_frame_pixels + _PADDING_PIXELS)}


def _video_stream(container: InputContainer) -> VideoStream:
    """The moving picture: a cover is none; of several the one marked as default, then the first."""
    still = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & still]
    if not streams:
        raise refused("no_video_stream", "The file holds no moving picture, only sound or a cover.")
    streams.sort(key=lambda stream: not stream.disposition & av.stream.Disposition.default)
    if streams[0].codec_context is None:
        raise refused("unsupported_codec", "There is no decoder for the coding of this video.")
    return streams[0]


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise refused(
            "frame_too_large",
            f"The pictures of the video have {width} x {height} pixels; "
            f"the limit is {max_pixels} pixels.",
        )


def _decode(video: _OpenVideo) -> Generator[_Decoded, None, None]:
    """Every frame that decodes, in the order of showing; the one place where frames are made."""
    is_empty = True
    with closing(_raw_frames(video)) as frames:
        for item in _numbered(video, frames, _FrameClock(video.frame_seconds)):
            is_empty = False
            yield item
            del item
    if is_empty:
        raise refused("no_frames", "Not a single frame of the video could be decoded.")


def _numbered(
    video: _OpenVideo, frames: Iterable[Any], clock: _FrameClock, *, first_frame_index: int = 0
) -> Generator[_Decoded, None, None]:
    """The decoder's frames with their number, their time and how they are to be turned."""
    turning, choice = _Turning(), _StampChoice(video.format)
    for frame_index, frame in enumerate(frames, first_frame_index):
        _check_size(frame.width, frame.height, video.max_pixels)
        time_seconds = clock.tell(_seconds(choice.of(frame), frame, video.stream))
        turn = turning.of(frame)
        aspect = 1 / video.pixel_aspect if turn.transpose else video.pixel_aspect
        yield _Decoded(frame_index, time_seconds, frame, turn, aspect, clock.was_corrected)
        del frame


def _raw_frames(video: _OpenVideo) -> Generator[Any, None, None]:
    with closing(_packets(video)) as packets:
        for packet in packets:
            try:
                frames = video.stream.codec_context.decode(packet)
            except av.FFmpegError as error:
                # What is damaged is left out; most codecs go on at the next packet.
                _raise_if_out_of_memory(error)
                video.is_damaged = True
                continue
            while frames:
                yield frames.pop(0)


def _packets(video: _OpenVideo) -> Generator[Any, None, None]:
    """The packets of the stream, and None at the end, which makes the decoder give up the rest."""
    packets = video.container.demux(video.stream)
    try:
        for packet in packets:
            if packet.size:
                video.hidden_count += packet.is_discard
                yield packet
    except av.FFmpegError as error:
        # A damaged tail ends the video; what came before it counts.
        _raise_if_out_of_memory(error)
        video.is_damaged = True
    yield None


def _raise_if_out_of_memory(error: Exception) -> None:
    """Memory that runs out must not look like a damaged frame: the count would depend on it."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError("There is not enough memory to decode the video.") from error


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


def _nominal_rate_fps(stream: VideoStream) -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= _MAX_SANE_RATE_FPS:
            return float(rate)
    return None


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """The width of a stored pixel by its height; what is missing or absurd counts as square."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and 1 / _MAX_SANE_ASPECT <= aspect <= _MAX_SANE_ASPECT else SQUARE


def _average_rate_fps(stream: VideoStream, frame_count: int, duration_seconds: float) -> float:
    """The rate that the container names where the frames bear it out, else the measured one."""
    measured_fps = min(frame_count / duration_seconds, _MAX_SANE_RATE_FPS)
    nominal_fps = _nominal_rate_fps(stream)
    if nominal_fps is not None and abs(nominal_fps - measured_fps) <= 0.1 * measured_fps:
        return nominal_fps
    return measured_fps


class _Turning:
    """Tells how the frames of a video are to be turned.

    Reading the side data of a frame makes it refer to itself: it then lives, with its pixels,
    until the garbage collector comes by. So this is done for the first frame, and for one whose
    rotation has changed.
    """

    def __init__(self) -> None:
        self._turn: _Turn | None = None
        self._rotation_degrees = 0

    def of(self, frame: Any) -> _Turn:
        """How to turn the next frame."""
        rotation_degrees = frame.rotation
        if self._turn is None or rotation_degrees != self._rotation_degrees:
            self._turn = _turn(frame)
            self._rotation_degrees = rotation_degrees
        return self._turn


def _turn(frame: Any) -> _Turn:
    """Read the display matrix: it maps (x, y) to (a x + c y, b x + d y).

    The layout is that of libavutil/display.h, nine 32-bit integers a, b, u, c, d, v, x, y, w. An
    angle in between is rounded to the nearest quarter turn.
    """
    try:
        side_data = frame.side_data
    except ValueError:
        # av does not know every kind of side data, for one the EXIF that cameras put into each
        # picture of Motion JPEG. The angle it still tells, counted the other way round.
        return _QUARTER_TURNS[round(-frame.rotation / 90) % 4]
    if SideDataType.DISPLAYMATRIX not in side_data:
        return _Turn()
    matrix = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), dtype=np.int32)
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    if abs(b) > abs(a):
        return _Turn(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return _Turn(flip_x=a < 0, flip_y=d < 0)


__all__ = ["MediaError", "VideoFacts", "VideoFrame", "count_frames", "iter_frames"]
