"""Images are decoded wholly, upright, to RGB of 8 bits; damaged and huge ones are refused."""

import errno
import io
import struct
import tracemalloc

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from datasets.media.errors import MediaError
from datasets.media.images import ImageFacts, probe_image, read_image
from datasets.media.limits import MediaLimits
from tests.mediafiles import (
    corner_picture,
    image_bytes,
    noise,
    white_box_xyxy,
    write_gif,
    write_huge_png,
    write_image,
)

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]
# The white quarter of a stored picture of 64 x 48 after each orientation was applied.
UPRIGHT_BOXES = {
    1: ((64, 48), (0, 0, 32, 24)),
    2: ((64, 48), (32, 0, 64, 24)),
    3: ((64, 48), (32, 24, 64, 48)),
    4: ((64, 48), (0, 24, 32, 48)),
    5: ((48, 64), (0, 0, 24, 32)),
    6: ((48, 64), (24, 0, 48, 32)),
    7: ((48, 64), (24, 32, 48, 64)),
    8: ((48, 64), (0, 32, 24, 64)),
}


def tiff_tags(tags: dict[int, tuple[int, object]]) -> ImageFileDirectory_v2:
    """Tags by number, each with its type and value, to be saved with a TIFF."""
    directory = ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    return directory


def change_tag(path, tag: int, old: int, new: int) -> None:
    """Replace a short number that Pillow itself has written into a TIFF."""
    entry = struct.pack("<HHLL", tag, TiffTags.SHORT, 1, old)
    content = path.read_bytes()
    assert content.count(entry) == 1
    path.write_bytes(content.replace(entry, struct.pack("<HHLL", tag, TiffTags.SHORT, 1, new)))


def refusal(path, **limits) -> tuple[int, str]:
    with pytest.raises(MediaError) as probed:
        probe_image(path, limits=MediaLimits(**limits))
    with pytest.raises(MediaError) as read:
        read_image(path, limits=MediaLimits(**limits))
    assert (probed.value.status, probed.value.code) == (read.value.status, read.value.code)
    return probed.value.status, probed.value.code


@pytest.mark.parametrize("image_format", FORMATS)
def test_every_format_is_read(tmp_path, image_format):
    path = write_image(tmp_path / "x", corner_picture(), image_format=image_format)
    assert probe_image(path) == ImageFacts(size_wh=(64, 48), format=image_format.lower())
    picture = read_image(path)
    assert (picture.shape, picture.dtype) == ((48, 64, 3), np.uint8)
    assert white_box_xyxy(picture) == (0, 0, 32, 24)


def test_png_named_jpg_is_what_it_is(tmp_path):
    path = write_image(tmp_path / "x.jpg", image_format="PNG")
    assert probe_image(path).format == "png"
    np.testing.assert_array_equal(read_image(path), noise())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT_BOXES)
def test_picture_stands_upright_in_every_exif_orientation(tmp_path, image_format, orientation):
    path = write_image(
        tmp_path / "x", corner_picture(), image_format=image_format, orientation=orientation
    )
    size_wh, box_xyxy = UPRIGHT_BOXES[orientation]
    assert probe_image(path).size_wh == size_wh
    picture = read_image(path)
    assert picture.shape == (size_wh[1], size_wh[0], 3)
    assert white_box_xyxy(picture) == box_xyxy


def test_orientation_out_of_range_leaves_the_picture_as_it_is(tmp_path):
    path = write_image(tmp_path / "x", corner_picture(), orientation=9)
    assert probe_image(path).size_wh == (64, 48)
    assert white_box_xyxy(read_image(path)) == (0, 0, 32, 24)


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_image_is_refused(tmp_path, image_format, kept):
    content = image_bytes(image_format)
    path = tmp_path / "x"
    path.write_bytes(content[: int(len(content) * kept)])
    assert refusal(path) == (400, "corrupt_file")


@pytest.mark.parametrize("image_format", FORMATS)
def test_disk_that_fails_is_not_called_a_damaged_picture(tmp_path, monkeypatch, image_format):
    path = write_image(tmp_path / "x", noise((200, 150)), image_format=image_format)
    half = path.stat().st_size // 2

    class FailingFile(io.BytesIO):
        def read(self, size=-1):
            if size < 0 or self.tell() + size > half:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(size)

    content = path.read_bytes()
    monkeypatch.setattr(type(path), "open", lambda *_: FailingFile(content))
    for use in (probe_image, read_image):
        with pytest.raises(OSError, match="Input/output error") as caught:
            use(path)
        assert caught.value.errno == errno.EIO


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    assert refusal(tmp_path / "x") == (400, "empty_file")


