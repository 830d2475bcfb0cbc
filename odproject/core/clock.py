"""The database's clock: what processes on several hosts agree on about leases and silence."""

from datetime import datetime

from django.db import connection


def database_now() -> datetime:
    """The time of the database's host at this moment, within a transaction too; aware, in UTC."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now
