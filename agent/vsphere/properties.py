"""Properties of managed objects, by vSphere's PropertyCollector: chosen ones, many objects per call, in pages.

Walking managed objects attribute by attribute costs a call each: minutes for a thousand VMs.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pyVmomi import vim, vmodl

from agent.vsphere.faults import translated
from agent.vsphere.session import VSphereSession
from shared.errors import NotFound, SendenseError

Properties = dict[str, Any]
"""Values by property path; a path that is unset, or that the account may not read, is missing."""

_Collector = vmodl.query.PropertyCollector


def of(session: VSphereSession, managed: Any, *paths: str) -> Properties:
    """The properties of one object, in one call; raises NotFound when vCenter no longer has it."""
    spec = _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=managed)],
        propSet=[_Collector.PropertySpec(type=type(managed), pathSet=list(paths))],
    )
    with translated(f"reading {managed._GetMoId()}"):
        result = session.content.propertyCollector.RetrievePropertiesEx([spec], _Collector.RetrieveOptions())
    if result is None or not result.objects:
        raise NotFound(f"vCenter has no {managed._GetMoId()} any more")
    return _values(result.objects[0])


def of_all(
    session: VSphereSession, paths: Mapping[Any, Sequence[str]], page_size: int
) -> Iterator[tuple[Any, Properties]]:
    """Every object of the classes in `paths`, anywhere in the inventory, with the properties named for its class.

    At most `page_size` objects per call, fetched as they are iterated.
    """
    with translated("listing the inventory"):
        view = session.content.viewManager.CreateContainerView(session.content.rootFolder, list(paths), True)
    try:
        for page in _pages(session.content.propertyCollector, _view_spec(view, paths), page_size):
            for found in page:
                yield found.obj, _values(found)
    finally:
        # A view lives as long as its session; one that is gone with it needs no end.
        with suppress(SendenseError), translated("listing the inventory"):
            view.DestroyView()


def _pages(collector: Any, spec: Any, page_size: int) -> Iterator[Sequence[Any]]:
    with translated("listing the inventory"):
        result = collector.RetrievePropertiesEx([spec], _Collector.RetrieveOptions(maxObjects=page_size))
    token = None
    try:
        while result is not None:
            token = result.token
            yield result.objects
            if token is None:
                return
            with translated("listing the inventory"):
                result = collector.ContinueRetrievePropertiesEx(token)
    finally:
        if token is not None:  # iteration was given up half way: vCenter would keep the rest until the session ends
            with suppress(SendenseError), translated("listing the inventory"):
                collector.CancelRetrievePropertiesEx(token)


def _view_spec(view: Any, paths: Mapping[Any, Sequence[str]]) -> Any:
    through = _Collector.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return _Collector.FilterSpec(
        objectSet=[_Collector.ObjectSpec(obj=view, skip=True, selectSet=[through])],
        propSet=[_Collector.PropertySpec(type=kind, pathSet=list(names)) for kind, names in paths.items()],
    )


def _values(found: Any) -> Properties:
    return {item.name: item.val for item in found.propSet}
