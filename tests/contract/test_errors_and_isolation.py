"""Bad requests of every sort get one problem document each, and never a 5xx."""

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests import mediafiles
from tests.contract.client import ENCODINGS, Way, assert_problem, encoded

pytestmark = pytest.mark.service

# Every route of the contract that takes keys: method, path, keys.
ROUTES = {
    "register": ("POST", "/user/registration", ["email", "password", "confirmPassword"]),
    "log in": ("POST", "/user", ["email", "password"]),
    "create": ("POST", "/datasets", ["datasetName", "tags"]),
    "delete": ("DELETE", "/datasets", ["datasetName"]),
    "change": ("PATCH", "/datasets", ["datasetName", "newDatasetName", "newTags"]),
    "top up": ("PATCH", "/token", ["topUpUserEmail", "topUpAmount"]),
    "submit": ("POST", "/inference", ["datasetName", "modelId", "modelVersion"]),
    "state": ("GET", "/inference/state", ["jobId"]),
    "result": ("GET", "/inference/result", ["jobId"]),
    "upload": ("POST", "/upload", ["file", "datasetName"]),
}
every_route = pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)


@pytest.fixture
def asker(administrator):
    """Somebody whom no route refuses for who they are."""
    return administrator


JSON_BODIES = {
    "list": b"[]",
    "list of pairs": b'[["email", "a"]]',
    "number": b"5",
    "text": b'"email"',
    "null": b"null",
    "true": b"true",
    "cut": b'{"email": ',
    "not JSON": b"email=a",
    "not UTF-8": b'{"email": "\xff\xfe"}',
    "NaN": b'{"email": NaN}',
    "deep list": b"[" * 50_000,
    "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "long number": b'{"jobId": ' + b"9" * 20_000 + b"}",
    "two documents": b"{}{}",
}


@pytest.mark.parametrize("path", ["/livez", "/livez?a=b", "/user/registration", "/nowhere"])
@pytest.mark.parametrize(
    "kind",
    [
        "text/plain; a*=foo'b'%41",
        "text/plain; charset=zip",
        "application/json; charset=rot13",
        "multipart/form-data; boundary=c; charset=idna",
        "multipart/form-data; boundary=c; charset=base64",
    ],
)
def test_content_type_that_nobody_can_read_is_400(anonymous, path, kind):
    for method in ("GET", "POST"):
        content = b'--c\r\nContent-Disposition: form-data; name="email"\r\n\r\na@b.de\r\n--c--\r\n'
        answer = anonymous.send(method, path, content=content, headers={"Content-Type": kind})
        assert_problem(answer, 400, "BadRequestError")


def test_charset_that_nobody_knows_is_overlooked(anonymous):
    for charset in ("utf-8", "UTF8", "latin-1", "x-unknown", "", "a" * 5000):
        headers = {"Content-Type": f"text/plain; charset={charset}"}
        assert anonymous.send("GET", "/livez?a=b", headers=headers).status_code == 200, charset


@every_route
def test_json_that_is_no_object_is_400(asker, route):
    method, path, _ = route
    headers = {"Content-Type": "application/json"}
    for kind, body in JSON_BODIES.items():
        answer = asker.send(method, path, content=body, headers=headers)
        assert answer.status_code == 400, kind
        assert_problem(answer, 400)


# As JSON, a number is fine where a text is asked for: "5" says no more than 5.
HOSTILE_VALUES = ["\0", "a\0b", "\ud800", [], [[]], {}, {"$gt": ""}, True, None]


@every_route
def test_hostile_json_value_is_400(asker, route):
    method, path, names = route
    headers = {"Content-Type": "application/json"}
    for value in HOSTILE_VALUES:
        body = json.dumps(dict.fromkeys(names, value)).encode()
        assert_problem(asker.send(method, path, content=body, headers=headers), 400)


TEXTS = ["' OR 1=1 --", "${jndi:ldap://x}", "../../etc/passwd", "\r\nX: 1", "%00"]


