"""The tree of errors. Each class knows its gRPC status, its stable reason, and whether trying again can help.

    SendenseError                      INTERNAL
    ├── InvalidRequest                 INVALID_ARGUMENT      the request itself is wrong, whatever the state
    ├── NotFound                       NOT_FOUND
    ├── AlreadyExists                  ALREADY_EXISTS
    ├── NotPossibleNow                 FAILED_PRECONDITION   the state forbids it
    │   ├── VmBusy · NoUsableParent · VersionMismatch · NotBackupable · CbtLost
    ├── Conflict                       ABORTED               a race was lost; read again and retry
    ├── NotAuthenticated               UNAUTHENTICATED
    ├── NotPermitted                   PERMISSION_DENIED
    ├── LimitReached                   RESOURCE_EXHAUSTED
    │   └── RepositoryFull
    ├── Unavailable                    UNAVAILABLE           retry helps
    │   ├── AgentUnavailable · RepositoryUnavailable · SourceUnavailable
    ├── TimedOut                       DEADLINE_EXCEEDED
    ├── Cancelled                      CANCELLED
    └── DataLoss                       DATA_LOSS             bytes are not what they should be
        ├── DigestMismatch · CoverageIncomplete · ReadFailed

Foreign errors are translated once, at their door, with `raise … from error`. Facts travel as keyword arguments and
become ErrorInfo metadata; no secret may be among them.
"""

from collections.abc import Iterator


class SendenseError(Exception):
    """Base of all errors of this software; `message` says what was wrong, where, and what to do."""

    status = "INTERNAL"
    reason = "INTERNAL"
    retry_helps = False

    def __init__(self, message: str, *, field: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        """Path of the request field at fault, in proto spelling, or ''."""
        self.facts = {name: str(value) for name, value in facts.items()}


class InvalidRequest(SendenseError):
    """The request can never work as it is; `field` names what is wrong with it."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"


class NotFound(SendenseError):
    """The named thing does not exist."""

    status = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(SendenseError):
    """The name is taken."""

    status = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class NotPossibleNow(SendenseError):
    """The request is right, the present state forbids it."""

    status = "FAILED_PRECONDITION"
    reason = "NOT_POSSIBLE_NOW"


class VmBusy(NotPossibleNow):
    """A backup of this VM is under way: one at a time."""

    reason = "VM_BUSY"


class NoUsableParent(NotPossibleNow):
    """An incremental backup was asked for and no restore point can be its parent."""

    reason = "NO_USABLE_PARENT"


class VersionMismatch(NotPossibleNow):
    """Hub and agent are of versions that cannot work together."""

    reason = "VERSION_MISMATCH"


class NotBackupable(NotPossibleNow):
    """The VM cannot be backed up as it is (a template, no disk that a snapshot captures)."""

    reason = "NOT_BACKUPABLE"


class CbtLost(NotPossibleNow):
    """Change tracking cannot tell what changed, and policy `on_cbt_loss = fail` forbids a full instead."""

    reason = "CBT_LOST"


class Conflict(SendenseError):
    """Somebody else changed the same thing first."""

    status = "ABORTED"
    reason = "CONFLICT"
    retry_helps = True


class NotAuthenticated(SendenseError):
    """Who is calling could not be proven."""

    status = "UNAUTHENTICATED"
    reason = "NOT_AUTHENTICATED"


class NotPermitted(SendenseError):
    """The caller may not do this."""

    status = "PERMISSION_DENIED"
    reason = "NOT_PERMITTED"


class LimitReached(SendenseError):
    """A configured or physical limit is reached."""

    status = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_REACHED"


class RepositoryFull(LimitReached):
    """The repository has no room for what was to be written."""

    reason = "REPOSITORY_FULL"


class Unavailable(SendenseError):
    """Something needed does not answer now."""

    status = "UNAVAILABLE"
    reason = "UNAVAILABLE"
    retry_helps = True


class AgentUnavailable(Unavailable):
    """The VM's agent is not connected, or was lost."""

    reason = "AGENT_UNAVAILABLE"


class RepositoryUnavailable(Unavailable):
    """The repository's folder is missing, is another repository, or refuses writes."""

    reason = "REPOSITORY_UNAVAILABLE"


class SourceUnavailable(Unavailable):
    """vCenter, an ESXi host or nbdkit does not answer as it should."""

    reason = "SOURCE_UNAVAILABLE"


class TimedOut(SendenseError):
    """A limit of time was passed."""

    status = "DEADLINE_EXCEEDED"
    reason = "TIMED_OUT"


class Cancelled(SendenseError):
    """Somebody asked for it to stop."""

    status = "CANCELLED"
    reason = "CANCELLED"


class DataLoss(SendenseError):
    """Bytes are missing or not what they should be."""

    status = "DATA_LOSS"
    reason = "DATA_LOSS"


class DigestMismatch(DataLoss):
    """A cluster's bytes do not have the digest recorded for them."""

    reason = "DIGEST_MISMATCH"


class CoverageIncomplete(DataLoss):
    """The pages of changed areas do not tile the disk: what they leave out is unknown."""

    reason = "COVERAGE_INCOMPLETE"


class ReadFailed(DataLoss):
    """A read of a disk failed for good."""

    reason = "READ_FAILED"


def error_classes(root: type[SendenseError] = SendenseError) -> Iterator[type[SendenseError]]:
    """Every class of the tree, root first."""
    yield root
    for branch in root.__subclasses__():
        yield from error_classes(branch)


def error_for(reason: str, status: str, message: str) -> SendenseError:
    """The error a peer sent: its class by reason, else by status, else the root."""
    tree = list(error_classes())
    for candidate in tree:
        if candidate.reason == reason:
            return candidate(message)
    for candidate in tree:
        if candidate.status == status:
            return candidate(message)
    return SendenseError(message)
