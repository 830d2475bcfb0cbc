"""A database that is not embedded gets the same two roles as the embedded one."""

import psycopg
import pytest
from psycopg import sql

from odproject.database_roles import ensure_application_role
from odproject.engines import Engines

OWNER, APPLICATION, DATABASE = "container_owner", "container_app", "container"


@pytest.fixture
def urls(engines: Engines):
    """The owner's and the application's address of a database made as a container makes one."""
    where = engines.superuser_url.partition("@")[2].partition("/")[0]
    with psycopg.connect(engines.superuser_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {OWNER} LOGIN CREATEROLE PASSWORD 'x'")
        connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        yield (
            f"postgresql://{OWNER}:x@{where}/{DATABASE}",
            f"postgresql://{APPLICATION}:p%40ss@{where}/{DATABASE}",
        )
        connection.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        for role in (APPLICATION, OWNER):
            connection.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(role)))


def test_application_works_with_rows_and_owns_no_table(urls):
    owner_url, application_url = urls
    assert ensure_application_role(owner_url=owner_url, application_url=application_url) is True
    with psycopg.connect(owner_url, autocommit=True) as owner:
        owner.execute("CREATE TABLE things (id bigint GENERATED ALWAYS AS IDENTITY, name text)")
    assert ensure_application_role(owner_url=owner_url, application_url=application_url) is True
    with psycopg.connect(application_url, autocommit=True) as application:
        application.execute("INSERT INTO things (name) VALUES ('a')")
        assert application.execute("SELECT count(*) FROM things").fetchone() == (1,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("ALTER TABLE things DISABLE TRIGGER ALL")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            application.execute("TRUNCATE things")


def test_one_role_for_both_is_left_as_it_is(urls):
    owner_url, _ = urls
    assert ensure_application_role(owner_url=owner_url, application_url=owner_url) is False
