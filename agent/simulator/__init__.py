"""A vSphere site to try Sendense against: vCenter's API, disks with change tracking, and a guest that writes."""
