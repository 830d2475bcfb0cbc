"""How the database would answer a query."""

from django.db import connection


def index_plan_of(sql: str) -> str:
    """The plan of a query where no table may be looked through as a whole."""
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(f"EXPLAIN {sql}")
        return "\n".join(line for (line,) in cursor.fetchall())
