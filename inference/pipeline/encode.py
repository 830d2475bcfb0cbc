"""Writes annotated files: H.264 in MP4, which every browser plays, and images."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange
from PIL import Image as PilImage

from datasets.media.planes import PLAIN_COLOURS, SQUARE, Colours
from inference.pipeline.errors import DrawingError
from inference.pipeline.types import Image

# The usual clock of video containers: fine enough for every frame rate, variable ones included.
TICKS_PER_SECOND = 90_000
# MP4 keeps the time from a frame to the next in 31 bits: 6.6 hours.
LONGEST_STEP_TICKS = 2**31 - 2
# A player can begin before it has the whole file; and starts, which are kept in units of the
# movie, are as exact as frame times.
MP4_OPTIONS = {"movflags": "+faststart", "movie_timescale": str(TICKS_PER_SECOND)}
_KEYFRAME_EVERY_FRAMES = 60
_NOMINAL_RATE_FPS = 30  # tells players how much to expect; the frames' own times are what counts
_LIMITED_RANGE, _FULL_RANGE = 1, 2
_LONGEST_SIDE = 16_384  # of what the encoder takes

_IMAGE_FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_IMAGE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 92, "optimize": False},
    "WEBP": {"quality": 90, "method": 2},
    "PNG": {"compress_level": 3},
    "TIFF": {"compression": "tiff_deflate"},
}
# Pillow tells of this one by an OSError that looks like one of the disk.
_LONGEST_JPEG_SIDE = 65_500


class VideoWriter:
    """Encodes frames one by one in constant memory; use it as a context manager.

    The file appears under its name only when the block ends well; on an exception nothing is
    left. Frames keep their own times; a gap that MP4 cannot hold is cut short, and what follows
    moves on with it. Frames longer than 16384 pixels are made smaller. A size that is odd loses its
    last row or column, because the colours of H.264 come in blocks of two by two. Sound is left
    out.
    """

    def __init__(
        self,
        path: Path,
        size_wh: tuple[int, int],
        *,
        colours: Colours = PLAIN_COLOURS,
        pixel_aspect: Fraction = SQUARE,
        preset: str = "superfast",
        quality: int = 23,
    ) -> None:
        """`size_wh` of the frames in pixels; `quality` is x264's rate factor, lower is better.

        `colours` are those of the file; RGB images are converted to them. `pixel_aspect` is the
        width of a pixel by its height. Raises DrawingError (`video_too_small`) for a side below 2
        pixels. Writing and the end of the block raise it (`video_not_encodable`) for what the
        encoder refuses, and OSError.
        """
        if min(size_wh) < 2:
            raise DrawingError("video_too_small", "A video needs at least 2 x 2 pixels.")
        self.colours = colours
        self._pixel_aspect = pixel_aspect
        self._path = path
        self._partial = _partial_path(path)
        scale = min(1, _LONGEST_SIDE / max(size_wh))
        self.size_wh = (max(2, round(size_wh[0] * scale)), max(2, round(size_wh[1] * scale)))
        self._preset = preset
        self._quality = quality
        self._last_tick: int | None = None
        self._cut_ticks = 0
        self._last_duration_ticks = TICKS_PER_SECOND // _NOMINAL_RATE_FPS
        # One packet is held back, because the last one must be told how long it is shown.
        self._held: av.Packet | None = None

    def __enter__(self) -> Self:
        self._container = av.open(str(self._partial), "w", format="mp4", options=MP4_OPTIONS)
        try:
            self._stream = self._open_stream()
        except BaseException:
            self._discard()
            raise
        return self

    def write(self, image_rgb: Image, time_seconds: float) -> None:
        """Appends a frame shown from `time_seconds` on; times that do not grow are nudged on.

        `image_rgb` uint8 (h, w, 3); one of another size is fitted into the video's.
        """
        if (image_rgb.shape[1], image_rgb.shape[0]) != self.size_wh:
            image_rgb = cv2.resize(image_rgb, self.size_wh, interpolation=cv2.INTER_AREA)
        even_rgb = image_rgb[: self._stream.height, : self._stream.width]
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even_rgb), format="rgb24")
        self._append(
            frame.reformat(
                format="yuv420p",
                dst_colorspace=self.colours.turned_matrix(frame.height),
                dst_color_range=ColorRange.JPEG if self.colours.full_range else ColorRange.MPEG,
            ),
            time_seconds,
        )

    def write_planes(self, memory: npt.NDArray[np.uint8], time_seconds: float) -> None:
        """As `write`, for planes behind each other, (h 3/2, w), in size and colours of the file.

        The memory belongs to the writer from now on.
        """
        # Without a copy av takes the height for a multiple of four, and the colours from elsewhere.
        height = memory.shape[0] * 2 // 3
        made = av.VideoFrame.from_ndarray if height % 4 else av.VideoFrame.from_numpy_buffer
        self._append(made(memory, format="yuv420p"), time_seconds)

    def _append(self, frame: av.VideoFrame, time_seconds: float) -> None:
        tick = round(time_seconds * TICKS_PER_SECOND) - self._cut_ticks
        if self._last_tick is not None:
            self._cut_ticks += max(tick - self._last_tick - LONGEST_STEP_TICKS, 0)
            tick = min(max(tick, self._last_tick + 1), self._last_tick + LONGEST_STEP_TICKS)
            self._last_duration_ticks = tick - self._last_tick
        frame.pts, frame.time_base = tick, Fraction(1, TICKS_PER_SECOND)
        self._last_tick = tick
        self._encode(frame)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            return
        try:
            self._encode(None)
            if self._held is not None:
                # The last frame is shown for as long as the one before it.
                self._held.duration = self._last_duration_ticks
                self._container.mux(self._held)
            self._container.close()
            self._partial.replace(self._path)
        except BaseException:
            self._discard()
            raise

    def _open_stream(self) -> Any:
        stream: Any = self._container.add_stream("libx264", rate=_NOMINAL_RATE_FPS)
        stream.width, stream.height = (side - side % 2 for side in self.size_wh)
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, TICKS_PER_SECOND)
        context = stream.codec_context
        context.time_base = Fraction(1, TICKS_PER_SECOND)
        context.gop_size = _KEYFRAME_EVERY_FRAMES
        # It stands beside a network that has the cores; more threads would only wait for them.
        context.thread_count = 1
        context.colorspace = self.colours.matrix
        context.color_primaries, context.color_trc = self.colours.primaries, self.colours.transfer
        if self._pixel_aspect != SQUARE:
            context.sample_aspect_ratio = self._pixel_aspect
        context.color_range = _FULL_RANGE if self.colours.full_range else _LIMITED_RANGE
        # Without frames that refer to later ones, the order of coding is that of showing; with
        # them and varying frame times, the container's duration comes out wrong.
        context.options = {"preset": self._preset, "crf": str(self._quality), "bf": "0"}
        return stream

    def _encode(self, frame: av.VideoFrame | None) -> None:
        """Encode a frame and write what is ready; None stands for the end."""
        try:
            packets = self._stream.encode(frame)
        except av.FFmpegError as error:
            if error.errno == errno.ENOMEM:
                raise  # the machine's fault
            raise DrawingError(
                "video_not_encodable", "The encoder refuses the annotated pictures."
            ) from error
        self._mux(packets)

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._held is not None:
                self._container.mux(self._held)
            self._held = packet

    def _discard(self) -> None:
        self._held = None
        with contextlib.suppress(Exception):  # the error under way is the one that matters
            self._container.close()
        self._partial.unlink(missing_ok=True)


def write_image(
    path: Path,
    image_rgb: Image,
    format: str | None = None,  # noqa: A002
    *,
    colour_profile: bytes | None = None,
) -> None:
    """Writes an image; the file appears under its name only when it is whole.

    `format`: JPEG, PNG, WEBP, BMP or TIFF; by default what the name ends with. `colour_profile`:
    the ICC profile of its numbers, sRGB without one. Raises DrawingError (`image_format_unknown`,
    or `image_too_large` for what the format cannot hold).
    """
    chosen = format.upper() if format else _IMAGE_FORMATS.get(path.suffix.lower())
    if chosen is None or chosen not in _IMAGE_FORMATS.values():
        raise DrawingError("image_format_unknown", f"No image is written as {path.suffix!r}.")
    if chosen == "JPEG" and max(image_rgb.shape) > _LONGEST_JPEG_SIDE:
        raise DrawingError("image_too_large", "JPEG cannot hold this image.")
    with whole_file(path) as partial:
        try:
            PilImage.fromarray(image_rgb).save(
                partial,
                format=chosen,
                icc_profile=colour_profile,
                **_IMAGE_OPTIONS.get(chosen, {}),
            )
        except ValueError as error:
            raise DrawingError("image_too_large", f"{chosen} cannot hold this image.") from error


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path to write to, whose file takes the given name when the block ends well."""
    partial = _partial_path(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial_path(path: Path) -> Path:
    # The process id keeps two workers that redo the same piece of work apart.
    return path.with_name(f".{path.name}.{os.getpid()}.partial")
