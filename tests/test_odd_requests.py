"""Requests that nobody sends by mistake twice: numbers without end, names that nobody can read."""

import base64
from urllib.parse import urlencode

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from rest_framework.test import APIClient

from accounts.models import User
from accounts.selectors import UserNotFoundError, user_by_email
from accounts.services import InvalidCredentialsError, log_in
from billing.models import Transfer
from datasets.models import Dataset, MediaFile
from inference import queue
from inference.submission import submit_job
from tests.clients import client_of
from tests.factories import PASSWORD, add_media_file, make_dataset, make_user
from tests.mediafiles import image_bytes

pytestmark = pytest.mark.django_db
ENDLESS = "9" * 5000
TOO_LARGE = str(2**63)


@pytest.fixture
def user():
    return make_user("ann.smith@example.org")


@pytest.fixture
def client(user):
    return client_of(user)


def assert_refused(answer, field):
    assert answer.status_code == 400, answer.content
    assert answer["Content-Type"] == "application/problem+json"
    assert {error["field"] for error in answer.json()["errors"]} == {field}


class TestLists:
    """A parameter that a list cannot follow is refused, never ignored."""

    @pytest.mark.parametrize("value", [ENDLESS, "0", "-1", "1.5", "x", "", "201", "٣"])
    def test_page_size_is_a_number_within_its_bounds(self, client, value):
        assert_refused(client.get("/api/v1/datasets/", {"page_size": value}), "page_size")

    def test_largest_page_size_is_given(self, client):
        assert client.get("/api/v1/datasets/", {"page_size": 200}).status_code == 200
        assert client.get("/api/v1/ledger/", {"page_size": 500}).status_code == 200
        assert_refused(client.get("/api/v1/ledger/", {"page_size": 501}), "page_size")

    @pytest.mark.parametrize("value", [ENDLESS, "0", "-1", "last", "x", ""])
    def test_page_is_a_number(self, client, value):
        assert_refused(client.get("/api/v1/jobs/", {"page": value}), "page")

    def test_page_behind_the_last_is_not_found(self, client):
        assert client.get("/api/v1/jobs/", {"page": 2}).status_code == 404

    @pytest.mark.parametrize("value", [ENDLESS, TOO_LARGE, "-1", "1.5", "nan", "1e400"])
    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("jobs", "dataset_id"),
            ("ledger", "job_id"),
            ("events", "since"),
            ("events", "seq__gt"),
        ],
    )
    def test_number_that_no_row_has_is_refused(self, client, path, name, value):
        assert_refused(client.get(f"/api/v1/{path}/", {name: value}), name)

    @pytest.mark.parametrize("position", ["p=abc", "p=-1", f"p={ENDLESS}", f"p={TOO_LARGE}", "p="])
    def test_cursor_that_we_never_made_is_refused(self, client, position):
        cursor = base64.b64encode(position.encode()).decode()
        assert_refused(client.get("/api/v1/ledger/", {"cursor": cursor}), "cursor")
        assert_refused(client.get("/api/v1/ledger/", {"cursor": "x"}), "cursor")

    @pytest.mark.parametrize("states", ["Foo", "Pending,Foo", "pending"])
    def test_state_that_does_not_exist_is_refused(self, client, states):
        assert_refused(client.get("/api/v1/jobs/", {"state__in": states}), "state__in")

    @pytest.mark.parametrize("path", ["jobs", "ledger"])
    def test_moment_is_taken_with_every_offset(self, client, path):
        for offset, status in (("+15:59", 200), ("+16:00", 200), ("-23:59", 200), ("+24:00", 400)):
            moment = f"2026-01-01T00:00:00{offset}"
            answer = client.get(f"/api/v1/{path}/", {"created_at__gte": moment})
            assert answer.status_code == status, offset

    def test_moment_before_the_calendar_is_refused(self, client):
        moment = "0001-01-01T00:00:00+12:00"
        assert_refused(client.get("/api/v1/jobs/", {"created_at__lt": moment}), "created_at__lt")

    def test_pages_of_equal_rows_skip_and_repeat_none(self, client, user):
        dataset = make_dataset(user)
        ids = [add_media_file(dataset).pk for _ in range(30)]
        path = f"/api/v1/datasets/{dataset.pk}/media-files/"
        for ordering in ("size_bytes", "-size_bytes"):
            query = {"ordering": ordering, "page_size": 4}
            pages = [client.get(path, {**query, "page": number}).json() for number in range(1, 9)]
            assert [one["id"] for page in pages for one in page["results"]] == ids

    def test_several_states_are_taken(self, client):
        answer = client.get("/api/v1/jobs/", {"state__in": "Pending,Running"})
        assert (answer.status_code, answer.json()["count"]) == (200, 0)


