"""Tells what a file is by its first bytes; its name is never looked at."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datasets.media.errors import MediaError, empty_file, raw_photograph, unsupported_type

Kind = Literal["image", "video", "archive"]

_HEAD_BYTES = 4096
_TS_SYNC = 0x47
# Transport streams come in packets of 188 bytes, with a 4-byte time stamp in front (192, as disc
# cameras write them) or with 16 bytes of error correction behind (204).
_TS_LAYOUTS = ((0, 188), (4, 192), (0, 204))
_TS_SYNCS_ANYWHERE = 8

_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_AVIF_BRANDS = {b"avif", b"avis"}
_MOV_BOXES = {b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"}
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_BMP_HEADER_BYTES = {12, 16, 40, 52, 56, 64, 108, 124}

_OTHER_ARCHIVES = (
    (0, b"Rar!\x1a\x07", "RAR"),
    (0, b"7z\xbc\xaf\x27\x1c", "7z"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ\x00", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (257, b"ustar", "tar"),
)
_AUDIO = (
    (0, b"ID3", "MP3"),
    (0, b"fLaC", "FLAC"),
    (0, b"FORM", "AIFF"),
    (0, b"MThd", "MIDI"),
    (0, b"#!AMR", "AMR"),
    (0, b"caff", "CAF"),
)
_PLAYLIST_STARTS = (
    b"#extm3u",
    b"ffconcat version",
    b"[playlist]",
    b"v=0",
    b"[reference]",
    b"rtsptext",
    b"smil",
)


@dataclass(frozen=True)
class Sniffed:
    """What a file is; for a video, `format` also decides which demuxer reads it."""

    kind: Kind
    format: str


def sniff(path: Path) -> Sniffed:
    """Tell the kind and format of the file by its content.

    Raises MediaError: 400 for an empty file, 415 for everything that is neither a supported image,
    a supported video nor a zip archive. Says nothing about whether the rest of the file is sound.
    A GIF is read block by block to its second frame, which can take minutes if it was made to.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise empty_file()
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return Sniffed("video", "gif") if _is_animated_gif(path) else Sniffed("image", "gif")
    for recognise in (_image, _iso_media, _other_video, _archive, _cut_transport_stream):
        found = recognise(head)
        if found is not None:
            return found
    raise _refusal(head)


def _image(head: bytes) -> Sniffed | None:
    if head.startswith(b"\xff\xd8\xff"):
        return Sniffed("image", "jpeg")
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return Sniffed("image", "png")
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return Sniffed("image", "webp")
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADER_BYTES:
        return Sniffed("image", "bmp")
    # The third and fourth are BigTIFF.
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        if head[8:10] == b"CR":  # Canon's
            raise raw_photograph()
        return Sniffed("image", "tiff")
    return None


def _iso_media(head: bytes) -> Sniffed | None:
    """Recognise the family of MP4 and QuickTime, which stores some still images as well."""
    box = head[4:8]
    if box in _MOV_BOXES:
        return Sniffed("video", "mov")
    if box != b"ftyp":
        return None
    brand = head[8:12]
    if brand in _HEIF_BRANDS or brand in _AVIF_BRANDS:
        name = "AVIF" if brand in _AVIF_BRANDS else "HEIC"
        raise unsupported_type(f"{name} images are not supported; please convert them to JPEG.")
    if brand == b"crx ":
        raise raw_photograph()
    if brand == b"qt  ":
        return Sniffed("video", "mov")
    return Sniffed("video", "3gp" if brand.startswith((b"3gp", b"3g2")) else "mp4")


def _other_video(head: bytes) -> Sniffed | None:
    starts: tuple[tuple[bytes, str], ...] = (
        (_ASF_HEADER, "asf"),
        (b"FLV\x01", "flv"),
        (b"OggS", "ogg"),
        (b"\x00\x00\x01\xba", "mpeg"),
        (b"\x00\x00\x01\xb3", "mpegvideo"),
        (b"\x00\x00\x01\xb0", "m4v"),
        (b"\x00\x00\x01\x20", "m4v"),
    )
    for start, container in starts:
        if head.startswith(start):
            return Sniffed("video", container)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return Sniffed("video", "webm" if b"webm" in head[:64] else "matroska")
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return Sniffed("video", "avi")
    return Sniffed("video", "mpegts") if _is_transport_stream(head) else None


