"""What agent and hub both import: extents, digests, errors, units, helper processes, NBD, logs."""
