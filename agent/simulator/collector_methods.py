"""The API methods of PropertyCollector and its filters."""

from collections.abc import Callable
from typing import Any

from agent.simulator.inventory import PROPERTY_COLLECTOR, Properties, not_found
from agent.simulator.property_collector import (
    PC,
    Collector,
    Filter,
    Selected,
    content,
    select,
    wait_for_updates,
)
from agent.simulator.sessions import Session
from agent.simulator.site import Site


class CollectorMethods:
    """Reading properties, for any session."""

    def __init__(self, site: Site, properties: Callable[[Session, Any], Properties]) -> None:
        self._site = site
        self._properties = properties

    def table(self) -> dict[str, Callable[..., Any]]:
        """The methods by WSDL name."""
        return {
            "CreatePropertyCollector": self._create_collector,
            "DestroyPropertyCollector": lambda target, session: session.destroy(target._moId),
            "RetrieveProperties": self._retrieve_all,
            "RetrievePropertiesEx": self._retrieve,
            "ContinueRetrievePropertiesEx": self._continue,
            "CancelRetrievePropertiesEx": self._cancel,
            "CreateFilter": self._create_filter,
            "DestroyPropertyFilter": self._destroy_filter,
            "CheckForUpdates": lambda target, session, version: self._wait(target, session, version, 0.0),
            "WaitForUpdates": lambda target, session, version: self._wait(target, session, version, None),
            "WaitForUpdatesEx": self._wait_ex,
        }

    def _create_collector(self, target: Any, session: Session) -> Any:
        moref = f"session[{session.key[:8]}]collector-{self._site.next_number()}"
        session.objects[moref] = Collector()
        return PC(moref, None)

    def _collector(self, target: Any, session: Session) -> Collector:
        if target._moId == PROPERTY_COLLECTOR._moId:
            session.objects.setdefault(target._moId, Collector())
        collector = session.objects.get(target._moId)
        if not isinstance(collector, Collector):
            raise not_found(target)
        return collector

    def _retrieve_all(self, target: Any, session: Session, specSet: list[Any]) -> list[Any]:
        return self._contents(session, self._select(session, specSet))

    def _retrieve(self, target: Any, session: Session, specSet: list[Any], options: Any) -> Any | None:
        limit = options.maxObjects if options else None
        selected = self._select(session, specSet)
        return self._page(session, *self._collector(target, session).first_page(selected, limit))

    def _continue(self, target: Any, session: Session, token: str) -> Any:
        return self._page(session, *self._collector(target, session).next_page(token))

    def _cancel(self, target: Any, session: Session, token: str) -> None:
        self._collector(target, session).next_page(token)

    def _select(self, session: Session, specs: list[Any]) -> list[Selected]:
        return [item for spec in specs for item in select(spec, lambda target: self._properties(session, target))]

    def _page(self, session: Session, selected: list[Selected], token: str | None) -> Any | None:
        if not selected:
            return None
        return PC.RetrieveResult(token=token, objects=self._contents(session, selected))

    def _contents(self, session: Session, selected: list[Selected]) -> list[Any]:
        return [content(item, lambda target: self._properties(session, target)) for item in selected]

    def _create_filter(self, target: Any, session: Session, spec: Any, partialUpdates: bool) -> Any:
        moref = f"session[{session.key[:8]}]filter-{self._site.next_number()}"
        select(spec, lambda entity: self._properties(session, entity))  # what does not exist is refused at once
        filter_ = Filter(PC.Filter(moref, None), spec)
        self._collector(target, session).filters[moref] = filter_
        return filter_.reference

    def _destroy_filter(self, target: Any, session: Session) -> None:
        for held in session.objects.values():
            if isinstance(held, Collector) and target._moId in held.filters:
                del held.filters[target._moId]
                return
        raise not_found(target)

    def _wait_ex(self, target: Any, session: Session, version: str | None, options: Any) -> Any | None:
        seconds = options.maxWaitSeconds if options else None
        return self._wait(target, session, version, seconds)

    def _wait(self, target: Any, session: Session, version: str | None, seconds: float | None) -> Any | None:
        collector = self._collector(target, session)
        return wait_for_updates(
            collector, version, seconds, self._site, lambda entity: self._properties(session, entity)
        )
