"""`sendense repository`."""

import json

import grpc

from sendense.v1.repository_pb2 import ListRepositoriesResponse, Repository
from tests.cli.conftest import Command, rows
from tests.cli.scripted_hub import Refusal, ScriptedHub

MAIN = Repository(
    name="repositories/r1",
    display_name="main",
    path="/srv/sendense",
    available=True,
    capacity_bytes=10 * 2**40,
    free_bytes=3 * 2**40,
    stored_bytes=1536,
)


def test_add_sends_name_and_path_and_says_what_was_made(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateRepository", MAIN)
    outcome = sendense("repository", "add", "main", "/srv/sendense")
    request = hub.requests["CreateRepository"][0]
    assert (request.display_name, request.path) == ("main", "/srv/sendense")
    assert outcome.out == "repository main (r1) is at /srv/sendense\n"


def test_add_prints_the_repository_as_json(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateRepository", MAIN)
    assert json.loads(sendense("repository", "add", "main", "/x", "--json").out)["name"] == "repositories/r1"


def test_a_name_that_is_taken_is_refused(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("CreateRepository", Refusal(grpc.StatusCode.ALREADY_EXISTS, "main is taken", "ALREADY_EXISTS"))
    outcome = sendense("repository", "add", "main", "/srv/sendense")
    assert (outcome.status, outcome.err) == (4, "sendense: main is taken (ALREADY_EXISTS)\n")


def test_list_shows_space_in_human_units(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListRepositories", ListRepositoriesResponse(repositories=[MAIN]))
    expected = [["main", "/srv/sendense", "yes", "1.5 KiB", "3.0 TiB", "10.0 TiB", "r1"]]
    assert rows(sendense("repository", "list").out) == expected


def test_list_shows_no_space_of_a_repository_that_is_away(hub: ScriptedHub, sendense: Command) -> None:
    hub.on("ListRepositories", ListRepositoriesResponse(repositories=[Repository(name="repositories/r2", path="/mnt")]))
    assert rows(sendense("repository", "list").out) == [["/mnt", "NO", "-", "-", "-", "r2"]]