def _is_transport_stream(head: bytes) -> bool:
    return any(_has_syncs(head, first, step, at_least=3) for first, step in _TS_LAYOUTS)


def _cut_transport_stream(head: bytes) -> Sniffed | None:
    """Recognise a recording that begins within a packet.

    There are hundreds of places to try, so more has to fit; and it comes last, because an archive
    may well have a transport stream in it.
    """
    found = any(
        _has_syncs(head, first, step, at_least=_TS_SYNCS_ANYWHERE)
        for _, step in _TS_LAYOUTS
        for first in range(step)
    )
    return Sniffed("video", "mpegts") if found else None


def _has_syncs(head: bytes, first: int, step: int, *, at_least: int) -> bool:
    syncs = head[first::step]
    return len(syncs) >= at_least and syncs.count(_TS_SYNC) == len(syncs)


def is_zip(path: Path) -> bool:
    """Whether the file begins as a zip archive; reads its first bytes only, whatever it is."""
    with path.open("rb") as file:
        return archive_name(file.read(_HEAD_BYTES)) == "zip"


def archive_name(head: bytes) -> str | None:
    """The kind of archive, supported or not, that begins with these bytes (300 are enough)."""
    # The second is a zip archive without any member, the third one that was made in parts.
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return "zip"
    for offset, magic, name in _OTHER_ARCHIVES:
        if head.startswith(magic, offset):
            return name
    return None


def _archive(head: bytes) -> Sniffed | None:
    name = archive_name(head)
    if name is None:
        return None
    if name != "zip":
        raise unsupported_type(f"{name} archives are not supported; please send a zip archive.")
    return Sniffed("archive", "zip")


def _refusal(head: bytes) -> MediaError:
    """Say as precisely as the first bytes allow what the file is instead."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    named: tuple[tuple[Callable[[], bool], str], ...] = (
        (lambda: text.startswith(_PLAYLIST_STARTS), "Playlists are not supported"),
        (lambda: b"<svg" in text, "SVG drawings are not supported"),
        (lambda: text.startswith((b"<!doctype html", b"<html")), "This is a web page"),
        (lambda: text.startswith(b"<"), "Markup documents are not supported"),
        (lambda: _is_audio(head), "This is a sound recording without pictures"),
        (lambda: text.startswith(b"%pdf"), "PDF documents are not supported"),
    )
    for applies, sentence in named:
        if applies():
            return unsupported_type(f"{sentence}; please send images, videos or a zip of them.")
    return unsupported_type(
        "The file is neither an image nor a video in a supported format, nor a zip archive."
    )


def _is_audio(head: bytes) -> bool:
    if any(head.startswith(magic, offset) for offset, magic, _ in _AUDIO):
        return True
    if head.startswith(b"RIFF") and head[8:12] == b"WAVE":
        return True
    # MPEG audio and AAC frames begin with eleven set bits.
    return len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0


def _is_animated_gif(path: Path) -> bool:
    """Whether a GIF has a second frame.

    Walks over the blocks of the file (GIF89a specification, section 12 and following) and decodes
    nothing, because the size of the picture has not been checked yet.
    """
    with path.open("rb") as file:
        header = file.read(13)
        if len(header) < 13:
            return False
        if header[10] & 0x80:
            file.seek(3 << ((header[10] & 0x07) + 1), 1)
        frames = 0
        while True:
            introducer = file.read(1)
            if introducer == b"\x21":
                file.seek(1, 1)
            elif introducer == b"\x2c":
                frames += 1
                if frames > 1:
                    return True
                descriptor = file.read(9)
                if len(descriptor) < 9:
                    return False
                palette_bytes = 3 << ((descriptor[8] & 0x07) + 1) if descriptor[8] & 0x80 else 0
                file.seek(palette_bytes + 1, 1)
            else:
                return False
            while length := file.read(1)[:1]:
                if length == b"\x00":
                    break
                file.seek(length[0], 1)