@every_route
def test_hostile_text_is_only_text(asker, route):
    method, path, names = route
    for text in TEXTS:
        for encoding in ENCODINGS:
            keys = dict.fromkeys(names, text)
            if method == "POST" and path == "/datasets":
                keys["datasetName"] += encoding
            answer = asker.call(method, path, keys, Way(encoding))
            assert answer.status_code in {201, 400, 401, 404}, (text, answer.text)


OTHER_TYPES = ["text/plain", "application/xml", "application/octet-stream", "nonsense"]
OTHER_TYPES += ["application/jsonp", "multipart/mixed; boundary=x", "image/jpeg"]


@every_route
def test_body_of_another_type_is_415(asker, route):
    method, path, names = route
    body = json.dumps(dict.fromkeys(names, "abc")).encode()
    for kind in OTHER_TYPES:
        answer = asker.send(method, path, content=body, headers={"Content-Type": kind})
        assert answer.status_code == 415, (kind, answer.text)
        assert_problem(answer, 415, "UnsupportedMediaTypeError")


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON"]
)
def test_json_is_taken_however_its_type_is_written(customer, content_type):
    before = customer.datasets()
    body = json.dumps({"datasetName": f"typed {len(before)}"}).encode()
    headers = {"Content-Type": content_type}
    assert customer.send("POST", "/datasets", content=body, headers=headers).status_code == 201


MULTIPART = "multipart/form-data; boundary=cut"
MULTIPARTS = {
    "no boundary": (b"--cut--\r\n", "multipart/form-data"),
    "empty boundary": (b"--cut--\r\n", "multipart/form-data; boundary="),
    "boundary not ASCII": (b"--cut--\r\n", "multipart/form-data; boundary=\xe9"),
    "long boundary": (b"--cut--\r\n", "multipart/form-data; boundary=" + "b" * 5000),
    "nothing": (b"", MULTIPART),
    "no part": (b"--cut--\r\n", MULTIPART),
    "rubbish": (b"rubbish" * 100, MULTIPART),
    "cut head": (b"--cut\r\nContent-Dispos", MULTIPART),
    "no name": (b"--cut\r\nContent-Disposition: form-data\r\n\r\nx\r\n--cut--\r\n", MULTIPART),
    "bad base64": (
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
        b"Content-Transfer-Encoding: base64\r\n\r\n!!!a\r\n--cut--\r\n",
        MULTIPART,
    ),
    "endless head": (b"--cut\r\n" + b"X: " + b"a" * 200_000, MULTIPART),
}


@pytest.mark.parametrize("kind", MULTIPARTS)
def test_malformed_multipart_is_refused(asker, kind):
    body, content_type = MULTIPARTS[kind]
    headers = {"Content-Type": content_type.encode("latin-1")}
    for method, path in (("POST", "/upload"), ("POST", "/datasets"), ("GET", "/inference/state")):
        answer = asker.send(method, path, content=body, headers=headers)
        assert answer.status_code in {400, 415}, answer.text
        assert_problem(answer, answer.status_code)


def test_too_many_or_too_long_fields_are_refused(asker):
    many = {f"field{number}": "x" for number in range(1500)}
    long = {"datasetName": "x" * 2_000_000}
    for encoding in ("form", "multipart"):
        assert_problem(asker.send("POST", "/datasets", **encoded(many, encoding)), 400)
        assert_problem(asker.send("POST", "/datasets", **encoded(long, encoding)), 413)
    assert_problem(asker.send("POST", "/datasets", **encoded(long, "json")), 413)
    enormous = {"datasetName": "x" * 11_000_000}
    assert_problem(asker.send("POST", "/datasets", **encoded(enormous, "json")), 413)
    files = [("file", ("a.jpg", b"x"))] * 150
    assert_problem(asker.send("POST", "/upload", files=files), 400)


