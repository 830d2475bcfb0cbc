"""Real engines for every test: PostgreSQL and Redis from wheels, in a folder thrown away after.

Tests of the service's own code use `db` (rolled back) or `committed_db` (committed, then the
database is made anew from a template, so no trigger is ever disabled to clean up).

`make test` runs several processes side by side, each with engines of its own.
"""

import functools
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dj_database_url
import psutil
import psycopg
import pytest
import redis
from django.conf import settings as django_settings
from django.core.management import call_command
from django.db import connections
from hypothesis import settings as hypothesis_settings
from xdist.scheduler import LoadScopeScheduling

from accounts.models import User
from datasets.models import Dataset
from inference import queue
from odproject.celery import app as celery_app
from odproject.core.throttling import UserRate
from odproject.engines import Engines, running_engines
from odproject.settings import celery_url
from tests.factories import make_dataset, make_user
from tests.service import REPOSITORY

pytest_plugins = ["tests.service_fixtures"]

TEST_DATABASE = "odproject_test"
TEMPLATE_DATABASE = "odproject"
# A busy machine is slow and not wrong: by itself hypothesis fails an example that takes 200 ms.
hypothesis_settings.register_profile("untimed", hypothesis_settings(), deadline=None)
hypothesis_settings.load_profile("untimed")

COMMON_SERVICE, IN_A_BROWSER, FAULTS = "the service", "tests/test_browser_", "tests/faults/"
MOST_PROCESSES = 4
PROCESS_BYTES = 3 * 1024**3  # torch, PostgreSQL, at times a whole service


def pytest_configure() -> None:
    """Have static files looked for when they are asked for: each test's client would list all."""
    django_settings.WHITENOISE_AUTOREFRESH = True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` means, as far as the memory goes.

    One more than there are cores that this one may use: two of them often wait for a service.
    """
    may_use = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    have_room = psutil.virtual_memory().available // PROCESS_BYTES
    return max(1, min((may_use or 1) + 1, have_room, MOST_PROCESSES))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Who runs what: see FilesWhole. The order is that of `pytest_collection_modifyitems`."""
    config.option.loadscopereorder = False
    return FilesWhole(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes in one piece comes first, so that no process is left with it alone."""
    longest = [IN_A_BROWSER, COMMON_SERVICE]

    def turn(item: pytest.Item) -> int:
        scope = scope_of(item.nodeid)
        if scope in longest:
            return longest.index(scope)
        return len(longest) + (not scope.startswith(FAULTS))

    items.sort(key=turn)


class FilesWhole(LoadScopeScheduling):
    """Each file is run by one process, and all files of the common service by the same one.

    Then that is started once, as in a run of one process. Those with a browser, which take half of
    the time, have one of their own. Tests of faults break services of their own.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def scope_of(nodeid: str) -> str:
    """What a test is run with in one process: its file, or all files of the common service."""
    path = nodeid.partition("::")[0]
    if path.startswith(IN_A_BROWSER):
        return IN_A_BROWSER
    return COMMON_SERVICE if is_of_the_service(path) and not path.startswith(FAULTS) else path


@functools.cache
def is_of_the_service(path: str) -> bool:
    """Whether the file of tests asks for the running service."""
    return "pytest.mark.service" in (REPOSITORY / path).read_text()


def _point_django_at(url: str, *, database: str = "") -> None:
    """Have the default connection use another database from now on."""
    connections.close_all()
    parsed = dj_database_url.parse(url)
    where = {key: parsed[key] for key in ("HOST", "PORT", "USER", "PASSWORD", "NAME")}
    where["NAME"] = database or where["NAME"]
    connections.settings["default"].update(where)
    connections["default"].settings_dict.update(where)


def _renew_test_database(superuser_url: str) -> None:
    connections.close_all()
    with psycopg.connect(superuser_url, autocommit=True, dbname="postgres") as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {TEST_DATABASE} WITH (FORCE)")
        connection.execute(
            f"CREATE DATABASE {TEST_DATABASE} TEMPLATE {TEMPLATE_DATABASE} "
            "OWNER od_owner STRATEGY FILE_COPY"
        )


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """PostgreSQL and Redis, started once for the whole run."""
    with running_engines(tmp_path_factory.mktemp("engines"), fsync=False) as running:
        yield running


@pytest.fixture(scope="session")
def django_db_setup(engines: Engines, django_db_blocker) -> Iterator[None]:
    """Migrate a template as the owner, then work on a copy as the application's role."""
    with django_db_blocker.unblock():
        _point_django_at(engines.owner_url)
        call_command("migrate", verbosity=0)
        call_command("register_models", verbosity=0, stdout=io.StringIO())
        _renew_test_database(engines.superuser_url)
        _point_django_at(engines.database_url, database=TEST_DATABASE)
        django_settings.REDIS_URL = engines.redis_url
        layer = django_settings.CHANNEL_LAYERS["default"]["CONFIG"]["hosts"][0]
        layer["address"] = engines.redis_url
        celery_app.conf.broker_url = celery_url(engines.redis_url)
        # A unit that a test runs within its own transaction is seen by no other connection, so its
        # lease cannot be renewed, however long a busy machine takes.
        django_settings.UNIT_LEASE_SECONDS = 3600
    yield  # a test that asks for no database is not let at it: nobody would take back its rows
    with django_db_blocker.unblock():
        connections.close_all()


@pytest.fixture
def committed_db(engines: Engines, django_db_setup, django_db_blocker) -> Iterator[None]:
    """A database in which the test really commits, from as many threads as it likes."""
    with django_db_blocker.unblock():
        yield
        _renew_test_database(engines.superuser_url)
    # Numbers begin anew, and Redis counts the requests of users by theirs.
    with redis.Redis.from_url(engines.redis_url) as client:
        client.flushdb()


@pytest.fixture(scope="module")
def kept_db(engines: Engines, django_db_setup, django_db_blocker) -> Iterator[None]:
    """A database in which what is made for the whole file stays; tests with `db` add to it."""
    with django_db_blocker.unblock():
        yield
        _renew_test_database(engines.superuser_url)


@pytest.fixture
def no_broker(monkeypatch) -> None:
    """Hints of units are sent nowhere: the subject is something else."""
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)


@pytest.fixture
def user() -> User:
    """A registered user."""
    return make_user()


@pytest.fixture
def dataset(user: User) -> Dataset:
    """An empty dataset of the user."""
    return make_dataset(user)


@pytest.fixture
def one_minute(monkeypatch) -> None:
    """The clock stands, so that all requests of a test are counted in the same minute."""
    now = time.time()
    monkeypatch.setattr("odproject.core.throttling.time.time", lambda: now)
    monkeypatch.setattr(UserRate, "quiet_until", 0.0)


@pytest.fixture(autouse=True)
def quick_passwords(settings) -> None:
    """Argon2 is slow by design; the running service, in its own processes, uses it."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def media_root(settings, tmp_path: Path) -> Path:
    """Every test stores media in a folder of its own."""
    settings.MEDIA_ROOT = tmp_path / "media"
    settings.PARTIAL_FILES_ROOT = tmp_path / "partial-files"
    return settings.MEDIA_ROOT
