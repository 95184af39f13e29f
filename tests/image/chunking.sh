#!/bin/bash
# Measures what versions of an image share: the table of docs/CHUNKING.md.
#
#   tests/image/chunking.sh [BUILD_DIRECTORY]
#
# Publishes three disks one after another into a fresh store, for each way of cutting: a Debian;
# the same after packages were installed in place; its content laid out anew by a fresh mkfs.
# Prints what each adds to the store. Needs root (a loop mount) and the Debian mirror.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${1:-build}
circular=target/debug/circular
work=$(mktemp -d /tmp/circular-chunking.XXXXXX)
export CIRCULAR_KEYS=$work/keys
trap 'umount "$work/root" 2>/dev/null || true; rm -rf "$work"' EXIT

cp --sparse=always "$build/debian.raw" "$work/in-place.raw"
mkdir "$work/root"
mount -o loop "$work/in-place.raw" "$work/root"
cp /etc/resolv.conf "$work/root/etc/resolv.conf"
chroot "$work/root" sh -c 'export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-minimal rsyslog >/dev/null && apt-get clean' >/dev/null 2>&1
changed=$(find "$work/root" -xdev -type f -newer "$build/debian.raw" -printf '%b\n' | awk '{ sum += $1 * 512 } END { print sum + 0 }')
mke2fs -q -t ext4 -d "$work/root" "$work/rebuilt.raw" 2G
umount "$work/root"

# name, min_blocks, mask_bits, max_blocks, tail_bytes; mask_bits 63 never cuts by content.
settings='fixed-64K 16 63 16 0
fixed-256K 64 63 64 0
hash-8/32/128K 2 3 32 0
hash+eof-8/128/256K 2 5 64 64
hash+eof-16/128/256K 4 5 64 64'

printf 'changed in place: %s MB in files\n' "$((changed / 1000000))"
printf '| chunking | mean chunk | first | in place | rebuilt |\n| --- | --- | --- | --- | --- |\n'
while read -r name min mask max tail; do
  store=$work/store
  rm -rf "$store"
  # The publish that makes a store gives it the defaults; then they are changed.
  head -c 4096 /dev/zero | tr '\0' x > "$work/first.raw"
  "$circular" --store "$store" --quiet publish --no-boot "$work/first.raw" first
  printf '{"circular_store":1,"chunker":{"min_blocks":%s,"mask_bits":%s,"max_blocks":%s,"tail_bytes":%s,"seed":0}}\n' \
    "$min" "$mask" "$max" "$tail" > "$store/circular.json"
  row="| $name |"
  for disk in "$build/debian.raw" "$work/in-place.raw" "$work/rebuilt.raw"; do
    json=$("$circular" --store "$store" --json publish --no-boot "$disk" "disk:$(basename "$disk" .raw)")
    if [ "$disk" = "$build/debian.raw" ]; then
      row="$row $(jq -r '.disk.data_bytes / .chunks / 1024 | round' <<< "$json") K |"
    fi
    row="$row $(jq -r '.new_stored_bytes / 100000 | round / 10' <<< "$json") MB |"
  done
  printf '%s\n' "$row"
done <<< "$settings"
