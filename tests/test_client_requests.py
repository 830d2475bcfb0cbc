"""How the command-line client asks: tokens, repeats, pages and broken downloads.

The service is played by a function here; `test_client_commands.py` asks the real one.
"""

import base64
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from odproject.client.__main__ import session_of_environment
from odproject.client.api import Api
from odproject.client.errors import ClientError, RefusalError
from odproject.client.session import Session, SessionFile
from odproject.client.tables import plain_number

SERVICE = "http://service.test"
HOUR = 3600


def access_token(name: str, lives_seconds: float = HOUR) -> str:
    """A token that the client can read; `name` makes it another one."""
    claims = json.dumps({"name": name, "exp": int(time.time() + lives_seconds)}).encode()
    return f"head.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.signature"


class Played:
    """A service that answers by a function and remembers what it was asked."""

    def __init__(self, answer: Callable[[httpx.Request], httpx.Response]) -> None:
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []
        self._answer = answer

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        return self._answer(request)

    def api(self, session_file: SessionFile) -> Api:
        return Api(session_file, transport=httpx.MockTransport(self), sleep=self.slept.append)

    @property
    def asked(self) -> list[str]:
        return [f"{one.method} {one.url.path}" for one in self.requests]


def in_turn(*answers: httpx.Response | Exception) -> Callable[[httpx.Request], httpx.Response]:
    """Answers, or failures, one after the other; the test fails when there are too few."""
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    return answer


@pytest.fixture
def session_file(tmp_path: Path) -> SessionFile:
    file = SessionFile(tmp_path / "settings" / "session.json")
    file.write(Session(SERVICE, "ann@example.org", access_token("first"), "refresh-1"))
    return file


class TestKey:
    """An API key in place of a session: it is never exchanged, and nobody ends it from here."""

    KEY = "odk_1x00000000_0123456789abcdef"

    def played(self, status: int = 200) -> Played:
        return Played(lambda _: httpx.Response(status, json={"code": "unauthorized"}))

    def test_it_is_sent_as_it_is(self, session_file):
        session_file.write(Session(SERVICE, "ann@example.org", self.KEY, ""))
        played = self.played()
        played.api(session_file).get("/api/v1/balance/")
        assert played.requests[0].headers["Authorization"] == f"Bearer {self.KEY}"
        assert played.asked == ["GET /api/v1/balance/"]

    def test_refused_key_is_told_and_not_exchanged(self, session_file):
        session_file.write(Session(SERVICE, "ann@example.org", self.KEY, ""))
        played = self.played(401)
        with pytest.raises(RefusalError):
            played.api(session_file).get("/api/v1/balance/")
        assert played.asked == ["GET /api/v1/balance/"]

    def test_log_out_forgets_it_here_and_asks_for_nothing(self, session_file, tmp_path):
        session_file.write(Session(SERVICE, "ann@example.org", self.KEY, ""))
        played = self.played()
        played.api(session_file).log_out()
        assert played.asked == []
        assert not (tmp_path / "settings" / "session.json").exists()

    def test_that_of_the_environment_leaves_the_file_alone(self, session_file, monkeypatch):
        monkeypatch.setenv("OD_API_KEY", f" {self.KEY}\n")
        monkeypatch.setenv("OD_SERVICE", "http://other.test/")
        before = session_file.read()
        given = session_of_environment()
        assert given == Session("http://other.test", "", self.KEY, "")
        with pytest.raises(ClientError, match="OD_API_KEY is set"):
            Api(session_file, session=given).log_out()
        assert session_file.read() == before

    @pytest.mark.parametrize("text", ["secret", "ODK_1", "odk_\u00df", "odk_a\nb"])
    def test_what_is_no_key_is_told_so(self, monkeypatch, text):
        monkeypatch.setenv("OD_API_KEY", text)
        with pytest.raises(ClientError, match="That is no API key"):
            session_of_environment()

    def test_without_one_the_file_counts(self, monkeypatch):
        monkeypatch.delenv("OD_API_KEY", raising=False)
        assert session_of_environment() is None


