"""vCenter as the agent sees it: session, inventory, snapshots and what changed. The one door to pyVmomi."""
