"""The PropertyCollector: which objects a filter selects, what it reports of them, in pages and as they change."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from pyVmomi import VmomiSupport, vmodl

from agent.simulator.inventory import Properties
from agent.simulator.site import Site
from agent.simulator.soap import Fault, fingerprint, property_type

PC = vmodl.query.PropertyCollector

PropertiesOf = Callable[[Any], Properties]

Selected = tuple[Any, Any]
"""A managed object and the FilterSpec that selected it."""


# -- reading ----------------------------------------------------------------------------------------------------------


def select(spec: Any, properties_of: PropertiesOf) -> list[Selected]:
    """The objects a FilterSpec reports on, each once; raises Fault for objects that do not exist."""
    found: dict[str, Any] = {}
    for object_spec in spec.objectSet:
        selections = _named_selections(object_spec.selectSet)
        for target in _walk(object_spec.obj, object_spec.selectSet, selections, properties_of, not object_spec.skip):
            if any(isinstance(target, prop.type) for prop in spec.propSet):
                found.setdefault(target._moId, target)
    return [(target, spec) for target in found.values()]


def _named_selections(selections: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for selection in selections:
        if isinstance(selection, PC.TraversalSpec):
            if selection.name:
                named[selection.name] = selection
            named |= _named_selections(selection.selectSet)
    return named


def _walk(
    start: Any, selections: Any, named: dict[str, Any], properties_of: PropertiesOf, report: bool
) -> Iterator[Any]:
    """Objects reached from `start` along traversal specs, which may refer to each other by name, in circles too."""
    waiting: list[tuple[Any, Any, bool]] = [(start, selections, report)]
    seen: set[tuple[str, int]] = set()
    while waiting:
        target, selections, report = waiting.pop(0)
        properties = properties_of(target)
        if report:
            yield target
        for selection in selections:
            traversal = selection if isinstance(selection, PC.TraversalSpec) else named.get(selection.name)
            if traversal is None:
                raise Fault(vmodl.fault.InvalidArgument(invalidProperty="selectSet", msg=f"No {selection.name!r}."))
            step = (target._moId, id(traversal))
            if step not in seen and isinstance(target, traversal.type) and traversal.path in properties:
                seen.add(step)
                value = properties[traversal.path]()
                reached = value if isinstance(value, list) else [value]
                waiting += [(item, traversal.selectSet, not traversal.skip) for item in reached if item is not None]


def content(selected: Selected, properties_of: PropertiesOf) -> Any:
    """What a FilterSpec reports of one object, as ObjectContent."""
    target, spec = selected
    values = values_of(target, spec, properties_of)
    return PC.ObjectContent(
        obj=target, propSet=[vmodl.DynamicProperty(name=name, val=value) for name, value in values.items()]
    )


def values_of(target: Any, spec: Any, properties_of: PropertiesOf) -> dict[str, Any]:
    """The values asked for that are set, by property path; raises Fault with InvalidProperty."""
    properties = properties_of(target)
    values: dict[str, Any] = {}
    for wanted in spec.propSet:
        if isinstance(target, wanted.type):
            for path in list(properties) if wanted.all else wanted.pathSet:
                value = _value(target, properties, path)
                if value is not None:
                    values[path] = value
    return values


def _value(target: Any, properties: Properties, path: str) -> Any | None:
    first, *steps = path.split(".")
    kind = property_type(target, first)
    value = properties[first]() if first in properties else None
    for step in steps:
        if not (isinstance(kind, type) and issubclass(kind, VmomiSupport.DataObject)):
            raise Fault(vmodl.query.InvalidProperty(name=path, msg=f"There is no property {path!r}."))
        kind = property_type(kind if value is None else value, step)
        value = getattr(value, step, None)
    return typed(value, kind)


def typed(value: Any, kind: Any) -> Any | None:
    """The value as its declared type: inside Any, an array or a long must say what it is. Empty arrays are unset."""
    if isinstance(value, list):
        return kind(value) if value else None
    if isinstance(value, int) and kind is VmomiSupport.long:
        return VmomiSupport.long(value)
    return value


# -- pages ------------------------------------------------------------------------------------------------------------


@dataclass
class Collector:
    """One PropertyCollector of a session: its unfinished retrievals and its filters."""

    pages: dict[str, list[Selected]] = field(default_factory=dict)
    filters: dict[str, "Filter"] = field(default_factory=dict)
    version: int = 0
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def first_page(self, selected: list[Selected], limit: int | None) -> tuple[list[Selected], str | None]:
        """At most `limit` of them, and a token for the rest."""
        if not limit or len(selected) <= limit:
            return selected, None
        token = f"{next(self.numbers)}:{limit}"
        self.pages[token] = selected[limit:]
        return selected[:limit], token

    def next_page(self, token: str) -> tuple[list[Selected], str | None]:
        """The next ones of a token, which is good once; raises Fault with InvalidArgument."""
        if token not in self.pages:
            raise Fault(vmodl.fault.InvalidArgument(invalidProperty="token", msg="The token is not known."))
        return self.first_page(self.pages.pop(token), int(token.partition(":")[2]))


# -- changes ----------------------------------------------------------------------------------------------------------


@dataclass
class Filter:
    """A filter that reports changes: what it has reported of each object, as fingerprints by property path."""

    reference: Any
    spec: Any
    reported: dict[str, tuple[Any, dict[str, str]]] = field(default_factory=dict)

    def updates(self, properties_of: PropertiesOf) -> list[Any]:
        """What changed since the last call, as ObjectUpdates; all of it the first time."""
        current = {target._moId: target for target, _ in select(self.spec, properties_of)}
        updates = [self._update(target, properties_of) for target in current.values()]
        for moref in self.reported.keys() - current.keys():
            gone, _ = self.reported.pop(moref)
            updates.append(PC.ObjectUpdate(kind=PC.ObjectUpdate.Kind.leave, obj=gone))
        return [update for update in updates if update is not None]

    def _update(self, target: Any, properties_of: PropertiesOf) -> Any | None:
        values = values_of(target, self.spec, properties_of)
        known = self.reported.get(target._moId)
        before = known[1] if known else {}
        prints = {name: fingerprint(value) for name, value in values.items()}
        changes = [
            PC.Change(name=name, op=PC.Change.Op.assign, val=values.get(name))
            for name in sorted(prints.keys() | before.keys())
            if prints.get(name) != before.get(name)
        ]
        self.reported[target._moId] = (target, prints)
        if known and not changes:
            return None
        kind = PC.ObjectUpdate.Kind.modify if known else PC.ObjectUpdate.Kind.enter
        return PC.ObjectUpdate(kind=kind, obj=target, changeSet=changes)


def wait_for_updates(
    collector: Collector, version: str | None, seconds: float | None, site: Site, properties_of: PropertiesOf
) -> Any | None:
    """The next UpdateSet after `version` ('' begins anew), or None when `seconds` (None: any) pass without a change.

    Raises Fault with InvalidCollectorVersion for any but the last version given, RequestCanceled when the site closes.
    """
    if version and version != str(collector.version):
        raise Fault(vmodl.query.InvalidCollectorVersion(msg="The version is not the last one given."))
    if not version:
        for filter_ in collector.filters.values():
            filter_.reported.clear()
    deadline = time.monotonic() + (math.inf if seconds is None else seconds)
    with site.changed:
        while not (sets := _filter_updates(collector, properties_of)):
            if site.closing:
                raise Fault(vmodl.fault.RequestCanceled(msg="The site closes."))
            if (left := deadline - time.monotonic()) <= 0:
                return None
            site.changed.wait(min(left, threading.TIMEOUT_MAX))
    collector.version += 1
    return PC.UpdateSet(version=str(collector.version), filterSet=sets)


def _filter_updates(collector: Collector, properties_of: PropertiesOf) -> list[Any]:
    pairs = [(filter_, filter_.updates(properties_of)) for filter_ in list(collector.filters.values())]
    return [PC.FilterUpdate(filter=filter_.reference, objectSet=updates) for filter_, updates in pairs if updates]