class TestSession:
    def test_file_is_for_its_owner_only(self, session_file, tmp_path):
        path = tmp_path / "settings" / "session.json"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [one.name for one in path.parent.iterdir()] == ["session.json"]

    def test_command_without_one_asks_for_a_log_in(self, tmp_path):
        with pytest.raises(ClientError, match="Nobody is logged in"):
            Api(SessionFile(tmp_path / "session.json"))

    @pytest.mark.parametrize("content", ["", "[]", '{"service": "x"}', "{"])
    def test_file_that_holds_something_else_is_named(self, tmp_path, content):
        path = tmp_path / "session.json"
        path.write_text(content)
        with pytest.raises(ClientError, match=r"session.json holds no session"):
            Api(SessionFile(path))
        assert path.read_text() == content

    def test_token_near_its_end_is_exchanged_before_the_request(self, session_file):
        old, new = access_token("old", 30), access_token("new")
        session_file.write(Session(SERVICE, "ann@example.org", old, "refresh-1"))
        played = Played(
            in_turn(
                httpx.Response(201, json={"access": new, "refresh": "refresh-2"}),
                httpx.Response(200, json={"available_tokens": 5.0}),
            )
        )
        assert played.api(session_file).get("/api/v1/balance/") == {"available_tokens": 5.0}
        assert played.asked == ["POST /api/v1/tokens/refresh/", "GET /api/v1/balance/"]
        assert json.loads(played.requests[0].content) == {"refresh": "refresh-1"}
        assert played.requests[1].headers["Authorization"] == f"Bearer {new}"
        assert session_file.read() == Session(SERVICE, "ann@example.org", new, "refresh-2")

    def test_token_that_another_command_exchanged_is_taken_over(self, session_file):
        played = Played(in_turn(httpx.Response(401, json={}), httpx.Response(200, json={})))
        api = played.api(session_file)
        newer = access_token("newer")
        session_file.write(Session(SERVICE, "ann@example.org", newer, "refresh-2"))
        api.get("/api/v1/balance/")
        assert played.asked == ["GET /api/v1/balance/"] * 2  # its refresh token was not spent
        assert played.requests[1].headers["Authorization"] == f"Bearer {newer}"

    @pytest.mark.parametrize("service", [SERVICE, "http://other.test"])
    def test_command_of_one_user_does_not_go_on_as_another(self, session_file, service):
        old = access_token("old", 30)
        session_file.write(Session(SERVICE, "ann@example.org", old, "refresh-1"))
        played = Played(lambda _: httpx.Response(200, json={}))
        api = played.api(session_file)
        bobs = Session(service, "bob@example.org", access_token("bob's"), "refresh-2")
        session_file.write(bobs)
        with pytest.raises(ClientError, match=r"^bob@example.org has logged in meanwhile: "):
            api.post("/api/v1/jobs/", once=True)
        assert played.asked == []  # least of all with tokens that another service gave
        assert session_file.read() == bobs

    def test_token_that_is_refused_twice_is_exchanged_once(self, session_file):
        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path.endswith("/refresh/"):
                return httpx.Response(201, json={"access": access_token("b"), "refresh": "r"})
            return httpx.Response(401, json={"detail": "No."})

        played = Played(answer)
        with pytest.raises(RefusalError, match=r"^No\.$"):
            played.api(session_file).get("/api/v1/balance/")
        assert played.asked.count("POST /api/v1/tokens/refresh/") == 1
        assert played.slept == []

    @pytest.mark.parametrize(
        "hindrance", [httpx.ReadError("broken"), httpx.Response(503)], ids=["breaks", "busy"]
    )
    def test_exchange_that_is_hindered_is_tried_again(self, session_file, hindrance):
        refused = httpx.Response(401, json={})
        played = Played(
            in_turn(
                *(refused, hindrance),
                *(refused, httpx.Response(201, json={"access": access_token("b"), "refresh": "r"})),
                httpx.Response(200, json={"available_tokens": 5.0}),
            )
        )
        assert played.api(session_file).get("/api/v1/balance/") == {"available_tokens": 5.0}
        once = ["GET /api/v1/balance/", "POST /api/v1/tokens/refresh/"]
        assert (played.asked, played.slept) == ([*once, *once, once[0]], [1.0])

    def test_token_that_is_refused_at_the_last_try_is_exchanged_too(self, session_file):
        played = Played(
            in_turn(
                *[httpx.Response(503)] * 5,
                httpx.Response(401, json={}),
                httpx.Response(201, json={"access": access_token("b"), "refresh": "r"}),
                httpx.Response(200, json={"available_tokens": 5.0}),
            )
        )
        assert played.api(session_file).get("/api/v1/balance/") == {"available_tokens": 5.0}
        assert played.slept == [1.0, 2.0, 4.0, 8.0, 16.0]

    def test_session_that_has_ended_asks_for_a_log_in(self, session_file):
        before = session_file.read()
        played = Played(lambda _: httpx.Response(401, json={}))
        with pytest.raises(ClientError, match="The session has ended"):
            played.api(session_file).get("/api/v1/balance/")
        assert session_file.read() == before

    def test_log_out_forgets_it(self, session_file, tmp_path):
        played = Played(in_turn(httpx.Response(204)))
        played.api(session_file).log_out()
        assert played.asked == ["POST /api/v1/tokens/revoke/"]
        assert not (tmp_path / "settings" / "session.json").exists()


