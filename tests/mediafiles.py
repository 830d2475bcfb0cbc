"""Makes images, videos and archives of all sorts, sound and hostile, for the tests of every app."""

import contextlib
import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

# -- images


def corner_picture(size_wh: tuple[int, int] = (64, 48)) -> np.ndarray:
    """Black, with the top left quarter white: tells every rotation and mirroring apart."""
    width, height = size_wh
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2] = 255
    return picture


def white_box_xyxy(picture: np.ndarray) -> tuple[int, int, int, int]:
    """The bounding box of what is bright in an RGB picture, the end not included."""
    ys, xs = np.nonzero(picture[..., 0] > 127)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def noise(size_wh: tuple[int, int] = (64, 48), seed: int = 0) -> np.ndarray:
    width, height = size_wh
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def write_image(
    path: Path,
    picture: np.ndarray | Image.Image | None = None,
    *,
    image_format: str = "JPEG",
    orientation: int | None = None,
    **options: object,
) -> Path:
    """Save a picture (noise if none is given) under any name in the format that Pillow names."""
    image = picture if isinstance(picture, Image.Image) else None
    if image is None:
        image = Image.fromarray(noise() if picture is None else picture)
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, format=image_format, **options)
    return path


def image_bytes(image_format: str = "JPEG", picture: np.ndarray | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise() if picture is None else picture).save(buffer, format=image_format)
    return buffer.getvalue()


def write_huge_png(path: Path, size_wh: tuple[int, int] = (50_000, 50_000)) -> Path:
    """A PNG of a few hundred bytes whose header promises any number of pixels."""
    width, height = size_wh
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        data += struct.pack(">I", len(content)) + kind + content
        data += struct.pack(">I", zlib.crc32(kind + content))
    path.write_bytes(data)
    return path


def write_gif(path: Path, *, frames: int, size_wh: tuple[int, int] = (1, 1)) -> Path:
    """A GIF of that many equal frames of 0.1 s, 25 bytes each when they have one pixel."""
    buffer = io.BytesIO()
    Image.new("P", size_wh).save(buffer, format="GIF", optimize=False)
    data = buffer.getvalue()
    # Header, palette, and then the one image block, between a comma and the final semicolon.
    palette_end = 13 + (3 << ((data[10] & 7) + 1))
    image_block = data[data.index(b",", palette_end) : -1]
    control = b"\x21\xf9\x04\x00" + struct.pack("<H", 10) + b"\x00\x00"
    path.write_bytes(data[:palette_end] + (control + image_block) * frames + b";")
    return path


# -- videos


