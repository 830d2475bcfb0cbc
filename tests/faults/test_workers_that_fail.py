"""A file that kills its worker, and a worker that hangs for longer than its lease."""

import re
from pathlib import Path

import pytest

from tests.faults.harness import (
    WELCOME_TOKENS,
    Observer,
    assert_completed_once,
    assert_new_hints_arrive,
    assert_told_once,
    check_ledger,
    child_pid,
    eventually,
    faulty_service,
    kill,
    ledger_kinds,
    new_customer,
    query,
    stopped,
    tries_of,
)

pytestmark = [pytest.mark.service, pytest.mark.fault_long]


def test_file_that_kills_its_worker_three_times_fails_and_costs_nothing(
    tmp_path: Path, street_video: Path, short_video: Path, frame_count: int
):
    with faulty_service(tmp_path) as service:
        customer = new_customer(service, street_video, frame_count=frame_count)
        with Observer(service, customer.token) as observer:
            job_id = customer.submit()
            for attempt in (1, 2, 3):
                eventually(
                    lambda attempt=attempt: query(
                        service,
                        "SELECT 1 FROM inference_workunit unit JOIN inference_unitfile part"
                        " ON part.unit_id = unit.id"
                        " WHERE unit.job_id = %s AND unit.attempt = %s AND part.frames_done > 0",
                        job_id,
                        attempt,
                    ),
                    f"attempt {attempt} has begun",
                )
                kill(service, "worker-1")
            job = customer.wait_for_end(job_id)
            assert job["state"] == "Failed"
            assert job["error"] == "The file could not be processed in 3 attempts."
            assert (job["charged_tokens"], job["frames_done"]) == (0, 0)
            assert customer.balance() == WELCOME_TOKENS - 0.5 * frame_count
            assert ledger_kinds(service, job_id) == ["hold", "release"]
            assert query(
                service, "SELECT count(*) FROM inference_frameresult WHERE job_id = %s", job_id
            ) == [(0,)]
            assert tries_of(service, job_id) == [(3, 3)]
            assert_told_once(customer, job_id, observer, end="job.failed")
            check_ledger(service)
            # The worker lives and takes other work.
            assert_new_hints_arrive(service, short_video)


def test_worker_that_hangs_is_fenced_off_when_it_wakes_up(
    tmp_path: Path, street_video: Path, frame_count: int
):
    with faulty_service(tmp_path, OD_UNIT_LEASE_SECONDS="5", OD_WORKERS="2") as service:
        customer = new_customer(service, street_video, frame_count=frame_count)
        with Observer(service, customer.token) as observer:
            job_id = customer.submit()
            customer.wait_until_it_runs(job_id)
            [(holder,)] = query(
                service, "SELECT worker_name FROM inference_workunit WHERE job_id = %s", job_id
            )
            hung = holder.partition("@")[0]
            with stopped(child_pid(service, hung)):
                customer.wait_for_end(job_id)
            log = service.data_dir / "logs" / f"{hung}.log"
            # Its lease tells it, or the database does when it writes, whichever comes first.
            gives_up = re.compile(r"Work unit \d+ (was taken away|is no longer attempt 1)")
            eventually(lambda: gives_up.search(log.read_text()), "the hung worker gives up")
            assert_completed_once(customer, job_id, observer)
            check_ledger(service)
            assert tries_of(service, job_id) == [(2, 2)]
            results = sorted((service.data_dir / "media" / "results").rglob("*.mp4"))
            assert [path.stem.rpartition("-")[2] for path in results] == ["2"]