DNG_VERSION = {50706: (TiffTags.BYTE, b"\1\4\0\0")}
PREVIEW = {254: (TiffTags.LONG, 1), 330: (TiffTags.LONG, 8)}
RGB_PIXELS, SENSOR_PIXELS = 2, 32803


@pytest.mark.parametrize(
    ("tags", "pixels"),
    [
        (PREVIEW | DNG_VERSION, RGB_PIXELS),
        (PREVIEW, RGB_PIXELS),
        (DNG_VERSION, SENSOR_PIXELS),
    ],
    ids=["dng", "nef", "dng without a preview"],
)
def test_raw_photograph_is_refused_and_its_preview_not_taken_for_it(tmp_path, tags, pixels):
    path = write_image(tmp_path / "x", image_format="TIFF", tiffinfo=tiff_tags(tags))
    change_tag(path, 262, RGB_PIXELS, pixels)
    with pytest.raises(MediaError) as caught:
        probe_image(path)
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")
    assert caught.value.detail == (
        "Raw photographs are not supported; please convert them to JPEG or TIFF."
    )


def test_tiff_with_smaller_copies_inside_is_its_full_picture(tmp_path):
    tags = {254: (TiffTags.LONG, 0), 330: (TiffTags.LONG, 8)}
    path = write_image(tmp_path / "x", image_format="TIFF", tiffinfo=tiff_tags(tags))
    assert probe_image(path) == ImageFacts(size_wh=(64, 48), format="tiff")


def test_video_is_no_image(tmp_path):
    assert refusal(write_gif(tmp_path / "x", frames=2)) == (415, "unsupported_media_type")


def test_picture_of_fifty_thousand_pixels_square_is_refused_before_decoding(tmp_path, monkeypatch):
    path = write_huge_png(tmp_path / "x.png")
    assert path.stat().st_size < 500

    def decoded(self):
        raise AssertionError("The picture was decoded.")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", decoded)
    assert refusal(path) == (422, "image_too_large")


def test_limit_of_pixels_is_inclusive(tmp_path):
    path = write_image(tmp_path / "x", image_format="PNG")
    assert probe_image(path, limits=MediaLimits(max_pixels=64 * 48)).size_wh == (64, 48)
    assert refusal(path, max_pixels=64 * 48 - 1) == (422, "image_too_large")


def test_picture_above_the_bomb_warning_of_pillow_is_read_without_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    path = write_image(tmp_path / "x", image_format="PNG")
    assert read_image(path).shape == (48, 64, 3)


def test_limit_of_the_reader_itself_is_told_as_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 100)
    path = write_image(tmp_path / "x", image_format="WEBP")
    assert refusal(path) == (422, "image_too_large")


def test_replaced_open_of_pillow_is_not_used(tmp_path, monkeypatch):
    def replaced(*args, **kwargs):
        raise AssertionError("PIL.Image.open was called.")

    path = write_image(tmp_path / "x")
    monkeypatch.setattr(PIL.Image, "open", replaced)
    assert read_image(path).shape == (48, 64, 3)


