"""Annotated videos look like their originals, sound like them and keep their times."""

import errno
import gc
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from datasets.media.planes import BT709, BT2020, BT2020_CONSTANT, SMPTE170M, UNSPECIFIED, Colours
from datasets.media.sound import opened_sound
from datasets.media.video import VideoFrame, count_frames, iter_frames
from inference.pipeline.annotate import AnnotatedVideo
from inference.pipeline.draw import class_colour, draw, draw_on_planes
from inference.pipeline.encode import VideoWriter
from inference.pipeline.errors import DrawingError
from inference.pipeline.join import join_segments
from inference.pipeline.types import Detections
from tests.mediafiles import corner_picture, write_video
from tests.pipeline_fakes import one_car

NAMES = ("car", "truck")


def picture(index: int, size_wh=(160, 120)) -> np.ndarray:
    """Smooth colours that move from frame to frame."""
    x, y = np.meshgrid(np.arange(size_wh[0]), np.arange(size_wh[1]))
    waves = [np.sin((x + 3 * index) / 25), np.cos(y / 20), np.sin((x + y) / 30 + index / 5)]
    return np.stack([(110 * wave + 128) for wave in waves], axis=-1).astype(np.uint8)


def annotate(source: Path, target: Path, detections=None, **choice) -> Path:
    with AnnotatedVideo(target, NAMES) as video:
        for frame in iter_frames(source, **choice):
            video.write(frame, detections or Detections.empty())
    return target


def times_of(path: Path) -> list[float]:
    return [frame.time_seconds for frame in iter_frames(path)]


# -- colours


def source_of_colours(path: Path, colours: Colours) -> Path:
    with VideoWriter(path, (160, 120), colours=colours, quality=10) as writer:
        for index in range(4):
            writer.write(picture(index), index / 25)
    return path


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [BT709, 5, 6, UNSPECIFIED])
def test_annotated_video_says_of_its_colours_what_the_original_does(tmp_path, matrix, full_range):
    colours = Colours(matrix, matrix, matrix, full_range)
    source = source_of_colours(tmp_path / "in.mp4", colours)
    out = annotate(source, tmp_path / "out.mp4")
    for before, after in zip(iter_frames(source), iter_frames(out), strict=True):
        assert before.planes.colours == after.planes.colours == colours
        assert np.abs(before.image.astype(int) - after.image).mean() < 3
        assert np.abs(picture(before.frame_index).astype(int) - after.image).mean() < 4


def test_video_of_full_range_does_not_look_washed_out(tmp_path):
    source = write_video(
        tmp_path / "in.avi", codec="mjpeg", frames=2, paint=lambda _: corner_picture()
    )
    out = annotate(source, tmp_path / "out.mp4")
    first = next(iter_frames(out))
    assert first.planes.colours.full_range
    assert first.image[4:12, 4:12].min() > 250
    assert first.image[-8:, -8:].max() < 5


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [BT709, 6])
def test_boxes_have_their_colours_in_every_kind_of_video(tmp_path, matrix, full_range):
    colours = Colours(matrix, matrix, matrix, full_range)
    source = source_of_colours(tmp_path / "in.mp4", colours)
    wide = Detections(
        np.array([1], np.int16), np.array([0.9], np.float32), np.array([[40, 40, 120, 100]], "f4")
    )
    frame = next(iter_frames(source))
    canvas, memory = frame.planes.copied()
    draw_on_planes(canvas, wide, NAMES)
    with VideoWriter(tmp_path / "out.mp4", (160, 120), colours=colours, quality=1) as writer:
        writer.write_planes(memory, 0.0)
    shown = next(iter_frames(tmp_path / "out.mp4")).image.astype(int)
    by_rgb = draw(frame.image, wide, NAMES).astype(int)
    label = np.median(shown[:39][(by_rgb[:39] == class_colour(1)).all(axis=2)], axis=0)
    assert np.abs(label - class_colour(1)).max() < 25  # blocks share their colour with the ink
    assert np.abs(shown - by_rgb).mean() < 6
    # What was found is not painted over.
    assert np.abs(shown[44:96, 44:116] - frame.image[44:96, 44:116]).mean() < 4


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [BT709, 6, UNSPECIFIED])
def test_rgb_becomes_the_numbers_that_players_turn_back(tmp_path, matrix, full_range):
    colours = Colours(matrix, matrix, matrix, full_range)
    rgb = np.array([(200, 40, 40), (40, 160, 60), (50, 70, 200), (250, 250, 250)], np.uint8)
    with VideoWriter(tmp_path / "x.mp4", (64, 64), colours=colours, quality=1) as writer:
        for index, (y, u, v) in enumerate(colours.of_rgb(rgb).tolist()):
            planes = [np.full(64 * 64, y), np.full(32 * 32, u), np.full(32 * 32, v)]
            memory = np.concatenate(planes).astype(np.uint8).reshape(96, 64)
            writer.write_planes(memory, index / 25)
    for expected, frame in zip(rgb, iter_frames(tmp_path / "x.mp4"), strict=True):
        assert np.abs(frame.image.reshape(-1, 3).astype(int) - expected).max() <= 4


