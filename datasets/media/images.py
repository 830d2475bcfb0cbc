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

from datasets.media.errors import (
    MediaError,
    corrupt_file,
    raw_photograph,
    refused,
    unsupported_type,
)
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
_TRANSPOSED = {5, 6, 7, 8}
# The upright picture (h, w, 3) as a view with the rows and columns of the one that is stored in
# each of the orientations of EXIF 2.32, 4.6.4.
_AS_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: upright[:, ::-1].transpose(1, 0, 2),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: upright[::-1].transpose(1, 0, 2),
}
_BLOCK_PIXELS = 1 << 18
THUMBNAIL_PIXELS = 320  # of the longer side
_LARGEST_PROFILE_BYTES = 4 * 1024**2
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
        return _to_rgb(image, _orientation(image))


def colour_profile(path: Path) -> bytes | None:
    """The ICC profile that says what the numbers of `read_image` mean, as phones write it.

    None where there is none, or where the numbers are no longer the stored ones: of grey and CMYK
    images, and of a file that cannot be read.
    """
    try:
        with _opened(path) as (image, _):
            mode, profile = image.mode, image.info.get("icc_profile")
    except (MediaError, OSError):
        return None
    is_fit = isinstance(profile, bytes) and 0 < len(profile) <= _LARGEST_PROFILE_BYTES
    return profile if is_fit and mode in ("RGB", "RGBA", "P") else None


def thumbnail_of(picture: np.ndarray) -> bytes:
    """A JPEG of at most 320 x 320 pixels of a picture RGB uint8 (h, w, 3)."""
    return _small_jpeg(Image.fromarray(picture))


def _thumbnail(image: Image.Image) -> bytes | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = _to_rgb(_shrunk(image), _orientation(image))
            return _small_jpeg(Image.fromarray(small))
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
def _opened(path: Path) -> Iterator[tuple[Image.Image, str]]:
    """Open without decoding; the file is closed at the end."""
    sniffed = sniff(path)
    reader = _READERS.get(sniffed.format) if sniffed.kind == "image" else None
    if reader is None:
        raise unsupported_type("The file is no image.")
    with path.open("rb") as file:
        with _damage_refused():
            image = reader(file)
        yield image, sniffed.format


@contextmanager
def _loaded(path: Path, limits: MediaLimits) -> Iterator[tuple[Image.Image, str]]:
    """Open, check the size, decode; the file is closed at the end."""
    with _opened(path) as (image, image_format):
        _check_size(image.size, limits)
        with _damage_refused():
            image.load()
            if isinstance(image, TiffImageFile):
                _put_greys_right(image)
        yield image, image_format


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
    for rows, block in _blocks(image):
        values = np.asarray(block)
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
        image.paste(Image.fromarray(values), (0, rows.start))


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
    return orientation if orientation in _AS_STORED else 1


def _to_rgb(image: Image.Image, orientation: int) -> np.ndarray:
    """Upright RGB uint8 (h, w, 3) of an image that is stored in an orientation.

    It is made in blocks of rows, because each copy of a large image takes hundreds of megabytes.
    """
    width, height = image.size
    upright_hw = (width, height) if orientation in _TRANSPOSED else (height, width)
    picture = np.empty((*upright_hw, 3), np.uint8)
    stored = _AS_STORED[orientation](picture)
    convert = _conversion(image)
    for rows, block in _blocks(image):
        stored[rows] = convert(block)
    return picture


def _blocks(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Copies of some rows of an image each, from top to bottom."""
    width, height = image.size
    count = max(1, _BLOCK_PIXELS // width)
    for top in range(0, height, count):
        bottom = min(top + count, height)
        yield slice(top, bottom), image.crop((0, top, width, bottom))


def _conversion(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """What turns blocks of the image into uint8 (h, w, 3), or (h, w, 1) where it is grey."""
    if image.mode in _SIXTEEN_BIT_MODES:
        return _scaled_from_16_bits
    if image.mode in ("I", "F"):
        low, high = _range(image)
        return lambda block: _stretched(block, low, high)
    if image.mode.startswith(("LA", "La", "PA", "RGBA", "RGBa")) or "transparency" in image.info:
        return _over_white
    return lambda block: np.asarray(block.convert("RGB"))


def _scaled_from_16_bits(block: Image.Image) -> np.ndarray:
    """Scale 0..65535 to 0..255, rounded: 65535 = 255 * 257."""
    values = np.asarray(block)[..., np.newaxis]
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _range(image: Image.Image) -> tuple[float, float]:
    """The lowest and the highest finite value of an image; 0 and 0 if there is none."""
    lows, highs = [], []
    for _, block in _blocks(image):
        values = np.asarray(block)
        finite = values[np.isfinite(values)]
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return min(lows, default=0.0), max(highs, default=0.0)


def _stretched(block: Image.Image, low: float, high: float) -> np.ndarray:
    """Stretch finite values from lowest to highest over 0..255; what is not finite is black."""
    values = np.asarray(block)[..., np.newaxis].astype(np.float64)
    scale = 255.0 / (high - low) if high > low else 0.0
    scaled = (np.where(np.isfinite(values), values, low) - low) * scale
    return np.rint(scaled).astype(np.uint8)


def _over_white(block: Image.Image) -> np.ndarray:
    picture = block.convert("RGBA")
    page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(page, picture).convert("RGB"))
