"""SOAP as vCenter speaks it, on pyVmomi's own type library: requests into typed arguments, results into XML.

Where pyVmomi, written as a client, would write what a server never does, this module corrects it: no `versionId`
attributes, `ManagedObjectReference` as the type of references inside Any, no `msg` inside a fault's detail.
"""

import copy
from dataclasses import dataclass
from io import StringIO
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from pyVmomi import SoapAdapter, VmomiSupport, vim, vmodl

NAMESPACE = "urn:vim25"
VERSION = "vim.version.v8_0_3_0"
"""What the simulated vCenter is."""

PREFIXES = {**SoapAdapter.SOAP_NSMAP, NAMESPACE: ""}
ENVELOPE = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope'
    f' xmlns:soapenv="{SoapAdapter.XMLNS_SOAPENV}" xmlns:xsd="{SoapAdapter.XMLNS_XSD}"'
    f' xmlns:xsi="{SoapAdapter.XMLNS_XSI}"><soapenv:Body>%s</soapenv:Body></soapenv:Envelope>'
)


class Fault(Exception):
    """A method fails with `fault`, a vmodl.MethodFault."""

    def __init__(self, fault: Any) -> None:
        super().__init__(fault.msg)
        self.fault = fault


@dataclass(frozen=True)
class Request:
    """A method called on a managed object; `arguments` by parameter name, those not given None."""

    method: str
    """Its WSDL name."""
    target: Any
    arguments: dict[str, Any]
    result_type: type
    version: str


def requested_version(soap_action: str) -> str:
    """The API version a SOAPAction header asks for; ours if it is unknown."""
    versions: dict[str, str] = VmomiSupport.versionMap
    return versions.get(soap_action.strip('" ').removeprefix("urn:"), VERSION)


