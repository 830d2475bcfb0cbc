"""Exchanges of one refresh token at the same moment, each in a transaction of its own."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import connection, connections, transaction

from accounts.models import Session
from accounts.services import InvalidRefreshTokenError, log_in, refresh_session
from tests.factories import PASSWORD, make_user

pytestmark = pytest.mark.usefixtures("committed_db")
LIFETIME = timedelta(minutes=5)


def exchange(raw_refresh_token):
    try:
        return refresh_session(raw_refresh_token=raw_refresh_token, access_lifetime=LIFETIME)
    except InvalidRefreshTokenError:
        return None
    finally:
        connections.close_all()


def wait_for_blocked_updates(count):
    for _ in range(600):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0] >= count:
                return
        time.sleep(0.05)
    pytest.fail(f"Not {count} updates wait for the session's row.")


def test_of_exchanges_that_wait_for_each_other_one_wins():
    tokens = log_in(email=make_user().email, password=PASSWORD)
    with ThreadPoolExecutor(3) as pool:
        with transaction.atomic():
            Session.objects.select_for_update().get()
            answers = [pool.submit(exchange, tokens.refresh) for _ in range(3)]
            wait_for_blocked_updates(3)
        winners = [answer.result() for answer in answers if answer.result() is not None]
    assert len(winners) == 1
    # The winner's token is the one that counts, and nobody's session was ended.
    assert exchange(winners[0].refresh) is not None
    assert Session.objects.get().revoked_at is None
