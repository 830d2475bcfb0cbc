"""Videos are billed by the frames that decode, and the frames read are exactly those counted."""

import json
import socket
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datasets.media import timing, video
from datasets.media.errors import MediaError
from datasets.media.limits import MediaLimits
from datasets.media.seeking import SeekPlan, SeekPoint
from datasets.media.sound import _PacketClock
from datasets.media.timing import ClockJump, FrameClock, StampChoice, clock_jumps
from datasets.media.video import count_frames, first_stamp_seconds, iter_frames
from tests.mediafiles import (
    corner_picture,
    noise,
    packet_spans,
    white_box_xyxy,
    write_audio,
    write_gif,
    write_image,
    write_joined_video,
    write_video,
)

KINDS = {
    "mp4": ("libx264", "h264"),
    "mov": ("mpeg4", "mpeg4"),
    "webm": ("libvpx", "vp8"),
    "mkv": ("libvpx-vp9", "vp9"),
    "avi": ("mjpeg", "mjpeg"),
    "flv": ("flv", "flv1"),
    "wmv": ("wmv2", "wmv2"),
    "ts": ("mpeg2video", "mpeg2video"),
    "mpg": ("mpeg2video", "mpeg2video"),
    "3gp": ("mpeg4", "mpeg4"),
    "av1.mp4": ("libsvtav1", "av1"),
    "hevc.mp4": ("libx265", "hevc"),
}


def refusal(path: Path, **limits) -> tuple[int, str]:
    with pytest.raises(MediaError) as caught:
        count_frames(path, limits=MediaLimits(**limits))
    return caught.value.status, caught.value.code


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("suffix", KINDS)
def test_every_container_is_counted_and_read(tmp_path, suffix):
    encoder, codec = KINDS[suffix]
    path = write_video(tmp_path / f"x.{suffix}", frames=7, codec=encoder)
    facts = count_frames(path)
    assert (facts.frame_count, facts.size_wh, facts.rotation_degrees) == (7, (64, 48), 0)
    assert facts.codec == codec
    assert facts.has_audio is False
    assert facts.warning == ""
    assert facts.duration_seconds == pytest.approx(7 / 25, abs=0.002)
    assert facts.average_rate_fps == pytest.approx(25, abs=0.2)
    frames = list(iter_frames(path))
    assert [frame.frame_index for frame in frames] == list(range(7))
    assert [frame.time_seconds for frame in frames] == pytest.approx(
        [i / 25 for i in range(7)], abs=0.002
    )
    assert {(f.image.shape, f.image.dtype.name) for f in frames} == {((48, 64, 3), "uint8")}


def test_recording_that_begins_within_a_packet_is_counted_and_read(tmp_path):
    path = write_video(tmp_path / "x.ts", frames=60, codec="libx264")
    path.write_bytes(path.read_bytes()[50:])
    facts = count_frames(path)
    assert (facts.frame_count, facts.size_wh, facts.warning) == (60, (64, 48), "")
    assert [frame.frame_index for frame in iter_frames(path)] == list(range(60))


def test_frames_come_in_the_order_of_showing(tmp_path):
    def paint(index):
        return np.full((48, 64, 3), 20 * index, np.uint8)

    path = write_video(tmp_path / "x.mp4", frames=12, codec="libx264", paint=paint)
    levels = [int(frame.image.mean()) for frame in iter_frames(path)]
    assert levels == pytest.approx([20 * i for i in range(12)], abs=3)


