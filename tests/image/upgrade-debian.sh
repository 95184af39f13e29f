#!/bin/bash
# Upgrades the Debian on a copy of a disk to what its mirror has now, as apt does on a machine. Needs root.
#
#   tests/image/upgrade-debian.sh OLD.raw NEW.raw
#
# A disk to upgrade: with the address of a mirror in CIRCULAR_MIRROR, build-debian.sh builds the last point release,
# without what came since.
set -euo pipefail

old=$1 new=$2
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
cp --sparse=always "$old" "$new"
root=$(mktemp -d)
trap 'rmdir "$root"' EXIT
export new root sources LC_ALL=C DEBIAN_FRONTEND=noninteractive
eval "$(apt-config shell proxy Acquire::http::Proxy)"
export http_proxy="${proxy:-}"
# What is mounted for it is gone with the mount namespace, however it ends.
unshare --mount --propagation private --fork bash -euo pipefail <<'STEPS'
mount -o loop "$new" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/run"
mount --rbind /dev "$root/dev"
mkdir "$root/run/apt"
cp "$sources" "$root/run/apt/"
cp /etc/resolv.conf "$root/run/apt/resolv.conf"
[ ! -f "$root/etc/resolv.conf" ] || mount --bind "$root/run/apt/resolv.conf" "$root/etc/resolv.conf"
apt=(apt-get -q -o "Dir::Etc::SourceList=/run/apt/${sources##*/}" -o Dir::Etc::SourceParts=-)
chroot "$root" "${apt[@]}" update </dev/null
chroot "$root" "${apt[@]}" --yes -o Dpkg::Options::=--force-confold dist-upgrade </dev/null
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*
umount --recursive "$root"
STEPS