class TestNames:
    """A name is shown to people, in pages, in terminals and in logs."""

    UNREADABLE = ["a\nb c", "a\x1b[31mb", "abc\u2028d", "ab\x7fc", "ab\x85c"]

    @pytest.mark.parametrize("name", UNREADABLE)
    def test_name_with_a_control_character_is_refused(self, client, user, name):
        dataset = make_dataset(user)
        path = f"/api/v1/datasets/{dataset.pk}/"
        refusals = [
            (client.post("/api/v1/datasets/", {"name": name}, format="json"), "name"),
            (client.patch(path, {"name": name}, format="json"), "name"),
            (client.post("/datasets/", {"datasetName": name}, format="json"), "datasetName"),
        ]
        body = {"datasetName": "street", "newDatasetName": name}
        refusals.append((client.patch("/datasets/", body, format="json"), "newDatasetName"))
        for answer, field in refusals:
            assert_refused(answer, field)
        assert list(Dataset.objects.values_list("name", flat=True)) == ["street"]

    @pytest.mark.parametrize("tag", UNREADABLE)
    def test_tag_with_a_control_character_is_refused(self, client, tag):
        body = {"name": "street", "tags": ["ok", tag]}
        assert_refused(client.post("/api/v1/datasets/", body, format="json"), "tags.1")
        body = {"datasetName": "street", "tags": f"ok,{tag}"}
        assert_refused(client.post("/datasets/", body, format="json"), "tags")
        assert not Dataset.objects.exists()

    @pytest.mark.parametrize(
        "name", ["café", "abc\u202egpj", "улица", "通り 1", "👩‍💻 street", "a'b\"<c>"]
    )
    def test_name_of_any_script_is_taken(self, client, name):
        assert client.post("/api/v1/datasets/", {"name": name}, format="json").status_code == 201
        assert Dataset.objects.get().name == name

    @pytest.mark.parametrize("name", ["a.png\n", "a\r\nX-Injected: 1", "caf\u00e9.png\n"])
    def test_file_whose_name_ends_a_line_is_downloaded_under_a_name_without(
        self, client, user, name
    ):
        picture = image_bytes("PNG")
        file = add_media_file(make_dataset(user), name=name, content=picture)
        answer = client.get(f"/api/v1/media-files/{file.pk}/content/")
        assert answer.status_code == 200
        assert b"".join(answer.streaming_content) == picture
        assert "%0A" not in answer["Content-Disposition"]
        assert not answer.has_header("X-Injected")

    @pytest.mark.parametrize("path", ["jobs", "quotes"])
    def test_option_whose_name_nobody_can_encode_is_refused(self, client, user, path):
        dataset = make_dataset(user)
        body = r'{"dataset_id": %d, "model_version": "YOLO8s_FSR", "options": {"\ud800": 1}}'
        answer = client.generic(
            "POST", f"/api/v1/{path}/", body % dataset.pk, content_type="application/json"
        )
        assert_refused(answer, r"options.'\ud800'")

    def test_fields_named_as_the_members_of_an_error_are_told_apart(self, client, user):
        dataset = make_dataset(user)
        names = {"message": 1, "code": 2}
        body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR", "options": names}
        answer = client.post("/api/v1/quotes/", body, format="json")
        listed = client.get("/api/v1/jobs/", names)
        for refused, fields in (
            (answer, {"options.message", "options.code"}),
            (listed, {"message", "code"}),
        ):
            assert refused.status_code == 400, refused.content
            assert {error["field"] for error in refused.json()["errors"]} == fields
            for error in refused.json()["errors"]:
                assert isinstance(error["code"], str)

    def test_part_whose_head_is_not_utf_8_is_told_about(self, client, user):
        make_dataset(user)
        body = (
            b'--cut\r\nContent-Disposition: form-data; name="datasetName"\r\n\r\nstreet\r\n'
            b'--cut\r\nContent-Disposition: form-data; name="file"; filename="caf\xe9.png"'
            b"\r\n\r\n" + image_bytes("PNG") + b"\r\n--cut--\r\n"
        )
        answer = client.generic(
            "POST", "/upload/", body, content_type="multipart/form-data; boundary=cut"
        )
        assert_refused(answer, "file")
        assert "UTF-8" in answer.json()["detail"]


