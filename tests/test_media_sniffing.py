"""What a file is, is told by its content and never by its name."""

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasets.media.errors import MediaError
from datasets.media.sniff import Sniffed, is_zip, sniff
from tests.mediafiles import image_bytes, write_gif, write_image, write_video, write_zip


def written(folder: Path, content: bytes, name: str = "holiday.jpg") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_image_is_recognised_under_a_wrong_name(tmp_path, image_format):
    path = write_image(tmp_path / "film.mp4", image_format=image_format)
    assert sniff(path) == Sniffed("image", image_format.lower())


def test_multi_picture_jpeg_is_a_jpeg(tmp_path):
    from PIL import Image

    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    path = tmp_path / "stereo.mpo"
    first.save(path, format="MPO", save_all=True, append_images=[second])
    assert sniff(path) == Sniffed("image", "jpeg")


def test_still_gif_is_an_image_and_an_animated_one_a_video(tmp_path):
    assert sniff(write_gif(tmp_path / "a.gif", frames=1)) == Sniffed("image", "gif")
    assert sniff(write_gif(tmp_path / "b.gif", frames=2)) == Sniffed("video", "gif")


@pytest.mark.parametrize("colour_bits", [1, 8])
def test_gif_whose_frames_have_palettes_of_their_own_counts_them(tmp_path, colour_bits):
    """A palette is skipped by its length: it may hold what looks like the end of the file."""
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    head = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0x80 | colour_bits - 1)
    frame = head + b";" * 3 * 2**colour_bits + b"\x02\x02\x4c\x01\x00"
    assert sniff(written(tmp_path, screen + frame + b";")) == Sniffed("image", "gif")
    assert sniff(written(tmp_path, screen + 2 * frame + b";")) == Sniffed("video", "gif")


def test_gif_cut_off_within_its_first_frame_is_an_image(tmp_path):
    whole = write_gif(tmp_path / "a.gif", frames=2).read_bytes()
    for length in range(6, whole.index(b",") + 10):
        assert sniff(written(tmp_path, whole[:length])) == Sniffed("image", "gif")


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_animated_png_and_webp_are_images(tmp_path, image_format):
    from PIL import Image

    path = tmp_path / "moving"
    still, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "red")
    still.save(path, format=image_format, save_all=True, append_images=[other])
    assert sniff(path) == Sniffed("image", image_format.lower())


@pytest.mark.parametrize(
    ("container", "codec", "expected"),
    [
        ("mp4", "mpeg4", "mp4"),
        ("mov", "mpeg4", "mov"),
        ("3gp", "mpeg4", "3gp"),
        ("webm", "libvpx", "webm"),
        ("matroska", "mpeg4", "matroska"),
        ("avi", "mpeg4", "avi"),
        ("flv", "flv", "flv"),
        ("asf", "wmv2", "asf"),
        ("mpegts", "mpeg2video", "mpegts"),
        ("mpeg", "mpeg2video", "mpeg"),
        ("ogg", "libvpx", "ogg"),
        ("mpeg2video", "mpeg2video", "mpegvideo"),
        ("m4v", "mpeg4", "m4v"),
    ],
)
def test_video_container_is_recognised_under_a_wrong_name(tmp_path, container, codec, expected):
    path = write_video(tmp_path / "photo.jpg", container=container, codec=codec)
    assert sniff(path) == Sniffed("video", expected)


def test_transport_stream_with_time_stamps_before_its_packets_is_recognised(tmp_path):
    plain = write_video(tmp_path / "a.ts", codec="mpeg2video").read_bytes()
    stamped = b"".join(bytes(4) + plain[i : i + 188] for i in range(0, len(plain), 188))
    assert sniff(written(tmp_path, stamped)) == Sniffed("video", "mpegts")


@pytest.mark.parametrize("step", [188, 192, 204])
def test_transport_stream_that_was_cut_within_a_packet_is_recognised(tmp_path, step):
    packets = (b"\x47" + bytes(step - 1)) * 30
    for cut in range(1, step):
        assert sniff(written(tmp_path, packets[cut:])) == Sniffed("video", "mpegts")


def test_archive_that_begins_with_a_transport_stream_stays_an_archive(tmp_path):
    stream = (b"\x47" + bytes(187)) * 30
    path = write_zip(tmp_path / "a.zip", [("a.ts", stream)], method=zipfile.ZIP_STORED)
    assert stream[:-188] in path.read_bytes()[:6000]
    assert sniff(path) == Sniffed("archive", "zip")