class TestRepeats:
    def test_request_that_broke_off_is_sent_again_under_its_key(self, session_file):
        played = Played(
            in_turn(
                httpx.ReadError("broken"),
                httpx.Response(503, headers={"Retry-After": "7"}),
                httpx.Response(409, json={"code": "idempotency_key_in_use"}),
                httpx.Response(202, json={"id": 4}),
            )
        )
        assert played.api(session_file).post("/api/v1/jobs/", {"a": 1}, once=True) == {"id": 4}
        keys = {one.headers["Idempotency-Key"] for one in played.requests}
        assert (len(played.requests), len(keys)) == (4, 1)
        assert played.slept == [1.0, 7.0, 4.0]

    def test_two_jobs_have_keys_of_their_own(self, session_file):
        played = Played(lambda _: httpx.Response(202, json={}))
        api = played.api(session_file)
        api.post("/api/v1/jobs/", once=True)
        api.post("/api/v1/jobs/", once=True)
        assert len({one.headers["Idempotency-Key"] for one in played.requests}) == 2

    def test_service_that_is_not_there_is_given_up(self, session_file):
        played = Played(lambda _: (_ for _ in ()).throw(httpx.ConnectError("refused")))
        with pytest.raises(ClientError, match=r"^http://service.test cannot be reached: refused$"):
            played.api(session_file).get("/api/v1/balance/")
        assert (len(played.requests), played.slept) == (6, [1.0, 2.0, 4.0, 8.0, 16.0])

    def test_refusal_is_not_repeated_and_names_the_fields(self, session_file):
        problem = {
            "detail": "The request is not valid.",
            "code": "invalid",
            "errors": [{"field": "options", "code": "invalid", "detail": "No such option."}],
        }
        played = Played(lambda _: httpx.Response(400, json=problem))
        with pytest.raises(RefusalError) as caught:
            played.api(session_file).post("/api/v1/jobs/", {})
        assert str(caught.value) == "The request is not valid.\n  options: No such option."
        assert (caught.value.status, caught.value.code) == (400, "invalid")
        assert len(played.requests) == 1

    def test_wait_of_an_hour_is_left_to_the_person(self, session_file):
        refusal = httpx.Response(429, headers={"Retry-After": "3600"}, json={"detail": "Later."})
        played = Played(lambda _: refusal)
        with pytest.raises(RefusalError, match=r"^Later\.$"):
            played.api(session_file).get("/api/v1/balance/")
        assert (len(played.requests), played.slept) == (1, [])

    @pytest.mark.parametrize("body", [b"<html>", b"[]", b"null"])
    def test_answer_of_a_proxy_is_told_by_its_status(self, session_file, body):
        played = Played(lambda _: httpx.Response(500, content=body))
        with pytest.raises(RefusalError, match=r"^The service answered with status 500\.$"):
            played.api(session_file).get("/api/v1/balance/")

    @pytest.mark.parametrize("act", ["get", "post", "download"])
    def test_redirection_is_told_and_not_followed(self, session_file, tmp_path, act):
        there = "https://service.test/x/"
        played = Played(lambda _: httpx.Response(301, headers={"Location": there}))
        more = (tmp_path / "part",) if act == "download" else ()
        with pytest.raises(RefusalError, match=f"^The service answered .* 301: it is at {there}$"):
            getattr(played.api(session_file), act)("/x/", *more)
        assert len(played.requests) == 1

    def test_page_in_place_of_a_document_is_told(self, session_file):
        played = Played(lambda _: httpx.Response(200, content=b"<html>Welcome</html>"))
        with pytest.raises(ClientError, match=r"^What answers at .*/x/ is not the service\.$"):
            played.api(session_file).get("/x/")

    def test_list_is_read_to_its_last_page_whatever_the_proxy_is_called(self, session_file):
        pages = [
            {"results": [{"id": 1}, {"id": 2}], "next": "http://inner:3000/api/v1/jobs/?page=2"},
            {"results": [{"id": 3}], "next": None},
        ]
        played = Played(in_turn(*(httpx.Response(200, json=page) for page in pages)))
        rows = list(played.api(session_file).every("/api/v1/jobs/", state="Failed"))
        assert [row["id"] for row in rows] == [1, 2, 3]
        assert [str(one.url) for one in played.requests] == [
            f"{SERVICE}/api/v1/jobs/?page_size=200&state=Failed",
            f"{SERVICE}/api/v1/jobs/?page=2",
        ]


