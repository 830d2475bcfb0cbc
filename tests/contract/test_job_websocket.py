"""The websocket: greeting, list, and a message for every change of the user's own jobs."""

import contextlib
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import jwt
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests import mediafiles
from tests.contract.client import PASSWORD, receive

pytestmark = pytest.mark.service

GREETING = (
    "Hello, {email}! Welcome to the Job Monitoring System. "
    "You can monitor your job statuses in real-time."
)
LISTING = "Here is a list of the jobs associated with your account ({email})."
TINY = mediafiles.image_bytes("PNG", mediafiles.noise((16, 16)))


def texts(messages) -> list[str]:
    return [message["message"] for message in messages]


def test_story_of_a_job_is_told_word_for_word_and_in_order(story):
    email, job_id = story.customer.email, story.job_id
    assert texts(story.messages) == [
        GREETING.format(email=email),
        LISTING.format(email=email),
        f"{email}, your job with ID {job_id} has been taken in charge.",
        f"{email}, your job with ID {job_id} has been completed.",
    ]


def test_failure_of_a_job_is_told(failed_story):
    email, job_id = failed_story.customer.email, failed_story.job_id
    assert texts(failed_story.messages)[2:] == [
        f"{email}, your job with ID {job_id} has been taken in charge.",
        f"{email}, your job with ID {job_id} has failed.",
    ]


def test_list_of_a_new_user_is_empty(newcomer):
    with newcomer.watch() as socket:
        assert receive(socket, 2)[1]["jobs"] == []


def test_list_names_job_state_and_dataset(story):
    with story.customer.watch() as socket:
        assert receive(socket, 2)[1]["jobs"] == [
            {"job_id": story.job_id, "state": "Completed", "dataset_id": story.dataset_id}
        ]


def test_somebody_elses_job_sends_nothing(story):
    email = story.outsider.email
    assert texts(story.outsider_messages) == [
        GREETING.format(email=email),
        LISTING.format(email=email),
    ]
    assert story.outsider_messages[1]["jobs"] == []


def test_both_sockets_of_a_user_hear_the_same(customer):
    dataset = customer.new_dataset()
    customer.upload(dataset, TINY)
    with customer.watch() as one, customer.watch() as other:
        receive(one, 2)
        receive(other, 2)
        job_id = customer.submit(dataset)
        heard = receive(one, 2, timeout=120)
        assert receive(other, 2) == heard
    assert [message["job_id"] for message in heard] == [job_id, job_id]


def test_plain_socket_hears_no_message_that_the_contract_does_not_know(story, administrator):
    """Uploads, top-ups and progress are events too, but not of a job's state."""
    customer = story.customer
    allowed = re.compile(
        r"Hello, \S+! Welcome .*|Here is a list of .*"
        r"|\S+, your job with ID \d+ (has been taken in charge|has been completed|has failed"
        r"|was aborted)\."
    )
    dataset = customer.new_dataset()
    with customer.watch() as socket:
        messages = receive(socket, 2)
        keys = {"topUpUserEmail": customer.email, "topUpAmount": 1}
        assert administrator.call("PATCH", "/token", keys).status_code == 200
        for _ in range(3):
            assert customer.upload(dataset, TINY).status_code == 201
        job_id = customer.submit(dataset)
        messages += receive(socket, 2, timeout=120)
    assert all(allowed.fullmatch(text) for text in texts(messages)), texts(messages)
    assert [message["job_id"] for message in messages[2:]] == [job_id, job_id]


# -- coming back


def test_reconnection_with_since_replays_what_was_missed(story):
    taken, completed = story.messages[2:4]
    with story.customer.watch("?since=0") as socket:
        assert texts(receive(socket, 4))[2:] == texts([taken, completed])
    with story.customer.watch(f"?since={taken['seq']}") as socket:
        (message,) = receive(socket, 3)[2:]
        assert message == completed
    with story.customer.watch() as socket:
        receive(socket, 2)
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.5)


