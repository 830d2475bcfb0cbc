"""Decodes images with Pillow.

The file's plugin is called directly, chosen by what `sniff` told. `PIL.Image.open` is avoided on
purpose: other libraries replace it while the program runs, it tries every format that anybody
registered, and its check of the size warns instead of refusing.
"""

import errno
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from datasets.media.errors import corrupt_file, raw_photograph, refused, unsupported_type
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.sniff import sniff

# Tags of TIFF 6.0, its Technical Note 1 and DNG 1.4.
_SUBFILE_TYPE_TAG, _INNER_PICTURES_TAG, _DNG_VERSION_TAG = 254, 330, 50706
_BITS_TAG, _PHOTOMETRIC_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 339
_REDUCED = 1
_WHITE_IS_ZERO = 0
_UNSIGNED = 1


class _TiffFile(TiffImageFile):
    """Refuses raw photographs (DNG, NEF, ARW), which begin with a small preview of themselves."""

    def _setup(self) -> None:
        tags = self.tag_v2
        is_preview = tags.get(_SUBFILE_TYPE_TAG, 0) & _REDUCED and _INNER_PICTURES_TAG in tags
        if is_preview or _DNG_VERSION_TAG in tags:
            raise raw_photograph()
        super()._setup()


# The allow-list. A multi-picture file (MPO) is a JPEG whose first picture is the photograph, so the
# plain JPEG reader is the right one for it.
_READERS: dict[str, Callable[..., ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "webp": WebPImageFile,
    "bmp": BmpImageFile,
    "tiff": _TiffFile,
    "gif": GifImageFile,
}
# What Pillow's readers raise on damaged files, as found by damaging files of every format.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    AttributeError,
    RuntimeError,
    AssertionError,
    struct.error,
    zlib.error,
)
_ORIENTATION_TAG = 0x0112
# What makes a picture upright that is stored in each of the orientations of EXIF 2.32, 4.6.4.
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED = {5, 6, 7, 8}
THUMBNAIL_PIXELS = 320  # of the longer side
_SIXTEEN_BIT_MODES = {"I;16", "I;16B", "I;16L", "I;16N"}


@dataclass(frozen=True)
class ImageFacts:
    """The upright size in pixels (width, height), the format in the words of `sniff`, a thumbnail.

    The thumbnail is missing where the picture decodes but cannot be made small.
    """

    size_wh: tuple[int, int]
    format: str
    thumbnail_jpeg: bytes | None = field(default=None, compare=False, repr=False)


