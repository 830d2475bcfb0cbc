"""POST /inference/ and GET /inference/state, and what a job costs."""

import pytest

from tests import mediafiles
from tests.contract.client import EVERY_WAY, Way, assert_problem, assert_short_of_tokens
from tests.contract.story import DATASET, GIF_FRAMES, VIDEO_FRAMES

pytestmark = pytest.mark.service

TINY = mediafiles.image_bytes("PNG", mediafiles.noise((16, 16)))
IMAGES = 7  # of the story: street, turned, same twice, the emoji, the still GIF, the long name
DOOMED = 1


@pytest.fixture(scope="module")
def dataset(customer):
    name = customer.new_dataset()
    assert customer.upload(name, TINY).status_code == 201
    return name


@EVERY_WAY
def test_submission_answers_200_and_the_number_of_the_job(customer, dataset, way):
    before = customer.balance()
    keys = {"datasetName": dataset, "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    answer = customer.call("POST", "/inference/", keys, way)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"message", "jobId"}
    assert body["message"] == "Process added successfully to the queue"
    assert type(body["jobId"]) is int
    assert before - customer.balance() == 1.5
    assert customer.state_at_the_end(body["jobId"]) == "Completed"
    assert before - customer.balance() == 1.5


@EVERY_WAY
def test_state_of_a_job_is_told(story, way):
    answer = story.customer.call("GET", "/inference/state", {"jobId": story.job_id}, way)
    assert answer.status_code == 200
    assert answer.json() == {"jobState": "Completed"}


@pytest.mark.parametrize("slash", [False, True])
def test_number_of_the_job_may_stand_in_the_query(story, slash):
    path = Way(slash=slash).path("/inference/state/")
    answer = story.customer.send("GET", path, params={"jobId": story.job_id})
    assert answer.json() == {"jobState": "Completed"}


def test_query_counts_when_the_body_is_empty_whatever_type_it_claims(story):
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        answer = story.customer.send(
            "GET",
            "/inference/state",
            params={"jobId": story.job_id},
            headers={"Content-Type": kind, "Content-Length": "0"},
        )
        assert answer.json() == {"jobState": "Completed"}


def test_cost_of_the_dataset_is_what_its_job_was_held_for(story):
    assert story.token_cost == 1.5 * (IMAGES + DOOMED) + 1.0 * (VIDEO_FRAMES + GIF_FRAMES)
    held = story.balances["doomed.tiff"] - story.balances["while the job runs"]
    assert held == story.token_cost


def test_file_that_cannot_be_processed_costs_nothing(story):
    charged = story.balances["doomed.tiff"] - story.balances["at last"]
    assert charged == 1.5 * IMAGES + 1.0 * (VIDEO_FRAMES + GIF_FRAMES)


def test_job_of_which_no_file_can_be_processed_fails_and_costs_nothing(failed_story):
    assert failed_story.customer.state(failed_story.job_id) == "Failed"
    before, running, after = failed_story.balances
    assert before == 1000.0 - 0.75
    assert running == before - 1.5
    assert after == before


@pytest.mark.parametrize("version", ["YOLO8s_FSR", "YOLO8m_FSR"])
def test_both_versions_of_the_contract_work(customer, dataset, version):
    assert customer.state_at_the_end(customer.submit(dataset, version)) == "Completed"


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("YOLO8", "YOLO9"),
        ("YOLO9", "YOLO8s_FSR"),
        ("YOLO8s_FSR", "YOLO8"),
        ("yolo8", "YOLO8s_FSR"),
        ("YOLO8", "../../weights"),
        ("YOLO8", "Y" * 500),
        ("", ""),
    ],
    ids=lambda value: value[:14],
)
def test_unknown_model_or_version_is_400_and_costs_nothing(customer, dataset, model, version):
    before = customer.balance()
    keys = {"datasetName": dataset, "modelId": model, "modelVersion": version}
    problem = assert_problem(customer.call("POST", "/inference", keys), 400)
    assert {error["field"] for error in problem["errors"]} <= {"modelId", "modelVersion"}
    assert customer.balance() == before


@pytest.mark.parametrize("missing", ["datasetName", "modelId", "modelVersion"])
def test_submission_without_a_key_is_400(customer, dataset, missing):
    keys = {"datasetName": dataset, "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    del keys[missing]
    problem = assert_problem(customer.call("POST", "/inference", keys), 400)
    assert [error["field"] for error in problem["errors"]] == [missing]


def test_empty_dataset_is_400(customer):
    keys = {"modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    keys["datasetName"] = customer.new_dataset()
    assert_problem(customer.call("POST", "/inference", keys), 400, "EmptyDatasetError")


def test_dataset_unknown_or_deleted_or_somebody_elses_is_404(customer, outsider, dataset):
    keys = {"datasetName": "never made", "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    assert_problem(customer.call("POST", "/inference", keys), 404, "DatasetNotFoundError")
    keys["datasetName"] = customer.new_dataset()
    customer.call("DELETE", "/datasets", {"datasetName": keys["datasetName"]})
    assert_problem(customer.call("POST", "/inference", keys), 404)
    keys["datasetName"] = dataset
    assert_problem(outsider.call("POST", "/inference", keys), 404)
    assert outsider.balance() == 1000.0


def test_too_few_tokens_are_402_and_no_job(newcomer, folder):
    """700 frames cost 350 to upload, and their inference 700 of the 650 that are left."""
    dataset = newcomer.new_dataset()
    gif = mediafiles.write_gif(folder / "long.gif", frames=700)
    assert newcomer.upload(dataset, gif.read_bytes(), "long.gif").status_code == 201
    assert newcomer.wealth() == (650.0, {dataset: 700.0})
    keys = {"datasetName": dataset, "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    answer = newcomer.call("POST", "/inference", keys)
    assert_short_of_tokens(answer, needed=700.0, balance=650.0)
    assert newcomer.balance() == 650.0
    with newcomer.watch() as socket:
        socket.recv(timeout=10)
        assert '"jobs": []' in socket.recv(timeout=10)


@pytest.mark.parametrize("path", ["/inference/state", "/inference/result"])
@pytest.mark.parametrize(
    ("job_id", "status"),
    [
        ("abc", 400),
        ("", 400),
        ("-1", 400),
        ("1.5", 400),
        ("1e3", 400),
        ("NaN", 400),
        ("\0", 400),
        ("9" * 30, 400),
        ("9" * 6000, 400),
        ("1;DROP TABLE", 400),
        ("0", 404),
        ("999999999", 404),
        (str(2**63 - 1), 404),
    ],
    ids=lambda value: ascii(value)[:14],
)
def test_number_of_no_job_is_refused_in_body_and_query(customer, path, job_id, status):
    assert_problem(customer.send("GET", path, params={"jobId": job_id}), status)
    assert_problem(customer.call("GET", path, {"jobId": job_id}), status)


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}, 1.5], ids=str)
def test_number_of_another_type_is_400(customer, value):
    assert_problem(customer.call("GET", "/inference/state", {"jobId": value}), 400)


def test_files_added_later_are_not_in_a_job(story):
    assert len(story.result["result"]) == len(
        [f for upload in story.uploads for f in upload["files"] if f["accepted"]]
    )
    assert DATASET in story.customer.datasets()
