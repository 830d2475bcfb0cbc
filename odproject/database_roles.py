"""Two roles for one database: one owns the tables, the other works with their rows.

The application connects as the second, so that nobody who takes it over can drop the triggers
that keep the ledger append-only.
"""

from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql


def let_application_work(
    connection: psycopg.Connection, *, owner_role: str, application_role: str
) -> None:
    """Let a role work with the rows of every table of the owner, of today and of tomorrow."""
    owner, application = sql.Identifier(owner_role), sql.Identifier(application_role)
    for privileges, objects in (
        ("SELECT, INSERT, UPDATE, DELETE", "TABLES"),
        ("USAGE, SELECT", "SEQUENCES"),
    ):
        grant = sql.SQL("GRANT {} ON {} TO {}")
        for_all = sql.SQL("ALL {} IN SCHEMA public").format(sql.SQL(objects))
        connection.execute(grant.format(sql.SQL(privileges), for_all, application))
        connection.execute(
            sql.SQL("ALTER DEFAULT PRIVILEGES FOR ROLE {} ").format(owner)
            + grant.format(sql.SQL(privileges), sql.SQL(objects), application)
        )


def ensure_application_role(*, owner_url: str, application_url: str) -> bool:
    """Make the role that `application_url` names, with its password, and let it work.

    Returns False where both addresses name one role, which then owns its tables. Runs again
    without harm. Raises psycopg.Error when the owner may not make roles.
    """
    owner, application = urlsplit(owner_url), urlsplit(application_url)
    owner_role, application_role = (
        unquote(owner.username or ""),
        unquote(application.username or ""),
    )
    if not application_role or application_role == owner_role:
        return False
    with psycopg.connect(owner_url, autocommit=True) as connection:
        known = connection.execute(
            "SELECT 1 FROM pg_roles WHERE rolname = %s", [application_role]
        ).fetchone()
        statement = (
            "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
        )
        connection.execute(
            sql.SQL(statement).format(
                sql.Identifier(application_role), sql.Literal(unquote(application.password or ""))
            )
        )
        let_application_work(connection, owner_role=owner_role, application_role=application_role)
    return True