@contextlib.contextmanager
def _priority_kept() -> Iterator[None]:
    """SVT-AV1, run by root, gives the thread that opens it real-time priority, for good.

    Whatever spins in that thread later keeps all others, which it may wait for, from running.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def write_video(
    path: Path,
    *,
    frames: int = 5,
    codec: str = "mpeg4",
    rotation: int = 0,
    hflip: bool = False,
    size_wh: tuple[int, int] = (64, 48),
    rate_fps: int = 25,
    paint: Callable[[int], np.ndarray] | None = None,
    times_ms: Iterable[int] | None = None,
    container: str | None = None,
    with_audio: bool = False,
    sound: str = "",
    sound_rate_hz: int = 48_000,
    sound_layout: str = "mono",
    sound_seconds: float | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pix_fmt: str = "",
    pixel_aspect: Fraction | None = None,
) -> Path:
    """Encode a video; the container follows from the name unless it is given.

    `rotation` is how far a player turns the picture clockwise, `paint` makes frame i as RGB
    (h, w, 3), `times_ms` gives the frames a varying rate. `sound` names the coding of a
    tone as long as the pictures, or of `sound_seconds`; `with_audio` adds a moment of silence.
    """
    paint = paint or (lambda index: noise(size_wh, seed=index))
    times = None if times_ms is None else list(times_ms)
    with (
        _priority_kept(),
        av.open(str(path), "w", format=container, options=options or {}) as output,
    ):
        stream = output.add_stream(codec, rate=rate_fps)
        stream.width, stream.height = size_wh
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.options = codec_options or {}
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation or hflip:
            stream.set_display_rotation(-rotation, hflip=hflip)
        if with_audio:
            _write_silence(output)
        tone = None
        if sound:
            tone = output.add_stream(sound, rate=sound_rate_hz, layout=sound_layout)
        for index in range(frames):
            frame = av.VideoFrame.from_ndarray(paint(index))
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if tone is not None:
            seconds = frames / rate_fps if sound_seconds is None else sound_seconds
            _write_tone(output, tone, seconds)
    return path


def _write_tone(output: av.container.OutputContainer, stream: Any, seconds: float) -> None:
    rate = stream.rate
    wave = np.sin(np.arange(round(rate * seconds)) / 20).astype(np.float32) / 2
    frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    size = stream.codec_context.frame_size or 1024
    resampler = av.AudioResampler(
        stream.codec_context.format.name, stream.layout, rate, frame_size=size
    )
    for piece in [*resampler.resample(frame), *resampler.resample(None)]:
        output.mux(stream.encode(piece))
    output.mux(stream.encode(None))


def write_joined_video(path: Path, parts: Iterable[Path]) -> Path:
    """Put the packets of several videos of one codec and rate behind each other as one stream."""
    with av.open(str(path), "w") as output:
        joined, end = None, 0
        for part in parts:
            with av.open(str(part)) as source:
                stream = source.streams.video[0]
                joined = joined or output.add_stream_from_template(stream)
                start = end
                for packet in source.demux(stream):
                    if packet.size:
                        packet.pts += start
                        packet.dts += start
                        end = max(end, packet.pts + packet.duration)
                        packet.stream = joined
                        output.mux(packet)
    return path


def write_audio(path: Path, *, cover: bool = False, container: str | None = None) -> Path:
    """A recording without moving pictures, with a cover picture if asked for."""
    with av.open(str(path), "w", format=container) as output:
        picture = None
        if cover:
            picture = output.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        _write_silence(output)
        if picture is not None:
            output.mux(picture.encode(av.VideoFrame.from_ndarray(noise())))
            output.mux(picture.encode(None))
    return path


def _write_silence(output: av.container.OutputContainer) -> None:
    stream = output.add_stream("aac", rate=48_000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
    frame.sample_rate, frame.pts = 48_000, 0
    output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def packet_spans(path: Path) -> list[tuple[int, int]]:
    """Where the data of each video packet starts and ends in the file, in stored order."""
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        return [(packet.pos, packet.pos + packet.size) for packet in packets]


# -- archives


def write_zip(
    path: Path,
    members: Iterable[tuple[str | zipfile.ZipInfo, bytes]],
    *,
    method: int = zipfile.ZIP_DEFLATED,
) -> Path:
    """A zip archive of the members in the given order; names may repeat."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name) if isinstance(name, str) else name
            archive.writestr(info, content, compress_type=method)
    return path


def write_raw_zip(
    path: Path,
    members: Iterable[tuple[bytes, bytes]],
    *,
    flags: int = 0,
    method: int = zipfile.ZIP_STORED,
    declared_bytes: int | None = None,
    declared_entries: int | None = None,
    overlapping: bool = False,
) -> Path:
    """A zip archive put together by hand, so that it can lie.

    The data of the members (name, data) goes in as it is. `declared_bytes` is the size that each
    claims to have unpacked, `declared_entries` the number of entries that the end record claims,
    `overlapping` makes every entry point at the data of the first.
    """
    data, directory, count = bytearray(), bytearray(), 0
    for name, content in members:
        size = len(content) if declared_bytes is None else declared_bytes
        common = struct.pack(
            "<HHHHHLLLHH", 20, flags, method, 0, 33, zlib.crc32(content), len(content), size,
            len(name), 0,
        )  # fmt: skip
        offset = 0 if overlapping else len(data)
        if not overlapping or count == 0:
            data += b"PK\x03\x04" + common + name + content
        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHLL", 0, 0, 0, 0, offset) + name
        count += 1
    entries = min(count if declared_entries is None else declared_entries, 0xFFFF)
    end = struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, len(directory), len(data), 0
    )
    path.write_bytes(bytes(data + directory + end))
    return path
