"""The wire contract: stubs in step with the protos, protos well-formed, commented, and never broken."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
STUBS = ROOT / "sendense" / "v1"
IMAGE = STUBS / "descriptors.binpb"
BASELINE = PROTO / "baseline.binpb"

# The generator and buf come with this interpreter's environment, whether or not it is activated.
ENVIRONMENT = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def generated(folder: Path) -> dict[str, bytes]:
    """The generated files of a folder, by name."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def image() -> FileDescriptorSet:
    """The committed descriptor image."""
    return FileDescriptorSet.FromString(IMAGE.read_bytes())


def ours(descriptors: FileDescriptorSet) -> list[FileDescriptorProto]:
    """The files of this project, without their imports."""
    return [file for file in descriptors.file if file.package == "sendense.v1"]


def buf(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["buf", *arguments, "--config", PROTO / "buf.yaml"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120)


def test_the_committed_stubs_are_those_the_protos_give(tmp_path: Path) -> None:
    subprocess.run(["bash", PROTO / "generate.sh", tmp_path], check=True, env=ENVIRONMENT, timeout=120)
    fresh, committed = generated(tmp_path / "sendense" / "v1"), generated(STUBS)
    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == []


def test_lint_is_clean() -> None:
    linted = buf("lint", IMAGE)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_lint_finds_a_missing_comment(tmp_path: Path) -> None:
    broken = image()
    for location in ours(broken)[0].source_code_info.location:
        location.ClearField("leading_comments")
    linted = buf("lint", _written(broken, tmp_path))
    assert linted.returncode != 0
    assert "should have a non-empty comment for documentation" in linted.stdout


def test_nothing_is_broken_since_the_baseline() -> None:
    compared = buf("breaking", IMAGE, "--against", BASELINE)
    assert (compared.returncode, compared.stdout) == (0, "")


def _without_a_field(file: FileDescriptorProto) -> None:
    del file.message_type[0].field[0]


def _with_a_field_renumbered(file: FileDescriptorProto) -> None:
    file.message_type[0].field[0].number = 999


def _without_a_method(file: FileDescriptorProto) -> None:
    del file.service[0].method[0]


@pytest.mark.parametrize("change", [_without_a_field, _with_a_field_renumbered, _without_a_method])
def test_a_breaking_change_is_found(change: Callable[[FileDescriptorProto], None], tmp_path: Path) -> None:
    broken = image()
    change(next(file for file in ours(broken) if file.name.endswith("/backup.proto")))
    compared = buf("breaking", _written(broken, tmp_path), "--against", BASELINE)
    assert compared.returncode != 0
    assert "backup.proto" in compared.stdout


def unmarked_request_fields(descriptors: FileDescriptorSet) -> list[str]:
    """Fields of request messages without a field_behavior.

    The rule: every field of every method's request message says REQUIRED or OPTIONAL. Fields of a oneof need not, as
    those of a stream's envelope: which one comes when is the stream's order, told at the method. Messages within a
    request need not either.
    """
    files = ours(descriptors)
    messages = {f".sendense.v1.{message.name}": message for file in files for message in file.message_type}
    requests = {method.input_type for file in files for service in file.service for method in service.method}
    return [f"{name}.{field}" for name in sorted(requests) for field in _unmarked_fields(messages[name])]


def _unmarked_fields(message: DescriptorProto) -> list[str]:
    allowed = {field_behavior_pb2.REQUIRED, field_behavior_pb2.OPTIONAL}
    return [
        field.name
        for field in message.field
        if not field.HasField("oneof_index")
        and not allowed.intersection(field.options.Extensions[field_behavior_pb2.field_behavior])
    ]


def test_every_request_field_says_whether_it_is_required() -> None:
    assert unmarked_request_fields(image()) == []


def test_a_request_field_that_does_not_say_is_found() -> None:
    broken = image()
    file = next(file for file in ours(broken) if file.name.endswith("/vm.proto"))
    next(message for message in file.message_type if message.name == "GetVmRequest").field[0].ClearField("options")
    assert unmarked_request_fields(broken) == [".sendense.v1.GetVmRequest.name"]


def uncommented(file: FileDescriptorProto) -> list[str]:
    """Services, methods, messages, fields, enums and values without a comment in the image, by name."""
    commented = {
        tuple(location.path) for location in file.source_code_info.location if location.leading_comments.strip()
    }
    return [name for path, name in _elements(file) if path not in commented]


def _elements(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    # A path is made of the field numbers of descriptor.proto and of positions: 4 messages, 5 enums, 6 services; in
    # each of the three, 2 holds what it is made of.
    for index, message in enumerate(file.message_type):
        yield from _with_parts((4, index), message.name, [part.name for part in message.field])
    for index, enum in enumerate(file.enum_type):
        yield from _with_parts((5, index), enum.name, [part.name for part in enum.value])
    for index, service in enumerate(file.service):
        yield from _with_parts((6, index), service.name, [part.name for part in service.method])


def _with_parts(path: tuple[int, ...], name: str, parts: list[str]) -> Iterator[tuple[tuple[int, ...], str]]:
    yield path, name
    for index, part in enumerate(parts):
        yield (*path, 2, index), f"{name}.{part}"


@pytest.mark.parametrize("file", ours(image()), ids=lambda file: Path(file.name).stem)
def test_everything_in_the_image_has_its_comment(file: FileDescriptorProto) -> None:
    assert uncommented(file) == []


def test_a_missing_comment_is_found_even_where_no_comment_came_along() -> None:
    # buf says nothing about an image that was made without --include_source_info.
    file = next(file for file in ours(image()) if file.name.endswith("/vm.proto"))
    del file.source_code_info.location[:]
    assert "VmService.ListVms" in uncommented(file)


def _written(descriptors: FileDescriptorSet, folder: Path) -> Path:
    path = folder / "broken.binpb"
    path.write_bytes(descriptors.SerializeToString())
    return path
