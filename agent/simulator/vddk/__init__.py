"""What `nbdkit vddk` meets instead of VMware's VDDK: a stand-in library, and the broker that lets it at the disks."""
