#!/usr/bin/env bash
# install-apptainer.sh [DIR] -- a working Apptainer in DIR (default ~/.cache/berth/apptainer) for the tests on Debian 12.
#
# Debian has Apptainer in sid alone, for a newer libc than Debian 12's. It is unpacked here with trixie's libc beside
# it; the system gets no package of another release. Afterwards DIR/bin/apptainer runs. Root is needed only where one
# of the Debian packages below is missing; root itself gets a range in /etc/subuid and /etc/subgid, if it has none.
# sid moves, so this may stop working one day: it then says why, and tests that need Apptainer skip.
set -euo pipefail

dir=${1:-${BERTH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/berth}/apptainer}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
packages=(patchelf squashfs-tools squashfuse fuse-overlayfs uidmap)

fail() {
    echo "install-apptainer.sh: $*" >&2
    echo "Tests that need Apptainer skip without it; one that is on PATH (an epel package, a site module) serves as well." >&2
    exit 1
}

# --fakeroot maps users into a range of this user's own.
subordinate_ids() {
    local user name
    user=$(id -un)
    for name in subuid subgid; do
        ! grep -q "^$user:" "/etc/$name" 2>/dev/null || continue
        if [ "$(id -u)" = 0 ]; then
            usermod "--add-${name}s" 100000-165535 "$user" || fail "failed: usermod --add-${name}s 100000-165535 $user"
            echo "/etc/$name: gave $user the range that --fakeroot needs" >&2
        else
            echo "/etc/$name has no range for $user, so --fakeroot will fail. As root: usermod --add-${name}s 100000-165535 $user" >&2
        fi
    done
}

works() { [ -f "$dir/.complete" ] && "$dir/bin/apptainer" --version >/dev/null 2>&1; }

mkdir -p "$dir"
dir=$(cd "$dir" && pwd -P)
exec 9>"$dir/.lock"
flock 9
if works; then
    subordinate_ids
    echo "$dir/bin/apptainer is there: $("$dir/bin/apptainer" --version)"
    exit 0
fi

command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "this is no Debian: apt-get or dpkg-deb is missing"
[ -r "$keyring" ] || fail "$keyring is missing: apt-get install debian-archive-keyring"
[ "$(dpkg --print-architecture)" = amd64 ] || fail "only amd64 was tried, and this is $(dpkg --print-architecture)"

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    install="apt-get install --no-install-recommends ${missing[*]}"
    [ "$(id -u)" = 0 ] || fail "missing packages; as root: $install"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } >&2 || fail "failed: $install"
fi

# The mirror that this machine uses for its own release.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 2>/dev/null | grep -m1 -E '/debian/?$' || true)
[ -n "$mirror" ] || fail "no Debian mirror in apt's own sources"

work=$dir/.work
rm -rf "$work" "$dir/bin" "$dir/usr" "$dir/libc" "$dir/.complete"
mkdir -p "$work/lists/partial" "$work/archives/partial"
for release in sid trixie; do
    echo "deb [signed-by=$keyring] $mirror $release main"
done >"$work/sources.list"
# Proxies and the like of the machine's own configuration stay in force. apt may not drop to its own user: the folder
# can lie in a home directory that this user cannot enter.
cat >"$work/apt.conf" <<CONF
Dir::Etc::SourceList "$work/sources.list";
Dir::Etc::SourceParts "/dev/null";
Dir::State::Lists "$work/lists";
Dir::Cache::Archives "$work/archives";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
APT::Sandbox::User "root";
CONF
cd "$work"
APT_CONFIG=$work/apt.conf apt-get update -q >&2 || fail "cannot read the lists of sid and trixie from $mirror"
APT_CONFIG=$work/apt.conf apt-get download -q apptainer/sid libc6/trixie >&2 || fail "cannot download apptainer (sid) and libc6 (trixie) from $mirror"
dpkg-deb -x apptainer_*.deb "$dir"
dpkg-deb -x libc6_*.deb libc
mkdir -p "$dir/libc"
libraries=$(dirname "$(find libc -name 'libc.so.6' -print -quit)")
loader=$(find libc -name 'ld-linux-x86-64.so.2' -type f -print -quit)
[ -n "$loader" ] && [ -e "$libraries/libm.so.6" ] || fail "trixie's libc6 has no loader or no libm where it used to"
cp "$loader" "$libraries"/lib*.so.* "$dir/libc/"

# Everything but libc comes from the system.
found=$dir/libc:/usr/lib/x86_64-linux-gnu:/lib/x86_64-linux-gnu
patched=0
for binary in "$dir/usr/bin/apptainer" $(find "$dir/usr" -type f -path '*/bin/starter*'); do
    patchelf --set-interpreter "$dir/libc/ld-linux-x86-64.so.2" "$binary"
    patchelf --force-rpath --set-rpath "$found" "$binary"
    patched=$((patched + 1))
done
[ "$patched" -ge 2 ] || fail "the package has no apptainer or no starter where it used to"
# Relocated, it looks for its configuration and its mount point below its own prefix.
ln -sfn ../etc "$dir/usr/etc"
mkdir -p "$dir/usr/lib/var/lib/apptainer/mnt/session" "$dir/bin"
ln -sfn ../usr/bin/apptainer "$dir/bin/apptainer"
cd "$dir"
rm -rf "$work"

subordinate_ids
version=$("$dir/bin/apptainer" --version 2>&1) || fail "unpacked, but it does not run: $version"
touch "$dir/.complete"
echo "$dir/bin/apptainer: $version"
