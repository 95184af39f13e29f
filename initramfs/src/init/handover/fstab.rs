//! Makes an image's `fstab` fit a boot over the network.

/// Ways to name a block device.
const DEVICES: [&str; 5] = ["/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="];

/// Returns the `fstab` that the booted system gets.
///
/// - The line of `/` is dropped: the root is an overlay, which must not be checked or remounted.
/// - Lines of swap are dropped: the image's disk cannot be written, so it cannot be swapped to.
/// - Other block devices are not checked, and not waited for if they are not there: `/boot` and
///   `/boot/efi` of the image are on a read-only disk, and a disk of the publisher's machine is
///   not here at all.
/// - All else, comments too, stays as it is.
pub(super) fn for_network_boot(text: &str) -> String {
    let mut changed = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields[..] {
            [source, mount_point, kind, ..] if !source.starts_with('#') => {
                if mount_point == "/" || kind == "swap" {
                    continue;
                }
                if DEVICES.iter().any(|device| source.starts_with(device)) {
                    let options = fields.get(3).copied().unwrap_or("defaults");
                    let options = with_nofail(options);
                    changed.push_str(&format!("{source} {mount_point} {kind} {options} 0 0\n"));
                } else {
                    changed.push_str(line);
                }
            }
            _ => changed.push_str(line),
        }
    }
    changed
}

/// Returns where file systems of the image are mounted beside its root that hold what people and programs write: they
/// cannot here. `/boot` and `/efi` are none.
pub(super) fn read_only_places(text: &str) -> Vec<&str> {
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    let places = lines.filter_map(|line| {
        let mut fields = line.split_whitespace();
        let (source, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        let mut options = fields.next().unwrap_or("defaults").split(',');
        if options.any(|option| option == "noauto" || option == "ro") {
            return None;
        }
        let on_disk = DEVICES.iter().any(|device| source.starts_with(device));
        let is_boot = ["/boot", "/efi"].iter().any(|top| place.starts_with(top));
        let is_written = place.starts_with('/') && place != "/" && !is_boot;
        (on_disk && is_written && kind != "swap").then_some(place)
    });
    places.collect()
}

fn with_nofail(options: &str) -> String {
    if options.split(',').any(|option| option == "nofail") {
        options.to_owned()
    } else {
        format!("{options},nofail")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_people_write_to_are_named() {
        let text = "# UUID=0 /old ext4 defaults 0 0\n\
                    UUID=1 / ext4 defaults 0 1\n\
                    UUID=2 /boot/efi vfat umask=0077 0 1\n\
                    UUID=1 /home btrfs subvol=home 0 0\n\
                    /dev/vda3 none swap sw 0 0\n\
                    /dev/mapper/vg-var /var xfs defaults 0 0\n\
                    /dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n\
                    tmpfs /tmp tmpfs nosuid 0 0\n\
                    nas:/srv /srv nfs _netdev 0 0";
        assert_eq!(read_only_places(text), ["/home", "/var"]);
        assert_eq!(read_only_places(""), [""; 0]);
    }

    #[test]
    fn root_and_swap_go_and_other_disks_are_optional() {
        let before = "# /etc/fstab\n\
                      UUID=1 / ext4 errors=remount-ro 0 1\n\
                      UUID=2 /boot/efi vfat umask=0077 0 1\n\
                      /dev/vda3 none swap sw 0 0\n\
                      /swapfile none swap sw 0 0\n\
                      /dev/vdb1 /data ext4 nofail 0 2\n\
                      tmpfs /tmp tmpfs nosuid 0 0\n\
                      \n\
                      nas:/home /home nfs _netdev 0 0";
        let after = "# /etc/fstab\n\
                     UUID=2 /boot/efi vfat umask=0077,nofail 0 0\n\
                     /dev/vdb1 /data ext4 nofail 0 0\n\
                     tmpfs /tmp tmpfs nosuid 0 0\n\
                     \n\
                     nas:/home /home nfs _netdev 0 0";
        assert_eq!(for_network_boot(before), after);
    }

    #[test]
    fn a_second_pass_changes_nothing() {
        let once = for_network_boot("LABEL=efi /boot/efi vfat\n");
        assert_eq!(once, "LABEL=efi /boot/efi vfat defaults,nofail 0 0\n");
        assert_eq!(for_network_boot(&once), once);
    }
}
