"""The whole service dies, with and without warning, and two of them share a machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import (
    FAST_NETWORK,
    Observer,
    assert_completed_once,
    check_ledger,
    eventually,
    faulty_service,
    new_customer,
    processes_left,
)
from tests.service import REPOSITORY, Service, service_environment

pytestmark = [pytest.mark.service, pytest.mark.fault_long]


def test_killed_supervisor_leaves_no_orphan_and_the_next_start_goes_on(
    tmp_path: Path, street_video: Path, frame_count: int
):
    with faulty_service(tmp_path) as service:
        customer = new_customer(service, street_video, frame_count=frame_count)
        with Observer(service, customer.token) as observer:
            job_id = customer.submit()
            customer.wait_until_it_runs(job_id)
            service.process.kill()
            service.process.wait()
            eventually(lambda: not processes_left(service), "no orphan is left", timeout_seconds=30)
            service.start_again()
            assert_completed_once(customer, job_id, observer)
            check_ledger(service)


def test_killed_make_takes_the_service_with_it_and_the_next_start_goes_on(
    tmp_path: Path, street_video: Path, frame_count: int
):
    # What `make up` does: the service is told the process id of make, and ends with it.
    data_dir, log_path = tmp_path / "data", tmp_path / "up.log"
    environment = service_environment(data_dir, FAST_NETWORK)
    del environment["OD_DIE_WITH_PARENT"]
    with log_path.open("ab") as log:
        make = subprocess.Popen(
            ["/bin/sh", "-c", f'OD_DIE_WITH_PARENT=$$ "{sys.executable}" manage.py up; true'],
            env=environment,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    service = Service(make, data_dir, log_path, FAST_NETWORK)
    try:
        service.wait_until_ready()
        customer = new_customer(service, street_video, frame_count=frame_count)
        with Observer(service, customer.token) as observer:
            job_id = customer.submit()
            customer.wait_until_it_runs(job_id)
            make.kill()
            make.wait()
            eventually(lambda: not processes_left(service), "no orphan is left", timeout_seconds=60)
            service.start_again()
            assert_completed_once(customer, job_id, observer)
            check_ledger(service)
    finally:
        service.stop()


def test_two_services_on_one_machine_do_not_disturb_each_other(
    tmp_path: Path, street_video: Path, frame_count: int
):
    with faulty_service(tmp_path / "stays") as stays, faulty_service(tmp_path / "goes") as goes:
        assert stays.up["port"] != goes.up["port"]
        customers = [
            new_customer(service, street_video, frame_count=frame_count)
            for service in (stays, goes)
        ]
        with Observer(stays, customers[0].token) as observer:
            job_ids = [customer.submit() for customer in customers]
            # Both number their users, units and jobs from 1; each has only its own.
            assert job_ids == [1, 1]
            for customer, job_id in zip(customers, job_ids, strict=True):
                customer.wait_until_it_runs(job_id)
            children = stays.up["children"]
            goes.stop()
            assert_completed_once(customers[0], job_ids[0], observer)
            assert stays.up["children"] == children
            assert observer.connections == 1
        goes.start_again()
        assert customers[1].wait_for_end(job_ids[1])["state"] == "Completed"
