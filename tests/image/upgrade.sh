#!/bin/sh
# Makes what an upgrade leaves of a disk: every fifth program, library and unit of OLD is a new file
# with other content behind its end, as dpkg would put it there: written beside, then renamed.
#   tests/image/upgrade.sh OLD.raw NEW.raw       (needs root: it mounts)
set -eu
old=$1 new=$2
mount=$(mktemp -d)
trap 'umount "$mount" 2>/dev/null || true; rmdir "$mount"' EXIT
cp --sparse=always "$old" "$new"
mount -o loop "$new" "$mount"
cd "$mount"
find usr/bin usr/sbin usr/lib/systemd usr/lib/x86_64-linux-gnu -xdev -type f -size +0 ! -path '*/modules/*' |
	LC_ALL=C sort | awk 'NR % 5 == 0' > "$mount.list"
while read -r file; do
	cp -p "$file" "$file.dpkg-new"
	printf '\n# upgraded: %s\n' "$file" >> "$file.dpkg-new"
	mv "$file.dpkg-new" "$file"
done < "$mount.list"
echo "$(wc -l < "$mount.list") files rewritten" >&2
rm "$mount.list"
cd /
umount "$mount"
