//! iPXE scripts: a menu of all images, and one script for each tag, pinned to its version.
//!
//! The scripts are plain files of the store, so that a static host can boot machines too. They
//! cannot know their own address, except from iPXE: `${cwuri}`, or on builds before 2021
//! `${filename}` (the address that DHCP handed out). They pass it on as `circular.boot=`, from
//! which the init in the guest derives the base URL of the store.
//!
//! The network is handed over too: where iPXE got a lease, the guest asks for one of its own, so that
//! somebody renews it; where a person typed an address, the guest gets that.
//!
//! Two initrds are loaded: first the least versions of metadata ([`crate::minimum`]), a plain archive of
//! whole 512-byte blocks, so that the compressed one behind it begins where a kernel looks for it,
//! whoever puts them together. Firmware that hands them over by name needs each on the command line.
//!
//! Every URI in them is relative to the script, and none contains a `:`, which iPXE would take for
//! a scheme.

use std::fmt::Write as _;

use crate::manifest::Boot;
use crate::minimum::MINIMUM_PATH;
use crate::reference::{ImageRef, Tag};

/// Where the menu lies in a store.
pub const MENU_PATH: &str = "boot.ipxe";

/// How long the menu waits before it boots the default, in milliseconds.
pub const MENU_TIMEOUT_MS: u32 = 10_000;

/// Returns where the script of `reference` (a name and a tag) lies in a store.
pub fn script_path(reference: &ImageRef) -> String {
    format!("boot/{}.ipxe", reference.to_file_safe())
}

/// One line of the menu.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MenuItem {
    /// What is booted: a name and a tag.
    pub reference: ImageRef,
    /// The version that the tag points to now, as shown.
    pub label: String,
}

/// Returns the menu of `items`; the one at `default` is booted when nobody chooses.
pub fn menu(items: &[MenuItem], default: usize) -> String {
    let mut out = String::from(
        "#!ipxe\n\
         # Written by circular publish; changes here are lost with the next one.\n",
    );
    let Some(chosen) = items.get(default).or_else(|| items.first()) else {
        out.push_str("echo This store has no image that can be booted: publish one with a kernel in it.\nshell\n");
        return out;
    };
    let _ = writeln!(
        out,
        ":start\nmenu Circular: which disk shall this machine boot?"
    );
    out.push_str("item --gap Images\n");
    for item in items {
        let _ = writeln!(
            out,
            "item {} {}  {}",
            item.reference.to_file_safe(),
            item.reference,
            item.label
        );
    }
    out.push_str(
        "item --gap Other\n\
         item --key l local Boot from the local disk\n\
         item --key s shell iPXE shell\n\
         item --key r reboot Reboot\n",
    );
    let _ = writeln!(
        out,
        "choose --timeout {MENU_TIMEOUT_MS} --default {} selected || goto shell",
        chosen.reference.to_file_safe()
    );
    out.push_str(
        "iseq ${selected} local && goto local ||\n\
         iseq ${selected} shell && goto shell ||\n\
         iseq ${selected} reboot && goto reboot ||\n\
         chain boot/${selected}.ipxe || goto failed\n\
         :failed\n\
         echo Booting ${selected} failed; the menu comes back in 10 seconds.\n\
         sleep 10\n\
         goto start\n\
         :local\n\
         iseq ${platform} pcbios && sanboot --no-describe --drive 0x80 || exit 1\n\
         :shell\n\
         echo Type `exit` to come back to the menu.\n\
         shell\n\
         goto start\n\
         :reboot\n\
         reboot\n",
    );
    out
}

/// The longest kernel command line, in bytes: `COMMAND_LINE_SIZE` of x86, with its end. The kernel cuts what is longer.
const KERNEL_LINE_MAX: usize = 2047;

/// What the version, and the addresses of server and machine may take on a kernel command line, in bytes: iPXE fills most of
/// them in.
const FILLED_IN: usize = 300;

/// Returns by how many bytes the kernel command line with which an image boots may be too long.
pub fn excess(reference: &ImageRef, boot: &Boot) -> usize {
    (kernel_line(reference, boot).len() + FILLED_IN).saturating_sub(KERNEL_LINE_MAX)
}

/// Returns the kernel command line, with iPXE's names for what it fills in.
fn kernel_line(pinned: &ImageRef, boot: &Boot) -> String {
    let mut args =
        String::from("initrd=minimum.img initrd=initrd.img circular.boot=${circular-boot}");
    if let Some(url) = &boot.base_url {
        let _ = write!(args, " circular.url={url}");
    }
    for url in &boot.mirrors {
        let _ = write!(args, " circular.mirror={url}");
    }
    let _ = write!(args, " circular.image={pinned}");
    if let Some(root) = &boot.root {
        let _ = write!(args, " root={root}");
    }
    args.push_str(" BOOTIF=01-${netX/mac:hexhyp} ip=${circular-ip}");
    if !boot.cmdline.is_empty() {
        let _ = write!(args, " {}", boot.cmdline);
    }
    args
}

