"""SQLAlchemy's errors, translated at this door. Only the database's own words go on: no SQL, no passwords."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import exc
from sqlalchemy.orm.exc import StaleDataError

from shared.errors import (
    AlreadyExists,
    Conflict,
    InvalidRequest,
    NotPossibleNow,
    SendenseError,
    Unavailable,
)

# What MariaDB calls it by number, SQLite calls by words.
NOT_UNIQUE, NOT_UNIQUE_SQLITE = 1062, "UNIQUE constraint failed"

CHECK_FAILED = 4025
"""MariaDB's number for a violated CHECK, which its driver does not know and calls operational."""


@contextmanager
def translated() -> Iterator[None]:
    """Turn what SQLAlchemy raises inside the `with` into an error of this software."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _translation(error) from error
    except exc.TimeoutError as error:
        raise Unavailable("the catalogue is busy: no connection became free") from error
    except StaleDataError as error:
        raise Conflict("somebody else changed the same thing first") from error
    except exc.SQLAlchemyError as error:
        raise SendenseError(f"the catalogue failed: {type(error).__name__}") from error


def _translation(error: exc.DBAPIError) -> SendenseError:
    words = str(error.orig)
    number = error.orig.args[0] if error.orig and error.orig.args else None
    if number == NOT_UNIQUE or words.startswith(NOT_UNIQUE_SQLITE):
        return AlreadyExists(f"the catalogue has this already: {words}")
    if isinstance(error, exc.IntegrityError) or number == CHECK_FAILED:
        return NotPossibleNow(f"other rows of the catalogue stand against it: {words}")
    if isinstance(error, exc.DataError):
        return InvalidRequest(f"the catalogue cannot hold this value: {words}")
    if isinstance(error, exc.OperationalError | exc.InterfaceError | exc.InternalError):
        return Unavailable(f"the catalogue does not answer: {words}")
    return SendenseError(f"the catalogue failed: {words}")
