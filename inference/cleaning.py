"""What the sweeper takes away once an hour: what nobody needs any more."""

import contextlib
import functools
from datetime import datetime, timedelta

from django.core.files.storage import default_storage
from django.db.models import Exists, OuterRef, Q

from datasets.models import MediaFile
from inference.models import Job, JobFile, WorkerHeartbeat
from odproject.core.clock import database_now
from odproject.core.files import remove_orphans

ORPHAN_WINDOW = timedelta(days=2)  # jobs that ended longer ago have been looked through before
FILES_PER_CLEANING = 10_000


def remove_orphaned_results(*, older_than: datetime) -> int:
    """Remove annotated files of attempts that were cut off, and segments of ended videos.

    Returns how many.
    """

    def known_results(job_id: int, names: list[str]) -> set[str]:
        rows = JobFile.objects.filter(job_id=job_id, annotated__in=names)
        return set(rows.values_list("annotated", flat=True))

    finished = Job.objects.filter(
        finished_at__lt=older_than, finished_at__gte=older_than - ORPHAN_WINDOW
    )
    return sum(
        remove_orphans(
            folder=f"results/{job_id}",
            older_than=older_than,
            known=functools.partial(known_results, job_id),
        )
        for job_id in finished.values_list("pk", flat=True)
    )


def remove_deleted_content(*, deleted_before: datetime) -> int:
    """Remove from the storage what was deleted before then, or whose dataset was.

    Not while a job that was quoted for it is unfinished, nor while moderators have flagged or
    blocked its dataset: it may be what they have to look at. The row stays, and with it what jobs
    found. Returns how many files were removed, at most FILES_PER_CLEANING.
    """
    still_needed = JobFile.objects.filter(media_file=OuterRef("pk"), job__state__in=Job.UNFINISHED)
    deleted = MediaFile.objects.filter(
        Q(deleted_at__lt=deleted_before) | Q(dataset__deleted_at__lt=deleted_before),
        ~Exists(still_needed),
        removed_at__isnull=True,
        dataset__flagged_at__isnull=True,
        dataset__blocked_at__isnull=True,
    )
    removed = 0
    for media_file in deleted.only("content", "thumbnail")[:FILES_PER_CLEANING]:
        # The row first: what a crash leaves behind of the content is an orphan then, and goes.
        # Asked again, because moderators may have come while others were removed.
        if not deleted.filter(pk=media_file.pk).update(removed_at=database_now()):
            continue
        removed += 1
        for name in filter(None, (media_file.content.name, media_file.thumbnail.name)):
            with contextlib.suppress(OSError):
                default_storage.delete(name)
    return removed


def forget_silent_workers(*, before: datetime) -> int:
    """Remove workers that were last heard of long ago; returns how many."""
    return WorkerHeartbeat.objects.filter(last_seen_at__lt=before).delete()[0]
