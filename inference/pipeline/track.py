"""Follows objects through a video: one id for the boxes of one object.

ByteTrack (Zhang et al., ECCV 2022) as a pass over detections in the order of the frames, so that
it works on stored ones, with tiles, and in constant memory. Confident boxes are matched first,
doubtful ones only continue tracks. Differently from the paper, time is counted in seconds rather
than frames, so that every n-th frame and variable rates work, and where an object has moved by
more than its own length, so that no boxes overlap, its centre is compared with what is known of
its motion.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from inference.pipeline.merge import iou_matrix
from inference.pipeline.types import UNTRACKED, Detections, FrameDetections

TrackIds = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

_UNCERTAIN_SIZES = 0.5  # a track whose place is known no better than this is not told by overlap
_USUAL_STEPS = 9  # of which one pause, or four, are no rule
# Of the latest size: with less the mean stays behind a vehicle that comes or goes, a fifth of its
# size from one look to the next, until it is another vehicle; with more it follows every jitter.
_LEAST_SIZE_WEIGHT = 0.5
_MAX_NEW_PAIRS = 1500  # compared with each other at a time: a matrix of 18 MB
# Every box is compared with every track. A clock that hardly moves ends none, however many come.
MAX_TRACKS = 4000

_Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True)
class TrackingRules:
    """When boxes of different frames are the same object.

    Boxes of at least `high_confidence` begin tracks, those from `low_confidence` on continue
    them. A track that is not seen for `lost_seconds`, or `lost_frames` if that is longer, ends.
    """

    high_confidence: float = 0.25
    low_confidence: float = 0.1
    lost_seconds: float = 1.0
    lost_frames: int = 3
    least_iou: float = 0.2
    least_iou_of_doubtful: float = 0.5
    # The motion is a Kalman filter at constant velocity. Lengths are in sizes of the object (the
    # root of its area): how far a box is off, how fast objects are at first sight, and how much
    # their velocity changes within a second.
    box_noise_sizes: float = 0.06
    first_speed_sizes: float = 2.5
    acceleration_sizes: float = 1.0
    # Of a distance in standard deviations, squared: 99 % of true pairs in a plane lie below.
    farthest_squared: float = 9.21
    most_resized: float = 2.0
    # Objects that move alike: by how many sizes their steps differ, how many sizes they are apart,
    # how many of them settle it, and what a step that nobody shares costs.
    alike_sizes: float = 0.2
    neighbour_sizes: float = 10.0
    neighbours_enough: float = 3.0
    lonely_cost: float = 5.5


def track_frames(
    frames: Iterable[FrameDetections], rules: TrackingRules | None = None
) -> Iterator[tuple[FrameDetections, TrackIds]]:
    """Each frame with the ids (n,) of its boxes, ascending from 1 by their first appearance.

    `frames` in the order of their time. The ids of boxes that continue no track and are too
    doubtful to begin one are UNTRACKED. The same frames always give the same ids.
    """
    tracker = Tracker(rules)
    for frame in frames:
        yield frame, tracker.update(frame.time_seconds, frame.detections)


class Tracker:
    """The tracks of one video; `update` takes its frames one after the other.

    Memory is bounded by the objects seen within `lost_seconds`, whatever the video's length, and
    by MAX_TRACKS: of more, those that were not seen for longest are forgotten.
    """

    def __init__(self, rules: TrackingRules | None = None) -> None:
        self._rules = rules or TrackingRules()
        self._tracks = _Tracks.none()
        self._next_id = 1
        self._frame_number = 0
        self._time_seconds = 0.0
        self._steps_seconds: deque[float] = deque(maxlen=_USUAL_STEPS)

    @property
    def followed_count(self) -> int:
        """How many objects are being followed."""
        return len(self._tracks)

    def update(self, time_seconds: float, detections: Detections) -> TrackIds:
        """The id (n,) int32 of every box of the next frame, UNTRACKED for some doubtful ones."""
        rules, tracks = self._rules, self._tracks
        tracks.predict(self._motion_seconds(time_seconds - self._time_seconds), rules)
        self._time_seconds = max(time_seconds, self._time_seconds)
        self._frame_number += 1
        boxes = detections.boxes_xyxy.astype(np.float64)
        confidences = detections.confidences
        high = np.flatnonzero(confidences >= np.float32(rules.high_confidence))
        low = np.flatnonzero(
            (confidences >= np.float32(rules.low_confidence))
            & (confidences < np.float32(rules.high_confidence))
        )
        ids = np.full(len(boxes), UNTRACKED, np.int32)
        free = np.arange(len(tracks))
        for candidates, costs_of in (
            (high, self._overlap_costs),
            (high, self._distance_costs),
            (low, self._doubtful_costs),
        ):
            open_boxes = candidates[ids[candidates] == UNTRACKED]
            rows, columns = _assign(*costs_of(free, boxes[open_boxes], confidences[open_boxes]))
            matched, seen = free[rows], open_boxes[columns]
            tracks.correct(matched, boxes[seen], rules)
            tracks.last_seconds[matched] = self._time_seconds
            tracks.last_frame[matched] = self._frame_number
            ids[seen] = tracks.ids[matched]
            free = np.delete(free, rows)
        self._end_lost_tracks()
        self._begin_tracks(high[ids[high] == UNTRACKED], boxes, ids)
        return ids

    def _motion_seconds(self, step_seconds: float) -> float:
        """How long what is followed may have moved, when so much time lies between two frames.

        A clock that runs back tells nothing, so no motion is assumed. After a pause of the
        recording a vehicle could be anywhere, and any vehicle would do: so it moves no longer than
        it may be lost. What is usual is the median of the steps before.
        """
        if step_seconds <= 0:
            return 0.0
        rules, longest = self._rules, step_seconds
        if self._steps_seconds:
            usual = float(np.median(self._steps_seconds))
            longest = max(rules.lost_seconds, rules.lost_frames * usual)
        self._steps_seconds.append(step_seconds)
        return min(step_seconds, longest)

    def _overlap_costs(
        self, free: npt.NDArray[np.intp], boxes: Floats, confidences: npt.NDArray[np.float32]
    ) -> tuple[Floats, float]:
        overlaps = iou_matrix(self._tracks.boxes_xyxy(free), boxes)
        # As in the paper's code, a confident box counts for more than a doubtful one.
        costs = 1 - overlaps * confidences[None, :].astype(np.float64)
        certain = self._tracks.position_variance[free] <= _UNCERTAIN_SIZES**2 * self._tracks.area(
            free
        )
        costs[~certain[:, None] | (overlaps <= self._rules.least_iou)] = np.inf
        return costs, 1.0

    def _doubtful_costs(
        self, free: npt.NDArray[np.intp], boxes: Floats, confidences: npt.NDArray[np.float32]
    ) -> tuple[Floats, float]:
        # Only what was seen a moment ago: a doubtful box is no reason to take up a lost track.
        recent = self._tracks.last_frame[free] == self._frame_number - 1
        overlaps = iou_matrix(self._tracks.boxes_xyxy(free), boxes)
        fits = recent[:, None] & (overlaps > self._rules.least_iou_of_doubtful)
        return np.where(fits, 1 - overlaps, np.inf), 1.0

    def _distance_costs(
        self, free: npt.NDArray[np.intp], boxes: Floats, confidences: npt.NDArray[np.float32]
    ) -> tuple[Floats, float]:
        """Squared distances of centres in standard deviations of what each track may have done."""
        rules, tracks = self._rules, self._tracks
        centres, sizes = _centres_and_sizes(boxes)
        variances = tracks.position_variance[free] + rules.box_noise_sizes**2 * tracks.area(free)
        steps = tracks.centres[free][:, None, :] - centres[None, :, :]
        costs = (steps**2).sum(axis=2) / variances[:, None]
        resized = np.abs(np.log(tracks.sizes[free][:, None, :] / sizes[None, :, :])).max(axis=2)
        feasible = (costs < rules.farthest_squared) & (resized < np.log(rules.most_resized))
        rows, columns = np.nonzero(feasible & (tracks.sightings[free] == 1)[:, None])
        if 1 < len(rows) <= _MAX_NEW_PAIRS:
            lonely = rules.lonely_cost * (1 - self._shared_motion(free[rows], columns, centres))
            nearly = np.nextafter(rules.farthest_squared, 0)
            costs[rows, columns] = np.minimum(costs[rows, columns] + lonely, nearly)
        costs[~feasible] = np.inf
        return costs, rules.farthest_squared

    def _shared_motion(
        self, rows: npt.NDArray[np.intp], columns: npt.NDArray[np.intp], centres: Floats
    ) -> Floats:
        """How well each pair of a new track and a box agrees with other such pairs, from 0 to 1.

        Those agree that are near and whose step from the track to the box is about the same.
        """
        rules, tracks = self._rules, self._tracks
        places = tracks.centres[rows]
        steps = centres[columns] - places
        sizes = np.sqrt(tracks.area(rows))[:, None]
        unlike = _squared_distances(steps) / (rules.alike_sizes * sizes) ** 2
        unlike += _squared_distances(places) / (rules.neighbour_sizes * sizes) ** 2
        agreement = np.exp(-unlike / 2)
        agreement[rows[:, None] == rows[None, :]] = 0
        agreement[columns[:, None] == columns[None, :]] = 0
        enough = rules.neighbours_enough
        # What the first neighbour says counts most.
        total = np.minimum(agreement.sum(axis=1), enough)
        return np.log1p(5 * total) / np.log1p(5 * enough)

    def _end_lost_tracks(self) -> None:
        rules, tracks = self._rules, self._tracks
        unseen_seconds = self._time_seconds - tracks.last_seconds
        unseen_frames = self._frame_number - tracks.last_frame
        lost = (unseen_seconds > rules.lost_seconds) & (unseen_frames > rules.lost_frames)
        if len(tracks) > MAX_TRACKS:
            # Stable, from the newest row backwards: of those seen in one frame the oldest go.
            idle = np.argsort(unseen_frames[::-1], kind="stable")[MAX_TRACKS:]
            lost[len(tracks) - 1 - idle] = True
        if lost.any():
            tracks.keep(~lost)

    def _begin_tracks(self, seen: npt.NDArray[np.intp], boxes: Floats, ids: TrackIds) -> None:
        if not len(seen):
            return
        ids[seen] = np.arange(self._next_id, self._next_id + len(seen), dtype=np.int32)
        self._next_id += len(seen)
        self._tracks.add(
            ids[seen], boxes[seen], self._time_seconds, self._frame_number, self._rules
        )


@dataclass
class _Tracks:
    """All tracks that are being followed, one row each: a Kalman filter at constant velocity.

    Its noise is the same along both axes, and so are the variances: one number a track each for
    the position, the velocity and both together. Sizes (width, height) are averaged.
    """

    ids: TrackIds
    centres: Floats  # (n, 2) pixels
    velocities: Floats  # (n, 2) pixels a second
    sizes: Floats  # (n, 2) pixels
    position_variance: Floats  # (n,)
    covariance: Floats  # (n,) of position and velocity
    velocity_variance: Floats  # (n,)
    sightings: Floats  # (n,)
    last_seconds: Floats  # (n,)
    last_frame: npt.NDArray[np.int64]  # (n,)

    @classmethod
    def none(cls) -> _Tracks:
        """No track yet."""
        pairs, numbers = np.zeros((0, 2)), np.zeros(0)
        return cls(
            ids=np.zeros(0, np.int32),
            centres=pairs,
            velocities=pairs,
            sizes=pairs,
            position_variance=numbers,
            covariance=numbers,
            velocity_variance=numbers,
            sightings=numbers,
            last_seconds=numbers,
            last_frame=np.zeros(0, np.int64),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def boxes_xyxy(self, rows: npt.NDArray[np.intp]) -> Floats:
        """Where tracks are thought to be now, (k, 4)."""
        centres, sizes = self.centres[rows], self.sizes[rows]
        return np.concatenate((centres - sizes / 2, centres + sizes / 2), axis=1)

    def area(self, rows: npt.NDArray[np.intp]) -> Floats:
        """Of tracks' boxes, (k,) square pixels."""
        return self.sizes[rows].prod(axis=1)

    def predict(self, elapsed_seconds: float, rules: TrackingRules) -> None:
        """Move everything on by some time."""
        t = elapsed_seconds
        drift = rules.acceleration_sizes**2 * self.sizes.prod(axis=1)
        self.centres = self.centres + self.velocities * t
        self.position_variance = (
            self.position_variance
            + 2 * t * self.covariance
            + t**2 * self.velocity_variance
            + drift * t**3 / 3
        )
        self.covariance = self.covariance + t * self.velocity_variance + drift * t**2 / 2
        self.velocity_variance = self.velocity_variance + drift * t

    def correct(self, rows: npt.NDArray[np.intp], boxes: Floats, rules: TrackingRules) -> None:
        """Take in where the objects of some tracks were seen: boxes (k, 4)."""
        centres, sizes = _centres_and_sizes(boxes)
        total = self.position_variance[rows] + rules.box_noise_sizes**2 * self.area(rows)
        position_gain = self.position_variance[rows] / total
        velocity_gain = self.covariance[rows] / total
        surprise = centres - self.centres[rows]
        self.centres[rows] += position_gain[:, None] * surprise
        self.velocities[rows] += velocity_gain[:, None] * surprise
        self.velocity_variance[rows] -= velocity_gain * self.covariance[rows]
        self.covariance[rows] *= 1 - position_gain
        self.position_variance[rows] *= 1 - position_gain
        self.sightings[rows] += 1
        weight = np.maximum(1 / self.sightings[rows], _LEAST_SIZE_WEIGHT)[:, None]
        self.sizes[rows] += weight * (sizes - self.sizes[rows])

    def add(
        self,
        ids: TrackIds,
        boxes: Floats,
        time_seconds: float,
        frame_number: int,
        rules: TrackingRules,
    ) -> None:
        """Begin tracks at boxes (k, 4)."""
        centres, sizes = _centres_and_sizes(boxes)
        area = sizes.prod(axis=1)
        begun = _Tracks(
            ids=ids,
            centres=centres,
            velocities=np.zeros_like(centres),
            sizes=sizes,
            position_variance=rules.box_noise_sizes**2 * area,
            covariance=np.zeros(len(ids)),
            velocity_variance=rules.first_speed_sizes**2 * area,
            sightings=np.ones(len(ids)),
            last_seconds=np.full(len(ids), time_seconds),
            last_frame=np.full(len(ids), frame_number),
        )
        for name, values in vars(begun).items():
            setattr(self, name, np.concatenate((getattr(self, name), values)))

    def keep(self, wanted: npt.NDArray[np.bool_]) -> None:
        """Forget the other tracks."""
        for name, values in list(vars(self).items()):
            setattr(self, name, values[wanted])


