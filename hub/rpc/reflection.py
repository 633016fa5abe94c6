"""Reflection, v1 and v1alpha, from the descriptor image that protoc made.

grpcio's own serves v1alpha alone and from descriptors without comments. The two versions differ in their package's name
only, so one set of messages answers both.
"""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from importlib.resources import files
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


class Reflection:
    """Answers what a listener serves."""

    def __init__(self, services: Iterable[str]) -> None:
        """`services`: full names of those served."""
        self._services = sorted([*services, *(f"{version}.ServerReflection" for version in VERSIONS)])
        self._files = {file.name: file for file in _image()}
        self._symbols = {symbol: file.name for file in self._files.values() for symbol in _symbols(file)}

    def add_to(self, server: grpc.aio.Server) -> None:
        """Serve both versions."""
        for version in VERSIONS:
            method = grpc.stream_stream_rpc_method_handler(
                self._answers,
                request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
            )
            name = f"{version}.ServerReflection"
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}),)
            )

    async def _answers(
        self, requests: AsyncIterator[reflection_pb2.ServerReflectionRequest], _: object
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        async for request in requests:
            answer = self._answer(request)
            answer.valid_host = request.host
            answer.original_request.CopyFrom(request)
            yield answer

    def _answer(self, request: reflection_pb2.ServerReflectionRequest) -> reflection_pb2.ServerReflectionResponse:
        match request.WhichOneof("message_request"):
            case "list_services":
                services = [reflection_pb2.ServiceResponse(name=name) for name in self._services]
                return reflection_pb2.ServerReflectionResponse(
                    list_services_response=reflection_pb2.ListServiceResponse(service=services)
                )
            case "file_by_filename":
                return self._file(request.file_by_filename)
            case "file_containing_symbol":
                return self._file(self._symbols.get(request.file_containing_symbol, ""))
            case _:
                return _missing("not supported: this API has no extensions of its own", grpc.StatusCode.UNIMPLEMENTED)

    def _file(self, name: str) -> reflection_pb2.ServerReflectionResponse:
        if name not in self._files:
            return _missing("no such file or symbol", grpc.StatusCode.NOT_FOUND)
        content = [file.SerializeToString() for file in _with_imports(name, self._files)]
        return reflection_pb2.ServerReflectionResponse(
            file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=content)
        )


def _missing(message: str, code: grpc.StatusCode) -> reflection_pb2.ServerReflectionResponse:
    error = reflection_pb2.ErrorResponse(error_code=code.value[0], error_message=message)
    return reflection_pb2.ServerReflectionResponse(error_response=error)


def _image() -> Iterator[FileDescriptorProto]:
    """All files of the contract with their imports and comments, and those of health, errors and reflection itself."""
    image = FileDescriptorSet.FromString(files("sendense.v1").joinpath("descriptors.binpb").read_bytes())
    yield from image.file
    yield _file_of(health_pb2)
    yield _file_of(error_details_pb2)
    for version in VERSIONS:
        yield _renamed(_file_of(reflection_pb2), version)


def _file_of(module: Any) -> FileDescriptorProto:
    """The descriptor that a generated module carries, which has no comments."""
    file = FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    return file


def _renamed(file: FileDescriptorProto, package: str) -> FileDescriptorProto:
    renamed = FileDescriptorProto()
    renamed.CopyFrom(file)
    old, renamed.package = f".{file.package}.", package
    renamed.name = f"{package.replace('.', '/')}/reflection.proto"
    for message in renamed.message_type:
        for field in message.field:
            field.type_name = field.type_name.replace(old, f".{package}.")
    for service in renamed.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, f".{package}.")
            method.output_type = method.output_type.replace(old, f".{package}.")
    return renamed


def _symbols(file: FileDescriptorProto) -> Iterator[str]:
    """Full names of all that a file defines, methods and fields too."""
    prefix = f"{file.package}." if file.package else ""
    for message in file.message_type:
        yield from _message_symbols(prefix, message)
    for enum in file.enum_type:
        yield prefix + enum.name
    for service in file.service:
        yield prefix + service.name
        yield from (f"{prefix}{service.name}.{method.name}" for method in service.method)


def _message_symbols(prefix: str, message: DescriptorProto) -> Iterator[str]:
    name = prefix + message.name
    yield name
    yield from (f"{name}.{field.name}" for field in message.field)
    yield from (f"{name}.{enum.name}" for enum in message.enum_type)
    for nested in message.nested_type:
        yield from _message_symbols(f"{name}.", nested)


def _with_imports(name: str, known: Mapping[str, FileDescriptorProto]) -> Iterator[FileDescriptorProto]:
    """A file and all it imports, each once."""
    waiting, seen = [name], set[str]()
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen.add(current)
            yield known[current]
            waiting.extend(known[current].dependency)
