#!/usr/bin/env bash
# Makes sendense/v1 from proto/: stubs, their types, and one descriptor image with comments (reflection, buf).
# Usage: proto/generate.sh [DIR]   (default: the checkout itself; `make check` makes them elsewhere and compares)
set -euo pipefail
export LC_ALL=C  # the image holds the files in the order of the pattern below, which must not depend on the locale
cd "$(dirname "$0")/.."
out=${1:-.}
google=$(python -c 'import pathlib, google.api.field_behavior_pb2 as m; print(pathlib.Path(m.__file__).parents[2])')
mkdir -p "$out/sendense/v1"
protos=(proto/sendense/v1/*.proto)
python -m grpc_tools.protoc -Iproto -I"$google" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
  --include_imports --include_source_info --descriptor_set_out="$out/sendense/v1/descriptors.binpb" "${protos[@]}"
echo '"""Generated from proto/sendense/v1 by proto/generate.sh; `make protos` makes it anew."""' > "$out/sendense/v1/__init__.py"
