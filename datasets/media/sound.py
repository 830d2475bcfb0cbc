"""The sound of a video, to be put beside annotated pictures; decodes with av.

It is copied where an MP4 file can hold its coding, else encoded to AAC. What changes on the way, as
in recordings put together, is encoded where a copy would not tell players of it. Its times are
counted from the first frame of the pictures, as those of the frames are.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from datasets.media.container import demuxed, opened_container
from datasets.media.errors import MediaError
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.timing import MAX_SANE_GAP_SECONDS, ClockJump, clock_jumps
from datasets.media.video import first_stamp_seconds

_COPIED_CODECS = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}
_LEAST_MP3_RATE_HZ = 16_000  # MP4 knows no MP3 below
_AAC_FRAME_SAMPLES = 1024
_AAC_RATES_HZ = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}
_DEFAULT_RATE_HZ = 48000
# What is resampled lies in memory as a whole: at 48 kHz a packet of this length takes 12 MB. A file
# of some KB can claim a packet of hours, at one sample a second.
_LONGEST_PACKET_SECONDS = 60
# A recording's sound begins this near to its pictures; beyond, the two clocks have no more to do
# with each other.
_FARTHEST_FROM_PICTURES_SECONDS = 10


class SoundError(Exception):
    """The sound cannot be read on; pictures do without it."""


class ChangedSoundError(SoundError):
    """Its rate or its channels change where a copy cannot say so; encoded, it can be kept."""


class _PacketClock:
    """Stamps in ticks of `time_base` that never run backwards.

    Where the clock of the pictures jumps (recordings put together), the sound is moved by as much
    as they are: each recording is heard with its own pictures, and what outlasts them is left out.
    Where only its own clock jumps back or absurdly far ahead, it goes on from the end of the last
    packet, as the times of the pictures do.
    """

    def __init__(self, time_base: Fraction, jumps: Sequence[ClockJump] = ()) -> None:
        self._time_base = time_base
        self._longest_step = round(MAX_SANE_GAP_SECONDS / time_base)
        self._jumps = deque(jumps)
        self._position = 0
        self._shift = 0
        self._last_stored: int | None = None
        self._last: int | None = None
        self._end = 0
        self._is_after_jump = False

    def tell(self, stamp: int, duration: int, position: int | None = None) -> int | None:
        """The stamp of the next packet, at a byte of the file; None where it is left out."""
        self._position = max(self._position, position or 0)
        self._follow_pictures(stamp)
        self._last_stored = stamp
        stamp += self._shift
        if self._is_after_jump and stamp < self._end:
            return None  # a recording begins before the last sound of the one before it ends
        self._is_after_jump = False
        if self._last is not None and not self._is_sane(stamp - self._last):
            self._shift += self._end - stamp
            stamp = self._end
        end = stamp + max(duration, 1)
        if self._jumps and end > self._ticks(self._jumps[0].begin_seconds):
            return None
        self._last, self._end = stamp, end
        return stamp

    def _follow_pictures(self, stamp: int) -> None:
        """Take over the jumps of the pictures that lie before the packet of this stored stamp."""
        own_jump = self._last_stored is not None and not self._is_sane(stamp - self._last_stored)
        while self._jumps:
            jump = self._jumps[0]
            is_between = own_jump and self._position > jump.before_byte
            if not is_between and self._position < jump.after_byte:
                return
            shift = self._ticks(jump.shift_seconds)
            away = abs(stamp + shift - self._ticks(jump.begin_seconds))
            if away <= self._ticks(_FARTHEST_FROM_PICTURES_SECONDS):
                self._shift, self._is_after_jump = shift, True
            elif self._position < jump.after_byte:
                return
            self._jumps.popleft()

    def _is_sane(self, step: int) -> bool:
        return 0 <= step <= self._longest_step

    def _ticks(self, seconds: float) -> int:
        return round(seconds / self._time_base)


class Sound:
    """One recording of a file that is open for reading."""

    def __init__(
        self,
        container: Any,
        stream: Any,
        *,
        zero_seconds: float,
        jumps: Sequence[ClockJump] = (),
        may_copy: bool = True,
    ) -> None:
        """`jumps` are those of the pictures' clock, which the sound goes along with."""
        self._container = container
        self._stream = stream
        self._zero_seconds = zero_seconds
        self._jumps = jumps
        self._may_copy = may_copy

    @property
    def is_copied(self) -> bool:
        """Whether the packets are taken as they are, instead of encoded to AAC."""
        context = self._stream.codec_context
        coding = context.codec.canonical_name
        if coding == "mp3" and context.sample_rate < _LEAST_MP3_RATE_HZ:
            return False
        return self._may_copy and coding in _COPIED_CODECS

    def add_stream(self, output: Any) -> Any:
        """The stream for it in an MP4 file that is open for writing; raises SoundError."""
        try:
            if self.is_copied:
                return output.add_stream_from_template(self._stream, opaque=True)
            context = self._stream.codec_context
            rate = context.sample_rate if context.sample_rate in _AAC_RATES_HZ else None
            layout = "mono" if context.channels == 1 else "stereo"
            return output.add_stream("aac", rate=rate or _DEFAULT_RATE_HZ, layout=layout)
        except (av.FFmpegError, ValueError) as error:
            raise SoundError(str(error)) from error

    def packets(self, stream: Any) -> Generator[Any, None, None]:
        """The packets for the stream that `add_stream` made, in order; raises SoundError.

        What lies before the first picture is left out. Where the sound changes as a copy cannot
        follow, the error is a ChangedSoundError.
        """
        made = self._copied_packets() if self.is_copied else self._encoded_packets(stream)
        last_dts = None
        try:
            for packet in made:
                if last_dts is None or packet.dts > last_dts:
                    last_dts = packet.dts
                    packet.stream = stream
                    yield packet
        except (av.FFmpegError, ValueError) as error:
            raise SoundError(str(error)) from error

    def _stored_packets(self) -> Iterator[Any]:
        """The packets of the file, their clock put right.

        It begins with the first stamp that is none of another day than the pictures': one that a
        counter has wrapped, or that is damaged, would take all of the sound with it.
        """
        clock = _PacketClock(self._stream.time_base, self._jumps)
        has_begun = bool(self._jumps)  # where the pictures' clock jumps, their day is not one
        for packet in demuxed(self._container, self._stream):
            if packet.pts is not None:
                away_seconds = float(packet.pts * self._stream.time_base) - self._zero_seconds
                has_begun = has_begun or abs(away_seconds) <= MAX_SANE_GAP_SECONDS
                if not has_begun:
                    continue
                stamp = clock.tell(packet.pts, packet.duration or 0, packet.pos)
                if stamp is None:
                    continue
                packet.pts = packet.dts = stamp
            yield packet

    def _copied_packets(self) -> Iterator[Any]:
        shift = round(self._zero_seconds / self._stream.time_base)
        configuration = self._stream.codec_context.extradata
        for packet in self._stored_packets():
            if not packet.size or packet.is_corrupt or packet.pts is None:
                continue
            told = self._told_configuration(packet)
            if told is not None and told != (configuration or told):
                raise ChangedSoundError("It changes on the way.")
            configuration = configuration or told
            packet.pts -= shift
            packet.dts = packet.pts
            if packet.pts >= 0:
                yield packet

    def _told_configuration(self, packet: Any) -> bytes | None:
        """What a packet itself says of how it is to be decoded; None where it does not.

        MP4 keeps this once for the whole stream. AAC of transport streams says it in each packet,
        in bytes 2 and 3 of its ADTS header (one bit of them is of no meaning).
        """
        if packet.has_sidedata("new_extradata"):
            return bytes(packet.get_sidedata("new_extradata"))
        context = self._stream.codec_context
        header = bytes(memoryview(packet)[:4])
        if context.codec.canonical_name != "aac" or context.extradata or len(header) < 4:
            return None
        if header[0] != 0xFF or header[1] & 0xF6 != 0xF0:
            return None
        return bytes((header[2] & 0xFD, header[3] & 0xC0))

    def _encoded_packets(self, stream: Any) -> Iterator[Any]:
        # The encoder takes frames of its own size only, but for the last one.
        regrouped = _resampler_for(stream)
        next_pts = 0
        for piece in self._resampled(stream):
            if piece.pts is not None and piece.time_base is not None:
                since_zero = float(piece.pts * piece.time_base) - self._zero_seconds
                if since_zero < 0:
                    continue
                next_pts = max(next_pts, round(since_zero * stream.rate))
            piece.pts, piece.time_base = next_pts, Fraction(1, stream.rate)
            next_pts += piece.samples
            for frame in regrouped.resample(piece):
                yield from stream.encode(frame)
        for frame in regrouped.resample(None):
            yield from stream.encode(frame)
        yield from stream.encode(None)

    def _resampled(self, stream: Any) -> Iterator[Any]:
        """The frames as the stream takes them, in pieces; a short one comes before each change."""
        resampler, form = _resampler_for(stream), None
        for frame in self._frames():
            if frame.samples > _LONGEST_PACKET_SECONDS * frame.sample_rate:
                raise SoundError("A packet of it is too long.")
            last_form, form = form, (frame.format.name, frame.layout.name, frame.sample_rate)
            if last_form not in (None, form):
                yield from resampler.resample(None)
                resampler = _resampler_for(stream)
            yield from resampler.resample(frame)
        yield from resampler.resample(None)

    def _frames(self) -> Iterator[Any]:
        """The decoded frames without what is damaged."""
        context = self._stream.codec_context
        for packet in self._stored_packets():
            try:
                yield from context.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue


