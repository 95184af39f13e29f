#!/bin/bash
# Builds the Debian 12 disks that the demo and the boot test publish. Needs root.
#
#   tests/image/build-debian.sh [DIRECTORY]        (default: build/ in the checkout)
#
#   debian.raw         2 GiB, ext4 on the whole disk
#   debian-gpt.raw     the same file system as a GPT root partition behind a small ESP
#   debian-rebuilt.raw the same files laid out anew by another mkfs
#   debian.hashes      what hash-files.sh prints in this tree, and so in a machine booted from the image
#
# All are sparse. They are built when one is missing or this script has changed.
# The console on ttyS0 logs root in without a password: a disk for demonstrations, not for use.
#
# CIRCULAR_MIRROR   the Debian mirror (default: what this machine's apt uses for Debian 12)
set -euo pipefail

self=$(realpath "${BASH_SOURCE[0]}")
out=$(realpath -m "${1:-$(dirname "$self")/../../build}")
stamp=$(cat "$self" "$(dirname "$self")/hash-files.sh" | sha256sum | cut -d' ' -f1)
products=(debian.raw debian-gpt.raw debian-rebuilt.raw debian.hashes)

up_to_date() {
    local product
    [ "$(cat "$out/debian.stamp" 2>/dev/null)" = "$stamp" ] || return 1
    for product in "${products[@]}"; do [ -s "$out/$product" ] || return 1; done
}

mkdir -p "$out"
exec 9>"$out/.debian.lock"
flock 9
if up_to_date; then
    echo "$out/debian.raw is up to date"
    exit 0
fi
[ "$(id -u)" = 0 ] || { echo "$0: building a Debian tree needs root" >&2; exit 1; }
rm -f "$out/debian.stamp"

# Where this machine's apt gets Debian 12 from, as a file that mmdebstrap reads; its own default otherwise.
mirror() {
    local file
    if [ -n "${CIRCULAR_MIRROR:-}" ]; then echo "$CIRCULAR_MIRROR"; return; fi
    for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
        if grep -Eqs '^(Suites:|deb .*)[[:space:]].*bookworm' "$file"; then echo "$file"; return; fi
    done
}

work=$(mktemp -d "$out/.debian.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
# Asked to stop, the step at hand ends first: nothing is removed under a running program.
trap 'exit 143' INT TERM
root=$work/root

# The image mentions no clock and no random number, so that the same packages give the same disk.
export SOURCE_DATE_EPOCH=1700000000 LC_ALL=C
uuid=c1c0a7ed-0000-4000-8000-000000000001
packages=(
    linux-image-cloud-amd64 initramfs-tools
    systemd-sysv udev dbus libpam-systemd login passwd
    iproute2 iputils-ping procps kmod less ca-certificates
)

echo "building Debian 12 in $out (about two minutes)"
options=(--mode=root --variant=minbase --skip=cleanup/reproducible/machine-id
    --include="$(IFS=,; echo "${packages[*]}")"
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*'
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*')
eval "$(apt-config shell proxy Acquire::http::Proxy)"
[ -z "${proxy:-}" ] || options+=("--aptopt=Acquire::http::Proxy \"$proxy\"")
# What it mounts into the tree stays in a mount namespace of its own: however it ends, no device
# of this machine lies in what is removed afterwards.
unshare --mount --propagation private mmdebstrap --quiet "${options[@]}" bookworm "$root" $(mirror)

echo debian >"$root/etc/hostname"
printf '127.0.0.1\tlocalhost debian\n::1\tlocalhost\n' >"$root/etc/hosts"
: >"$root/etc/machine-id"
echo "UUID=$uuid / ext4 defaults 0 1" >"$root/etc/fstab"
chroot "$root" passwd --quiet --delete root
cat >"$root/etc/systemd/network/80-dhcp.network" <<'UNIT'
[Match]
Type=ether

[Network]
DHCP=yes
UNIT
install -d "$root/etc/systemd/system/serial-getty@ttyS0.service.d"
cat >"$root/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf" <<'UNIT'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --keep-baud 115200 %I $TERM
UNIT
systemctl --quiet --root="$root" enable systemd-networkd.service serial-getty@ttyS0.service
systemctl --quiet --root="$root" set-default graphical.target
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/* "$root"/tmp/* "$root"/run/*
# The tree's own times, too, are those of the epoch at most.
find "$root" -xdev -newermt "@$SOURCE_DATE_EPOCH" -print0 | xargs -0r touch --no-dereference --date="@$SOURCE_DATE_EPOCH"

# file_system FILE TREE UUID: an ext4 of TREE in 2 GiB.
file_system() {
    rm -f "$1"
    truncate --size=2G "$1"
    mkfs.ext4 -q -F -L circular-root -U "$3" -E "hash_seed=$3,lazy_itable_init=0,lazy_journal_init=0" -m 1 -d "$2" "$1"
}

file_system "$work/debian.raw" "$root" "$uuid"
chroot "$root" sh -c "$(cat "$(dirname "$self")/hash-files.sh")" >"$work/debian.hashes"

# An ESP of 16 MiB, then the root partition with the type that says "x86-64 root".
esp_mib=16
cp --sparse=always "$work/debian.raw" "$work/root.ext4"
truncate --size=$((2048 + esp_mib + 2))M "$work/debian-gpt.raw"
sfdisk --quiet "$work/debian-gpt.raw" <<TABLE
label: gpt
label-id: c1c0a7ed-0000-4000-8000-000000000010
start=1MiB, size=${esp_mib}MiB, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b, uuid=c1c0a7ed-0000-4000-8000-000000000011, name="esp"
start=$((1 + esp_mib))MiB, size=2048MiB, type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709, uuid=c1c0a7ed-0000-4000-8000-000000000012, name="root"
TABLE
truncate --size=${esp_mib}M "$work/esp"
mkfs.vfat -n ESP -i c1c0a7ed "$work/esp" >/dev/null
dd if="$work/esp" of="$work/debian-gpt.raw" bs=1M seek=1 conv=notrunc,sparse status=none
dd if="$work/debian.raw" of="$work/debian-gpt.raw" bs=1M seek=$((1 + esp_mib)) conv=notrunc,sparse status=none

# A copy of the tree lists its directories in another order, another seed gives other hash trees.
cp -a "$root" "$work/copy"
file_system "$work/debian-rebuilt.raw" "$work/copy" c1c0a7ed-0000-4000-8000-000000000002

for product in "${products[@]}"; do mv -f "$work/$product" "$out/$product"; done
echo "$stamp" >"$out/debian.stamp"
du --apparent-size -h "$out"/debian*.raw | sed 's/^/  /'
echo "built in $SECONDS s, $(du -h "$out/debian.raw" | cut -f1) of data"