COLOURS = {
    "cmyk": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "one_bit": (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
    "grey": (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
    "palette": (Image.new("RGB", (4, 4), (9, 8, 7)).quantize(2), "PNG", (9, 8, 7)),
    "clear_is_white": (Image.new("RGBA", (4, 4), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
    "half_clear": (Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG", (255, 127, 127)),
    "grey_and_clear": (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
    "sixteen_bits_white": (Image.new("I;16", (4, 4), 65535), "PNG", (255, 255, 255)),
    "sixteen_bits_half": (Image.new("I;16", (4, 4), 128 * 257), "TIFF", (128, 128, 128)),
    "sixteen_bits_dark": (Image.new("I;16", (4, 4), 300), "PNG", (1, 1, 1)),
}


@pytest.mark.parametrize("name", COLOURS)
def test_every_kind_of_colour_becomes_rgb_of_eight_bits(tmp_path, name):
    image, image_format, expected = COLOURS[name]
    picture = read_image(write_image(tmp_path / "x", image, image_format=image_format))
    assert (picture.shape, picture.dtype) == ((4, 4, 3), np.uint8)
    assert np.unique(picture.reshape(-1, 3), axis=0).tolist() == [list(expected)]


def test_clear_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    path = write_image(tmp_path / "x", image, image_format="PNG", transparency=1)
    assert read_image(path)[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_numbers_without_a_fixed_white_are_stretched(tmp_path, kind):
    values = np.array([[-1000, 0], [1000, 3000]], kind)
    picture = read_image(write_image(tmp_path / "x", Image.fromarray(values), image_format="TIFF"))
    assert picture[..., 0].tolist() == [[0, 64], [128, 255]]


def greys_of(path) -> list[int]:
    """The first row of a picture that is grey; its thumbnail must show the same."""
    picture = read_image(path)
    assert (picture == picture[..., :1]).all()
    with Image.open(io.BytesIO(probe_image(path).thumbnail_jpeg)) as thumbnail:
        np.testing.assert_allclose(np.asarray(thumbnail), picture, atol=3)
    return picture[0, :, 0].tolist()


def write_grey_tiff(path, values: np.ndarray, **options):
    """Eight rows of the values, each eight pixels wide, so that a JPEG shows them well."""
    pixels = np.repeat(np.repeat(values[None], 8, axis=0), 8, axis=1)
    return write_image(path, Image.fromarray(pixels), image_format="TIFF", **options)


def test_grey_of_twelve_bits_is_scaled_from_twelve(tmp_path):
    packed = bytes.fromhex("000 800 fff 7ff".replace(" ", ""))  # four pixels, and two bytes unused
    words = np.frombuffer(packed + bytes(2), "<u2")
    path = write_image(tmp_path / "x", Image.fromarray(words[None]), image_format="TIFF")
    change_tag(path, 258, 16, 12)
    assert read_image(path)[0, :, 0].tolist() == [0, 128, 255, 127]


def test_grey_whose_white_is_zero_is_turned_over_and_stands_upright(tmp_path):
    values = np.array([0, 60_000, 65_535], np.uint16)
    path = write_grey_tiff(tmp_path / "x", values, orientation=2)  # mirrored
    assert greys_of(path)[::8] == [255, 233, 0]
    change_tag(path, 262, 1, 0)
    assert greys_of(path)[::8] == [0, 22, 255]


def test_floats_whose_white_is_zero_are_turned_over(tmp_path):
    path = write_grey_tiff(tmp_path / "x", np.array([0, 0.5, 1], np.float32))
    assert greys_of(path)[::8] == [0, 128, 255]
    change_tag(path, 262, 1, 0)
    assert greys_of(path)[::8] == [255, 128, 0]


def test_unsigned_numbers_of_32_bits_are_not_read_as_negative(tmp_path):
    values = np.array([0, 2_000_000_000, 3_000_000_000, 4_000_000_000], np.uint32)
    path = write_grey_tiff(tmp_path / "x", values.view(np.int32))
    change_tag(path, 339, 2, 1)
    assert greys_of(path)[::8] == [0, 128, 191, 255]


@pytest.mark.parametrize(("mode", "orientation"), [("RGB", 1), ("RGB", 6), ("RGBA", 1)])
def test_image_is_held_in_memory_once_beside_its_decoder(tmp_path, mode, orientation):
    """Pillow's own memory is not counted here: what is, is the picture and some rows more."""
    image = Image.new(mode, (2000, 1500), (10, 20, 30, 255)[: len(mode)])
    path = write_image(tmp_path / "x", image, image_format="PNG", orientation=orientation)
    read_image(path)  # what is imported at the first use does not count
    tracemalloc.start()
    try:
        picture = read_image(path)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert picture.nbytes == 2000 * 1500 * 3
    assert peak_bytes < 1.5 * picture.nbytes


def test_picture_of_one_pixel_is_read(tmp_path):
    path = write_image(tmp_path / "x", Image.new("RGB", (1, 1), (1, 2, 3)), image_format="PNG")
    assert probe_image(path).size_wh == (1, 1)
    assert read_image(path).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("image_format", ["TIFF", "PNG", "WEBP"])
def test_only_the_first_of_several_pictures_counts(tmp_path, image_format):
    red, blue = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if image_format == "WEBP" else {}
    path = write_image(
        tmp_path / "x",
        red,
        image_format=image_format,
        save_all=True,
        append_images=[blue],
        **options,
    )
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def test_first_picture_of_a_multi_picture_jpeg_counts(tmp_path):
    small = Image.new("RGB", (2, 2))
    first = Image.fromarray(corner_picture())
    path = write_image(
        tmp_path / "x", first, image_format="MPO", save_all=True, append_images=[small]
    )
    assert probe_image(path) == ImageFacts(size_wh=(64, 48), format="jpeg")
    assert white_box_xyxy(read_image(path)) == (0, 0, 32, 24)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    image_format=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_image_is_read_or_refused_and_nothing_else(tmp_path_factory, image_format, changes):
    content = bytearray(image_bytes(image_format))
    for place, value in changes:
        content[int(place * len(content))] = value
    path = tmp_path_factory.mktemp("damaged") / "x"
    path.write_bytes(content)
    try:
        facts = probe_image(path)
    except MediaError as error:
        assert error.status in (400, 415, 422)
    else:
        picture = read_image(path)
        assert (picture.shape[1], picture.shape[0]) == facts.size_wh
