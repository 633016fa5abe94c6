"""The source side: finds VMs, snapshots them, reads what changed and streams it to the hub."""
