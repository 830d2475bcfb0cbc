"""A connection to the database that is found dead: an InterfaceError, which is no DatabaseError."""

import os
import signal
import threading

import pytest
from django.core.management import call_command
from django.db import InterfaceError

from inference.management.commands import sweeper
from odproject import health

PATIENCE_SECONDS = 60


def refuse(*args, **kwargs):
    raise InterfaceError("connection already closed")


def run_sweeper(settings, monkeypatch, *, failing_rounds: int = 0) -> list[str]:
    """Run the sweeper until its first round that does not fail; what it did, in order."""
    settings.SWEEP_INTERVAL_SECONDS = 0.01
    rounds: list[str] = []

    def sweep() -> int:
        rounds.append("sweep")
        if rounds.count("sweep") <= failing_rounds:
            refuse()
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    monkeypatch.setattr(sweeper, "sweep", sweep)
    monkeypatch.setattr(sweeper, "enqueue_tests", lambda: rounds.append("tests"))
    monkeypatch.setattr(sweeper, "_clean", lambda: rounds.append("cleaned"))
    monkeypatch.setattr(sweeper, "close_old_connections", lambda: rounds.append("renewed"))
    monkeypatch.setattr(sweeper, "die_with_parent", lambda: None)
    handlers = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    # A sweeper that ended at the first error would leave the signal to the tests themselves.
    late = threading.Timer(PATIENCE_SECONDS, os.kill, (os.getpid(), signal.SIGTERM))
    late.start()
    try:
        call_command("sweeper")
    finally:
        late.cancel()
        for one, handler in handlers.items():
            signal.signal(one, handler)
    return rounds


def test_sweeper_goes_on_after_a_dead_connection(settings, monkeypatch):
    rounds = run_sweeper(settings, monkeypatch, failing_rounds=2)
    assert rounds[:6] == ["sweep", "renewed", "sweep", "renewed", "sweep", "tests"]
    assert rounds[-1] == "renewed"


def test_sweeper_cleans_up_in_its_first_round(settings, monkeypatch):
    assert run_sweeper(settings, monkeypatch) == ["sweep", "tests", "cleaned", "renewed"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("part", "broken", "reason"),
    [
        ("connection.cursor", "database", "The database does not answer."),
        ("ready_workers", "workers", "The workers' heartbeats cannot be read."),
    ],
)
def test_readiness_names_the_part_whose_connection_is_dead(
    client, monkeypatch, part, broken, reason
):
    monkeypatch.setattr(f"{health.__name__}.{part}", refuse)
    answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["reasons"][broken] == reason
