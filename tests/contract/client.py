"""A customer of the original API: registers, logs in, and calls routes in every way it allows."""

import io
import itertools
import json
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

PASSWORD = "correct horse battery"
ENCODINGS = ("json", "form", "multipart")
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code", "name", "message"}
MONEY_MEMBERS = frozenset({"needed_tokens", "balance_tokens"})
JOB_SECONDS = 240.0
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Way:
    """How a request carries its keys, and whether its path ends with a slash."""

    encoding: str = "json"
    slash: bool = False

    def path(self, path: str) -> str:
        return path.rstrip("/") + ("/" if self.slash else "")


EVERY_WAY = pytest.mark.parametrize(
    "way",
    [
        pytest.param(Way(encoding, slash), id=f"{encoding}-{'with' if slash else 'without'}-slash")
        for encoding in ENCODINGS
        for slash in (False, True)
    ],
)
FILE_WAYS = pytest.mark.parametrize(
    "way", [Way("multipart", False), Way("multipart", True)], ids=["without-slash", "with-slash"]
)


def encoded(keys: Mapping[str, Any], encoding: str) -> dict[str, Any]:
    """The arguments by which httpx sends the keys in an encoding."""
    if encoding == "json":
        content = json.dumps(dict(keys)).encode()
        return {"content": content, "headers": {"Content-Type": "application/json"}}
    if encoding == "form":
        return {"data": {key: str(value) for key, value in keys.items()}}
    return {"files": {key: (None, str(value)) for key, value in keys.items()}}


@dataclass
class Api:
    """The service as somebody sees it who may have a token. No answer is ever a redirect or 5xx."""

    http: httpx.Client
    ws_url: str
    email: str = ""
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send what httpx is told to, with this user's token unless a header replaces it."""
        headers = httpx.Headers(self.headers)
        headers.update(request.pop("headers", None))
        response = self.http.request(method, path, headers=headers, **request)
        assert response.status_code < 500 or response.status_code == 507, response.text
        assert not response.is_redirect, response.headers["Location"]
        assert response.headers["X-Request-ID"]
        return response

    def call(
        self, method: str, path: str, keys: Mapping[str, Any], way: Way = Way()
    ) -> httpx.Response:
        """Call a route with keys in its body."""
        return self.send(method, way.path(path), **encoded(keys, way.encoding))

    # -- what a customer does

    def log_in(self, email: str, password: str = PASSWORD) -> "Api":
        answer = self.call("POST", "/user/", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        return Api(self.http, self.ws_url, email, answer.json()["access"])

    def new_customer(self) -> "Api":
        email = new_email()
        keys = {"email": email, "password": PASSWORD, "confirmPassword": PASSWORD}
        answer = self.call("POST", "/user/registration", keys)
        assert answer.status_code == 201, answer.text
        return self.log_in(email)

    def new_dataset(self, name: str = "", tags: str = "") -> str:
        """Create a dataset and return its name."""
        name = name or f"street {next(_numbers)}"
        answer = self.call("POST", "/datasets/", {"datasetName": name, "tags": tags})
        assert answer.status_code == 201, answer.text
        return name

    def upload(
        self, dataset: str, content: bytes, name: str = "a.jpg", *, way: Way = Way()
    ) -> httpx.Response:
        return self.send(
            "POST",
            way.path("/upload/"),
            data={"datasetName": dataset},
            files={"file": (name, content, "application/octet-stream")},
        )

    def balance(self) -> float:
        return self.send("GET", "/token").json()["tokenBalance"]

    def datasets(self) -> dict[str, dict[str, Any]]:
        """The datasets of the list, by name."""
        listed = self.send("GET", "/datasets/").json()
        return {entry["dataset"]["dataset_name"]: entry["dataset"] for entry in listed}

    def wealth(self) -> tuple[float, dict[str, float]]:
        """The balance and what inference on each dataset costs: what a refusal must not touch."""
        return self.balance(), {n: d["token_cost"] for n, d in self.datasets().items()}

    def submit(self, dataset: str, version: str = "YOLO8s_FSR") -> int:
        keys = {"datasetName": dataset, "modelId": "YOLO8", "modelVersion": version}
        answer = self.call("POST", "/inference/", keys)
        assert answer.status_code == 200, answer.text
        return answer.json()["jobId"]

    def state(self, job_id: int) -> str:
        answer = self.call("GET", "/inference/state", {"jobId": job_id})
        assert answer.status_code == 200, answer.text
        return answer.json()["jobState"]

    def state_at_the_end(self, job_id: int) -> str:
        deadline = time.monotonic() + JOB_SECONDS
        while (state := self.state(job_id)) in {"Pending", "Running"}:
            assert time.monotonic() < deadline, f"Job {job_id} is still {state}."
            time.sleep(0.2)
        return state

    def result(self, job_id: int) -> dict[str, Any]:
        answer = self.call("GET", "/inference/result", {"jobId": job_id})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def content(self, job_id: int) -> zipfile.ZipFile:
        """The zip of annotated files."""
        answer = self.send("GET", self.result(job_id)["contentURI"])
        assert answer.status_code == 200, answer.text
        return zipfile.ZipFile(io.BytesIO(answer.content))

    @contextmanager
    def watch(self, query: str = "") -> Iterator[ClientConnection]:
        """A websocket with this user's token in its header, and nothing from the environment."""
        with connect(
            f"{self.ws_url}/{query}", additional_headers=self.headers, proxy=None
        ) as socket:
            yield socket


def new_email() -> str:
    return f"customer{next(_numbers)}@example.org"


def receive(socket: ClientConnection, count: int, timeout: float = 30) -> list[dict[str, Any]]:
    """That many messages, each of them one JSON text."""
    messages = [socket.recv(timeout=timeout) for _ in range(count)]
    assert all(isinstance(message, str) for message in messages)
    return [json.loads(message) for message in messages]


def assert_short_of_tokens(response: httpx.Response, *, needed: float, balance: float) -> None:
    """The answer is a 402 that says what was needed and what there is."""
    document = assert_problem(response, 402, "InsufficientTokensError", MONEY_MEMBERS)
    assert (document["needed_tokens"], document["balance_tokens"]) == (needed, balance)


def assert_problem(
    response: httpx.Response, status: int, name: str = "", more: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """The answer is one problem document with the members of the original, and no more said."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"].partition(";")[0] == "application/problem+json"
    document = response.json()
    assert set(document) - {"errors"} == PROBLEM_MEMBERS | more
    assert document["status"] == status
    assert document["message"] == document["detail"]
    for word in ("Traceback", "settings.", "/site-packages", "psycopg", "SELECT "):
        assert word not in response.text
    if name:
        assert document["name"] == name
    return document