def test_greetings_of_a_reconnection_carry_the_number_to_go_on_from(story):
    """Who is cut off after the greetings, and takes their number, has missed nothing."""
    taken, completed = story.messages[2:4]
    with story.customer.watch() as socket:
        newest = receive(socket, 2)[-1]["seq"]
    assert newest >= completed["seq"]
    for since in (0, taken["seq"], completed["seq"], 999_999_999):
        with story.customer.watch(f"?since={since}") as socket:
            greeting, jobs = receive(socket, 2)
        assert greeting["seq"] == jobs["seq"] == min(since, newest)


def test_numbers_of_messages_grow(story):
    numbers = [message["seq"] for message in story.messages]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    "query",
    [
        "?since=-1",
        "?since=abc",
        "?since=",
        "?since=999999999999",
        f"?since={'9' * 40}",
        "?since=%00",
        "?since=1&since=%ff",
        "?since=%C2%B2",
        "?progress=%00",
        "?nonsense",
    ],
)
def test_odd_query_still_greets(outsider, query):
    with outsider.watch(query) as socket:
        assert texts(receive(socket, 2)) == [
            GREETING.format(email=outsider.email),
            LISTING.format(email=outsider.email),
        ]


# -- refusals


def close_code(url: str, headers) -> int:
    """The code with which the service closes a socket that it accepted and told nothing."""
    with connect(url, additional_headers=headers, proxy=None) as socket:
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


def test_socket_without_a_header_is_accepted_and_closed_with_1008(service):
    assert close_code(service.ws_url, None) == 1008


@pytest.mark.parametrize(
    "header",
    [
        "Bearer",
        "Bearer ",
        "Bearer abc",
        "Bearer a.b.c",
        "Basic {}",
        "Token {}",
        "{}",
        "Bearer {}x",
        "Bearer {refresh}",
        "Bearer {expired}",
        "Bearer {none}",
        "Bearer {}, {}",
    ],
)
def test_socket_with_a_bad_header_is_accepted_and_closed_with_1008(
    anonymous, customer, service, header
):
    keys = {"email": customer.email, "password": PASSWORD}
    claims = jwt.decode(customer.token, options={"verify_signature": False})
    key = (service.data_dir / "secret_key").read_text().strip()
    past = claims | {"exp": datetime.now(UTC) - timedelta(seconds=1)}
    tokens = {
        "{refresh}": anonymous.call("POST", "/user", keys).json()["refresh"],
        "{expired}": jwt.encode(past, key, algorithm="HS256"),
        "{none}": jwt.encode(claims, "", algorithm="none"),
        "{}": customer.token,
    }
    for name, token in tokens.items():
        header = header.replace(name, token)
    assert close_code(service.ws_url, {"Authorization": header}) == 1008


def test_token_in_the_query_opens_nothing(customer, service):
    for name in ("token", "access", "authorization", "ticket"):
        assert close_code(f"{service.ws_url}/?{name}={customer.token}", None) == 1008


# -- API keys


def new_key(customer, **terms):
    """The number and the text of a new API key."""
    keys = {"name": f"program {datetime.now(UTC).timestamp()}", **terms}
    made = customer.send("POST", "/api/v1/api-keys/", json=keys)
    assert made.status_code == 201, made.text
    return made.json()["id"], made.json()["key"]


def test_key_opens_a_socket_until_it_is_revoked(customer):
    key_id, key = new_key(customer, is_read_only=True)
    other = replace(customer, token=new_key(customer)[1])
    with replace(customer, token=key).watch() as socket, other.watch() as kept:
        assert texts(receive(socket, 2))[0] == GREETING.format(email=customer.email)
        receive(kept, 2)
        assert customer.send("DELETE", f"/api/v1/api-keys/{key_id}/").status_code == 204
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=30)
        assert closed.value.rcvd.code == 4001
        dataset = customer.new_dataset()
        assert customer.upload(dataset, TINY).status_code == 201
        customer.submit(dataset)
        assert receive(kept, 1, timeout=120)


