#!/usr/bin/env bash
# Installs nbdkit-plugin-vddk on Debian 12, which does not have it; idempotent, root or sudo.
# The next release's `contrib` has it, and it works with Debian 12's nbdkit. The suite comes from the mirror this machine
# already uses, pinned so that nothing else is ever taken from it.
set -euo pipefail

PLUGIN=nbdkit-plugin-vddk

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
release() { . /etc/os-release; echo "$VERSION_CODENAME"; }

[ "$(dpkg-query -W -f='${db:Status-Status}' "$PLUGIN" 2>/dev/null)" = installed ] && exit
if ! apt-cache show "$PLUGIN" >/dev/null 2>&1; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $(release)" 'Component: main' | head -n 1)
  [ -n "$mirror" ] || { echo "no Debian mirror found in the apt configuration" >&2; exit 1; }
  echo "adding the trixie suite's contrib, for $PLUGIN only"
  as_root tee /etc/apt/preferences.d/sendense-vddk >/dev/null <<PIN
Package: *
Pin: release n=trixie
Pin-Priority: -1

Package: $PLUGIN
Pin: release n=trixie
Pin-Priority: 500
PIN
  as_root tee /etc/apt/sources.list.d/sendense-vddk.sources >/dev/null <<SOURCE
Types: deb
URIs: $mirror
Suites: trixie
Components: contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
  as_root apt-get update -q
fi
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$PLUGIN"