def test_animated_gif_is_counted_and_what_is_clear_in_it_becomes_white(tmp_path):
    clear, dot = Image.new("RGBA", (8, 8)), Image.new("RGBA", (8, 8))
    dot.putpixel((3, 3), (255, 0, 0, 255))
    path = tmp_path / "x.gif"
    dot.save(path, save_all=True, append_images=[clear, dot], duration=200, disposal=2)
    facts = count_frames(path)
    assert (facts.frame_count, facts.container, facts.codec) == (3, "gif", "gif")
    assert facts.duration_seconds == pytest.approx(0.6)
    frames = list(iter_frames(path))
    assert [frame.time_seconds for frame in frames] == pytest.approx([0.0, 0.2, 0.4])
    assert frames[0].image[0, 0].tolist() == [255, 255, 255]
    assert frames[0].image[3, 3].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("rotation", "size_wh", "box_xyxy"),
    [
        (0, (64, 48), (0, 0, 32, 24)),
        (90, (48, 64), (24, 0, 48, 32)),
        (180, (64, 48), (32, 24, 64, 48)),
        (270, (48, 64), (0, 32, 24, 64)),
    ],
)
def test_rotated_video_stands_upright(tmp_path, rotation, size_wh, box_xyxy):
    path = write_video(
        tmp_path / "x.mp4", frames=2, rotation=rotation, paint=lambda _: corner_picture()
    )
    facts = count_frames(path)
    assert (facts.size_wh, facts.rotation_degrees) == (size_wh, rotation)
    for frame in iter_frames(path):
        assert frame.image.shape == (size_wh[1], size_wh[0], 3)
        assert frame.image.flags.c_contiguous
        assert white_box_xyxy(frame.image) == box_xyxy


def test_mirrored_video_is_mirrored_back(tmp_path):
    path = write_video(tmp_path / "x.mp4", hflip=True, paint=lambda _: corner_picture())
    assert count_frames(path).rotation_degrees == 0
    assert white_box_xyxy(next(iter_frames(path)).image) == (32, 0, 64, 24)


def test_varying_frame_rate_keeps_its_times(tmp_path):
    times_ms = [0, 40, 45, 500, 2000]
    path = write_video(tmp_path / "x.mkv", frames=5, times_ms=times_ms)
    found = [frame.time_seconds for frame in iter_frames(path)]
    assert found == pytest.approx([ms / 1000 for ms in times_ms], abs=0.002)
    assert count_frames(path).frame_count == 5


def test_times_are_counted_from_the_first_frame(tmp_path):
    path = write_video(tmp_path / "x.mkv", frames=3, times_ms=[5000, 5040, 5080])
    found = [frame.time_seconds for frame in iter_frames(path)]
    assert found == pytest.approx([0, 0.04, 0.08], abs=0.002)


@pytest.mark.parametrize(
    ("container", "stamps", "expected"),
    [
        ("mov", [(10, 8), (30, 9), (20, 10), (40, 11)], [10, 30, 12, 13]),  # runs backwards once
        ("mov", [(10, 8), (20, 8), (30, 8)], [10, 20, 30]),  # the packets' clock stands
        ("avi", [(0, 5), (9, 6), (3, 7)], [0, 1, 2]),  # made up, so not believed from the start
        ("mov", [(None, 5), (7, None), (None, None)], [5, 7, None]),
    ],
)
def test_stamp_of_the_kind_that_ran_backwards_less_often_is_taken(container, stamps, expected):
    choice = StampChoice(container)
    assert [choice.of(SimpleNamespace(pts=pts, dts=dts)) for pts, dts in stamps] == expected


def test_clock_fills_in_missing_stamps_and_goes_on_where_the_stored_clock_jumps():
    clock = FrameClock(0.1)
    stamps = [10.0, None, 10.2, 3.0, 3.1, 1e9, 1e9 + 0.1]
    expected = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    assert [clock.tell(stamp) for stamp in stamps] == pytest.approx(expected)


@given(st.lists(st.none() | st.floats(-1e12, 1e12), min_size=1, max_size=50))
def test_clock_starts_at_nought_and_never_runs_backwards(stamps):
    clock = FrameClock(0.04)
    times = [clock.tell(stamp) for stamp in stamps]
    assert times[0] == 0.0
    assert times == sorted(times)