# -- routes and methods


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/datasets"),
        ("POST", "/token"),
        ("DELETE", "/token"),
        ("GET", "/inference"),
        ("POST", "/inference/state"),
        ("DELETE", "/inference/result"),
        ("GET", "/upload"),
        ("GET", "/user"),
        ("GET", "/user/registration"),
        ("BREW", "/token"),
        ("TRACE", "/token"),
    ],
)
def test_other_method_is_405_and_names_the_allowed(asker, method, path):
    for address in (path, path + "/"):
        answer = asker.send(method, address)
        assert_problem(answer, 405, "MethodNotAllowedError")
        assert answer.headers["Allow"]


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/datasets//",
        "/datasets/1",
        "/user/login",
        "/%00",
        "/%ff",
        "/..%2f..%2fetc",
        "/token%0a",
        "/DATASETS",
        "/inference/results",
        "/media/",
        "/static/../manage.py",
    ],
)
def test_unknown_route_is_404_for_anybody(asker, anonymous, path):
    for user in (asker, anonymous):
        for method in ("GET", "POST", "DELETE"):
            assert_problem(user.send(method, path), 404, "NotFoundError")


@pytest.mark.parametrize(
    "header",
    [
        ("Accept", "text/html"),
        ("Accept", "application/xml;q=0.9"),
        ("Accept", "nonsense"),
        ("Accept", "*/*;q=abc"),
        ("Accept", "application/json; indent=999999999"),
        ("Accept-Language", "\xff"),
        ("Accept-Encoding", "\xff;q=x"),
        ("Cookie", "sessionid=' OR 1=1; csrftoken=\xff"),
        ("X-HTTP-Method-Override", "DELETE"),
        ("X-Forwarded-For", "'; DROP TABLE"),
        ("X-Forwarded-Host", "evil.example"),
        ("Daphne-Root-Path", "/x"),
        ("Range", "bytes=5-1"),
        ("If-None-Match", "*"),
        ("If-Modified-Since", "never"),
        ("Content-Encoding", "gzip"),
        ("Origin", "null"),
        ("Upgrade", "h2c"),
    ],
    ids=lambda header: f"{header[0]} {header[1][:12]!a}",
)
def test_odd_header_changes_nothing(customer, header):
    name, value = header
    answer = customer.send("GET", "/token", headers={name: value.encode("latin-1")})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"tokenBalance": customer.balance()}


@pytest.mark.parametrize("host", ["evil<>.example", "a b", "x" * 300 + "!", "[::"])
def test_bad_host_is_400(customer, host):
    assert_problem(customer.send("GET", "/token", headers={"Host": host}), 400)


@pytest.mark.parametrize(
    "query",
    ["format=xml", "format=api", "a=b" * 2000, "%00=%00", "%ff=%ff", "=", "&&&", "jobId[]=1"],
)
def test_odd_query_changes_nothing(customer, query):
    answer = customer.send("GET", f"/token?{query}")
    assert answer.status_code == 200, answer.text


def test_error_shows_the_original_names_in_the_problem_document(customer):
    document = assert_problem(customer.call("DELETE", "/datasets", {"datasetName": "none"}), 404)
    assert document["type"] == "urn:odproject:error:dataset_not_found"
    assert document["title"] == "Dataset not found"
    assert document["code"] == "dataset_not_found"
    assert document["name"] == "DatasetNotFoundError"


# -- HTTP by hand


def spoken(service, request: bytes, *, patience: float = 20.0) -> bytes:
    """The answer to bytes that no client library would send, read to its end."""
    parts = urlsplit(service.base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=patience) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def assert_raw_problem(answer: bytes, *statuses: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split(b" ")[1]) in statuses, answer[:300]
    assert b"application/problem+json" in head
    assert b"\r\nx-request-id: " in head.lower()
    assert json.loads(body)["status"] in statuses


