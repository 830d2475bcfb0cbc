"""Opens videos and reads their packets.

Nothing but the bytes of the one file is ever read: the demuxer is chosen by the sniffed container,
never by av's own guess (which would accept playlists), and the file reaches it as a nameless stream
of bytes.
"""

import errno
import io
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from datasets.media.errors import corrupt_file, refused, unsupported_type
from datasets.media.limits import MediaLimits
from datasets.media.planes import SQUARE
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
PROGRESS_EVERY_FRAMES = 50
# av counts the padding of a picture as well, so its own limit must be wider than ours. It only
# keeps a decoder from reserving absurd amounts of memory before a frame can be measured.
_PADDING_FACTOR = 2
_PADDING_PIXELS = 1024 * 1024


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


@dataclass
class OpenVideo:
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


@contextmanager
def opened_video(
    path: Path,
    container_format: str | None,
    limits: MediaLimits,
    decoder_threads: int = DECODER_THREADS,
) -> Iterator[OpenVideo]:
    """A video file that is open for decoding.

    Raises MediaError as `opened_container` does, and 422 for a video without pictures, with
    pictures above `limits.max_frame_pixels` or without a decoder.
    """
    with opened_container(path, container_format, limits) as (container, known_format):
        yield _prepare(container, known_format, limits, decoder_threads)


@contextmanager
def opened_container(
    path: Path,
    container_format: str | None,
    limits: MediaLimits,
    *,
    options: Mapping[str, str] | None = None,
) -> Iterator[tuple[InputContainer, str]]:
    """Open a video file for reading; gives the container and the word of `sniff` for it.

    `options` are those of the demuxer.
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
                options={**_decoder_options(limits), **(options or {})},
            )
        except (av.FFmpegError, UnicodeError) as error:
            raise_if_out_of_memory(error)
            raise corrupt_file(
                "The video is damaged or incomplete: it cannot be opened."
            ) from error
        with closing(container):
            yield container, container_format


def frames_cut_away(path: Path, video: OpenVideo, limits: MediaLimits) -> int:
    """How many frames an edit list has taken out of the index of a video.

    The number that the container tells has them all. An index that is short for another reason is
    damaged.
    """
    listed = len(video.stream.index_entries)
    if _DEMUXERS[video.format] != "mov" or listed >= video.stream.frames:
        return 0
    unedited = {"ignore_editlist": "1"}
    with opened_container(path, video.format, limits, options=unedited) as (container, _):
        return len(_video_stream(container).index_entries) - listed


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
) -> OpenVideo:
    """Choose the stream, check its size before anything is decoded, and set up its decoder."""
    stream = _video_stream(container)
    context = stream.codec_context
    check_size(context.width, context.height, limits.max_frame_pixels)
    for other in container.streams:
        if other.index != stream.index:
            other.discard = av.stream.Discard.all
    context.thread_type = "AUTO"
    context.thread_count = decoder_threads
    context.options = _decoder_options(limits)
    rate_fps = _nominal_rate_fps(stream) or _DEFAULT_RATE_FPS
    return OpenVideo(
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


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raise MediaError 422 for a picture of more than `max_pixels`."""
    if width * height > max_pixels:
        raise refused(
            "frame_too_large",
            f"The pictures of the video have {width} x {height} pixels; "
            f"the limit is {max_pixels} pixels.",
        )


def demuxed(container: InputContainer, stream: Any) -> Iterator[Any]:
    """The packets of a stream, and one without content at the end.

    av does not know streams that appear only on the way, as late sound does in FLV, and may stumble
    over them when all has been read. Raises av.FFmpegError for a damaged tail.
    """
    with suppress(IndexError):
        yield from container.demux(stream)


def packets_of(video: OpenVideo) -> Generator[Any, None, None]:
    """The packets of the stream, and None at the end, which makes the decoder give up the rest."""
    try:
        for packet in demuxed(video.container, video.stream):
            if packet.size:
                video.hidden_count += packet.is_discard
                yield packet
    except av.FFmpegError as error:
        # A damaged tail ends the video; what came before it counts.
        raise_if_out_of_memory(error)
        video.is_damaged = True
    yield None


def raise_if_out_of_memory(error: Exception) -> None:
    """Memory that runs out must not look like a damaged frame: the count would depend on it."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        raise MemoryError("There is not enough memory to decode the video.") from error


def _nominal_rate_fps(stream: VideoStream) -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate):
        if rate and 0 < rate <= _MAX_SANE_RATE_FPS:
            return float(rate)
    return None


def average_rate_fps(stream: VideoStream, frame_count: int, duration_seconds: float) -> float:
    """The rate that the container names where the frames bear it out, else the measured one."""
    measured_fps = min(frame_count / duration_seconds, _MAX_SANE_RATE_FPS)
    nominal_fps = _nominal_rate_fps(stream)
    if nominal_fps is not None and abs(nominal_fps - measured_fps) <= 0.1 * measured_fps:
        return nominal_fps
    return measured_fps


def _pixel_aspect(stream: VideoStream) -> Fraction:
    """The width of a stored pixel by its height; what is missing or absurd counts as square."""
    aspect = stream.sample_aspect_ratio
    return aspect if aspect and 1 / _MAX_SANE_ASPECT <= aspect <= _MAX_SANE_ASPECT else SQUARE