@pytest.mark.parametrize("size_wh", [(64, 64), (64, 640)])
@pytest.mark.parametrize("matrix", [8, 10, 11, 12, 13, 14])
def test_colours_that_av_cannot_turn_are_shown_as_players_do(tmp_path, matrix, size_wh):
    width, height = size_wh
    usual = BT2020 if matrix == BT2020_CONSTANT else BT709 if height == 640 else SMPTE170M
    rgb = np.array((200, 60, 40), np.uint8)
    y, u, v = Colours(usual).of_rgb(rgb).tolist()
    memory = np.repeat(np.array([y, u, v], np.uint8), [4, 1, 1]).repeat(width * height // 4)
    source = tmp_path / "in.mp4"
    with VideoWriter(source, size_wh, colours=Colours(matrix), quality=1) as writer:
        writer.write_planes(memory.reshape(height * 3 // 2, width), 0.0)
    assert count_frames(source).frame_count == 1
    for path in (source, annotate(source, tmp_path / "out.mp4")):
        (frame,) = iter_frames(path)
        assert frame.planes.colours.matrix == matrix
        assert np.abs(frame.image.astype(int) - rgb).max() <= 4


@pytest.mark.parametrize("size_wh", [(64, 64), (64, 640)])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [1, 2, 4, 5, 6, 7, 8, 9, 10, 14])
def test_rgb_is_converted_with_the_matrix_that_it_is_read_with(
    tmp_path, matrix, full_range, size_wh
):
    colours = Colours(matrix, BT2020, 18, full_range)
    with VideoWriter(tmp_path / "x.mp4", size_wh, colours=colours, quality=1) as writer:
        writer.write(np.full((*size_wh[::-1], 3), (200, 60, 40), np.uint8), 0.0)
    (frame,) = iter_frames(tmp_path / "x.mp4")
    assert frame.colours == frame.planes.colours == colours
    assert np.abs(frame.image.astype(int) - (200, 60, 40)).max() <= 4


NUMBERS = {"y": 100, "u": 100, "v": 220}


def write_numbers(path: Path, colours: Colours, pix_fmt: str, *, size_wh=(64, 48), rotation=0):
    """A video whose pixels all have NUMBERS, of 8 bits or four times as much of 10, as stored."""
    frame = av.VideoFrame(*size_wh, pix_fmt)
    for plane, number in zip(frame.planes, NUMBERS.values(), strict=True):
        is_fine = "10" in pix_fmt
        kind, factor = (np.uint16, 4) if is_fine else (np.uint8, 1)
        plane.update(np.full(plane.buffer_size // (1 + is_fine), number * factor, kind))
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=25)
        (stream.width, stream.height), stream.pix_fmt = size_wh, pix_fmt
        stream.set_display_rotation(-rotation)
        context = stream.codec_context
        context.options = {"qp": "1", "preset": "ultrafast"}
        for one in (context, frame):
            one.colorspace, one.color_range = colours.matrix, 2 if colours.full_range else 1
            one.color_primaries, one.color_trc = colours.primaries, colours.transfer
        for frame.pts in range(3):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def assert_numbers_are_kept(frame: VideoFrame) -> None:
    for name, number in NUMBERS.items():
        stored = getattr(frame.planes, name).astype(int)
        assert np.abs(stored - number).max() <= 2, name


@pytest.mark.parametrize("rotation", [0, 90])
@pytest.mark.parametrize("pix_fmt", ["yuv420p10le", "yuv422p10le"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("transfer", [16, 18], ids=["PQ", "HLG"])
def test_video_of_high_dynamic_range_says_so_once_annotated(
    tmp_path, transfer, full_range, pix_fmt, rotation
):
    colours = Colours(BT2020, BT2020, transfer, full_range)
    source = write_numbers(tmp_path / "in.mp4", colours, pix_fmt, rotation=rotation)
    out = annotate(source, tmp_path / "out.mp4")
    for before, after in zip(iter_frames(source), iter_frames(out), strict=True):
        assert before.planes is None
        assert before.colours == after.colours == after.planes.colours == colours
        assert_numbers_are_kept(after)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("size_wh", [(64, 48), (64, 720)])
@pytest.mark.parametrize(
    "kind",
    [
        {"pix_fmt": "yuv420p"},
        {"pix_fmt": "yuv420p", "rotation": 90},
        {"pix_fmt": "yuv420p10le"},
        {"pix_fmt": "yuv422p"},
        {"pix_fmt": "yuv444p"},
    ],
    ids=lambda kind: "-".join(map(str, kind.values())),
)
def test_video_that_tells_no_matrix_looks_the_same_once_annotated(
    tmp_path, kind, size_wh, full_range
):
    """Players guess the same of both, though not always what pictures are read with here."""
    untold = Colours(UNSPECIFIED, UNSPECIFIED, UNSPECIFIED, full_range)
    source = write_numbers(tmp_path / "in.mp4", untold, size_wh=size_wh, **kind)
    out = annotate(source, tmp_path / "out.mp4")
    for before, after in zip(iter_frames(source), iter_frames(out), strict=True):
        assert before.colours == after.colours == after.planes.colours == untold
        assert_numbers_are_kept(after)
        assert np.abs(before.image.astype(int) - after.image).max() <= 5


@pytest.mark.parametrize("pix_fmt", ["bgr0", "gray", "pal8"])
def test_pictures_without_a_matrix_are_written_with_our_own(tmp_path, pix_fmt):
    codec = "gif" if pix_fmt == "pal8" else "ffv1"
    path = tmp_path / ("in.gif" if pix_fmt == "pal8" else "in.mkv")
    write_video(path, frames=2, codec=codec, pix_fmt="rgb8" if codec == "gif" else pix_fmt)
    assert next(iter_frames(path)).colours == Colours(BT709, BT709, BT709)


def test_ranges_of_a_video_whose_colours_change_can_be_joined(tmp_path):
    parts = [
        write_numbers(tmp_path / f"{matrix}.ts", Colours(matrix, matrix, matrix), "yuv420p")
        for matrix in (BT709, SMPTE170M)
    ]
    source = tmp_path / "x.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    matrices = [frame.planes.colours.matrix for frame in iter_frames(source)]
    assert matrices == [BT709] * 3 + [SMPTE170M] * 3
    segments = [
        annotate(source, tmp_path / f"{first}.mp4", first_frame_index=first, max_frames=3)
        for first in (0, 3)
    ]
    join_segments(segments, tmp_path / "out.mp4")
    for before, after in zip(iter_frames(source), iter_frames(tmp_path / "out.mp4"), strict=True):
        assert before.colours == after.planes.colours == Colours()
        assert np.abs(before.image.astype(int) - after.image).max() <= 4


@pytest.mark.parametrize("size_wh", [(16, 2), (2, 2), (64, 6), (64, 66), (64, 64)])
def test_planes_of_every_even_size_are_written_as_they_are(tmp_path, size_wh):
    width, height = size_wh
    shape = height * 3 // 2, width
    memory = np.random.default_rng(0).integers(16, 236, shape).astype(np.uint8)
    with VideoWriter(tmp_path / "x.mp4", size_wh, quality=0) as writer:  # without loss
        writer.write_planes(memory.copy(), 0.0)
    frame = next(iter_frames(tmp_path / "x.mp4"))
    assert frame.planes.size_wh == size_wh
    np.testing.assert_array_equal(frame.planes.copied()[1], memory)


def test_picture_that_the_decoder_still_needs_cannot_be_drawn_on(tmp_path):
    source = source_of_colours(tmp_path / "in.mp4", Colours())
    frame = next(iter_frames(source))
    with pytest.raises(ValueError, match="read-only"):
        draw_on_planes(frame.planes, one_car(), NAMES)
    _, memory = frame.planes.copied()
    assert not np.shares_memory(memory, frame.planes.y)


@pytest.mark.parametrize(
    "kind",
    [
        {"name": "odd.mkv", "codec": "ffv1", "size_wh": (65, 49)},
        {"name": "turned.mp4", "codec": "libx264", "rotation": 90},
        {"name": "fine.mov", "codec": "prores_ks", "pix_fmt": "yuv422p10le"},
        {"name": "grey.mkv", "codec": "ffv1", "pix_fmt": "gray"},
    ],
)
def test_pictures_of_other_kinds_are_drawn_over_rgb(tmp_path, kind):
    name = kind.pop("name")
    size_wh = kind.get("size_wh", (64, 48))
    source = write_video(tmp_path / name, frames=3, paint=lambda _: corner_picture(size_wh), **kind)
    assert next(iter_frames(source)).planes is None
    out = annotate(source, tmp_path / "out.mp4")
    before, after = next(iter_frames(source)).image, next(iter_frames(out)).image
    height, width = after.shape[:2]
    assert (height, width) == tuple(side // 2 * 2 for side in before.shape[:2])
    assert np.abs(before[:height, :width].astype(int) - after).mean() < 4
    assert times_of(out) == times_of(source)


# -- what the encoder does not take


@pytest.mark.parametrize(
    ("size_wh", "written_wh"), [((20_480, 20), (16_384, 16)), ((4, 32_768), (2, 16_384))]
)
def test_frames_longer_than_the_encoder_takes_are_made_smaller(tmp_path, size_wh, written_wh):
    source = write_video(
        tmp_path / "in.mkv", codec="ffv1", frames=2, size_wh=size_wh,
        paint=lambda _: corner_picture(size_wh),
    )  # fmt: skip
    assert next(iter_frames(source)).planes.size_wh == size_wh
    out = annotate(source, tmp_path / "out.mp4")
    assert (count_frames(out).size_wh, count_frames(out).frame_count) == (written_wh, 2)
    width, height = written_wh
    shown = next(iter_frames(out)).image
    assert shown[height // 4, width // 4].min() > 240
    assert shown[-1, -1].max() < 15


def test_what_the_encoder_refuses_is_no_fault_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("inference.pipeline.encode._LONGEST_SIDE", 20_000)
    with (
        pytest.raises(DrawingError) as caught,
        VideoWriter(tmp_path / "x.mp4", (17_000, 16)) as writer,
    ):
        writer.write(np.zeros((16, 17_000, 3), np.uint8), 0.0)
    assert caught.value.code == "video_not_encodable"
    assert list(tmp_path.iterdir()) == []


def test_lack_of_memory_is_no_fault_of_the_pictures(tmp_path, monkeypatch):
    def encode(frame):
        raise av.error.MemoryError(errno.ENOMEM, "Cannot allocate memory")

    with (
        pytest.raises(MemoryError),
        VideoWriter(tmp_path / "x.mp4", (64, 48)) as writer,
    ):
        writer._stream = SimpleNamespace(width=64, height=48, encode=encode)
        writer.write(picture(0, (64, 48)), 0.0)
    assert list(tmp_path.iterdir()) == []


def test_frames_die_without_the_garbage_collector(tmp_path):
    source = write_video(tmp_path / "in.mp4", frames=30, codec="libx264", rotation=90)

    def alive():
        return sum(type(one) is av.VideoFrame for one in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        most = max(alive() for _ in iter_frames(source))
    finally:
        gc.enable()
    assert most - before < 12


# -- the shape of pixels


def aspect_of(path: Path) -> Fraction | None:
    with av.open(str(path)) as container:
        return container.streams.video[0].sample_aspect_ratio or None


@pytest.mark.parametrize(
    ("stored", "rotation", "expected"),
    [
        (Fraction(4, 3), 0, Fraction(4, 3)),
        (Fraction(4, 3), 90, Fraction(3, 4)),
        (Fraction(4, 3), 180, Fraction(4, 3)),
        (None, 0, None),
        (Fraction(1), 90, None),
        (Fraction(65_000), 0, None),
    ],
)
def test_joined_video_has_the_pixels_of_the_upright_original(tmp_path, stored, rotation, expected):
    source = write_video(
        tmp_path / "in.mp4", codec="libx264", frames=6, rotation=rotation, pixel_aspect=stored
    )
    segments = [
        annotate(source, tmp_path / f"{first}.mp4", first_frame_index=first, max_frames=3)
        for first in (0, 3)
    ]
    join_segments(segments, tmp_path / "out.mp4")
    assert aspect_of(tmp_path / "out.mp4") == expected
    assert count_frames(tmp_path / "out.mp4").frame_count == 6


# -- ranges


def test_joined_ranges_equal_a_video_encoded_at_once(tmp_path):
    times_ms = [40 * i + (13 * i) % 30 for i in range(30)]
    source = write_video(
        tmp_path / "in.mkv", codec="libx264", frames=30, times_ms=times_ms, paint=picture,
        size_wh=(160, 120),
    )  # fmt: skip
    whole = annotate(source, tmp_path / "whole.mp4", one_car())
    segments = [
        annotate(source, tmp_path / f"{first}.mp4", one_car(), first_frame_index=first,
                 max_frames=count)
        for first, count in [(0, 11), (11, 11), (22, 8)]
    ]  # fmt: skip
    joined = tmp_path / "joined.mp4"
    join_segments(segments, joined)
    assert times_of(joined) == times_of(whole) == pytest.approx(times_of(source), abs=1e-5)
    assert count_frames(joined).duration_seconds == count_frames(whole).duration_seconds
    for at_once, piecewise in zip(iter_frames(whole), iter_frames(joined), strict=True):
        assert np.abs(at_once.image.astype(int) - piecewise.image).mean() < 3
    data = joined.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(joined)) as container:
        (stream,) = container.streams
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.codec_tag == "avc1"


def test_sampled_frames_keep_the_times_of_the_original(tmp_path):
    source = write_video(tmp_path / "in.mp4", codec="libx264", frames=25)
    segments = [
        annotate(source, tmp_path / f"{first}.mp4", first_frame_index=first, max_frames=count,
                 frame_stride=4)
        for first, count in [(0, 3), (12, 4)]
    ]  # fmt: skip
    join_segments(segments, tmp_path / "out.mp4")
    assert times_of(tmp_path / "out.mp4") == pytest.approx([4 * i / 25 for i in range(7)])


@pytest.mark.parametrize("cut_after", [1, 2, 4])
def test_gap_that_mp4_cannot_hold_is_cut_short(tmp_path, cut_after):
    """Of a camera that slept for ten hours, or of every 10,000th frame of a slow one."""
    times = [0.0, 0.5, 36_000.0, 36_000.5]
    frames = [VideoFrame(i, time, picture(i)) for i, time in enumerate(times)]
    segments = []
    for part in filter(None, (frames[:cut_after], frames[cut_after:])):
        segments.append(tmp_path / f"{len(segments)}.mp4")
        with AnnotatedVideo(segments[-1], NAMES) as video:
            for frame in part:
                video.write(frame, Detections.empty())
    join_segments(segments, tmp_path / "out.mp4")
    longest = 2**31 / 90_000
    expected = [0.0, 0.5, 0.5 + longest, 1.0 + longest]
    assert times_of(tmp_path / "out.mp4") == pytest.approx(expected, abs=1e-3)


def test_empty_segment_is_refused_and_leaves_nothing(tmp_path):
    source = write_video(tmp_path / "in.mp4", codec="libx264", frames=2)
    segment = annotate(source, tmp_path / "a.mp4")
    with av.open(str(tmp_path / "b.mp4"), "w") as output, av.open(str(segment)) as template:
        output.add_stream_from_template(template.streams.video[0])
        output.start_encoding()
    with pytest.raises(DrawingError):
        join_segments([segment, tmp_path / "b.mp4"], tmp_path / "out.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4", "in.mp4"]


def test_progress_that_raises_ends_joining_and_leaves_nothing(tmp_path):
    segment = annotate(write_video(tmp_path / "in.mp4", frames=3), tmp_path / "a.mp4")

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        join_segments([segment], tmp_path / "out.mp4", on_progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "in.mp4"]


# -- sound


def sound_of(path: Path) -> tuple[str, float, float]:
    """Coding, first and last time in seconds of the sound of a file."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        frames = list(container.decode(stream))
        end = frames[-1].time + frames[-1].samples / frames[-1].sample_rate
        return stream.codec_context.codec.canonical_name, frames[0].time, end


def heard_seconds(path: Path) -> float:
    """How much sound there is, without the gaps."""
    with av.open(str(path)) as container:
        return sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))


def joined_with_sound(tmp_path, source) -> Path:
    segment = annotate(source, tmp_path / "segment.mp4")
    join_segments([segment], tmp_path / "out.mp4", sound_from=source)
    return tmp_path / "out.mp4"


@pytest.mark.parametrize(
    ("name", "coding", "expected"),
    [
        ("x.mp4", "aac", "aac"),
        ("x.mkv", "libmp3lame", "mp3"),
        ("x.mkv", "ac3", "ac3"),
        ("x.mkv", "libopus", "opus"),
        ("x.ts", "aac", "aac"),
        ("x.avi", "pcm_s16le", "aac"),
        ("x.mkv", "flac", "flac"),
        ("x.mpg", "mp2", "aac"),
    ],
)
def test_sound_is_kept(tmp_path, name, coding, expected):
    codec = {"mpg": "mpeg2video", "avi": "mpeg4"}.get(name[-3:], "libx264")
    source = write_video(tmp_path / name, codec=codec, frames=50, sound=coding)
    out = joined_with_sound(tmp_path, source)
    found, start, end = sound_of(out)
    assert found == expected
    assert start == pytest.approx(0, abs=0.06)
    assert end == pytest.approx(2, abs=0.12)
    assert times_of(out) == pytest.approx(times_of(source), abs=1e-3)


def test_mp3_too_slow_for_mp4_is_encoded_anew(tmp_path):
    source = write_video(
        tmp_path / "x.mkv", codec="libx264", frames=50, sound="libmp3lame", sound_rate_hz=8000
    )
    found, start, end = sound_of(joined_with_sound(tmp_path, source))
    assert (found, start) == ("aac", pytest.approx(0, abs=0.06))
    assert end == pytest.approx(2, abs=0.25)


def test_sound_that_mp4_refuses_is_left_out_at_once(tmp_path, monkeypatch):
    source = write_video(
        tmp_path / "x.mkv", codec="libx264", frames=10, sound="libmp3lame", sound_rate_hz=8000
    )
    monkeypatch.setattr("datasets.media.sound._LEAST_MP3_RATE_HZ", 0)  # so it is copied
    out = joined_with_sound(tmp_path, source)
    assert len(times_of(out)) == 10
    with av.open(str(out)) as container:
        assert not container.streams.audio


def test_sound_that_begins_before_the_pictures_is_cut_to_them(tmp_path):
    times_ms = [400 + 40 * i for i in range(25)]
    source = write_video(
        tmp_path / "x.mkv", codec="libx264", frames=25, times_ms=times_ms, sound="aac"
    )
    out = joined_with_sound(tmp_path, source)
    assert times_of(out) == pytest.approx([i / 25 for i in range(25)], abs=1e-3)
    _, start, end = sound_of(out)
    assert start == pytest.approx(0, abs=0.03)
    assert end == pytest.approx(0.6, abs=0.1)


def test_sound_whose_first_stamp_has_wrapped_is_kept(tmp_path):
    """Sound that begins a moment before time 0 of a transport stream is stamped 26.5 hours."""
    source = write_video(tmp_path / "x.ts", codec="libx264", frames=50, sound="aac")
    content = bytearray(source.read_bytes())
    stamp = content.index(b"\x00\x00\x01\xc0") + 9  # of the first packet of sound
    ticks = 2**33 - 1920
    content[stamp : stamp + 5] = (
        0x21 | ticks >> 29 & 0x0E,
        ticks >> 22 & 0xFF,
        0x01 | ticks >> 14 & 0xFE,
        ticks >> 7 & 0xFF,
        0x01 | ticks << 1 & 0xFE,
    )
    source.write_bytes(content)
    with av.open(str(source)) as container:
        assert next(container.demux(audio=0)).pts == ticks
    out = joined_with_sound(tmp_path, source)
    assert times_of(out) == pytest.approx([i / 25 for i in range(50)], abs=1e-3)
    coding, start, end = sound_of(out)
    assert (coding, start) == ("aac", pytest.approx(0.2, abs=0.2))
    assert end == pytest.approx(2, abs=0.12)


@pytest.mark.parametrize("second_begins_seconds", [0, 90_000], ids=["again", "a day later"])
@pytest.mark.parametrize(("coding", "expected"), [("aac", "aac"), ("ac3", "ac3"), ("mp2", "aac")])
def test_sound_of_recordings_put_together_follows_their_pictures(
    tmp_path, coding, expected, second_begins_seconds
):
    parts = [
        write_video(
            tmp_path / f"{begin}.ts", codec="libx264", frames=50, sound=coding,
            options={"output_ts_offset": str(begin)},
        )
        for begin in (0.25, second_begins_seconds)
    ]  # fmt: skip
    source = tmp_path / "x.ts"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    out = joined_with_sound(tmp_path, source)
    assert times_of(out) == pytest.approx([i / 25 for i in range(100)], abs=1e-3)
    found, start, end = sound_of(out)
    assert (found, start) == (expected, pytest.approx(0, abs=0.06))
    assert end == pytest.approx(4, abs=0.15)
    assert heard_seconds(out) == pytest.approx(4, abs=0.15)  # nothing is dropped in between


def spans_heard(path: Path) -> list[tuple[float, float]]:
    """From when until when there is sound, in seconds; a gap of two packets divides it."""
    spans: list[tuple[float, float]] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            start, end = frame.time, frame.time + frame.samples / frame.sample_rate
            if spans and start - spans[-1][1] < 0.06:
                start = spans.pop()[0]
            spans.append((start, end))
    return spans


@pytest.mark.parametrize(
    ("suffix", "coding"), [("ts", "aac"), ("ts", "mp2"), ("mpg", "mp2"), ("ts", "ac3")]
)
@pytest.mark.parametrize("sound_seconds", [0.6, 1.4])
def test_sound_of_each_recording_begins_with_its_pictures(tmp_path, suffix, coding, sound_seconds):
    part = write_video(
        tmp_path / f"0.{suffix}", codec="mpeg2video", sound=coding, sound_seconds=sound_seconds,
        frames=25,
    )  # fmt: skip
    source = tmp_path / f"x.{suffix}"
    source.write_bytes(part.read_bytes() * 8)
    out = joined_with_sound(tmp_path, source)
    assert times_of(out) == pytest.approx([i / 25 for i in range(8 * 25)], abs=1e-3)
    spans = spans_heard(out)
    if sound_seconds < 1:
        assert spans == [pytest.approx((i, i + 0.6), abs=0.07) for i in range(8)]
    else:
        assert spans == [pytest.approx((0, 7 + 1.4), abs=0.07)]
        assert heard_seconds(out) == pytest.approx(7 + 1.4, abs=0.35)  # a packet or two a seam


def pitch_hz(path: Path, from_seconds: float, to_seconds: float) -> float:
    """Of the tone between two moments, by how often it passes through nought."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    rate = frames[0].sample_rate
    wave = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    wave = wave[round(from_seconds * rate) : round(to_seconds * rate)]
    (crossings,) = np.nonzero(np.diff(np.sign(wave)))
    return (len(crossings) - 1) / 2 / (crossings[-1] - crossings[0]) * rate


@pytest.mark.parametrize(
    ("suffix", "coding", "second"),
    [
        ("ts", "mp2", {"sound_rate_hz": 44_100}),
        ("ts", "mp2", {"sound_layout": "stereo"}),
        ("mpg", "mp2", {"sound_layout": "stereo"}),
        ("ts", "aac", {"sound_rate_hz": 44_100}),
        ("ts", "aac", {"sound_layout": "stereo"}),
    ],
)
def test_sound_that_changes_on_the_way_is_kept_at_its_pitch(tmp_path, suffix, coding, second):
    parts = [
        write_video(tmp_path / f"{index}.{suffix}", codec="mpeg2video", frames=50, sound=coding,
                    **kind)
        for index, kind in enumerate([{}, second])
    ]  # fmt: skip
    source = tmp_path / f"x.{suffix}"
    source.write_bytes(b"".join(part.read_bytes() for part in parts))
    out = joined_with_sound(tmp_path, source)
    found, start, end = sound_of(out)
    assert (found, start) == ("aac", pytest.approx(0, abs=0.03))
    assert end == pytest.approx(4, abs=0.15)
    assert heard_seconds(out) == pytest.approx(4, abs=0.15)
    # The tone that is written has 20 samples to the radian.
    second_hz = second.get("sound_rate_hz", 48_000) / (40 * np.pi)
    assert pitch_hz(out, 0.5, 1.5) == pytest.approx(48_000 / (40 * np.pi), abs=1)
    assert pitch_hz(out, 2.5, 3.5) == pytest.approx(second_hz, abs=1)


def test_sound_that_stays_the_same_is_copied(tmp_path):
    source = write_video(tmp_path / "x.ts", codec="mpeg2video", frames=25, sound="aac")
    with opened_sound(source) as sound:
        assert sound.is_copied
        with av.open(str(tmp_path / "y.mp4"), "w") as output:
            copies = [bytes(packet) for packet in sound.packets(sound.add_stream(output))]
    with av.open(str(source)) as container:
        originals = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
    assert copies == originals[-len(copies) :]
    assert len(copies) >= 46


def test_damaged_sound_is_left_out_and_does_not_harm_the_pictures(tmp_path):
    source = write_video(tmp_path / "x.mkv", codec="libx264", frames=50, sound="mp2")
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        spans = [(p.pos, p.size) for p in container.demux(audio=0) if p.size and p.pos]
    for start, size in spans:
        content[start + 8 : start + size] = b"\xff" * max(0, size - 8)
    source.write_bytes(content)
    out = joined_with_sound(tmp_path, source)
    assert len(times_of(out)) == len(times_of(source)) > 40


def test_sound_ends_soon_after_the_pictures(tmp_path, monkeypatch):
    """A file of some KB can claim hours of it, all of which would be encoded."""
    monkeypatch.setattr("inference.pipeline.join._LONGEST_CODA_SECONDS", 1.0)
    source = write_video(tmp_path / "x.mkv", codec="libx264", frames=100, sound="pcm_s16le")
    segment = annotate(source, tmp_path / "segment.mp4", max_frames=25)
    join_segments([segment], tmp_path / "out.mp4", sound_from=source)
    found, start, end = sound_of(tmp_path / "out.mp4")
    assert (found, start) == ("aac", pytest.approx(0, abs=0.06))
    assert end == pytest.approx(24 / 25 + 1, abs=0.1)


def test_sound_of_one_sample_a_second_is_left_out_rather_than_made_up(tmp_path):
    """Resampled to 48 kHz, such a packet would take 48,000 times its size."""
    source = write_video(
        tmp_path / "x.mkv", frames=100 * 25, rate_fps=25, sound="pcm_s16le", sound_rate_hz=1
    )
    segment = annotate(source, tmp_path / "segment.mp4", max_frames=5)
    join_segments([segment], tmp_path / "out.mp4", sound_from=source)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


def test_video_without_sound_stays_silent(tmp_path):
    source = write_video(tmp_path / "x.mp4", codec="libx264", frames=3)
    with av.open(str(joined_with_sound(tmp_path, source))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
