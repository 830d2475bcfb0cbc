"""Many jobs under workers that die, stop, hang and come back, aborts and sweeps: money fits.

Nothing here is a real process: the services are called in random order, as workers would call
them, and a worker that has lost its unit goes on calling them.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from django.utils import timezone

from billing.selectors import balance_hundredths, ledger_breaches
from inference import queue, services, submission
from inference.models import FrameResult, Job, JobFile, UnitFile, WorkUnit
from inference.selectors import settlement_breaches
from inference.services import Claim, FileFault, LeaseLostError
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user

pytestmark = pytest.mark.django_db
JOBS_PER_SEED = 6
LATER = timedelta(hours=1)


@dataclass
class Attempt:
    """A worker at work on a unit, which may have been taken from it meanwhile."""

    claim: Claim
    kind: str
    parts: list[UnitFile]
    worker: str
    done: Counter = field(default_factory=Counter)

    def store_some(self, rng: random.Random) -> None:
        part = rng.choice(self.parts)
        start = part.first_frame_index + self.done[part.pk]
        stop = min(part.end_frame_index, start + rng.randint(1, 4))
        self.done[part.pk] += stop - start
        frames = [
            FrameResult(
                job_id=self.claim.job_id,
                media_file_id=part.job_file.media_file_id,
                frame_index=index,
                time_seconds=index / 10,
                class_ids=b"",
                confidences=b"",
                boxes_xyxy=b"",
            )
            for index in range(start, stop)
        ]
        done = {part.pk: self.done[part.pk]}
        services.store_frames(claim=self.claim, frames=frames, frames_done=done)

    def end(self, rng: random.Random) -> None:
        """End well, having stored everything; of a batch some images may be at fault."""
        whole = [part for part in self.parts if self.done[part.pk] == part.frame_count]
        rest = [part for part in self.parts if part not in whole]
        if self.kind == "images":
            services.complete_unit(
                claim=self.claim,
                annotated={part.job_file_id: f"a/{part.pk}" for part in whole},
                faults={part.job_file_id: FileFault("corrupt_file", "bad") for part in rest},
            )
            return
        for part in rest:
            while self.done[part.pk] < part.frame_count:
                self.store_some(rng)
        (part,) = self.parts
        if self.kind == "frames" and rng.random() < 0.9:
            services.complete_range(claim=self.claim, segment=f"s/{part.pk}")
        elif self.kind == "frames" and part.job_file.frame_count != part.frame_count:
            services.complete_range(claim=self.claim, segment="")
        else:
            services.complete_unit(claim=self.claim, annotated={part.job_file_id: "whole"})


class World:
    """Users with jobs, the workers at work, and what may happen to them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.attempts: list[Attempt] = []
        self.users = [make_user() for _ in range(2)]

    def submit(self, number: int) -> None:
        user = self.rng.choice(self.users)
        name = f"street {number}"
        dataset = make_dataset(user, name)
        for _ in range(self.rng.randint(1, 4)):
            frame_count = self.rng.choice([1, 7, 23])
            if frame_count == 1:
                add_media_file(dataset)
            else:
                plan = {"first_pts": 0, "points": [[i, i] for i in range(4, frame_count, 4)]}
                add_media_file(dataset, media_type="video", frame_count=frame_count, seek_plan=plan)
        submission.submit_job(
            user=user,
            dataset_id=dataset_id_of(user, name),
            model_id="YOLO8",
            model_version="YOLO8s_FSR",
        )

    def claim(self) -> None:
        waiting = list(WorkUnit.objects.filter(state="pending").values_list("pk", "kind"))
        if waiting:
            unit_id, kind = self.rng.choice(waiting)
            worker = f"w{self.rng.randint(1, 3)}"
            claim = services.claim_unit(unit_id=unit_id, worker_name=worker)
            assert claim is not None
            parts = list(UnitFile.objects.filter(unit_id=unit_id).select_related("job_file"))
            self.attempts.append(Attempt(claim, kind, parts, worker))

    def work(self) -> None:
        if not self.attempts:
            return
        attempt = self.rng.choice(self.attempts)
        step = self.rng.choices(
            ["store", "end", "fail", "hand back", "break off", "die"], [8, 5, 1, 1, 1, 1]
        )[0]
        try:
            if step == "store":
                attempt.store_some(self.rng)
                return
            if step == "end":
                attempt.end(self.rng)
            elif step == "fail":
                services.fail_unit(claim=attempt.claim, fault=FileFault("corrupt_file", "bad"))
            elif step in {"hand back", "break off"}:
                services.hand_back_unit(claim=attempt.claim, counts_as_try=step == "break off")
        except LeaseLostError:
            pass
        if self.rng.random() < 0.8:  # some workers never learn that it is over
            self.attempts.remove(attempt)

    def disturb(self) -> None:
        what = self.rng.choice(["expire", "restart", "abort", "sweep"])
        if what == "expire":
            services.sweep(now=timezone.now() + LATER)
        elif what == "restart":
            services.reclaim_units(worker_name=f"w{self.rng.randint(1, 3)}")
        elif what == "sweep":
            services.sweep()
        elif self.rng.random() < 0.5:
            self.abort()

    def abort(self) -> None:
        unfinished = list(Job.objects.filter(finished_at=None).order_by("pk"))
        if unfinished:
            services.abort_job(job_id=self.rng.choice(unfinished).pk)

    def run_to_the_end(self) -> None:
        while WorkUnit.objects.filter(state__in=WorkUnit.UNFINISHED).exists():
            services.sweep(now=timezone.now() + LATER)
            for _ in range(20):
                self.claim()
                self.work()


def assert_money_fits() -> None:
    assert ledger_breaches() == []
    assert settlement_breaches() == []
    for job in Job.objects.exclude(finished_at=None):
        results = Counter(
            FrameResult.objects.filter(job=job).values_list("media_file_id", flat=True)
        )
        files = list(JobFile.objects.filter(job=job))
        cost = sum(results[one.media_file_id] * one.frame_price_hundredths for one in files)
        assert job.charged_hundredths == cost
        for one in files:
            if one.state == "completed":
                assert results[one.media_file_id] == one.frame_count
            elif one.state == "failed":
                assert results[one.media_file_id] == 0
            else:
                assert (one.state, job.state) == ("aborted", "Aborted")
        assert not WorkUnit.objects.filter(job=job, state__in=WorkUnit.UNFINISHED).exists()


@pytest.mark.parametrize("seed", range(3))
def test_every_job_ends_once_and_is_charged_for_what_it_found(seed, settings, monkeypatch):
    settings.UNIT_MAX_IMAGES = 3
    settings.UNIT_MAX_FRAMES = 8
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    monkeypatch.setattr(queue, "is_crowded", lambda: False)
    world = World(seed)
    for number in range(JOBS_PER_SEED):
        world.submit(number)
        for _ in range(20):
            world.claim()
            world.work()
            world.work()
            if world.rng.random() < 0.15:
                world.disturb()
    world.submit(JOBS_PER_SEED)
    world.claim()
    world.abort()
    assert_money_fits()
    world.run_to_the_end()
    assert Job.objects.filter(finished_at=None).count() == 0
    assert_money_fits()
    assert {"Completed", "Aborted"} <= set(Job.objects.values_list("state", flat=True))
    charged = sum(Job.objects.values_list("charged_hundredths", flat=True))
    assert sum(balance_hundredths(user=user) for user in world.users) == 200_000 - charged
