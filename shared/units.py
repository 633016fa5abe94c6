"""Named sizes in bytes, and how sizes, rates and durations are shown to people."""

SECTOR = 512
KiB = 1024
MiB = 1024 * KiB
GiB = 1024 * MiB
TiB = 1024 * GiB

CLUSTER = 64 * KiB
"""The unit of an image: QCOW2's default cluster size, and the block size vSphere's CBT reports in."""


def align_down(value: int, unit: int) -> int:
    """The largest multiple of `unit` that is not above `value`."""
    return value - value % unit


def align_up(value: int, unit: int) -> int:
    """The smallest multiple of `unit` that is not below `value`."""
    return -(-value // unit) * unit


def human_size(size: float) -> str:
    """Bytes for a person: 1536 → '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < KiB or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= KiB
    raise AssertionError("unreachable: the last unit always returns")