def test_cut_transport_stream_is_told_by_eight_packets_in_a_row(tmp_path):
    packet = b"\x47" + bytes(187)
    for beginning in (b"\xff\xfb", b"\x12\x34"):  # the first is what MPEG audio begins with
        cut = beginning + bytes(50)
        assert sniff(written(tmp_path, cut + 8 * packet)) == Sniffed("video", "mpegts")
        for other in (cut + 7 * packet, cut + 4 * packet + bytes(188) + 10 * packet):
            with pytest.raises(MediaError) as caught:
                sniff(written(tmp_path, other))
            assert caught.value.code == "unsupported_media_type"


def test_zip_is_an_archive(tmp_path):
    path = write_zip(tmp_path / "photo.jpg", [("a.jpg", image_bytes())])
    assert sniff(path) == Sniffed("archive", "zip")


def test_whether_a_file_is_a_zip_is_told_by_its_first_bytes(tmp_path):
    assert is_zip(write_zip(tmp_path / "photo.jpg", [("a.jpg", image_bytes())]))
    assert not is_zip(write_gif(tmp_path / "a.zip", frames=2))
    assert not is_zip(written(tmp_path, b"Rar!\x1a\x07\x01\0"))
    assert not is_zip(written(tmp_path, b""))


def test_empty_file_is_refused(tmp_path):
    with pytest.raises(MediaError) as caught:
        sniff(written(tmp_path, b""))
    assert (caught.value.status, caught.value.code) == (400, "empty_file")
    assert caught.value.detail == "The file is empty."


def box(kind: bytes, brand: bytes) -> bytes:
    return struct.pack(">I", 24) + kind + brand + bytes(12)


UNSUPPORTED = {
    "html": b"<!DOCTYPE html><html><body>no picture</body></html>",
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "svg_with_mark": b"\xef\xbb\xbf<svg/>",
    "text": b"just words, and quite a few of them",
    "m3u8": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/secret.ts\n",
    "concat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\n",
    "xspf": b'<?xml version="1.0"?><playlist version="1"/>',
    "pls": b"[playlist]\nFile1=http://127.0.0.1/\n",
    "dash": b'<?xml version="1.0"?><MPD/>',
    "heic": box(b"ftyp", b"heic"),
    "mif1": box(b"ftyp", b"mif1"),
    "avif": box(b"ftyp", b"avif"),
    "raw_photograph": box(b"ftyp", b"crx "),
    "canon_raw": b"II*\0\x10\0\0\0CR\x02\0" + bytes(32),
    "jpeg2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(32),
    "wave": b"RIFF\x24\0\0\0WAVEfmt " + bytes(32),
    "mp3": b"ID3\x04\0\0" + bytes(32),
    "mp3_bare": b"\xff\xfb\x90\x64" + bytes(32),
    "flac": b"fLaC" + bytes(32),
    "rar": b"Rar!\x1a\x07\x01\0" + bytes(32),
    "7z": b"7z\xbc\xaf\x27\x1c" + bytes(32),
    "gzip": b"\x1f\x8b\x08" + bytes(32),
    "tar": bytes(257) + b"ustar\x0000" + bytes(248),
    "pdf": b"%PDF-1.7\n" + bytes(32),
    "zeros": bytes(4096),
    "exe": b"MZ" + bytes(200),
    "bm_text": b"BMW drivers are not bitmaps, honestly",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_kinds_are_refused_as_unsupported(tmp_path, kind):
    with pytest.raises(MediaError) as caught:
        sniff(written(tmp_path, UNSUPPORTED[kind]))
    assert (caught.value.status, caught.value.code) == (415, "unsupported_media_type")
    assert caught.value.detail.endswith((".", "!"))


def test_refusal_says_what_the_file_is(tmp_path):
    for kind, word in [
        ("svg", "SVG"),
        ("heic", "HEIC"),
        ("m3u8", "Playlist"),
        ("rar", "zip"),
        ("raw_photograph", "Raw"),
        ("canon_raw", "Raw"),
    ]:
        with pytest.raises(MediaError) as caught:
            sniff(written(tmp_path, UNSUPPORTED[kind]))
        assert word in caught.value.detail


@given(content=st.binary(min_size=1, max_size=600))
def test_any_bytes_are_recognised_or_refused_and_nothing_else(tmp_path_factory, content):
    path = written(tmp_path_factory.mktemp("any"), content)
    try:
        found = sniff(path)
    except MediaError as error:
        assert error.status == 415
    else:
        assert found.kind in ("image", "video", "archive")


def test_web_process_loads_no_decoder_and_no_framework_with_this_package():
    code = (
        "import sys, datasets.media.inspector, datasets.media.archive, datasets.media.sniff\n"
        "print(sorted({'av', 'PIL', 'numpy', 'django', 'torch'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True
    )
    assert done.stdout.strip() == "[]"
