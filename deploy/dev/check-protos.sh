#!/usr/bin/env bash
# Fails when sendense/v1 is not what proto/ makes.
set -euo pipefail
cd "$(dirname "$0")/../.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
proto/generate.sh "$fresh"
if ! diff -rq -x __pycache__ "$fresh/sendense/v1" sendense/v1; then
  echo "sendense/v1 is not in step with proto/: run \`make protos\` and commit" >&2
  exit 1
fi
