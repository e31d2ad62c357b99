#!/usr/bin/env bash
# install-test-packages.sh -- the Debian packages of the tests that need a real Slurm, Podman, registry, NGINX or sshd, where that is possible.
#
# Elsewhere those tests skip, and each says what to install.
set -euo pipefail
packages=(slurmctld slurmd slurm-client munge)
packages+=(docker-registry skopeo podman runc openssl)
packages+=(iproute2 shellcheck)
packages+=(nginx-light openssh-server openssh-client curl)
# A clock that is set during a point.
packages+=(faketime)
# The report is looked at in a real browser.
packages+=(chromium-headless-shell)
missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done 2>/dev/null
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Not installed, so their tests skip: ${missing[*]}. On Debian: sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# A package source that is down must not keep the other tests from running.
apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}" ||
    echo "Could not be installed, so their tests skip: ${missing[*]}" >&2