def _centres_and_sizes(boxes: Floats) -> tuple[Floats, Floats]:
    """Of boxes (n, 4): (n, 2) and (n, 2). A box without an area counts as a pixel."""
    return (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)


def _squared_distances(points: Floats) -> Floats:
    """Of every one of (n, 2) from every other, (n, n)."""
    return ((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)


def _assign(costs: Floats, cost_unmatched: float) -> _Pairs:
    """Rows and columns of the cheapest one-to-one matching; infinite costs are never matched.

    A pair is made when it costs less than `cost_unmatched`. Pairs that have no rival are made at
    once; only the others are worth an assignment problem.
    """
    feasible = costs < cost_unmatched
    row_choices, column_choices = feasible.sum(axis=1), feasible.sum(axis=0)
    alone = feasible & (row_choices[:, None] == 1) & (column_choices[None, :] == 1)
    rows, columns = np.nonzero(alone)
    contested = feasible & ~alone
    open_rows = np.flatnonzero(contested.any(axis=1))
    open_columns = np.flatnonzero(contested.any(axis=0))
    if len(open_rows):
        part = np.where(feasible, costs, cost_unmatched)[np.ix_(open_rows, open_columns)]
        chosen_rows, chosen_columns = linear_sum_assignment(part)
        made = part[chosen_rows, chosen_columns] < cost_unmatched
        rows = np.concatenate((rows, open_rows[chosen_rows[made]]))
        columns = np.concatenate((columns, open_columns[chosen_columns[made]]))
    return rows, columns