JUMP = ClockJump(before_byte=100, after_byte=200, shift_seconds=2.0, begin_seconds=2.0)


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        # What outlasts the pictures is left out, and the next recording begins with its own.
        (
            [(0, 10), (8, 50), (16, 90), (0, 150), (8, 210), (16, 220)],
            [0, 8, None, 20, 28, 36],
        ),
        # The clock of a recording of short sound does not run back, and is moved all the same.
        ([(0, 10), (8, 210), (16, 220)], [0, 28, 36]),
        # The recording begins before its pictures do: what overlaps is left out.
        ([(0, 10), (11, 50), (-6, 150), (2, 210)], [0, 11, None, 22]),
        # The clock of the sound has nothing to do with that of the pictures.
        ([(0, 10), (8, 50), (508, 210), (516, 220), (3, 230)], [0, 8, 508, 516, 524]),
        # It jumps where the pictures' does not.
        ([(0, 10), (8, 50), (3, 60), (11, 70)], [0, 8, None, None]),
        ([(0, 10), (2, 50), (1, 60), (9, 210)], [0, 2, 10, 29]),
    ],
)
def test_clock_of_the_sound_goes_along_with_the_jumps_of_the_pictures(packets, expected):
    clock = _PacketClock(Fraction(1, 10), [JUMP])
    assert [clock.tell(stamp, 8, position) for stamp, position in packets] == expected


def test_clock_of_the_sound_alone_goes_on_where_it_jumps():
    clock = _PacketClock(Fraction(1, 10))
    stamps = [100, 108, 3, 11, 900_000, 900_008]
    assert [clock.tell(stamp, 8) for stamp in stamps] == [100, 108, 116, 124, 132, 140]


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
def test_jumps_of_the_stored_clock_are_told_without_decoding(tmp_path, suffix, monkeypatch):
    parts = [
        write_video(tmp_path / f"{frames}.{suffix}", codec="mpeg2video", frames=frames,
                    codec_options={"bf": "2"})
        for frames in (50, 30, 20)
    ]  # fmt: skip
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    times = [frame.time_seconds for frame in iter_frames(path)]
    assert times == pytest.approx([i / 25 for i in range(100)], abs=1e-3)
    zero = first_stamp_seconds(path)
    told: list[int] = []
    jumps = clock_jumps(path, on_progress=told.append)
    assert told == [50, 100]  # who waits can stop it
    begins = [jump.begin_seconds - zero for jump in jumps]
    assert begins == pytest.approx([2.0, 3.2], abs=1e-3)
    assert [jump.shift_seconds for jump in jumps] == pytest.approx([2.0, 3.2], abs=1e-3)
    seam = 0
    for part, jump in zip(parts, jumps, strict=False):
        seam += part.stat().st_size
        assert seam - 20_000 < jump.before_byte < seam <= jump.after_byte < seam + 20_000
    assert clock_jumps(parts[0]) == []
    monkeypatch.setattr(timing, "_MOST_RECORDINGS", 2)
    assert clock_jumps(path) == []


def test_size_that_changes_on_the_way_is_scaled_to_the_first(tmp_path):
    small = write_video(tmp_path / "a.mkv", frames=3, codec="mjpeg")
    large = write_video(
        tmp_path / "b.mkv",
        frames=2,
        codec="mjpeg",
        size_wh=(128, 96),
        paint=lambda _: corner_picture((128, 96)),
    )
    path = write_joined_video(tmp_path / "x.mkv", [small, large])
    facts = count_frames(path)
    assert (facts.frame_count, facts.size_wh) == (5, (64, 48))
    frames = list(iter_frames(path))
    assert [frame.image.shape for frame in frames] == [(48, 64, 3)] * 5
    assert white_box_xyxy(frames[-1].image) == (0, 0, 32, 24)


def test_sound_beside_the_pictures_is_noticed_and_passed_over(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=4, with_audio=True)
    facts = count_frames(path)
    assert (facts.frame_count, facts.has_audio) == (4, True)


def test_sound_that_begins_late_costs_no_picture_and_is_no_crash(tmp_path):
    """FLV as a live stream: nothing tells of the sound before it comes."""
    path = write_video(tmp_path / "x.flv", codec="flv", frames=250, sound="aac", size_wh=(16, 16))
    content = path.read_bytes()
    kept, position = [content[:4], b"\x01", content[5:13]], 13  # a header of pictures only
    while position < len(content):
        kind = content[position]
        size, time_ms = (int.from_bytes(content[position + at :][:3]) for at in (1, 4))
        end = position + 15 + size
        if kind == 9 or (kind == 8 and time_ms > 8000):  # pictures and sound; no metadata
            kept.append(content[position:end])
        position = end
    path.write_bytes(b"".join(kept))
    facts = count_frames(path)
    assert (facts.frame_count, facts.warning, facts.has_audio) == (250, "", False)
    assert len(list(iter_frames(path))) == 250


