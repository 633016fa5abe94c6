"""The API endpoint: who may call what, and which function answers. Sessions, search and views are answered here."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyVmomi import vim, vmodl

from agent.simulator.collector_methods import CollectorMethods
from agent.simulator.hardware import reference
from agent.simulator.inventory import SESSION_MANAGER, Inventory, Properties
from agent.simulator.property_collector import typed
from agent.simulator.sessions import Session, Sessions
from agent.simulator.site import Site
from agent.simulator.soap import ROOT, Fault, Request
from agent.simulator.tasks import Tasks
from agent.simulator.vm_methods import VmMethods

Method = Callable[..., Any]
"""Takes the target, the session (of open methods: the caller), and the API's own arguments by name."""


@dataclass
class Caller:
    """Who sent a request; `session_key` comes from its cookie, and is what the reply's cookie is to say."""

    address: str
    user_agent: str
    session_key: str = ""


class View:
    """A ContainerView: the entities of some types inside a container."""

    def __init__(self, inventory: Inventory, container: Any, types: list[Any], recursive: bool) -> None:
        self._inventory, self._container = inventory, container
        self._types, self._recursive = tuple(types) or (vim.ManagedEntity,), recursive

    def properties(self) -> Properties:
        """As the PropertyCollector reads it."""
        return {"container": lambda: self._container, "view": self._contents}

    def _contents(self) -> list[Any]:
        below = self._inventory.below if self._recursive else self._inventory.children
        return [entity for entity in below(self._container) if isinstance(entity, self._types)]


class Service:
    """Answers requests, from any thread."""

    def __init__(self, site: Site) -> None:
        self.sessions = Sessions(site.record.username, site.password)
        self._site = site
        tasks = Tasks(site)
        self._inventory = Inventory(site, tasks)
        self._open_methods: dict[str, Method] = {
            "RetrieveServiceContent": lambda target, caller: self._inventory.content(),
            "CurrentTime": lambda target, caller: datetime.now(UTC),
            "Login": self._login,
        }
        self._methods: dict[str, Method] = {
            "Logout": lambda target, session: self.sessions.end(session.key),
            "SessionIsActive": self._session_is_active,
            "FindByUuid": self._find_by_uuid,
            "FindAllByUuid": self._find_all_by_uuid,
            "CreateContainerView": self._create_container_view,
            "DestroyView": lambda target, session: session.destroy(target._moId),
            **CollectorMethods(site, self._properties).table(),
            **VmMethods(site, self._inventory, tasks).table(),
        }

    def answer(self, request: Request, caller: Caller) -> Any:
        """The method's result; raises Fault."""
        self._site.calls.add(request.method, request.target._moId)
        scripted = self._site.faults.take(request.method)
        if scripted is not None:
            raise Fault(scripted)
        if request.method in self._open_methods:
            return self._open_methods[request.method](request.target, caller, **request.arguments)
        session = self.sessions.find(caller.session_key)
        if request.method == "Fetch":
            return self._fetch(request, session)
        if session is None:
            raise _not_authenticated(request.target)
        if request.method not in self._methods:
            raise Fault(vmodl.fault.NotSupported(msg=f"{request.method} is not simulated."))
        return self._methods[request.method](request.target, session, **request.arguments)

    def _fetch(self, request: Request, session: Session | None) -> Any:
        """One property; before login only the service's content, and that nobody is logged in."""
        target, name = request.target, request.arguments["prop"]
        if session is None:
            if (target._moId, name) == (SESSION_MANAGER._moId, "currentSession"):
                return None
            if (target._moId, name) != (ROOT._moId, "content"):
                raise _not_authenticated(target)
            return self._inventory.content()
        properties = self._properties(session, target)
        return typed(properties[name](), request.result_type) if name in properties else None

    def _properties(self, session: Session, target: Any) -> Properties:
        """What is known of an object, as this session sees it; raises Fault with ManagedObjectNotFound."""
        held = session.objects.get(target._moId)
        if isinstance(held, View):
            return held.properties()
        if target._moId == SESSION_MANAGER._moId:
            everybody = self.sessions.all
            return {
                "currentSession": session.describe,
                "sessionList": lambda: [other.describe() for other in everybody()],
            }
        return self._inventory.properties(target)

    def _login(self, target: Any, caller: Caller, userName: str, password: str, locale: str | None) -> Any:
        session = self.sessions.login(userName, password, caller.address, caller.user_agent)
        caller.session_key = session.key
        return session.describe()

    def _session_is_active(self, target: Any, session: Session, sessionID: str, userName: str) -> bool:
        return any(other.key == sessionID for other in self.sessions.all())

    def _find_by_uuid(self, target: Any, session: Session, **arguments: Any) -> Any | None:
        return next(iter(self._find_all_by_uuid(target, session, **arguments)), None)

    def _find_all_by_uuid(
        self,
        target: Any,
        session: Session,
        datacenter: Any,
        uuid: str,
        vmSearch: bool,
        instanceUuid: bool | None,
    ) -> list[Any]:
        wanted = uuid.lower() if vmSearch else None
        return [
            reference(vm)
            for vm in self._site.vms
            if wanted == (vm.record.instance_uuid if instanceUuid else vm.record.uuid)
        ]

    def _create_container_view(
        self, target: Any, session: Session, container: Any, type: list[Any], recursive: bool
    ) -> Any:
        self._inventory.properties(container)
        moref = f"session[{session.key[:8]}]view-{self._site.next_number()}"
        session.objects[moref] = View(self._inventory, container, type, recursive)
        return vim.view.ContainerView(moref, None)


def _not_authenticated(target: Any) -> Fault:
    message = "The session is not authenticated."
    return Fault(vim.fault.NotAuthenticated(object=target, privilegeId="System.View", msg=message))
