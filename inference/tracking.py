"""The tracking of a video: a pass over what its work units have stored, whoever ran them."""

from collections.abc import Callable
from functools import partial

from datasets.models import MediaFile
from inference import services
from inference.leases import while_database_is_away
from inference.models import Job
from inference.pipeline.track import Tracker
from inference.selectors import frame_result_slices, stored_detections
from inference.services import Claim


def track_video(
    *, claim: Claim, job: Job, media_file: MediaFile, on_progress: Callable[[], None]
) -> None:
    """Give the detections of a video their track ids, slice by slice, in constant memory.

    Done again, after an attempt that broke off, it writes the same ids. `on_progress` is called
    for each frame, of which a crowded one may take a second, before its slice is written, and ends
    the pass by what it raises. Raises LeaseLostError.
    """
    tracker = Tracker()
    for frames in frame_result_slices(job=job, media_file=media_file):
        for frame in frames:
            ids = tracker.update(frame.time_seconds, stored_detections(frame))
            frame.track_ids = ids.astype("<i4").tobytes()
            on_progress()
        store = partial(services.store_track_ids, claim=claim, frames=frames)
        while_database_is_away(store)