class TestUploads:
    def test_file_is_sent_whole_again_and_its_bytes_are_counted_once(self, session_file, tmp_path):
        path = tmp_path / "a.jpg"
        path.write_bytes(bytes(range(256)) * 1000)
        played = Played(in_turn(httpx.ReadError("broken"), httpx.Response(201, json={"id": 1})))
        counted: list[int] = []
        assert played.api(session_file).upload(7, path, counted.append) == {"id": 1}
        assert played.asked == ["POST /api/v1/datasets/7/uploads/"] * 2
        for request in played.requests:
            assert path.read_bytes() in request.content
            assert b'filename="a.jpg"' in request.content
        assert sum(counted) == path.stat().st_size
        assert len({one.headers["Idempotency-Key"] for one in played.requests}) == 1


class PlayedTus:
    """The half of tus that the client needs; `refusals` are what the next PATCHes get instead."""

    def __init__(self, length_bytes: int) -> None:
        self.received = b""
        self.length_bytes = length_bytes
        self.created = 0
        self.offsets: list[int] = []
        self.refusals: list[httpx.Response | BaseException] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"id": 5})
        assert request.headers["Tus-Resumable"] == "1.0.0"
        if request.method == "POST":
            self.created += 1
            self.received = b""
            assert request.headers["Upload-Length"] == str(self.length_bytes)
            assert request.headers["Upload-Metadata"] == "filename YS5tcDQ="
            return httpx.Response(201, headers={"Location": f"/there/{self.created}/"})
        if not request.url.path.endswith(f"/{self.created}/"):
            return httpx.Response(404)
        if request.method == "PATCH":
            self.offsets.append(int(request.headers["Upload-Offset"]))
            if self.refusals:
                refusal = self.refusals.pop(0)
                if isinstance(refusal, BaseException):
                    self.received += request.content[:1]  # which came before it broke
                    raise refusal
                return refusal
            assert self.offsets[-1] == len(self.received)
            self.received += request.content
        headers = {
            "Upload-Offset": str(len(self.received)),
            "Upload-Length": str(self.length_bytes),
        }
        if request.method == "PATCH" and len(self.received) == self.length_bytes:
            headers["Location"] = "/api/v1/datasets/7/uploads/5/"
        return httpx.Response(204 if request.method == "PATCH" else 200, headers=headers)


def refusal(status: int, code: str) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "detail": "No."})