class TestEmails:
    """An address has one spelling but for the case of its ASCII letters."""

    # Dotless i, dotted I, long s, Kelvin sign: each has an ASCII letter for its other case.
    LOOKALIKES = [
        "ann.sm\u0131th@example.org",
        "ann.sm\u0130th@example.org",
        "ann.\u017fmith@example.org",
    ]

    @pytest.mark.parametrize("email", [*LOOKALIKES, "\u212aate@example.org", "é@example.org"])
    def test_user_registers_with_an_ascii_address(self, user, email):
        body = {"email": email, "password": PASSWORD, "confirmPassword": PASSWORD}
        assert_refused(APIClient().post("/user/registration", body, format="json"), "email")
        assert_refused(APIClient().post("/api/v1/users/", body, format="json"), "email")
        assert User.objects.count() == 1

    @pytest.mark.parametrize("email", [r'"a\ b"@example.com', '"a\x01b"@example.com'])
    def test_address_with_a_space_or_a_control_character_is_refused(self, email):
        body = {"email": email, "password": PASSWORD, "confirmPassword": PASSWORD}
        assert_refused(APIClient().post("/user/registration", body, format="json"), "email")
        assert_refused(APIClient().post("/api/v1/users/", body, format="json"), "email")
        assert not User.objects.exists()

    @pytest.mark.parametrize("email", LOOKALIKES)
    def test_lookalike_of_an_address_is_another_address(self, user, email):
        with pytest.raises(InvalidCredentialsError):
            log_in(email=email, password=PASSWORD)
        with pytest.raises(UserNotFoundError):
            user_by_email(email=email)

    def test_case_of_an_address_does_not_matter(self, user):
        assert log_in(email="ANN.SMITH@EXAMPLE.ORG", password=PASSWORD)
        assert user_by_email(email="Ann.Smith@Example.Org") == user