# -- billing: what decodes counts


def test_header_that_promises_more_frames_than_exist_is_counted_by_what_decodes(tmp_path):
    path = write_video(
        tmp_path / "x.mp4", frames=20, codec="mjpeg", options={"movflags": "faststart"}
    )
    end_of_eighth = sorted(packet_spans(path))[7][1]
    path.write_bytes(path.read_bytes()[:end_of_eighth])
    facts = count_frames(path)
    assert facts.frame_count == 8
    assert facts.warning == "The video is damaged: 12 of its 20 frames could not be decoded."
    assert len(list(iter_frames(path))) == 8


def test_truncated_webm_is_counted_by_what_decodes(tmp_path):
    path = write_video(tmp_path / "x.webm", frames=20, codec="libvpx")
    end_of_fifth = packet_spans(path)[5][0]
    path.write_bytes(path.read_bytes()[:end_of_fifth])
    assert count_frames(path).frame_count == len(list(iter_frames(path))) == 5


@pytest.mark.parametrize("name", ["x.avi", "x.wmv"])
def test_pictures_out_of_order_have_their_times_where_the_container_stores_none(tmp_path, name):
    """What libavformat makes up runs backwards; taken for new recordings, 2 s became 4."""
    path = write_video(
        tmp_path / name, frames=50, codec="libx264", codec_options={"bf": "3", "g": "12"}
    )
    facts = count_frames(path)
    # The last pictures, given up at the end, have the time of the packet before.
    assert facts.duration_seconds == pytest.approx(2, abs=0.05)
    assert facts.average_rate_fps == pytest.approx(25, abs=0.6)
    times = [frame.time_seconds for frame in iter_frames(path)]
    assert times[:48] == pytest.approx([index / 25 for index in range(48)])
    later = [frame.time_seconds for frame in iter_frames(path, first_frame_index=30)]
    assert later == times[30:]


@pytest.mark.parametrize("name", ["x.avi", "x.mp4"])
def test_frames_after_a_seek_have_the_times_that_they_have_without(tmp_path, name):
    """The packets of an AVI have earlier stamps than the frames that the decoder makes of them."""
    path = write_video(
        tmp_path / name, frames=200, codec="libx264", codec_options={"bf": "0", "g": "30"}
    )
    plan = count_frames(path).seek_plan
    assert plan is not None
    whole = [frame.time_seconds for frame in iter_frames(path)]
    assert whole == pytest.approx([index / 25 for index in range(200)])
    after = iter_frames(path, seek_plan=plan, first_frame_index=150)
    assert [frame.time_seconds for frame in after] == pytest.approx(whole[150:])


@pytest.mark.parametrize(("gop", "read", "hidden"), [(250, 30, 10), (4, 22, 2)])
def test_video_that_was_cut_on_a_phone_is_not_damaged(tmp_path, gop, read, hidden):
    """An edit list hides the frames before the cut, which the container counts all the same.

    They are read from the key frame on that the first picture needs, and those before it never.
    """
    path = write_video(
        tmp_path / "x.mp4",
        frames=30,
        codec="libx264",
        times_ms=[40 * (index - 10) for index in range(30)],
        options={"avoid_negative_ts": "disabled"},
        codec_options={"g": str(gop), "sc_threshold": "0"},
    )
    with av.open(str(path)) as container:
        packets = [packet.is_discard for packet in container.demux(video=0) if packet.size]
    assert (len(packets), sum(packets)) == (read, hidden)
    facts = count_frames(path)
    assert (facts.frame_count, facts.warning) == (20, "")


