"""TaskService."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from hub.backups import Backups
from hub.catalogue import backups, tasks, vms
from hub.catalogue.engine import Catalogue
from hub.catalogue.states import UNFINISHED_TASK
from hub.catalogue.tasks import Task, TaskFilter
from hub.rpc import messages, paging
from hub.rpc.names import id_in
from sendense.v1 import task_pb2, task_pb2_grpc
from shared.errors import NotFound

WATCH_PERIOD = 0.5
"""Seconds between two looks at a watched task. Looking is what works with several hubs on one catalogue."""

EVENTS_AT_ONCE = 200


class TaskService(task_pb2_grpc.TaskServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, catalogue: Catalogue, running: Backups) -> None:
        self._catalogue = catalogue
        self._backups = running

    async def GetTask(self, request: task_pb2.GetTaskRequest, context: Any) -> task_pb2.Task:
        async with self._catalogue.reading() as session:
            found = await tasks.get(session, id_in(request.name, "tasks"))
        return (await self._packed([found]))[0]

    async def ListTasks(self, request: task_pb2.ListTasksRequest, context: Any) -> task_pb2.ListTasksResponse:
        size = paging.page_size(request)
        which = TaskFilter(state=messages.asked_state(request.state), vm_id=request.vm_id or None)
        async with self._catalogue.reading() as session:
            found = await tasks.list_tasks(session, which, limit=size + 1, before=paging.after(request))
        page = found[:size]
        following = paging.token(request, page[-1].id) if len(found) > size else ""
        return task_pb2.ListTasksResponse(tasks=await self._packed(page), next_page_token=following)

    async def CancelTask(self, request: task_pb2.CancelTaskRequest, context: Any) -> task_pb2.Task:
        task_id = id_in(request.name, "tasks")
        async with self._catalogue.reading() as session:
            await tasks.get(session, task_id)
            backup = await backups.of_task(session, task_id)
        if backup is None:
            raise NotFound(f"there is no backup of task {task_id}")
        await self._backups.cancel(backup.id)
        return await self.GetTask(task_pb2.GetTaskRequest(name=request.name), context)

    async def WatchTask(
        self, request: task_pb2.WatchTaskRequest, context: Any
    ) -> AsyncIterator[task_pb2.WatchTaskResponse]:
        task_id, reached = id_in(request.name, "tasks"), request.after_event
        shown: Task | None = None
        while True:
            async with self._catalogue.reading() as session:
                task = await tasks.get(session, task_id)
                events = await tasks.list_events(session, task_id, after_number=reached, limit=EVENTS_AT_ONCE)
            if events or task != shown:
                (packed,) = await self._packed([task])
                yield task_pb2.WatchTaskResponse(task=packed, events=[messages.event(event) for event in events])
            shown, reached = task, events[-1].number if events else reached
            if len(events) == EVENTS_AT_ONCE:
                continue
            if task.state not in UNFINISHED_TASK:
                return
            await asyncio.sleep(WATCH_PERIOD)

    async def _packed(self, found: Sequence[Task]) -> list[task_pb2.Task]:
        async with self._catalogue.reading() as session:
            names = await vms.names(session, {task.vm_id for task in found if task.vm_id})
            by_task = await backups.ids_of_tasks(session, [task.id for task in found])
        return [messages.task(task, names.get(task.vm_id or "", ""), by_task.get(task.id, "")) for task in found]