def test_head_takes_its_keys_from_the_query_as_get_does(client, user, monkeypatch):
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    dataset = make_dataset(user)
    add_media_file(dataset)
    job = submit_job(user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR")
    answer = client.head(f"/inference/state?jobId={job.pk}")
    assert (answer.status_code, answer.content) == (200, b"")
    assert client.head("/inference/state?jobId=x").status_code == 400


def test_upload_of_several_files_is_refused_and_names_the_part(client, user):
    path = f"/api/v1/datasets/{make_dataset(user).pk}/uploads/"
    files = [SimpleUploadedFile(f"{name}.png", image_bytes("PNG")) for name in "ab"]
    answer = client.post(path, {"file": files}, format="multipart")
    assert_refused(answer, "file")
    assert answer.json()["code"] == "several_files"
    assert not MediaFile.objects.exists()
    assert not Transfer.objects.filter(kind="upload").exists()


@pytest.mark.parametrize(
    "path", ["/", "/livez", "/readyz", "/metrics", "/api/docs/", "/api/schema/"]
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_page_that_is_only_read_says_so(path, method):
    answer = APIClient(enforce_csrf_checks=True).generic(method, path)
    assert (answer.status_code, answer["Allow"]) == (405, "GET, HEAD")
    assert answer["Content-Type"] == "application/problem+json"
    assert answer.json()["code"] == "method_not_allowed"
    assert answer["X-Request-ID"]


@pytest.mark.parametrize("path", ["/livez", "/livez/", "/readyz", "/readyz/"])
def test_probe_is_answered_under_whatever_name_it_comes(settings, path):
    """A container asks itself at 127.0.0.1, and monitors ask an address."""
    settings.ALLOWED_HOSTS = ["od.example.org"]
    answer = APIClient().get(path, HTTP_HOST="127.0.0.1:8080")
    assert answer.status_code == (200 if path.startswith("/livez") else 503)  # no worker runs here
    assert answer["X-Request-ID"]
    assert APIClient().get("/api/schema/", HTTP_HOST="127.0.0.1:8080").status_code == 400


class TestForms:
    """Forms say the same as JSON, or are refused."""

    URLENCODED = "application/x-www-form-urlencoded"

    @staticmethod
    def multipart(**fields: bytes) -> bytes:
        parts = [
            b'--cut\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
            % (name.encode(), text)
            for name, text in fields.items()
        ]
        return b"".join(parts) + b"--cut--\r\n"

    @pytest.mark.parametrize(
        "passwords",
        [
            b"password=sch%F6nes-W&confirmPassword=sch%FCnes-W",
            b"password=sch\xf6nes-W&confirmPassword=sch\xf6nes-W",
        ],
    )
    def test_form_that_is_no_utf_8_makes_no_user(self, passwords):
        body = b"email=a%40example.org&" + passwords
        answer = APIClient().generic("POST", "/user/", body, content_type=self.URLENCODED)
        assert answer.status_code == 400
        assert answer.json()["detail"] == "The fields of the form must be utf-8."
        assert not User.objects.exists()

    @pytest.mark.parametrize(
        ("charset", "name", "stored"),
        [
            ("ISO-8859-1", "M%FCnchen", "München"),
            ("utf-8", "M%C3%BCnchen", "München"),
            ("us-ascii", "Munich", "Munich"),
            ("us-ascii", "M%C3%BCnchen", None),
            ("utf-16", "M%FC%00nchen", None),
            ("no-such-charset", "M%C3%BCnchen", "München"),  # then it is UTF-8
        ],
    )
    def test_form_is_read_in_the_charset_that_it_declares(self, client, charset, name, stored):
        kind = f"{self.URLENCODED}; charset={charset}"
        answer = client.generic("POST", "/api/v1/datasets/", f"name={name}", content_type=kind)
        assert answer.status_code == (400 if stored is None else 201)
        assert [one.name for one in Dataset.objects.all()] == ([stored] if stored else [])

    def test_field_of_a_multipart_form_that_is_no_utf_8_makes_no_dataset(self, client):
        body = self.multipart(name=b"M\xfcnchen")
        kind = "multipart/form-data; boundary=cut"
        answer = client.generic("POST", "/api/v1/datasets/", body, content_type=kind)
        assert answer.status_code == 400
        assert not Dataset.objects.exists()
        body = self.multipart(name="München".encode())
        answer = client.generic("POST", "/api/v1/datasets/", body, content_type=kind)
        assert answer.status_code == 201
        assert Dataset.objects.get().name == "München"

    @pytest.mark.parametrize(
        ("content", "status"), [(b"\xff\xd8\xff", 400), (b"\xff" * 3 * 1024**2, 413)]
    )
    def test_file_sent_without_its_name_is_told_to_need_one(self, client, user, content, status):
        body = self.multipart(datasetName=make_dataset(user).name.encode(), file=content)
        kind = "multipart/form-data; boundary=cut"
        answer = client.generic("POST", "/upload/", body, content_type=kind)
        assert answer.status_code == status
        assert answer.json()["message"].endswith("A file is sent as a part with a filename.")
        assert not MediaFile.objects.exists()

    def test_letters_of_every_script_come_by_a_form(self, client):
        body = urlencode({"name": "улица + 通り & 👩‍💻"})
        answer = client.generic("POST", "/api/v1/datasets/", body, content_type=self.URLENCODED)
        assert answer.status_code == 201
        assert Dataset.objects.get().name == "улица + 通り & 👩‍💻"

    @pytest.mark.parametrize(
        ("body", "tags"),
        [
            ("tags=drone", ["drone"]),
            ("tags=drone&tags=summer", ["drone", "summer"]),
            ("", []),
        ],
    )
    def test_list_comes_by_a_form_as_a_key_that_is_repeated(self, client, body, tags):
        body = f"name=street&{body}"
        answer = client.generic("POST", "/api/v1/datasets/", body, content_type=self.URLENCODED)
        assert (answer.status_code, answer.json()["tags"]) == (201, tags)
