"""Tasks: what a `…_Task` method starts, and how it ended."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pyVmomi import VmomiSupport, vim

from agent.simulator.machine import VirtualMachine
from agent.simulator.site import Site
from agent.simulator.soap import NAMESPACE, Fault

KEPT = 1000
"""Tasks remembered; vCenter forgets them too."""


class Tasks:
    """Runs host operations in threads, one at a time per VM."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._infos: dict[str, Any] = {}
        self._lock = threading.Lock()

    def info(self, moref: str) -> Any | None:
        """The vim.TaskInfo of a task, or None when there is none (any more)."""
        return self._infos.get(moref)

    def all(self) -> list[str]:
        """References of the tasks remembered, oldest first."""
        with self._lock:
            return list(self._infos)

    def start(self, method: str, vm: VirtualMachine, username: str, work: Callable[[], Any]) -> Any:
        """Begin a task that ends with what `work` returns, or with the Fault it raises; gives its reference."""
        moref = f"task-{self._site.next_number()}"
        task = vim.Task(moref, None)
        info = vim.TaskInfo(
            key=moref,
            task=task,
            name=VmomiSupport.GetWsdlMethod(NAMESPACE, method),
            descriptionId=f"VirtualMachine.{method.removesuffix('_Task')}",
            entity=vim.VirtualMachine(vm.record.moref, None),
            entityName=vm.name,
            state=vim.TaskInfo.State.queued,
            cancelled=False,
            cancelable=False,
            reason=vim.TaskReasonUser(userName=username),
            queueTime=datetime.now(UTC),
            eventChainId=self._site.next_number(),
        )
        with self._lock:
            self._infos[moref] = info
            while len(self._infos) > KEPT:
                del self._infos[next(iter(self._infos))]
        threading.Thread(target=self._run, args=(method, vm, info, work), name=moref, daemon=True).start()
        return task

    def _run(self, method: str, vm: VirtualMachine, info: Any, work: Callable[[], Any]) -> None:
        with vm.busy:
            self._update(info, state=vim.TaskInfo.State.running, startTime=datetime.now(UTC), progress=0)
            try:
                self._raise_scripted(method)
                result = work()
            except Fault as error:
                end = {"state": vim.TaskInfo.State.error, "error": error.fault}
            except OSError as error:
                fault = vim.fault.FileFault(file=str(error.filename), msg=f"The simulator's disk: {error}")
                end = {"state": vim.TaskInfo.State.error, "error": fault}
            else:
                end = {"state": vim.TaskInfo.State.success, "result": result, "progress": 100}
        self._update(info, completeTime=datetime.now(UTC), **end)

    def _raise_scripted(self, method: str) -> None:
        fault = self._site.faults.take(method, in_task=True)
        if fault is not None:
            raise Fault(fault)

    def _update(self, info: Any, **fields: Any) -> None:
        # The state last: who sees a task ended also sees its result.
        for name in sorted(fields, key=lambda name: name == "state"):
            setattr(info, name, fields[name])
        with self._site.changed:
            self._site.changed.notify_all()
