"""Reading the disks of a snapshot: the interface, nbdkit's vddk plugin behind it, and an in-memory disk for tests."""