def test_video_whose_index_lost_its_second_half_is_damaged(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=100, codec="mjpeg", sound="aac")
    content = bytearray(path.read_bytes())
    place = content.index(b"stco") + 8  # of the pictures, which come first
    chunk_count = int.from_bytes(content[place : place + 4])
    content[place : place + 4] = (chunk_count // 2).to_bytes(4)
    path.write_bytes(content)
    facts = count_frames(path)
    assert 0 < facts.frame_count < 100
    lost = 100 - facts.frame_count
    assert facts.warning == (
        f"The video is damaged: {lost} of its 100 frames could not be decoded."
    )


def test_damaged_frame_in_the_middle_is_skipped_and_the_times_keep_its_gap(tmp_path):
    path = write_video(tmp_path / "x.avi", frames=6, codec="mjpeg", rate_fps=10)
    start, end = packet_spans(path)[2]
    content = bytearray(path.read_bytes())
    content[start + 8 : end] = bytes(end - start - 8)
    path.write_bytes(content)
    facts = count_frames(path)
    assert facts.frame_count == 5
    assert facts.warning == "The video is damaged: 1 of its 6 frames could not be decoded."
    frames = list(iter_frames(path))
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3, 4]
    assert [f.time_seconds for f in frames] == pytest.approx([0, 0.1, 0.3, 0.4, 0.5])


DAMAGED = [("x.ts", "libx264"), ("x.avi", "mpeg4"), ("x.mkv", "libvpx-vp9"), ("x.mp4", "libx264")]
_whole: dict[str, bytes] = {}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(DAMAGED),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=10),
    kept=st.floats(0.3, 1.0),
)
def test_frames_read_are_exactly_the_frames_counted(tmp_path_factory, kind, changes, kept):
    name, codec = kind
    folder = tmp_path_factory.mktemp("damaged")
    if name not in _whole:
        _whole[name] = write_video(folder / name, frames=20, codec=codec).read_bytes()
    content = bytearray(_whole[name])
    for place, value in changes:
        content[int(place * len(content))] = value
    path = folder / f"damaged_{name}"
    path.write_bytes(content[: int(kept * len(content))])
    try:
        facts = count_frames(path)
    except MediaError as error:
        assert error.status in (400, 415, 422)
        with pytest.raises(MediaError) as caught:
            list(iter_frames(path))
        assert caught.value.code == error.code
    else:
        frames = list(iter_frames(path))
        assert [frame.frame_index for frame in frames] == list(range(facts.frame_count))
        width, height = facts.size_wh
        assert {frame.image.shape for frame in frames} == {(height, width, 3)}


# -- seeking

SOUGHT = {
    "mp4": ("libx264", {"g": "12", "bf": "3"}),
    "open.mp4": ("libx264", {"g": "12", "x264-params": "open-gop=1:bframes=3"}),
    "mkv": ("libvpx-vp9", {"g": "12"}),
    "webm": ("libvpx", {"g": "12"}),
    "avi": ("mjpeg", {}),
    "b.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "flv": ("flv", {"g": "12"}),
    "wmv": ("wmv2", {"g": "12"}),
    "ts": ("libx264", {"g": "12"}),
    "mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "av1.mp4": ("libsvtav1", {"g": "12"}),
    "mov": ("prores_ks", {}),
}


@pytest.fixture
def close_points(monkeypatch):
    """Points may be ten frames apart, so that short videos have some."""
    monkeypatch.setattr("datasets.media.seeking.SPACING_FRAMES", 10)


@pytest.mark.parametrize("suffix", SOUGHT)
def test_frames_from_a_seek_point_are_those_of_the_whole(tmp_path, close_points, suffix):
    codec, options = SOUGHT[suffix]
    pix_fmt = "yuv422p10le" if codec == "prores_ks" else ""
    path = write_video(
        tmp_path / f"x.{suffix}", frames=60, codec=codec, codec_options=options, pix_fmt=pix_fmt
    )
    plan = count_frames(path).seek_plan
    whole = list(iter_frames(path))
    if suffix not in {"mpg", "b.avi"}:  # their time stamps are guessed, and differ after a seek
        assert plan is not None
        assert len(plan.points) >= 3
    for first in [point.frame_index for point in plan.points] if plan else [30]:
        part = list(iter_frames(path, first_frame_index=first, max_frames=14, seek_plan=plan))
        assert [frame.frame_index for frame in part] == list(range(first, min(60, first + 14)))
        for frame in part:
            assert frame.time_seconds == whole[frame.frame_index].time_seconds
            np.testing.assert_array_equal(frame.image, whole[frame.frame_index].image)