class TestUploadsInPieces:
    CONTENT = b"0123456789"

    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch):
        monkeypatch.setattr("odproject.client.api.LARGE_BYTES", 10)
        monkeypatch.setattr("odproject.client.api.PIECE_BYTES", 4)

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        path = tmp_path / "a.mp4"
        path.write_bytes(self.CONTENT)
        return path

    def test_piece_that_broke_is_sent_from_where_it_broke(self, session_file, path):
        tus = PlayedTus(10)
        busy, late = refusal(423, "upload_busy"), refusal(409, "upload_offset_conflict")
        tus.refusals = [httpx.WriteError("broken"), busy, late]
        counted: list[int] = []
        played = Played(tus)
        assert played.api(session_file).upload(7, path, counted.append) == {"id": 5}
        assert tus.received == self.CONTENT
        assert tus.offsets == [0, 1, 1, 1, 5, 9]
        assert sum(counted) == 10
        assert tus.created == 1
        assert session_file.begun_uploads() == {}

    def test_later_command_goes_on_where_an_earlier_one_ended(self, session_file, path):
        tus = PlayedTus(10)
        tus.refusals = [KeyboardInterrupt()]
        with pytest.raises(KeyboardInterrupt):
            Played(tus).api(session_file).upload(7, path, lambda count: None)
        assert list(session_file.begun_uploads().values()) == ["/there/1/"]
        assert Played(tus).api(session_file).upload(7, path, lambda count: None) == {"id": 5}
        assert tus.received == self.CONTENT
        assert tus.created == 1
        # What was taken may be taken once more.
        assert Played(tus).api(session_file).upload(7, path, lambda count: None) == {"id": 5}
        assert tus.created == 2

    @pytest.mark.parametrize("change", ["another dataset", "another content", "expired"])
    def test_what_is_another_upload_begins_anew(self, session_file, path, change):
        tus = PlayedTus(10)
        tus.refusals = [refusal(402, "insufficient_tokens")]
        with pytest.raises(RefusalError):
            Played(tus).api(session_file).upload(7, path, lambda count: None)
        if change == "another content":
            os.utime(path, ns=(0, 0))
        if change == "expired":
            tus.created = 8
        dataset_id = 8 if change == "another dataset" else 7
        before = tus.created
        Played(tus).api(session_file).upload(dataset_id, path, lambda count: None)
        assert tus.created == before + 1
        assert tus.received == self.CONTENT

    @pytest.mark.parametrize(("status", "goes_on"), [(402, True), (507, True), (422, False)])
    def test_only_a_file_at_fault_is_forgotten(self, session_file, path, status, goes_on):
        tus = PlayedTus(10)
        tus.refusals = [refusal(status, "no")]
        with pytest.raises(RefusalError, match="No"):
            Played(tus).api(session_file).upload(7, path, lambda count: None)
        assert len(session_file.begun_uploads()) == int(goes_on)


class Breaking(httpx.SyncByteStream):
    """A body whose connection breaks behind some bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self):
        yield self._data
        raise httpx.ReadError("broken")


class TestDownloads:
    NAME = {"Content-Disposition": 'attachment; filename="street.jpg"'}

    def test_goes_on_where_the_connection_broke(self, session_file, tmp_path):
        played = Played(
            in_turn(
                httpx.Response(200, headers=self.NAME, stream=Breaking(b"abc")),
                httpx.Response(206, headers=self.NAME, stream=Breaking(b"de")),
                httpx.Response(206, headers=self.NAME, content=b"f"),
            )
        )
        name = played.api(session_file).download("/x/", tmp_path / "part")
        assert (name, (tmp_path / "part").read_bytes()) == ("street.jpg", b"abcdef")
        ranges = [one.headers.get("Range") for one in played.requests]
        assert ranges == [None, "bytes=3-", "bytes=5-"]

    def test_begins_again_where_parts_are_not_to_be_had(self, session_file, tmp_path):
        played = Played(
            in_turn(
                httpx.Response(200, headers=self.NAME, stream=Breaking(b"old and long")),
                httpx.Response(200, headers=self.NAME, content=b"new"),
            )
        )
        played.api(session_file).download("/x/", tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == b"new"

    def test_that_broke_behind_the_last_byte_is_whole(self, session_file, tmp_path):
        played = Played(
            in_turn(
                httpx.Response(200, headers=self.NAME, stream=Breaking(b"abc")),
                httpx.Response(416, headers=self.NAME),
            )
        )
        played.api(session_file).download("/x/", tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == b"abc"

    def test_name_in_any_script_is_understood(self, session_file, tmp_path):
        header = "attachment; filename*=utf-8''stra%C3%9Fe%20%E8%A1%97.jpg"
        answer = httpx.Response(200, headers={"Content-Disposition": header}, content=b"x")
        played = Played(lambda _: answer)
        assert played.api(session_file).download("/x/", tmp_path / "part") == "straße 街.jpg"

    def test_refusal_is_not_taken_for_the_file(self, session_file, tmp_path):
        played = Played(lambda _: httpx.Response(404, json={"detail": "There is none."}))
        with pytest.raises(RefusalError, match=r"^There is none\.$"):
            played.api(session_file).download("/x/", tmp_path / "part")
        assert (tmp_path / "part").read_bytes() == b""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(26.0, "26"), (0.0, "0"), (100.0, "100"), (1234567.75, "1234567.75"), (0.5, "0.5")],
)
def test_amounts_are_shown_with_all_their_digits(value, shown):
    assert plain_number(value) == shown
