"""Images: QCOW2 files written once, their journals and manifests, and qemu's own programs over them."""
