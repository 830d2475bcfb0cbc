"""Where decoding of a video can begin without changing what is seen; imports no decoder.

Containers promise key frames that are none, and seeking lands elsewhere in some. So a point counts
only when decoding from it was tried, at upload, and gave the very frames of the whole decode.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

SPACING_FRAMES = 128  # points are at least so far apart: enough to cut units of some hundred frames
TRIED_FRAMES = 4  # so many frames from a point on are compared


class SeekPoint(NamedTuple):
    """A frame at which decoding can begin, and its time stamp in the stream's own units."""

    frame_index: int
    pts: int


@dataclass(frozen=True)
class SeekPlan:
    """The tried points of a video, ascending; `first_pts` is the stamp of its first frame."""

    first_pts: int
    points: tuple[SeekPoint, ...]

    def point_before(self, frame_index: int) -> SeekPoint | None:
        """The last point at or before a frame, if decoding need not begin with the video."""
        place = bisect_right(self.points, frame_index, key=lambda point: point.frame_index)
        return self.points[place - 1] if place else None

    def to_json(self) -> dict[str, Any]:
        """Plain values that JSON can carry; `from_json` reads them back."""
        return {"first_pts": self.first_pts, "points": [list(point) for point in self.points]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any] | None) -> Self | None:
        """Rebuild what `to_json` gave; None stays None. Raises KeyError, TypeError, ValueError."""
        if values is None:
            return None
        points = (SeekPoint(int(index), int(pts)) for index, pts in values["points"])
        return cls(int(values["first_pts"]), tuple(points))


@dataclass
class Candidate:
    """A key frame, with the stamps and checksums of the frames that follow it."""

    point: SeekPoint
    followers: list[tuple[int, int]] = field(default_factory=list)


class CandidateCollector:
    """Picks key frames while a video is decoded wholly; gives them up when anything is odd."""

    def __init__(self) -> None:
        self._candidates: list[Candidate] = []
        self._is_sound = True
        self._next_index = SPACING_FRAMES
        self._last_pts: int | None = None
        self._first_pts = 0

    def see(self, frame_index: int, *, pts: int | None, is_key: bool) -> bool:
        """Note the next frame; returns whether `follow` wants its checksum."""
        if not self._is_sound:
            return False
        if pts is None or (self._last_pts is not None and pts <= self._last_pts):
            self.give_up()
            return False
        if self._last_pts is None:
            self._first_pts = pts
        self._last_pts = pts
        if is_key and frame_index >= self._next_index:
            self._candidates.append(Candidate(SeekPoint(frame_index, pts)))
            self._next_index = frame_index + SPACING_FRAMES
        return bool(self._candidates) and len(self._candidates[-1].followers) < TRIED_FRAMES

    def follow(self, checksum: int) -> None:
        """Take the checksum of the frame that was just seen."""
        assert self._last_pts is not None
        self._candidates[-1].followers.append((self._last_pts, checksum))

    def give_up(self) -> None:
        """Something is odd about this video: it is decoded from its beginning only."""
        self._is_sound = False
        self._candidates.clear()

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The key frames to be tried."""
        return self._candidates

    def plan(self, points: Sequence[SeekPoint]) -> SeekPlan | None:
        """What is kept of the points that stood the trial."""
        return SeekPlan(self._first_pts, tuple(points)) if points else None
