"""The agent at work: every object built by hand, the control stream kept open, VMs reported, leftovers reaped.

The control stream is opened again, with growing pauses, whenever it breaks; tasks go on meanwhile.
"""

import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from agent.backup import Site, Slots
from agent.config import AgentSettings
from agent.hub_client import Cancellation, ControlStream, HubClient
from agent.identity import Identity
from agent.tasks import Tasks
from agent.vsphere.inventory import inventory
from agent.vsphere.ledger import Ledger
from agent.vsphere.session import VSphereSession, connect
from agent.vsphere.snapshot import reap
from sendense import __version__
from shared import logs
from shared.errors import SendenseError

FIRST_PAUSE = 1.0
"""Seconds before the first new attempt to reach the hub or vCenter."""

LONGEST_PAUSE = 30.0

FAILURE_PAUSE = 30.0
"""Seconds after which something done now and again is tried once more when it failed, if its turn is not sooner."""

log = logs.get(__name__)


def serve(settings: AgentSettings, identity: Identity, stop: threading.Event) -> None:
    """Run until `stop` is set; then tasks are stopped, their snapshots removed.

    Raises at start what no second attempt would mend, such as a wrong password or certificate of vCenter.
    """
    vsphere = _connected(settings, stop)
    if vsphere is None:
        return
    with vsphere, HubClient(identity) as hub, ThreadPoolExecutor(os.cpu_count(), "encode") as encoders:
        tasks = Tasks(settings.backup.max_vms)
        site = Site(
            settings=settings,
            vsphere=vsphere,
            hub=hub,
            ledger=Ledger(settings.state_dir / "snapshots.json"),
            agent_id=identity.agent_id,
            encoders=encoders,
            disk_slots=Slots(settings.backup.max_disks),
            active_tasks=tasks.active,
        )
        _beside("reaper", partial(_reap, site), stop)
        with ThreadPoolExecutor(1, "control") as thread:
            control = thread.submit(_Connection(site, tasks, stop).keep_open)
            control.add_done_callback(lambda _: stop.set())  # without it this is no agent any more
            stop.wait()
            log.info("agent is stopping")
            tasks.close()
            hub.close()
        control.result()


def _connected(settings: AgentSettings, stop: threading.Event) -> VSphereSession | None:
    """A session with vCenter, waited for while it does not answer; None when `stop` was set first."""
    pause = FIRST_PAUSE
    while not stop.is_set():
        try:
            return connect(settings.vcenter)
        except SendenseError as error:
            # Not for a refused password: asking again and again would lock the account.
            if not error.retry_helps:
                raise
            log.warning("vCenter is not available; trying again", error=error.message, seconds=pause)
        stop.wait(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
    return None


def _reap(site: Site) -> float:
    """Remove what was left behind, in seconds or hours: vCenter may have to merge much; returns when to do so again."""
    vcenter = site.settings.vcenter
    reap(site.vsphere, site.ledger, site.agent_id, site.active_tasks, timeout=vcenter.snapshot_timeout)
    return vcenter.reap_interval


def _beside(name: str, action: Callable[[], float], ended: threading.Event) -> None:
    """Do something now, and again after as many seconds as it returns, in a thread of its own, until `ended`."""

    def again_and_again() -> None:
        while not ended.is_set():
            try:
                pause = action()
            except Exception:  # the thread's last resort: one odd VM must not silence it for good
                log.exception("something went wrong unexpectedly; trying again", thread=name, seconds=FAILURE_PAUSE)
                pause = FAILURE_PAUSE
            ended.wait(pause)

    threading.Thread(target=again_and_again, name=name, daemon=True).start()


class _Connection:
    """The control stream, one after the other."""

    def __init__(self, site: Site, tasks: Tasks, stop: threading.Event) -> None:
        self._site = site
        self._tasks = tasks
        self._stop = stop
        self._pause = FIRST_PAUSE

    def keep_open(self) -> None:
        """Open the stream whenever there is none, until `stop` is set and the connection closed."""
        while not self._stop.is_set():
            try:
                self._serve(self._site.hub.control(__version__, socket.gethostname(), self._tasks.ids()))
            except SendenseError as error:
                if self._stop.is_set():
                    return
                log.warning("no control stream", reason=error.reason, error=error.message, again_in=self._pause)
            self._stop.wait(self._pause)
            self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _serve(self, stream: ControlStream) -> None:
        """Do what the hub says on one stream, until it ends."""
        log.info("connected to the hub", name=stream.welcome.display_name, hub_version=stream.welcome.hub_version)
        self._pause = FIRST_PAUSE
        self._tasks.attach(stream)
        ended = threading.Event()
        try:
            _beside("heartbeat", partial(self._heartbeat, stream), ended)
            _beside("inventory", partial(self._report_inventory, ended), ended)
            for message in stream:
                if isinstance(message, Cancellation):
                    self._tasks.cancel(message.task_id, message.reason)
                else:
                    self._tasks.start(self._site, message)
        finally:
            ended.set()
            self._tasks.attach(None)
            stream.close()

    def _heartbeat(self, stream: ControlStream) -> float:
        stream.heartbeat(self._tasks.counts())
        return stream.welcome.heartbeat_interval

    def _report_inventory(self, ended: threading.Event) -> float:
        """Report all VMs, unless the stream ended meanwhile: the next one's report must not be followed by an older."""
        vsphere, interval = self._site.vsphere, self._site.settings.inventory.interval
        try:
            # All of it first: what vCenter takes its time for is not the hub's time.
            vms = list(inventory(vsphere))
            if ended.is_set() or self._stop.is_set():
                return interval
            refused = self._site.hub.report_inventory(vsphere.vcenter_id, vms)
        except SendenseError as error:
            log.warning("the inventory was not reported", reason=error.reason, error=error.message)
            return min(FAILURE_PAUSE, interval)
        for vm_id in refused:
            log.warning("another vCenter has a VM of this instance UUID; it cannot be backed up here", vm=vm_id)
        return interval
