"""The sound of a video, to be put beside annotated pictures; decodes with av.

It is copied where an MP4 file can hold its coding, else encoded to AAC. Its times are counted from
the first frame of the pictures, as those of the frames are.
"""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from datasets.media.errors import MediaError
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.video import MAX_SANE_GAP_SECONDS, first_stamp_seconds, opened_container

_COPIED_CODECS = {"aac", "mp3", "ac3", "eac3", "opus", "alac", "flac"}
_LEAST_MP3_RATE_HZ = 16_000  # MP4 knows no MP3 below
_AAC_FRAME_SAMPLES = 1024
_AAC_RATES_HZ = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}
_DEFAULT_RATE_HZ = 48000
# What is resampled lies in memory as a whole: at 48 kHz a packet of this length takes 12 MB. A file
# of some KB can claim a packet of hours, at one sample a second.
_LONGEST_PACKET_SECONDS = 60


class SoundError(Exception):
    """The sound cannot be read on; pictures do without it."""


class _PacketClock:
    """Stamps in ticks of `time_base` that never run backwards.

    Where the stored clock jumps back or absurdly far ahead (recordings put together), it goes on
    from the end of the last packet, as the times of the pictures do.
    """

    def __init__(self, time_base: Fraction) -> None:
        self._longest_step = round(MAX_SANE_GAP_SECONDS / time_base)
        self._shift = 0
        self._last: int | None = None
        self._end = 0

    def tell(self, stamp: int, duration: int) -> int:
        stamp += self._shift
        if self._last is not None and not 0 <= stamp - self._last <= self._longest_step:
            self._shift += self._end - stamp
            stamp = self._end
        self._last, self._end = stamp, stamp + max(duration, 1)
        return stamp


class Sound:
    """One recording of a file that is open for reading."""

    def __init__(self, container: Any, stream: Any, *, zero_seconds: float) -> None:
        self._container = container
        self._stream = stream
        self._zero_seconds = zero_seconds

    @property
    def is_copied(self) -> bool:
        """Whether the packets are taken as they are, instead of encoded to AAC."""
        context = self._stream.codec_context
        coding = context.codec.canonical_name
        if coding == "mp3" and context.sample_rate < _LEAST_MP3_RATE_HZ:
            return False
        return coding in _COPIED_CODECS

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

        What lies before the first picture is left out.
        """
        made = self._copied_packets(stream) if self.is_copied else self._encoded_packets(stream)
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
        """The packets of the file, their clock put right."""
        clock = _PacketClock(self._stream.time_base)
        for packet in self._container.demux(self._stream):
            if packet.pts is not None:
                packet.pts = packet.dts = clock.tell(packet.pts, packet.duration or 0)
            yield packet

    def _copied_packets(self, stream: Any) -> Iterator[Any]:
        shift = round(self._zero_seconds / self._stream.time_base)
        for packet in self._stored_packets():
            if not packet.size or packet.is_corrupt or packet.pts is None:
                continue
            packet.pts -= shift
            packet.dts = packet.pts
            if packet.pts >= 0:
                yield packet

    def _encoded_packets(self, stream: Any) -> Iterator[Any]:
        resampler = av.AudioResampler(
            format="fltp", layout=stream.layout, rate=stream.rate, frame_size=_AAC_FRAME_SAMPLES
        )
        next_pts = 0
        for frame in self._frames():
            if frame is not None and frame.samples > _LONGEST_PACKET_SECONDS * frame.sample_rate:
                raise SoundError("A packet of it is too long.")
            for piece in resampler.resample(frame):
                if piece.pts is not None and piece.time_base is not None:
                    since_zero = float(piece.pts * piece.time_base) - self._zero_seconds
                    if since_zero < 0:
                        continue
                    next_pts = max(next_pts, round(since_zero * stream.rate))
                piece.pts, piece.time_base = next_pts, Fraction(1, stream.rate)
                next_pts += piece.samples
                yield from stream.encode(piece)
        yield from stream.encode(None)

    def _frames(self) -> Iterator[Any]:
        """The decoded frames without what is damaged, and None at the end."""
        context = self._stream.codec_context
        for packet in self._stored_packets():
            try:
                yield from context.decode(packet if packet.size else None)
            except av.FFmpegError:
                continue
        yield None


@contextmanager
def opened_sound(path: Path, *, limits: MediaLimits = DEFAULT_LIMITS) -> Iterator[Sound | None]:
    """The sound of a video file while the block lasts; None where there is none that is readable.

    Of several recordings the one marked as default is taken, then the first.
    """
    try:
        zero_seconds = first_stamp_seconds(path, limits=limits)
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
        yield Sound(container, streams[0], zero_seconds=zero_seconds) if streams else None
