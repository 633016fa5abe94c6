"""Connected agents: a control stream each, what waits to be sent on it, and when the agent was last heard."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hub.catalogue.disks import DiskIdentity
from hub.catalogue.states import BackupType
from shared.errors import AgentUnavailable


@dataclass(frozen=True, slots=True)
class DiskBase:
    """A disk's newest restore point, to go on from."""

    disk: DiskIdentity
    image_id: str
    change_id: str
    capacity: int


@dataclass(frozen=True, slots=True)
class BackupOrder:
    """Make a backup of this VM."""

    task_id: str
    backup_id: str
    vm_id: str
    asked: BackupType
    bases: tuple[DiskBase, ...]
    time_limit: timedelta


@dataclass(frozen=True, slots=True)
class CancelOrder:
    """Stop this task."""

    task_id: str
    reason: str


Order = BackupOrder | CancelOrder


@dataclass(slots=True)
class Session:
    """One control stream of one agent."""

    agent_id: str
    _orders: "queue.SimpleQueue[Order | None]" = field(default_factory=queue.SimpleQueue)
    _last_heard: float = field(default_factory=time.monotonic)

    def send(self, order: Order) -> None:
        """Queue an order for the stream."""
        self._orders.put(order)

    def close(self) -> None:
        """End the stream from the hub's side."""
        self._orders.put(None)

    def orders(self) -> Iterator[Order]:
        """What is to be sent, as it comes, until the session is closed."""
        return iter(self._orders.get, None)

    def heard(self) -> None:
        """The agent gave a sign of life."""
        self._last_heard = time.monotonic()

    def silence(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self._last_heard

    def heard_at(self) -> datetime:
        """When the last sign of life came."""
        return datetime.now(UTC) - timedelta(seconds=self.silence())


class Agents:
    """The connected agents; safe to use from several threads."""

    def __init__(self, max_silence: float) -> None:
        """An agent not heard for `max_silence` seconds does not count as connected."""
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._max_silence = max_silence

    def connect(self, agent_id: str) -> Session:
        """Begin a session; an earlier one of the same agent ends."""
        session = Session(agent_id)
        with self._lock:
            earlier = self._sessions.get(agent_id)
            self._sessions[agent_id] = session
        if earlier is not None:
            earlier.close()
        return session

    def disconnect(self, session: Session) -> None:
        """End a session; a newer one of the same agent stays."""
        session.close()
        with self._lock:
            if self._sessions.get(session.agent_id) is session:
                del self._sessions[session.agent_id]

    def connected(self, agent_id: str) -> bool:
        """Whether orders would reach the agent."""
        session = self._session(agent_id)
        return session is not None and session.silence() < self._max_silence

    def heard_at(self, agent_id: str) -> datetime | None:
        """When the agent was last heard on its control stream; None when it has none."""
        session = self._session(agent_id)
        return session.heard_at() if session is not None else None

    def send(self, agent_id: str, order: Order) -> None:
        """Send an order; raises AgentUnavailable."""
        session = self._session(agent_id)
        if session is None:
            raise AgentUnavailable("the VM's agent is not connected to the hub", agent=agent_id)
        session.send(order)

    def close(self) -> None:
        """End all sessions."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.close()

    def _session(self, agent_id: str) -> Session | None:
        with self._lock:
            return self._sessions.get(agent_id)
