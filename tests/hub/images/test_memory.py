"""Memory stays flat whatever the disk's size and however many extents arrive."""

import subprocess
import sys
from pathlib import Path

import pytest

from hub.images.qemu_nbd import served
from shared.extents import Extent
from shared.nbd import NbdDisk
from shared.units import CLUSTER, MiB, TiB
from tests.hub.images.sparse_disk import assert_clean

CAPACITY = 62 * TiB
EXTENTS = 1_000_000

WRITER = """
import dataclasses, resource, sys
from pathlib import Path
from hub.images.partial import PartialImage
from shared.runs import encode
from shared.units import CLUSTER, GiB, MiB, TiB

def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

[run] = encode(0, memoryview(b"data" * (CLUSTER // 4)), 1)
before = resident()
image = PartialImage.create(Path(sys.argv[1]), 62 * TiB, None)
for area in range(8_000):  # 125 extents, every second cluster, at each of 8000 places 7 GiB apart
    for number in range(125):
        image.append(dataclasses.replace(run, offset=area * 7 * GiB + number * 2 * CLUSTER))
    if area % 50 == 0:
        image.sync()
durable = image.sync()
image.close()
image = PartialImage.reopen(Path(sys.argv[1]))
assert image.durable == durable
assert image.seal().data_clusters == 1_000_000
image.commit()
print(resident() - before)
"""


@pytest.mark.slow
def test_a_62_tib_disk_of_a_million_extents_is_written_and_reopened_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    done = subprocess.run([sys.executable, "-c", WRITER, path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 24 * MiB
    assert_clean(path)
    with served(path) as socket, NbdDisk(socket) as disk:
        assert disk.size == CAPACITY
        last = 7999 * 7 * 1024 * MiB + 124 * 2 * CLUSTER
        [(_, data)] = disk.read([Extent(last, CLUSTER)])
        assert bytes(data) == b"data" * (CLUSTER // 4)