def _resampler_for(stream: Any) -> Any:
    return av.AudioResampler(
        format="fltp", layout=stream.layout, rate=stream.rate, frame_size=_AAC_FRAME_SAMPLES
    )


@contextmanager
def opened_sound(
    path: Path,
    *,
    may_copy: bool = True,
    limits: MediaLimits = DEFAULT_LIMITS,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[Sound | None]:
    """The sound of a video file while the block lasts; None where there is none that is readable.

    Of several recordings the one marked as default is taken, then the first. Without `may_copy` it
    is encoded in any case. `on_progress` is called now and then before it is given.
    """
    try:
        zero_seconds = first_stamp_seconds(path, limits=limits)
        jumps = clock_jumps(path, limits=limits, on_progress=lambda _: on_progress())
    except MediaError:
        yield None
        return
    with opened_container(path, None, limits) as (container, _):
        default = av.stream.Disposition.default
        streams = [one for one in container.streams.audio if one.codec_context is not None]
        streams.sort(key=lambda one: not one.disposition & default)
        for other in container.streams:
            if not streams or other.index != streams[0].index:
                other.discard = av.stream.Discard.all
        if not streams:
            yield None
            return
        yield Sound(
            container, streams[0], zero_seconds=zero_seconds, jumps=jumps, may_copy=may_copy
        )
