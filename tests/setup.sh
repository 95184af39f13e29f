#!/bin/bash
# Installs the Debian packages that building, testing and the demo need, if any is missing.
# Needs root only then. `setup.sh bench` installs what `make bench` compares with, too.
set -euo pipefail

packages=(
    build-essential pkg-config               # aws-lc, zstd
    busybox-static                           # the shell of the initramfs
    mmdebstrap e2fsprogs dosfstools fdisk    # the Debian disks
    qemu-system-x86 ipxe-qemu                # the machine that boots them
    qemu-utils qemu-block-extra              # reads a disk over HTTP
    fuse3 curl nginx-light                   # what the tests compare with
    fio                                      # writes to disks and verifies
    iproute2                                 # the emulated line
    squid                                    # a proxy on the way to a store
    strace                                   # kills publishers at each system call
    python3-venv                             # a TUF client that is not ours
)

[ "${1:-}" != bench ] || packages+=(
    nbdkit libnbd-bin qemu-system-common     # disks over HTTP, of others
    casync zstd fio                          # stores of others, and what measures reads
)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing: ${missing[*]}"
# nginx and squid are for the tests to start; nothing is to listen on their ports afterwards.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq --yes --no-install-recommends "${missing[@]}" >/dev/null
