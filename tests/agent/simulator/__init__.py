"""Tests of the simulated vSphere site, by its real clients: pyVmomi, nbdkit's vddk plugin, libnbd, the command line."""