def probe_image(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> ImageFacts:
    """Decode the image wholly and tell its upright size.

    Raises MediaError: 400 for an empty, truncated or damaged file, 415 for a file that is no image
    of a supported format, 422 for more than `limits.max_pixels`, before anything is decoded.
    Raises OSError where the disk fails. Of an image with several pictures (MPO, TIFF, APNG,
    animated WebP) only the first counts.
    """
    with _loaded(path, limits) as (image, image_format):
        width, height = image.size
        size_wh = (height, width) if _orientation(image) in _TRANSPOSED else (width, height)
        thumbnail_jpeg = _thumbnail(image)
    return ImageFacts(size_wh=size_wh, format=image_format, thumbnail_jpeg=thumbnail_jpeg)


def read_image(path: Path, *, limits: MediaLimits | None = None) -> np.ndarray:
    """Decode the image to upright RGB uint8 of shape (height, width, 3).

    Transparency is put over white, 16 bits are scaled to 8, numbers without a fixed white (32-bit
    integers, floats) are stretched from their lowest to their highest. Raises MediaError and
    OSError as `probe_image` does.
    """
    with _loaded(path, limits or DEFAULT_LIMITS) as (image, _), _damage_refused():
        return _to_rgb(_upright(image))


def thumbnail_of(picture: np.ndarray) -> bytes:
    """A JPEG of at most 320 x 320 pixels of a picture RGB uint8 (h, w, 3)."""
    return _small_jpeg(Image.fromarray(picture))


def _thumbnail(image: Image.Image) -> bytes | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = _shrunk(image)
            orientation = _orientation(image)
            if orientation != 1:
                small = small.transpose(_TRANSPOSITIONS[orientation])
            return _small_jpeg(Image.fromarray(_to_rgb(small)))
    except _DAMAGE as error:
        _raise_if_disk_failed(error)
        return None


def _shrunk(image: Image.Image) -> Image.Image:
    """The image fitted into a thumbnail, made small before anything else is done to it."""
    scale = THUMBNAIL_PIXELS / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _small_jpeg(image: Image.Image) -> bytes:
    target = io.BytesIO()
    _shrunk(image).save(target, "JPEG", quality=80)
    return target.getvalue()


@contextmanager
def _loaded(path: Path, limits: MediaLimits) -> Iterator[tuple[Image.Image, str]]:
    """Open, check the size, decode; the file is closed at the end."""
    sniffed = sniff(path)
    reader = _READERS.get(sniffed.format) if sniffed.kind == "image" else None
    if reader is None:
        raise unsupported_type("The file is no image.")
    with path.open("rb") as file:
        with _damage_refused():
            image = reader(file)
        _check_size(image.size, limits)
        with _damage_refused():
            image.load()
            if isinstance(image, TiffImageFile):
                _put_greys_right(image)
        yield image, sniffed.format


@contextmanager
def _damage_refused() -> Iterator[None]:
    """Turn what Pillow raises on damaged files into one refusal.

    Pillow's warnings about odd metadata are silenced, so that a program that makes errors of
    warnings accepts the same files as one that does not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Image.DecompressionBombError as error:
        # Some readers compare with Pillow's own limit, which is a little lower than ours.
        raise refused("image_too_large", "The image has too many pixels.") from error
    except _DAMAGE as error:
        _raise_if_disk_failed(error)
        raise corrupt_file("The image is damaged or incomplete: it cannot be decoded.") from error


def _put_greys_right(image: TiffImageFile) -> None:
    """Give greys of more than 8 bits the meaning that others of their mode have.

    Pillow hands out the stored numbers, whatever the tags say of them.
    """
    tags = image.tag_v2
    # Pillow's own defaults.
    is_inverted = tags.get(_PHOTOMETRIC_TAG, _WHITE_IS_ZERO) == _WHITE_IS_ZERO
    is_unsigned = tags.get(_SAMPLE_FORMAT_TAG, (_UNSIGNED,))[0] == _UNSIGNED
    has_12_bits = tags.get(_BITS_TAG) == (12,)
    values = np.asarray(image)
    if image.mode in _SIXTEEN_BIT_MODES and has_12_bits:
        values = values << 4 | values >> 8
    elif image.mode in _SIXTEEN_BIT_MODES and is_inverted:
        values = np.invert(values)
    elif image.mode == "F" and is_inverted:
        values = -values
    elif image.mode == "I" and is_unsigned:
        # Moved into the range of signed numbers; they are stretched anyway.
        values = values ^ np.int32(-(2**31))
    else:
        return
    image.paste(Image.fromarray(values))


def _raise_if_disk_failed(error: Exception) -> None:
    """The system numbers its errors and Pillow does not; seeking to nowhere is the file's fault."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error


def _check_size(size_wh: tuple[int, int], limits: MediaLimits) -> None:
    width, height = size_wh
    if width < 1 or height < 1:
        raise corrupt_file("The image has no pixels.")
    if width * height > limits.max_pixels:
        raise refused(
            "image_too_large",
            f"The image has {width} x {height} pixels; the limit is {limits.max_pixels} pixels.",
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; one that cannot be read or is out of range counts as 1."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        _raise_if_disk_failed(error)
        return 1
    return orientation if orientation in _TRANSPOSITIONS else 1


def _upright(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    return image if orientation == 1 else image.transpose(_TRANSPOSITIONS[orientation])


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _grey_to_rgb(_scaled_from_16_bits(np.asarray(image)))
    if image.mode in ("I", "F"):
        return _grey_to_rgb(_stretched(np.asarray(image)))
    if image.mode.startswith(("LA", "La", "PA", "RGBA", "RGBa")) or "transparency" in image.info:
        return _over_white(image)
    return np.array(image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    """Repeat uint8 (h, w) into uint8 (h, w, 3)."""
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _scaled_from_16_bits(values: np.ndarray) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounded: 65535 = 255 * 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _stretched(values: np.ndarray) -> np.ndarray:
    """Stretch the finite values from lowest to highest over 0..255; what is not finite is black."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, dtype=np.uint8)
    low, high = float(values[finite].min()), float(values[finite].max())
    scale = 255.0 / (high - low) if high > low else 0.0
    stretched = np.empty(values.shape, dtype=np.uint8)
    for row, row_finite, target in zip(values, finite, stretched, strict=True):
        # Row by row, because a copy of a large image in float64 takes gigabytes.
        scaled = (np.where(row_finite, row, low).astype(np.float64) - low) * scale
        np.rint(scaled, out=scaled)
        target[:] = scaled
    return stretched


def _over_white(image: Image.Image) -> np.ndarray:
    picture = image.convert("RGBA")
    page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(page, picture).convert("RGB"))