def test_socket_of_a_key_and_of_its_ticket_closes_when_the_key_expires(anonymous):
    customer = anonymous.new_customer()
    _, key = new_key(customer, expires_at=(datetime.now(UTC) + timedelta(seconds=8)).isoformat())
    program = replace(customer, token=key)
    ticket = program.send("POST", "/api/v1/websocket-tickets/").json()["ticket"]
    with program.watch() as one, connect(f"{customer.ws_url}/?ticket={ticket}") as other:
        for socket in (one, other):
            receive(socket, 2)
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(timeout=30)
            assert closed.value.rcvd.code == 4001
    with program.watch() as refused:
        with pytest.raises(ConnectionClosed) as closed:
            refused.recv(timeout=30)
        assert closed.value.rcvd.code == 1008


def test_low_balance_is_told_to_who_has_set_a_threshold(anonymous):
    customer = anonymous.new_customer()
    dataset = customer.new_dataset()
    threshold = {"alert_below_tokens": customer.balance()}
    with customer.watch() as socket:
        receive(socket, 2)
        assert customer.send("PATCH", "/api/v1/balance/", json=threshold).status_code == 200
        for _ in range(2):
            assert customer.upload(dataset, TINY).status_code == 201
        job_id = customer.submit(dataset)
        low, started = receive(socket, 2, timeout=120)
    assert low["message"] == (
        f"{customer.email}, your balance of {low['available_tokens']:,.2f} tokens is below "
        f"{low['alert_below_tokens']:,.2f}."
    )
    assert (low["kind"], low["alert_below_tokens"]) == ("balance.low", *threshold.values())
    assert low["available_tokens"] == threshold["alert_below_tokens"] - 0.75
    assert started["job_id"] == job_id


def test_page_of_another_site_opens_nothing(customer, service):
    host = urlsplit(service.ws_url).netloc
    for origin in ("https://elsewhere.example", f"http://elsewhere.{host}", "null"):
        assert close_code(service.ws_url, customer.headers | {"Origin": origin}) == 1008, origin
    with pytest.raises(InvalidStatus, match="400"):  # the server itself refuses what is no address
        close_code(service.ws_url, customer.headers | {"Origin": "http://[x"})
    ours = customer.headers | {"Origin": f"http://{host}"}
    with connect(service.ws_url, additional_headers=ours, proxy=None) as socket:
        assert texts(receive(socket, 1)) == [GREETING.format(email=customer.email)]


def test_another_path_is_accepted_and_closed_with_1008(customer, service):
    for path in ("/jobs", "/inference/state", "/%00"):
        assert close_code(service.ws_url + path, customer.headers) == 1008


def test_name_of_the_scheme_has_no_case(customer, service):
    headers = {"Authorization": f"bearer {customer.token}"}
    with connect(service.ws_url, additional_headers=headers, proxy=None) as socket:
        assert texts(receive(socket, 1)) == [GREETING.format(email=customer.email)]


# -- what clients say


def test_words_and_bytes_of_a_client_are_ignored(customer):
    with customer.watch() as socket:
        receive(socket, 2)
        for word in ("", "{", "null", '{"type": "websocket.close"}', b"\xff\x00", "\0" * 1000):
            socket.send(word)
        assert socket.ping().wait(10)
        with pytest.raises(TimeoutError):
            socket.recv(timeout=0.5)


def test_message_of_2_mib_is_closed_with_1009(customer):
    with customer.watch() as socket:
        receive(socket, 2)
        # The close may come while the message is still on its way.
        threading.Thread(target=_try_to_send, args=(socket, b"x" * 2**21), daemon=True).start()
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(timeout=20)
    assert closed.value.rcvd.code == 1009


def _try_to_send(socket, content: bytes) -> None:
    try:
        socket.send(content)
    except ConnectionClosed:
        return


def test_http_works_beside_many_open_sockets(customer):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(customer.watch()) for _ in range(40)]
        for socket in sockets:
            assert texts(receive(socket, 1)) == [GREETING.format(email=customer.email)]
        assert customer.send("GET", "/token").status_code == 200
