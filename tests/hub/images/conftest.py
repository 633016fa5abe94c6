"""Runs as the agent would send them."""

import random
from collections.abc import Callable

import pytest

from shared.runs import ClusterRun, encode
from shared.units import CLUSTER

MakeRun = Callable[..., ClusterRun]


@pytest.fixture
def data_run() -> MakeRun:
    """A maker of runs of data: at an offset, of so many clusters, compressed or not; other `seed`, other bytes."""

    def make(offset: int, count: int = 1, level: int | None = None, seed: int = 0) -> ClusterRun:
        numbers = random.Random(f"{seed} {offset}")
        noise = CLUSTER if level is None else CLUSTER // 3
        data = b"".join(numbers.randbytes(noise).ljust(CLUSTER, b"\x55") for _ in range(count))
        [run] = encode(offset, memoryview(data), level)
        return run

    return make
