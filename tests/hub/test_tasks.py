"""Counts of running tasks."""

from hub.catalogue.tasks import Progress
from hub.tasks import RunningTask


def test_counts_never_go_back() -> None:
    task = RunningTask("agent")
    task.heard(total=100, read=50, skipped=10)
    task.heard(total=90, read=40, skipped=5)
    assert task.progress == Progress(total_bytes=100, read_bytes=50, skipped_bytes=10)


def test_what_arrives_adds_up_beside_what_the_agent_counts() -> None:
    task = RunningTask("agent")
    task.received(sent=10, stored=12)
    task.heard(total=100, read=50, skipped=10)
    task.received(sent=5, stored=6)
    assert (task.progress.sent_bytes, task.progress.stored_bytes, task.progress.read_bytes) == (15, 18, 50)
