"""What PostgreSQL says it cannot do now, whatever the statement (its appendix A, error codes)."""

from django.db import InterfaceError, OperationalError

_OF_THE_SYSTEM = ("53", "58")  # insufficient resources, such as a full disk; system errors
_READ_ONLY = "25006"  # read_only_sql_transaction: a standby, or an administrator's emergency brake


def is_refused_by_database(error: BaseException) -> bool:
    """Whether the database lacks room or takes no writes: not the statement's fault."""
    state = getattr(error.__cause__, "sqlstate", None) or ""
    return state.startswith(_OF_THE_SYSTEM) or state == _READ_ONLY


def is_away(error: BaseException) -> bool:
    """Whether the database does not answer, or has no room, or takes no writes."""
    return isinstance(error, OperationalError | InterfaceError) or is_refused_by_database(error)
