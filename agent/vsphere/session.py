"""A session with one vCenter: certificate pinned, kept alive, logged in again when vCenter has dropped it.

One session serves all threads: each call takes its own connection from a pool, and the login is under a lock.
"""

from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from pyVim.connect import SmartStubAdapter, VimSessionOrientedStub
from pyVmomi import vim

from agent.config import VCenterSection
from agent.vsphere.certificate import pin
from agent.vsphere.faults import BROKEN_CALL, translated
from shared import logs
from shared.config import read_secret
from shared.errors import NotAuthenticated, SendenseError, SourceUnavailable

CONNECTIONS = 8
"""Idle connections kept; calls beyond that open their own."""

IDLE_LIMIT = 30
"""Seconds after which an idle connection is not used again: vCenter's proxy closes them without a word."""

LOGIN_TRIES = 3
"""How often a call is sent that vCenter refuses for want of a login: a thread that answers late may have replaced the
cookie of a login that another has just made."""

log = logs.get(__name__)


def connect(settings: VCenterSection) -> "VSphereSession":
    """Log in. Close the session when done; it is a context manager.

    Raises SourceUnavailable when vCenter does not answer, NotAuthenticated when its certificate is not the pinned
    one or when it refuses the account, ConfigError when the password file cannot be read.
    """
    pinned = pin(settings.server, settings.port, settings.thumbprint, settings.request_timeout)
    with translated(f"logging in to vCenter {settings.server}:{settings.port}"):
        stub = _Stub(_soap(settings, pinned.context), settings)
        content = vim.ServiceInstance("ServiceInstance", stub).RetrieveContent()
    return VSphereSession(stub, content, settings.keep_alive, pinned.sha1)


class VSphereSession:
    """A logged-in session; made by `connect`."""

    def __init__(self, stub: "_Stub", content: Any, keep_alive: float, thumbprint_sha1: str) -> None:
        self._stub = stub
        self._keep_alive_interval = keep_alive
        self._closed = Event()
        self.content = content
        """vCenter's ServiceContent: its property collector, search index and so on."""
        self.thumbprint_sha1 = thumbprint_sha1
        """SHA-1 of the pinned certificate, for VDDK."""
        Thread(target=self._keep_alive, name="vcenter-keep-alive", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def vcenter_id(self) -> str:
        """Instance UUID of the vCenter."""
        return str(self.content.about.instanceUuid)

    def object(self, kind: Any, moref: str) -> Any:
        """The managed object of a class of `vim` by its reference; nothing is asked of vCenter."""
        return kind(moref, self._stub)

    def renew(self) -> None:
        """Give this login up; the next call, of whichever thread, makes a new one."""
        with translated("logging out of vCenter"):
            self._stub.give_up(self.content.sessionManager.Logout)

    def close(self) -> None:
        """Log out; never raises, never hides an earlier error, may be called twice."""
        if self._closed.is_set():
            return
        self._closed.set()
        with suppress(SendenseError), translated("logging out"):
            self.content.sessionManager.Logout()
        self._stub.DropConnections()

    def _keep_alive(self) -> None:
        while not self._closed.wait(self._keep_alive_interval):
            try:
                with translated("keeping the vCenter session alive"):
                    self.object(vim.ServiceInstance, "ServiceInstance").CurrentTime()
            except SendenseError as error:
                log.warning("vCenter did not answer a sign of life; trying again", error=error.message)


class _Stub(VimSessionOrientedStub):  # type: ignore[misc]  # pyVmomi has no types
    """Sends calls, and logs in again when vCenter says that the session is gone.

    Unlike its base class it never sends a changing call twice when an answer is lost: vCenter may have carried the
    first one out, and a second CreateSnapshot would leave a second snapshot behind.
    """

    def __init__(self, soap: Any, settings: VCenterSection) -> None:
        super().__init__(soap, self._send_login, retryCount=0)
        self._settings = settings

    def give_up(self, log_out: Callable[[], object]) -> None:
        """End the present login."""
        used = self.soapStub.sessionId
        log_out()
        self._lost(used)

    def InvokeMethod(self, mo: Any, info: Any, args: Any) -> Any:
        """Called by pyVmomi for every method and property."""
        changes_something = info.wsdlName.endswith("_Task")
        if changes_something:
            # A pooled connection may be dead without our knowing; a call sent only once deserves a fresh one.
            self.soapStub.DropConnections()
        try:
            return self._invoke(mo, info, args)
        except BROKEN_CALL:
            if changes_something:
                raise
            return self._invoke(mo, info, args)

    def _invoke(self, mo: Any, info: Any, args: Any) -> Any:
        for _ in range(LOGIN_TRIES):
            self._log_in_if_lost()
            used = self.soapStub.sessionId
            status, answer = self.soapStub.InvokeMethod(mo, info, args, self)
            if not isinstance(answer, vim.fault.NotAuthenticated):
                break
            # vCenter says so before it does anything, so any call may be sent again.
            log.info("vCenter has dropped the session; logging in again", method=info.wsdlName)
            self._lost(used)
        if status != 200:
            raise answer
        return answer

    def _log_in_if_lost(self) -> None:
        if self.state == self.STATE_UNAUTHENTICATED:
            self._CallLoginMethod()

    def _lost(self, session_id: str | None) -> None:
        """Forget the login that a call was sent with, unless another thread has replaced it by now."""
        with self.lock:
            if self.soapStub.sessionId == session_id:
                self.state = self.STATE_UNAUTHENTICATED

    def _send_login(self, soap: Any) -> None:
        soap.SetSessionId(None)
        manager: Any = vim.ServiceInstance("ServiceInstance", soap).RetrieveContent().sessionManager
        try:
            # Read anew each time: a changed password takes effect, and none is kept in memory.
            manager.Login(self._settings.username, read_secret(self._settings.password_file), None)
        except vim.fault.InvalidLogin as fault:
            raise NotAuthenticated(
                f"vCenter {self._settings.server} refuses the login of {self._settings.username}: check [vcenter] "
                f"username and the password in {self._settings.password_file}",
                server=self._settings.server,
            ) from fault


def _soap(settings: VCenterSection, context: Any) -> Any:
    try:
        return SmartStubAdapter(
            host=settings.server,
            port=settings.port,
            sslContext=context,  # always given: without it pyVmomi verifies nothing on loopback
            poolSize=CONNECTIONS,
            connectionPoolTimeout=IDLE_LIMIT,
            httpConnectionTimeout=settings.request_timeout,
        )
    except (OSError, HTTPException):
        raise
    except Exception as error:  # pyVmomi raises a bare one where nothing speaks vSphere's API
        raise SourceUnavailable(
            f"what answers at {settings.server}:{settings.port} is not a vCenter, or one that is still starting",
            server=settings.server,
        ) from error
