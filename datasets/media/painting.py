"""Frames as av decodes them, made into upright pictures."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import VideoReformatter

from datasets.media.container import raise_if_out_of_memory
from datasets.media.errors import refused
from datasets.media.planes import (
    BT709,
    PLAIN_COLOURS,
    SQUARE,
    UNSPECIFIED,
    Colours,
    Plane,
    Planes,
)

_PLANAR_FORMATS = {"yuv420p", "yuvj420p"}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_FEWEST_COLOUR_COMPONENTS = 3  # less are grey, with transparency or a palette at most


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
class Turn:
    """How a stored picture becomes upright: transposed first, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    def size_wh(self, width: int, height: int) -> tuple[int, int]:
        """The upright size of a stored one."""
        return (height, width) if self.transpose else (width, height)

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The upright picture of a stored one (h, w, channels)."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        if self.flip_x:
            image = image[:, ::-1]
        if self.flip_y:
            image = image[::-1]
        return np.ascontiguousarray(image)

    @property
    def clockwise_degrees(self) -> int:
        """How far it turns, mirroring left aside: 0, 90, 180 or 270."""
        if self.transpose:
            return 90 if self.flip_x else 270
        return 180 if self.flip_y else 0


_QUARTER_TURNS = (  # clockwise
    Turn(),
    Turn(transpose=True, flip_x=True),
    Turn(flip_x=True, flip_y=True),
    Turn(transpose=True, flip_y=True),
)


@dataclass
class Decoded:
    """A frame as av gave it, with its place in the video."""

    frame_index: int
    time_seconds: float
    frame: Any
    turn: Turn
    pixel_aspect: Fraction
    was_time_corrected: bool = False


def has_plain_rows(frame: Any) -> bool:
    """Whether av can hand out the rows of all planes.

    It cannot where the last row lies first, as in uncompressed AVI, and a palette has none.
    """
    return all(plane.line_size > 0 for plane in frame.planes)


def rows_of(plane: Any) -> Plane:
    """The first bytes of each row of a plane, one for each pixel, without a copy; read-only."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    rows.flags.writeable = False
    return rows[: plane.height, : plane.width]


def colours_of(frame: Any) -> Colours:
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


class Painter:
    """Turns decoded frames into upright RGB arrays, all of the size of the first one."""

    def __init__(self) -> None:
        self._tools = threading.local()  # frames may be painted by other threads
        self._size_wh: tuple[int, int] | None = None
        self._pixel_aspect = SQUARE
        self._colours = PLAIN_COLOURS

    def see(self, item: Decoded) -> tuple[int, int]:
        """Let the first frame decide the size (w, h) of all, whether it is painted or not.

        It decides the shape of their pixels and what their numbers mean as well.
        """
        if self._size_wh is None:
            self._size_wh = item.turn.size_wh(item.frame.width, item.frame.height)
            self._pixel_aspect = item.pixel_aspect
            self._colours = colours_of(item.frame)
        return self._size_wh

    def frame(self, item: Decoded) -> VideoFrame:
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

    def _planes(self, item: Decoded) -> Planes | None:
        frame = item.frame
        if (
            frame.format.name not in _PLANAR_FORMATS
            or item.turn != Turn()
            or self.see(item) != (frame.width, frame.height)
            or frame.width % 2
            or frame.height % 2
            or not has_plain_rows(frame)
        ):
            return None
        y, u, v = (rows_of(plane) for plane in frame.planes)
        return Planes(y, u, v, colours_of(frame))

    def paint(self, item: Decoded) -> np.ndarray:
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
            raise_if_out_of_memory(error)
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
            raise_if_out_of_memory(error)
            matrix = colours_of(frame).turned_matrix(frame.height)
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


class Turning:
    """Tells how the frames of a video are to be turned.

    Reading the side data of a frame makes it refer to itself: it then lives, with its pixels,
    until the garbage collector comes by. So this is done for the first frame, and for one whose
    rotation has changed.
    """

    def __init__(self) -> None:
        self._turn: Turn | None = None
        self._rotation_degrees = 0

    def of(self, frame: Any) -> Turn:
        """How to turn the next frame."""
        rotation_degrees = frame.rotation
        if self._turn is None or rotation_degrees != self._rotation_degrees:
            self._turn = _turn(frame)
            self._rotation_degrees = rotation_degrees
        return self._turn


def _turn(frame: Any) -> Turn:
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
        return Turn()
    matrix = np.frombuffer(bytes(side_data[SideDataType.DISPLAYMATRIX]), dtype=np.int32)
    a, b, c, d = (int(matrix[index]) for index in (0, 1, 3, 4))
    if abs(b) > abs(a):
        return Turn(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Turn(flip_x=a < 0, flip_y=d < 0)