/// Returns the script that boots `pinned` (with its version) as `boot` says.
pub fn script(pinned: &ImageRef, boot: &Boot) -> String {
    let args = kernel_line(pinned, boot);
    format!(
        "#!ipxe\n\
         # Boots {pinned}. Written by circular publish; changes here are lost with the next one.\n\
         isset ${{cwuri}} && set circular-boot ${{cwuri}} || set circular-boot ${{filename}}\n\
         isset ${{netX/ip}} && set circular-ip \
         ${{netX/ip}}::${{netX/gateway}}:${{netX/netmask}}:::none:${{netX/dns}} || set circular-ip dhcp\n\
         isset ${{netX/dhcp-server}} && set circular-ip dhcp ||\n\
         imgfree\n\
         kernel --name vmlinuz ../{kernel} {args} || goto failed\n\
         initrd --name minimum.img ../{MINIMUM_PATH} || goto failed\n\
         initrd --name initrd.img ../{initramfs} || goto failed\n\
         boot || goto failed\n\
         :failed\n\
         echo Loading {pinned} failed.\n\
         exit 1\n",
        kernel = boot.kernel.digest.object_path(),
        initramfs = boot.initramfs.digest.object_path(),
    )
}

/// Tells whether the script of `tag` is also offered without a tag.
pub fn is_default_tag(tag: &Tag) -> bool {
    *tag == Tag::latest()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::ObjectRef;

    fn boot() -> Boot {
        Boot {
            kernel: ObjectRef::of(b"kernel"),
            initramfs: ObjectRef::of(b"initramfs"),
            kernel_release: "6.1".to_owned(),
            cmdline: "console=ttyS0".to_owned(),
            root: Some("PARTUUID=1234".to_owned()),
            base_url: None,
            mirrors: Vec::new(),
        }
    }

    #[test]
    fn a_script_pins_its_version_and_has_only_relative_paths() {
        let text = script(&"lab/debian:12@3".parse().unwrap(), &boot());
        assert!(text.starts_with("#!ipxe\n"));
        assert!(
            text.contains("circular.image=lab/debian:12@3 root=PARTUUID=1234 "),
            "{text}"
        );
        assert!(
            text.contains("initrd --name initrd.img ../objects/"),
            "{text}"
        );
        assert!(!text.contains("http"), "{text}");
    }

    #[test]
    fn a_kernel_line_that_the_kernel_would_cut_is_known_to_be_too_long() {
        let reference = "lab/debian:12".parse().unwrap();
        assert_eq!(excess(&reference, &boot()), 0);
        let boot = Boot {
            cmdline: "x".repeat(900),
            mirrors: vec![format!("http://{}/", "m".repeat(900))],
            ..boot()
        };
        assert!((1..600).contains(&excess(&reference, &boot)));
    }

    #[test]
    fn a_base_url_overrides() {
        let boot = Boot {
            base_url: Some("http://cdn.example/s/".to_owned()),
            ..boot()
        };
        let text = script(&"a@1".parse().unwrap(), &boot);
        assert!(
            text.contains(" circular.url=http://cdn.example/s/ "),
            "{text}"
        );
    }

    #[test]
    fn mirrors_are_handed_over_in_their_order() {
        let mirrors = ["http://b.example/s/", "https://a.example/"].map(str::to_owned);
        let boot = Boot {
            mirrors: mirrors.to_vec(),
            ..boot()
        };
        let text = script(&"a@1".parse().unwrap(), &boot);
        let wanted = " circular.mirror=http://b.example/s/ circular.mirror=https://a.example/ ";
        assert!(text.contains(wanted), "{text}");
    }

    #[test]
    fn the_least_versions_are_loaded_first_and_both_initrds_are_named() {
        let text = script(&"a@1".parse().unwrap(), &boot());
        assert!(text.contains(" initrd=minimum.img initrd=initrd.img "));
        let at = |part: &str| text.find(part).unwrap();
        let minimum = at("\ninitrd --name minimum.img ../boot/minimum.img || goto failed\n");
        assert!(minimum < at("\ninitrd --name initrd.img "));
    }

    #[test]
    fn the_menu_lists_all_and_names_a_default() {
        let item = |text: &str| MenuItem {
            reference: text.parse().unwrap(),
            label: "version 1".to_owned(),
        };
        let text = menu(&[item("a:1"), item("lab/b:latest")], 1);
        assert!(text.contains("\nitem a=1 a:1  version 1\n"), "{text}");
        assert!(text.contains("--default lab,b=latest selected"), "{text}");
        assert!(menu(&[], 0).contains("no image"));
    }

    #[test]
    fn script_paths_have_no_colon() {
        assert_eq!(
            script_path(&"lab/b:12".parse().unwrap()),
            "boot/lab,b=12.ipxe"
        );
    }
}