def sizes_checked(monkeypatch):
    """The size of each frame decoded, as they come from now on."""
    sizes = []
    check_size = video.check_size
    monkeypatch.setattr(video, "check_size", lambda *size: (sizes.append(size), check_size(*size)))
    return sizes


def test_frames_before_a_seek_point_are_not_decoded(tmp_path, close_points, monkeypatch):
    path = write_video(tmp_path / "x.avi", frames=60, codec="mjpeg")
    plan = count_frames(path).seek_plan
    decoded = sizes_checked(monkeypatch)
    list(iter_frames(path, first_frame_index=50, seek_plan=plan))
    assert len(decoded) <= 10


def test_plan_that_does_not_fit_leads_to_decoding_from_the_beginning(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=20, codec="libx264")
    wrong = SeekPlan(0, (SeekPoint(10, 123_456_789),))
    part = list(iter_frames(path, first_frame_index=12, max_frames=3, seek_plan=wrong))
    assert [frame.frame_index for frame in part] == [12, 13, 14]
    expected = list(iter_frames(path))[12:15]
    for frame, other in zip(part, expected, strict=True):
        np.testing.assert_array_equal(frame.image, other.image)


def test_video_that_is_damaged_or_changes_has_no_seek_points(tmp_path, close_points):
    damaged = write_video(tmp_path / "a.avi", frames=40, codec="mjpeg")
    start, end = packet_spans(damaged)[5]
    content = bytearray(damaged.read_bytes())
    content[start + 8 : end] = bytes(end - start - 8)
    damaged.write_bytes(content)
    facts = count_frames(damaged)
    assert (facts.frame_count, facts.seek_plan) == (39, None)
    small = write_video(tmp_path / "a.mkv", frames=30, codec="mjpeg")
    large = write_video(tmp_path / "b.mkv", frames=30, codec="mjpeg", size_wh=(128, 96))
    assert count_frames(write_joined_video(tmp_path / "x.mkv", [small, large])).seek_plan is None


def test_pictures_stored_upside_down_are_read_though_without_seek_points(tmp_path, close_points):
    """As most programs write uncompressed AVI: the last row first, which a positive height says."""
    path = write_video(
        tmp_path / "x.avi", frames=30, codec="rawvideo", size_wh=(16, 16), pix_fmt="bgr24"
    )
    upright = [frame.image for frame in iter_frames(path)]
    content = bytearray(path.read_bytes())
    height_at = content.index(b"strf") + 16
    assert content[height_at : height_at + 4] == (-16).to_bytes(4, "little", signed=True)
    content[height_at : height_at + 4] = (16).to_bytes(4, "little")
    path.write_bytes(content)
    facts = count_frames(path)
    assert (facts.frame_count, facts.seek_plan) == (30, None)
    for frame, expected in zip(iter_frames(path), upright, strict=True):
        np.testing.assert_array_equal(frame.image, expected[::-1])


def test_pictures_with_a_palette_are_read_though_without_seek_points(tmp_path, close_points):
    path = write_video(
        tmp_path / "x.avi", frames=30, codec="rawvideo", size_wh=(16, 16), pix_fmt="bgr8"
    )
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).format.name == "pal8"
    facts = count_frames(path)
    assert (facts.frame_count, facts.seek_plan) == (30, None)
    assert len(list(iter_frames(path))) == 30


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_motion_jpeg_with_exif_in_its_pictures_stands_upright(tmp_path, orientation):
    picture = Image.new("RGB", (64, 32), "red")
    picture.paste("blue", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(tmp_path / "one.jpg", exif=exif, quality=95)
    path = write_packets(tmp_path / "x.avi", [(tmp_path / "one.jpg").read_bytes()] * 3)
    facts = count_frames(path)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "one.jpg")))
    assert facts.size_wh == (expected.shape[1], expected.shape[0])
    assert facts.rotation_degrees == {1: 0, 3: 180, 6: 90, 8: 270}[orientation]
    for frame in iter_frames(path):
        assert frame.image.shape == expected.shape
        assert np.abs(frame.image.astype(int) - expected).mean() < 3


