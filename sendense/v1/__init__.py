"""Generated from proto/sendense/v1 by proto/generate.sh; `make protos` makes it anew."""