LOGIN = b'{"email": "a@example.org", "password": "b"}'
LOGIN_HEAD = (
    b"POST /user HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def length(text: bytes) -> bytes:
    return b"Content-Length: " + text + b"\r\n"


RAW = {
    "length too short": (LOGIN_HEAD + length(b"5") + b"\r\n" + LOGIN, 400),
    "negative length": (LOGIN_HEAD + length(b"-5") + b"\r\n" + LOGIN, 400),
    "length of letters": (LOGIN_HEAD + length(b"abc") + b"\r\n" + LOGIN, 400),
    "two lengths": (LOGIN_HEAD + length(b"43") + length(b"5") + b"\r\n" + LOGIN, 400),
    "length and chunks": (LOGIN_HEAD + length(b"5") + CHUNKED + b"\r\n0\r\n\r\n", 400),
    "bad chunk": (LOGIN_HEAD + CHUNKED + b"\r\nzz\r\nx\r\n0\r\n\r\n", 400),
    "unknown transfer encoding": (LOGIN_HEAD + b"Transfer-Encoding: zip\r\n\r\n", 400),
    "huge length": (LOGIN_HEAD + length(b"9" * 14) + b"\r\n{", 413),
    "longer than any number": (LOGIN_HEAD + length(b"9" * 400) + b"\r\n{", 413),
    "rubbish": (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
    "no version": (b"GET /token\r\n\r\n", 400),
    "NUL in a header": (b"GET /token HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", 400),
    "no colon": (b"GET /token HTTP/1.1\r\nHost x\r\n\r\n", 400),
    "many headers": (b"GET /token HTTP/1.1\r\n" + b"X: y\r\n" * 2000 + b"\r\n", 400),
    "long header": (b"GET /token HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 431),
    "long address": (b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
    "raw bytes in the query": (b"GET /token?\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no token": (b"GET /token HTTP/1.0\r\n\r\n", 401),
    "spaces for a token": (
        b"GET /token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer   \r\n\r\n",
        401,
    ),
}


@pytest.mark.parametrize("kind", RAW)
def test_http_that_breaks_its_rules_gets_one_problem(service, kind):
    request, status = RAW[kind]
    assert_raw_problem(spoken(service, request), status)


def test_length_too_long_is_waited_for_and_never_answered_as_a_whole(service, customer):
    parts = urlsplit(service.base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=1.5) as connection:
        connection.sendall(LOGIN_HEAD + length(b"500") + b"\r\n" + LOGIN)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert customer.send("GET", "/token").status_code == 200


def test_chunked_body_is_taken_on_get_too(service, customer):
    body = b'{"jobId": 777777}'
    request = b"GET /inference/state HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    request += b"Content-Type: application/json\r\nAuthorization: Bearer "
    request += customer.token.encode() + b"\r\n" + CHUNKED + b"\r\n"
    request += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = spoken(service, request)
    assert_raw_problem(answer, 404)
    assert b"777777" in answer


def test_broken_off_upload_costs_and_leaves_nothing(service, customer):
    dataset = customer.new_dataset()
    wealth = customer.wealth()
    body = b'--cut\r\nContent-Disposition: form-data; name="datasetName"\r\n\r\n'
    body += dataset.encode() + b'\r\n--cut\r\nContent-Disposition: form-data; name="file"; '
    body += b'filename="a.jpg"\r\n\r\n' + mediafiles.image_bytes() + b"\r\n--cut--\r\n"
    parts = urlsplit(service.base_url)
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(
            b"POST /upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
            + customer.token.encode()
            + f"\r\nContent-Type: {MULTIPART}\r\n".encode()
            + length(str(len(body) + 100).encode())
            + b"\r\n"
            + body
        )
    assert customer.wealth() == wealth


# -- isolation


def test_nobody_sees_anything_of_anybody_else(story, outsider):
    assert outsider.datasets() == {}
    assert outsider.balance() == 1000.0
    for seen in (outsider.send("GET", "/datasets"), outsider.send("GET", "/token")):
        assert story.customer.email not in seen.text


def test_refusal_for_a_foreign_thing_is_that_for_an_unknown_one(story, outsider):
    """So that numbers and names cannot be searched for what exists."""
    foreign, unknown = story.job_id, 999_999_999
    for path in ("/inference/state", "/inference/result"):
        told = [outsider.call("GET", path, {"jobId": number}) for number in (foreign, unknown)]
        assert [answer.status_code for answer in told] == [404, 404]
        documents = [
            answer.text.replace(str(number), "N")
            for answer, number in zip(told, (foreign, unknown), strict=True)
        ]
        assert documents[0] == documents[1]


def test_nothing_in_the_logs_is_an_unexpected_error(service, story):
    """Runs last in this folder: whatever the tests before it did, no view failed."""
    logs = sorted((service.data_dir / "logs").glob("*.log"))
    assert "web-1.log" in [log.name for log in logs]
    for log in logs:
        assert "Internal Server Error" not in log.read_text(errors="replace"), log.name