def write_packets(path, pictures):
    """Motion JPEG of encoded pictures of 64 x 32 pixels, as a camera would write them."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuvj420p"
        for index, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.is_keyframe = stream, True
            packet.pts = packet.dts = index
            packet.time_base = Fraction(1, 25)
            output.mux(packet)
    return path


def test_seek_plan_survives_json():
    plan = SeekPlan(-512, (SeekPoint(128, 65_536), SeekPoint(256, 131_072)))
    assert SeekPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert SeekPlan.from_json(None) is None
    assert [plan.point_before(index) for index in (127, 128, 300)] == [
        None,
        plan.points[0],
        plan.points[1],
    ]


def test_every_nth_frame_is_one_whose_index_is_a_multiple(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=20)
    part = iter_frames(path, first_frame_index=4, max_frames=3, frame_stride=5)
    assert [frame.frame_index for frame in part] == [5, 10, 15]


def test_frames_passed_over_count_as_progress(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=220)
    told = []
    part = iter_frames(path, first_frame_index=90, frame_stride=100, on_progress=told.append)
    assert [(frame.frame_index, list(told)) for frame in part] == [
        (100, [50, 100]),
        (200, [50, 100, 150, 200]),
    ]


def test_what_the_listener_raises_ends_the_decoding_and_closes_the_file(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=220)
    before = open_files()

    def stop(count):
        raise KeyError(count)

    with pytest.raises(KeyError, match="50"):
        next(iter_frames(path, first_frame_index=200, on_progress=stop))
    assert open_files() == before


def test_stride_begins_at_the_last_point_before_the_frame_that_is_wanted(
    tmp_path, close_points, monkeypatch
):
    path = write_video(tmp_path / "x.avi", frames=60, codec="mjpeg")
    plan = count_frames(path).seek_plan
    decoded = sizes_checked(monkeypatch)
    part = iter_frames(path, first_frame_index=10, frame_stride=50, max_frames=1, seek_plan=plan)
    assert [frame.frame_index for frame in part] == [50]
    assert len(decoded) == 1


# -- slices and life time


def test_slice_of_a_video_holds_the_same_frames_as_the_whole(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=12, codec="libx264")
    whole = list(iter_frames(path))
    part = list(iter_frames(path, first_frame_index=5, max_frames=4))
    assert [frame.frame_index for frame in part] == [5, 6, 7, 8]
    for frame in part:
        assert frame.time_seconds == whole[frame.frame_index].time_seconds
        np.testing.assert_array_equal(frame.image, whole[frame.frame_index].image)


def test_slice_beyond_the_end_is_empty(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=3)
    assert list(iter_frames(path, first_frame_index=3)) == []
    assert list(iter_frames(path, max_frames=0)) == []


def test_closing_the_iterator_closes_the_file(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=30)
    before = open_files()
    frames = iter_frames(path)
    assert open_files() == before
    next(frames)
    assert open_files() == before + 1
    frames.close()
    assert open_files() == before


def test_refused_file_is_closed(tmp_path):
    path = write_audio(tmp_path / "x.mp4")
    before = open_files()
    refusal(path)
    assert open_files() == before


def test_progress_is_told_while_counting(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=120, paint=lambda _: corner_picture())
    told: list[int] = []
    assert count_frames(path, on_progress=told.append).frame_count == 120
    assert told == [50, 100]


# -- refusals


def test_too_many_frames_are_refused_at_the_first_one_too_many(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=5)
    assert count_frames(path, limits=MediaLimits(max_frames=5)).frame_count == 5
    assert refusal(path, max_frames=4) == (422, "too_many_frames")


def test_gif_of_a_hundred_thousand_frames_is_refused(tmp_path):
    path = write_gif(tmp_path / "x.gif", frames=100_000)
    told: list[int] = []
    with pytest.raises(MediaError) as caught:
        count_frames(path, on_progress=told.append)
    assert (caught.value.status, caught.value.code) == (422, "too_many_frames")
    assert told[-1] == MediaLimits().max_gif_frames - 50


def test_frames_larger_than_the_limit_are_refused(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=2)
    assert count_frames(path, limits=MediaLimits(max_frame_pixels=64 * 48)).frame_count == 2
    assert refusal(path, max_frame_pixels=64 * 48 - 1) == (422, "frame_too_large")
    with pytest.raises(MediaError):
        next(iter_frames(path, limits=MediaLimits(max_frame_pixels=100)))


def test_huge_gif_is_refused_before_it_fills_the_memory(tmp_path):
    content = bytearray(write_gif(tmp_path / "x.gif", frames=2).read_bytes())
    content[6:10] = b"\xff\xff\xff\xff"
    (tmp_path / "x.gif").write_bytes(content)
    assert refusal(tmp_path / "x.gif") == (422, "no_frames")


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.mov", "x.ts"])
def test_sound_without_pictures_is_refused(tmp_path, name):
    assert refusal(write_audio(tmp_path / name)) == (422, "no_video_stream")


def test_cover_of_a_recording_is_no_video(tmp_path):
    path = write_audio(tmp_path / "x.mp4", cover=True)
    assert refusal(path) == (422, "no_video_stream")


def test_video_without_a_frame_is_refused(tmp_path):
    path = write_video(tmp_path / "x.avi", frames=3, codec="mjpeg")
    content = bytearray(path.read_bytes())
    for start, end in packet_spans(path):
        content[start + 8 : end] = bytes(end - start - 8)
    path.write_bytes(content)
    assert refusal(path) == (422, "no_frames")


def test_coding_without_a_decoder_is_refused(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=3, codec="libx264")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    assert refusal(path) == (422, "unsupported_codec")


def test_mp4_without_its_index_is_refused_as_damaged(tmp_path):
    path = write_video(tmp_path / "x.mp4", frames=10)
    path.write_bytes(path.read_bytes()[:2000])
    assert refusal(path) == (400, "corrupt_file")


def test_image_and_empty_file_are_no_videos(tmp_path):
    assert refusal(write_image(tmp_path / "x.mp4")) == (415, "unsupported_media_type")
    (tmp_path / "y.mp4").write_bytes(b"")
    assert refusal(tmp_path / "y.mp4") == (400, "empty_file")


def test_unknown_container_name_reaches_no_demuxer(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"ffconcat version 1.0\nfile 'y'\n")
    for name in ("concat", "hls", "lavfi", "image2"):
        with pytest.raises(MediaError) as caught:
            count_frames(path, format=name)
        assert caught.value.status == 415


@pytest.mark.parametrize("kind", ["hls", "concat", "dash", "sdp"])
def test_playlist_is_refused_and_nobody_is_called(tmp_path, kind):
    with socket.socket() as host:
        host.bind(("127.0.0.1", 0))
        host.listen()
        host.setblocking(False)
        url = f"http://127.0.0.1:{host.getsockname()[1]}/x.ts"
        content = {
            "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
            "concat": f"ffconcat version 1.0\nfile {url}\n",
            "dash": f"<?xml version='1.0'?><MPD><BaseURL>{url}</BaseURL></MPD>",
            "sdp": "v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
        }[kind]
        path = tmp_path / "x.mp4"
        path.write_text(content)
        assert refusal(path) == (415, "unsupported_media_type")
        with pytest.raises(BlockingIOError):
            host.accept()


def test_noise_is_painted_close_to_what_was_encoded(tmp_path):
    path = write_video(tmp_path / "x.mkv", frames=1, codec="ffv1", paint=lambda _: corner_picture())
    picture = next(iter_frames(path)).image.astype(int)
    assert np.abs(picture - corner_picture().astype(int)).mean() < 2
    assert np.abs(picture - noise().astype(int)).mean() > 50
