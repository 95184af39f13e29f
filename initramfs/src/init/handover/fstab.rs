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
