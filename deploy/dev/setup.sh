#!/usr/bin/env bash
# Makes this checkout ready to run and test: Debian packages, the nbdkit vddk plugin, a virtual environment.
# Idempotent: what is there already is left alone. Root or sudo is needed only while a Debian package is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

VENV=.venv
PYTHON=/usr/bin/python3   # python3-libnbd is built for the system's interpreter
PACKAGES=(
  btrfs-progs e2fsprogs          # the simulated VMs' file systems
  gcc libc6-dev                  # the simulator compiles its stand-in libvixDiskLib
  libnbd-bin nbdkit python3-libnbd
  mariadb-server-core            # the catalogue's second database, started by the tests in a temporary folder
  python3-venv qemu-utils
)

say() { printf 'setup: %s\n' "$*"; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
installed() { [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

install_packages() {
  local missing=() name
  for name in "${PACKAGES[@]}"; do installed "$name" || missing+=("$name"); done
  [ ${#missing[@]} = 0 ] && return
  say "installing Debian packages: ${missing[*]}"
  as_root apt-get update -q
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}"
}

# pip, not a faster installer: it honours the mirror this machine's pip is configured for.
install_python() {
  local want
  want=$(cat deploy/dev/requirements.txt pyproject.toml deploy/dev/setup.sh | sha256sum)
  [ -f "$VENV/.ready" ] && [ "$(cat "$VENV/.ready")" = "$want" ] && return
  say "making the virtual environment $VENV"
  [ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
  "$VENV/bin/pip" install -q --disable-pip-version-check --require-hashes -r deploy/dev/requirements.txt
  "$VENV/bin/pip" install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
  link_libnbd
  echo "$want" > "$VENV/.ready"
}

# The binding is two files; the rest of the system's packages stay outside the environment.
link_libnbd() {
  local site file
  site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
  for file in $(dpkg -L python3-libnbd | grep -E '/(nbd\.py|libnbdmod[^/]*\.so)$'); do ln -sf "$file" "$site/"; done
  "$VENV/bin/python" -c 'import nbd; nbd.NBD()'
}

install_packages
deploy/agent/install-vddk-plugin.sh
install_python
