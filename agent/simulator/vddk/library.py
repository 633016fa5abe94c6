"""The stand-in libvixDiskLib.so.8 in a folder that `nbdkit vddk libdir=` can be given; compiled on first use."""

from pathlib import Path

from shared.process import run

SOURCE = Path(__file__).with_name("vix_disk_lib.c")
SONAME = "libvixDiskLib.so.8"
COMPILE_LIMIT = 120.0
"""Seconds."""


def build(libdir: Path) -> None:
    """Compile `<libdir>/lib64/libvixDiskLib.so.8` unless it is newer than its source; raises ProgramMissing for gcc."""
    target = libdir / "lib64" / SONAME
    if target.exists() and target.stat().st_mtime > SOURCE.stat().st_mtime:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    flags = ["-shared", "-fPIC", "-O2", "-pthread", "-fvisibility=hidden", f"-Wl,-soname,{SONAME}"]
    run(["gcc", *flags, "-o", partial, SOURCE, "-ldl"], timeout=COMPILE_LIMIT)
    partial.rename(target)
