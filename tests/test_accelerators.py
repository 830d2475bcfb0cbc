"""Each worker process has one GPU of its own, or its share of the cores."""

import os

import pytest

from odproject.accelerators import visible_gpus, worker_environment


def test_gpus_are_those_that_the_driver_has_made_nodes_for(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    assert visible_gpus({}, tmp_path) == ["0", "1"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [("2,0", ["2", "0"]), ("GPU-5f2", ["GPU-5f2"]), ("", []), ("-1", [])],
)
def test_gpus_named_by_the_environment_count(tmp_path, named, expected):
    (tmp_path / "nvidia0").touch()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, tmp_path) == expected


def test_workers_take_gpus_in_turns():
    given = [
        worker_environment({}, index=index, worker_count=3, gpus=["0", "1"]) for index in range(3)
    ]
    assert given == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("0", "1", "0")]


def test_cores_are_divided_among_workers_without_a_gpu():
    cores = len(os.sched_getaffinity(0))
    given = worker_environment({}, index=0, worker_count=2, gpus=[])
    assert given == {"OD_TORCH_THREADS": str(max(1, cores // 2))}
    assert worker_environment({}, index=0, worker_count=1, gpus=[]) == {}
    chosen = {"OD_TORCH_THREADS": "3"}
    assert worker_environment(chosen, index=0, worker_count=2, gpus=[]) == {}
