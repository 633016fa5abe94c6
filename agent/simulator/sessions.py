"""Who is logged in, and what each session holds: views, collectors, filters."""

import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim

from agent.simulator.soap import Fault


@dataclass
class Session:
    """A login; `objects` are the managed objects that live and die with it, by reference."""

    key: str
    username: str
    address: str
    user_agent: str
    login_time: datetime
    last_active: datetime
    calls: int = 0
    objects: dict[str, Any] = field(default_factory=dict)

    def destroy(self, moref: str) -> None:
        """Forget a managed object of this session; one that is gone already is no error."""
        self.objects.pop(moref, None)

    def describe(self) -> Any:
        """As vim.UserSession."""
        return vim.UserSession(
            key=self.key,
            userName=self.username,
            fullName=self.username,
            loginTime=self.login_time,
            lastActiveTime=self.last_active,
            locale="en",
            messageLocale="en",
            extensionSession=False,
            ipAddress=self.address,
            userAgent=self.user_agent,
            callCount=self.calls,
        )


class Sessions:
    """All sessions of the site."""

    def __init__(self, username: str, password: str) -> None:
        self._login = (username, password)
        self._sessions: dict[str, Session] = {}

    def login(self, username: str, password: str, address: str, user_agent: str) -> Session:
        """Begin a session; raises Fault with InvalidLogin."""
        if (username, password) != self._login:
            message = "Cannot complete login due to an incorrect user name or password."
            raise Fault(vim.fault.InvalidLogin(msg=message))
        now = datetime.now(UTC)
        session = Session(secrets.token_hex(20), username, address, user_agent, now, now)
        self._sessions[session.key] = session
        return session

    def find(self, key: str) -> Session | None:
        """The session of this key, noted as active now."""
        session = self._sessions.get(key)
        if session is not None:
            session.last_active = datetime.now(UTC)
            session.calls += 1
        return session

    def all(self) -> list[Session]:
        """Those logged in."""
        return list(self._sessions.values())

    def end(self, key: str) -> None:
        """Log a session out; unknown ones are no error."""
        self._sessions.pop(key, None)

    def expire_all(self) -> None:
        """What vCenter does to sessions idle for half an hour, at once and to all."""
        self._sessions.clear()