def parse(body: bytes, version: str) -> Request:
    """Read a request; raises Fault if it is not one, or calls what vCenter does not have."""
    reader = _Reader()
    try:
        reader.parse(body)
    except (ExpatError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise Fault(vmodl.fault.InvalidRequest(msg=f"The request cannot be read: {error!r}")) from error
    if reader.method is None or reader.target is None:
        raise Fault(vmodl.fault.InvalidRequest(msg="The request has no method, or no object it is called on."))
    arguments = reader.arguments()
    result = reader.method.result
    if reader.name == "Fetch":
        result = property_type(reader.target, arguments["prop"])
    return Request(reader.name, reader.target, arguments, result, version)


def property_type(target: Any, name: str) -> Any:
    """The declared type of an object's property; raises Fault with InvalidProperty if it has none of this name."""
    try:
        return target._GetPropertyInfo(name).type
    except AttributeError as error:
        raise Fault(vmodl.query.InvalidProperty(name=name, msg=f"There is no property {name!r}.")) from error


def response(request: Request, value: Any) -> bytes:
    """A method's result as an envelope."""
    info = _field("returnval", request.result_type, request.version)
    inner = "" if value is None else _serialize(value, info, request.version)
    return _envelope(f'<{request.method}Response xmlns="{NAMESPACE}">{inner}</{request.method}Response>')


def fault_response(fault: Any) -> bytes:
    """A fault as an envelope."""
    detail = copy.copy(fault)
    detail.msg = None
    writer = StringIO()
    info = _field(f"{VmomiSupport.GetWsdlName(type(fault))}Fault", object, VERSION)
    _Serializer(writer, VERSION, PREFIXES)._SerializeDataObject(detail, info, f' xmlns="{NAMESPACE}"', NAMESPACE)
    text = SoapAdapter.XmlEscape(fault.msg or VmomiSupport.GetWsdlName(type(fault)))
    return _envelope(
        f"<soapenv:Fault><faultcode>ServerFaultCode</faultcode><faultstring>{text}</faultstring>"
        f"<detail>{writer.getvalue()}</detail></soapenv:Fault>"
    )


def fingerprint(value: Any) -> str:
    """A text that differs when a value of any API type does."""
    return "" if value is None else _serialize(value, _field("val", object, VERSION), VERSION)


def _envelope(body: str) -> bytes:
    return (ENVELOPE % body).encode()


def _field(name: str, kind: Any, version: str) -> Any:
    return VmomiSupport.Object(name=name, type=kind, version=version, flags=VmomiSupport.F_OPTIONAL)


def _serialize(value: Any, info: Any, version: str) -> str:
    writer = StringIO()
    _Serializer(writer, version, PREFIXES).Serialize(value, info)
    return writer.getvalue()


class _Serializer(SoapAdapter.SoapSerializer):  # type: ignore[misc]  # pyVmomi has no types
    def __init__(self, writer: StringIO, version: str, prefixes: dict[str, str]) -> None:
        super().__init__(writer, version, prefixes)
        self.outermostAttrs = ""  # else `versionId`, which only clients send

    def _QName(self, typ: Any, defNS: str) -> tuple[str, str]:  # pyVmomi's names
        attribute, name = super()._QName(typ, defNS)
        return attribute, "ManagedObjectReference" if name == "ManagedObject" else name


class _Reader(SoapAdapter.ExpatDeserializerNSHandlers):  # type: ignore[misc]  # pyVmomi has no types
    """Walks Envelope, Body and method, and hands each parameter to pyVmomi's deserializer."""

    def __init__(self) -> None:
        super().__init__()
        self.name = ""
        self.method: Any = None
        self._path: list[str] = []
        self._values: list[tuple[str, Any]] = []

    def parse(self, body: bytes) -> None:
        self._parser = ParserCreate(namespace_separator=SoapAdapter.NS_SEP)
        self._parser.buffer_text = True
        SoapAdapter.SetHandlers(self._parser, SoapAdapter.GetHandlers(self))
        self._parser.Parse(body, True)

    @property
    def target(self) -> Any:
        return next((value.GetResult() for name, value in self._values if name == "_this"), None)

    def arguments(self) -> dict[str, Any]:
        lists = {parameter.name: issubclass(parameter.type, list) for parameter in self.method.params}
        arguments: dict[str, Any] = {name: [] if is_list else None for name, is_list in lists.items()}
        for name, value in self._values:
            if name == "_this":
                continue
            if lists[name]:
                arguments[name].append(value.GetResult())
            else:
                arguments[name] = value.GetResult()
        return arguments

    # -- called by expat ----------------------------------------------------------------------------------------------

    def StartElementHandler(self, tag: str, attributes: dict[str, str]) -> None:
        name = tag.rpartition(SoapAdapter.NS_SEP)[2]
        if len(self._path) == 3 and self._path[1] == "Body":
            self._read_parameter(name, tag, attributes)
            return
        self._path.append(name)
        if len(self._path) == 3 and self._path[1] == "Body":
            self.name, self.method = name, _method(name)

    def EndElementHandler(self, tag: str) -> None:
        self._path.pop()

    def CharacterDataHandler(self, data: str) -> None:
        """Nothing but white space stands between elements here."""

    def _read_parameter(self, name: str, tag: str, attributes: dict[str, str]) -> None:
        """Let pyVmomi read up to the parameter's end; its handlers then give way to ours."""
        deserializer = SoapAdapter.SoapDeserializer()
        deserializer.Deserialize(self._parser, self._type_of(name), False, self.nsMap)
        deserializer.StartElementHandler(tag, attributes)
        self._values.append((name, deserializer))

    def _type_of(self, name: str) -> Any:
        if name == "_this":
            return VmomiSupport.ManagedObject
        kind = {parameter.name: parameter.type for parameter in self.method.params}[name]
        return kind.Item if issubclass(kind, list) else kind


def _method(name: str) -> Any:
    if name == "Fetch":
        return FETCH
    try:
        return VmomiSupport.GetWsdlMethod(NAMESPACE, name).info
    except KeyError as error:
        raise Fault(vmodl.fault.MethodNotFound(receiver=ROOT, method=name, msg=f"There is no {name}.")) from error


FETCH = VmomiSupport.Object(params=(_field("prop", str, VERSION),), result=object)
"""Reading one property; vCenter has it, pyVmomi uses it, no WSDL mentions it."""

ROOT = vim.ServiceInstance("ServiceInstance", None)
