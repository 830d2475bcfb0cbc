"""A quote is what the job then costs at most, and nobody pays more than the quote they saw."""

import json
from decimal import Decimal

import pytest
from rest_framework.test import APIClient

from billing.ledger import charge_upload
from billing.models import Hold
from billing.selectors import balance_hundredths
from inference.models import Job
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]


@pytest.fixture
def keys(user):
    """A job on an image and a video of ten frames: 1.5 + 10 tokens."""
    dataset = make_dataset(user)
    add_media_file(dataset, name="a.jpg")
    add_media_file(dataset, name="b.mp4", media_type="video", frame_count=10)
    return {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}


@pytest.mark.parametrize(("stride", "frames", "price"), [(1, 10, 11.5), (3, 4, 5.5), (99, 1, 2.5)])
def test_quote_is_what_a_job_holds(user, keys, stride, frames, price):
    client = client_of(user)
    keys["options"] = {"frame_stride": stride}
    quote = client.post("/api/v1/quotes/", keys, format="json")
    assert quote.status_code == 200
    told = quote.json()
    assert (told["image_count"], told["frame_count"]) == (1, frames)
    assert told["quoted_tokens"] == price
    assert told["options"]["frame_stride"] == stride
    assert not Job.objects.exists()
    assert balance_hundredths(user=user) == 100_000

    job = client.post("/api/v1/jobs/", {**keys, "maximum_tokens": price}, format="json")
    assert (job.status_code, job.json()["quoted_tokens"]) == (202, price)


@pytest.mark.parametrize(("left_tokens", "is_covered"), [(11.49, False), (11.5, True)])
def test_quote_says_whether_the_balance_suffices(user, keys, left_tokens, is_covered):
    spent_hundredths = 100_000 - round(100 * left_tokens)
    charge_upload(user=user, amount_hundredths=spent_hundredths, upload_id=1)
    quote = client_of(user).post("/api/v1/quotes/", keys, format="json").json()
    assert (quote["available_tokens"], quote["is_covered"]) == (left_tokens, is_covered)


def test_job_that_costs_more_than_the_quote_is_not_started(user, keys):
    client = client_of(user)
    refused = client.post("/api/v1/jobs/", {**keys, "maximum_tokens": "11.49"}, format="json")
    assert (refused.status_code, refused.json()["code"]) == (409, "quote_exceeded")
    assert "11.5 tokens now" in refused.json()["detail"]
    assert not Job.objects.exists()
    assert not Hold.objects.exists()
    assert balance_hundredths(user=user) == 100_000


@pytest.mark.parametrize("maximum", ["-1", "1.001", "NaN", "many", Decimal("1e20")])
def test_maximum_must_be_an_amount(user, keys, maximum):
    refused = client_of(user).post("/api/v1/jobs/", {**keys, "maximum_tokens": maximum})
    assert refused.status_code == 400
    assert not Job.objects.exists()


@pytest.mark.parametrize("name", ["max_tokens", "option", "Dataset_id", "\ud800"])
def test_misspelled_member_starts_no_job(user, keys, name):
    """The limit that a person thinks to have set would be none."""
    for place in ("jobs", "quotes"):
        body = {**keys, name: 1}
        refused = client_of(user).post(
            f"/api/v1/{place}/", json.dumps(body), content_type="application/json"
        )
        assert refused.status_code == 400
        (error,) = refused.json()["errors"]
        assert error["field"] == name.replace("\ud800", "_")
        assert error["detail"] == "There is no such member."
    assert not Job.objects.exists()
    assert balance_hundredths(user=user) == 100_000


def test_only_the_owner_gets_a_quote(keys):
    assert APIClient().post("/api/v1/quotes/", keys, format="json").status_code == 401
    assert client_of(make_user()).post("/api/v1/quotes/", keys, format="json").status_code == 404


def test_quote_refuses_what_a_job_refuses(user, keys):
    client = client_of(user)
    for change in ({"model_version": "none"}, {"options": {"tiling": 7}}, {"dataset_id": "x"}):
        assert client.post("/api/v1/quotes/", {**keys, **change}, format="json").status_code == 400
