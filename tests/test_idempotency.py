"""One Idempotency-Key, one effect: on jobs, uploads and top-ups, on both surfaces."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.utils import timezone
from rest_framework.test import APIClient

from billing import idempotency
from billing.models import KeptAnswer, Transfer
from billing.selectors import ledger_breaches
from datasets.models import Dataset, Upload
from datasets.services import delete_dataset
from inference.models import Job
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user
from tests.mediafiles import image_bytes, noise
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("no_broker")

PICTURE = image_bytes("PNG", noise((16, 12)))
TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"


@dataclass
class Effect:
    """A request that may take effect once: who sends it, what it says, and what it leaves."""

    client: APIClient
    path: str
    body: Callable[[int], dict[str, Any]]  # other numbers say other things
    rows: Callable[[], int]
    method: str = "post"
    options: dict[str, Any] = field(default_factory=lambda: {"format": "json"})

    def send(self, key: str | None, *, body: int = 0, client: APIClient | None = None) -> Any:
        headers = {} if key is None else {"Idempotency-Key": key}
        call = getattr(client or self.client, self.method)
        return call(self.path, self.body(body), headers=headers, **self.options)


def job_v1() -> Effect:
    user = make_user()
    dataset = make_dataset(user)
    add_media_file(dataset)
    body = [{"dataset_id": dataset.pk, "model_version": f"YOLO8{s}_FSR"} for s in "sm"]
    return Effect(client_of(user), "/api/v1/jobs/", body.__getitem__, Job.objects.count)


def job_contract() -> Effect:
    user = make_user()
    add_media_file(make_dataset(user))
    body = [
        {"datasetName": "street", "modelId": "YOLO8", "modelVersion": f"YOLO8{s}_FSR"} for s in "sm"
    ]
    return Effect(client_of(user), "/inference", body.__getitem__, Job.objects.count)


def top_up_v1() -> Effect:
    user, admin = make_user(), make_user(staff=True)
    return Effect(
        client_of(admin),
        "/api/v1/top-ups/",
        lambda number: {"email": user.email, "amount_tokens": 5 + number},
        Transfer.objects.filter(kind="top_up").count,
    )


def top_up_contract() -> Effect:
    user, admin = make_user(), make_user(staff=True)
    return Effect(
        client_of(admin),
        "/token",
        lambda number: {"topUpUserEmail": user.email, "topUpAmount": 5 + number},
        Transfer.objects.filter(kind="top_up").count,
        method="patch",
    )


def _picture(number: int) -> SimpleUploadedFile:
    content = PICTURE if number == 0 else image_bytes("PNG", noise((16, 12), seed=number))
    return SimpleUploadedFile("a.png", content)


def upload_v1() -> Effect:
    user = make_user()
    dataset = make_dataset(user)
    return Effect(
        client_of(user),
        f"/api/v1/datasets/{dataset.pk}/uploads/",
        lambda number: {"file": _picture(number)},
        Upload.objects.count,
        options={"format": "multipart"},
    )


def upload_contract() -> Effect:
    user = make_user()
    make_dataset(user)
    return Effect(
        client_of(user),
        "/upload",
        lambda number: {"file": _picture(number), "datasetName": "street"},
        Upload.objects.count,
        options={"format": "multipart"},
    )


EFFECTS = [job_v1, job_contract, top_up_v1, top_up_contract, upload_v1, upload_contract]
every_effect = pytest.mark.parametrize("make_effect", EFFECTS, ids=lambda make: make.__name__)


@pytest.mark.django_db
@every_effect
class TestOneAfterTheOther:
    """Requests that follow each other."""

    def test_same_request_gets_the_first_answer_again(self, make_effect):
        effect = make_effect()
        first, again = effect.send("k"), effect.send("k")
        assert 200 <= first.status_code < 300
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers.get("Location") == first.headers.get("Location")
        assert "Idempotency-Replayed" not in first.headers
        assert again["Idempotency-Replayed"] == "true"
        assert effect.rows() == 1
        assert ledger_breaches() == []

    def test_lost_answer_is_given_again_although_the_dataset_is_deleted(self, make_effect):
        effect = make_effect()
        first = effect.send("k")
        for dataset in Dataset.objects.all():
            delete_dataset(user=dataset.user, dataset_id=dataset.pk)
        again = effect.send("k")
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert effect.rows() == 1

    def test_same_key_for_another_request_is_refused(self, make_effect):
        effect = make_effect()
        effect.send("k")
        other = effect.send("k", body=1)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert effect.rows() == 1

    def test_another_key_and_no_key_are_other_requests(self, make_effect):
        effect = make_effect()
        for key in ("k", "l", None, None):
            assert effect.send(key).status_code < 300
        assert effect.rows() == 4

    def test_key_may_be_used_again_after_its_time(self, make_effect, settings):
        effect = make_effect()
        effect.send("k")
        past = timezone.now() - timedelta(hours=settings.IDEMPOTENCY_KEY_HOURS, seconds=1)
        KeptAnswer.objects.update(created_at=past)
        assert effect.send("k", body=1).status_code < 300
        assert effect.rows() == 2
        assert KeptAnswer.objects.count() == 1

    def test_request_beside_the_first_one_is_a_conflict(self, make_effect, committed_sessions):
        effect = make_effect()
        user_id = int(effect.client.get("/api/v1/me/").json()["id"])
        route = f"{effect.method.upper()} {effect.path.rstrip('/')}"
        committed_sessions.execute(
            "SELECT pg_advisory_lock(hashtextextended(%s, 0))", [f"{user_id} {route} k"]
        )
        beside = effect.send("k")
        assert (beside.status_code, beside.json()["code"]) == (409, "idempotency_key_in_use")
        assert beside["Retry-After"] == "1"
        assert effect.rows() == 0

    def test_without_the_lock_still_one_takes_effect(self, make_effect, monkeypatch):
        """As with a pool that gives every transaction another session of the database."""
        effect = make_effect()
        first = effect.send("k")
        with monkeypatch.context() as patched:
            # What a request sees that began before the first one had committed.
            patched.setattr(idempotency.KeyedRequest, "kept_response", lambda keyed: None)
            beside = effect.send("k")
        assert (beside.status_code, beside.json()["code"]) == (409, "idempotency_key_in_use")
        assert effect.rows() == 1
        assert effect.send("k").json() == first.json()
        assert ledger_breaches() == []

    @pytest.mark.parametrize("key", ["", " ", "a b", "é", "x" * 201])
    def test_what_is_no_key_is_refused(self, make_effect, key):
        effect = make_effect()
        refused = effect.send(key)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_idempotency_key")
        assert effect.rows() == 0

    def test_refusal_is_not_kept(self, make_effect, monkeypatch):
        effect = make_effect()
        with monkeypatch.context() as patched:
            patched.setattr(idempotency.KeptAnswer.objects, "create", _no_database)
            assert effect.send("k").status_code == 503
        assert effect.rows() == 0
        assert effect.send("k").status_code < 300
        assert effect.rows() == 1


def _no_database(**_):
    from django.db import OperationalError

    raise OperationalError("gone")


@pytest.fixture
def committed_sessions(engines, django_db_setup):
    """Another connection to the database of the tests."""
    import psycopg

    settings = connection.settings_dict
    with psycopg.connect(
        host=settings["HOST"],
        port=settings["PORT"] or None,
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname=settings["NAME"],
        autocommit=True,
    ) as other:
        yield other


@pytest.mark.django_db
class TestScope:
    """A key belongs to its user and its route."""

    def test_key_of_another_user_is_another_key(self):
        first, second = job_v1(), job_v1()
        assert first.send("k").json()["id"] != second.send("k").json()["id"]
        assert Job.objects.count() == 2

    def test_key_on_another_route_is_another_key(self):
        user = make_user()
        client = client_of(user)
        for name in ("first", "second"):
            path = f"/api/v1/datasets/{make_dataset(user, name).pk}/uploads/"
            headers = {"Idempotency-Key": "k"}
            assert client.post(path, {"file": _picture(0)}, headers=headers).status_code == 201
        assert Upload.objects.count() == 2

    def test_slash_at_the_end_makes_no_other_route(self):
        effect = job_contract()
        effect.send("k")
        effect.path += "/"
        assert effect.send("k")["Idempotency-Replayed"] == "true"

    def test_stranger_learns_nothing_from_a_key(self):
        effect = upload_v1()
        effect.send("k")
        assert effect.send("k", client=client_of(make_user())).status_code == 404

    def test_key_has_up_to_two_hundred_characters(self):
        effect = job_v1()
        assert effect.send("!" * 100 + "~" * 100).status_code == 202

    def test_key_is_free_for_others_once_its_request_is_at_its_end(self, committed_sessions):
        effect = job_v1()
        user_id = Dataset.objects.get().user_id
        effect.send("done")
        delete_dataset(user=Dataset.objects.get().user, dataset_id=Dataset.objects.get().pk)
        assert effect.send("refused").status_code == 404
        for key in ("done", "refused"):
            name = f"{user_id} POST /api/v1/jobs {key}"
            assert committed_sessions.execute(TRY_LOCK, [name]).fetchone() == (True,)

    def test_old_answers_are_forgotten(self):
        effect = job_v1()
        effect.send("k")
        assert idempotency.forget_old_answers() == 0
        assert idempotency.forget_old_answers(now=timezone.now() + timedelta(days=2)) == 1


def test_answer_is_kept_in_a_transaction_only(db):
    keyed = idempotency.KeyedRequest(user_id=1, route="POST /x", key="k", fingerprint="f")
    transaction.get_connection().in_atomic_block = False
    try:
        with pytest.raises(RuntimeError, match="in the transaction of its effect"):
            keyed.keep(None)
    finally:
        transaction.get_connection().in_atomic_block = True


@pytest.mark.usefixtures("committed_db")
def test_lock_ends_with_a_session_that_is_lost_and_the_next_one_is_a_new_one(committed_sessions):
    with idempotency._alone("n"):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone()
        committed_sessions.execute("SELECT pg_terminate_backend(%s, 10000)", [pid])
    assert committed_sessions.execute(TRY_LOCK, ["n"]).fetchone() == (True,)
    assert KeptAnswer.objects.count() == 0


THREADS = 50


@pytest.mark.usefixtures("committed_db")
@pytest.mark.parametrize(
    ("make_effect", "rounds"),
    [
        (job_v1, 2),
        (top_up_contract, 2),
        pytest.param(job_contract, 20, marks=pytest.mark.fault_long),
        pytest.param(top_up_v1, 20, marks=pytest.mark.fault_long),
        pytest.param(upload_v1, 20, marks=pytest.mark.fault_long),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_of_fifty_at_once_one_takes_effect(make_effect, rounds):
    """All get that one's answer, or are told that it is still at work."""
    effect = make_effect()
    authorization = effect.client._credentials

    def send(number: int, key: str) -> tuple[int, str]:
        client = APIClient()
        client.credentials(**authorization)
        answer = effect.send(key, client=client)
        return answer.status_code, json.dumps(answer.json(), sort_keys=True)

    for number in range(rounds):
        key = f"round-{number}"
        outcomes = in_threads(THREADS, lambda thread, key=key: send(thread, key))
        statuses = Counter(status for status, _ in outcomes)
        assert set(statuses) <= {effect.send(key).status_code, 409}
        assert len({body for status, body in outcomes if status != 409}) == 1
        assert effect.rows() == number + 1
    assert ledger_breaches() == []
