//! How a published disk boots: what the publisher says about that, and what comes of it.

use std::path::PathBuf;

use anyhow::Context as _;
use image_store::Store;

use super::Args;
use crate::publish::boot::{self, BootBuilt, BootConfig, KernelSource, ProgramPaths};
use crate::publish::source::Source;
use crate::ui::Ui;

/// How the disk boots.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Booting")]
pub(super) struct BootArgs {
    /// Publish a disk that is mounted only: look for no kernel
    #[arg(long, conflicts_with_all = ["cmdline", "root", "kernel"])]
    no_boot: bool,
    /// Kernel command line of the image
    #[arg(long, value_name = "ARGS", default_value = "")]
    pub(super) cmdline: String,
    /// Root file system, as in the kernel's root=; found in the image if not given
    #[arg(long, value_name = "SPEC")]
    pub(super) root: Option<String>,
    /// Kernel to boot, instead of the one in the image
    #[arg(long, value_name = "FILE", requires = "modules")]
    kernel: Option<PathBuf>,
    /// Directory /lib/modules/RELEASE of that kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Driver that the initramfs shall have besides those that most machines need, as `modinfo` names it: for a network
    /// card, or for the disk of a local cache (`nvme`, `ahci`); may be given several times
    #[arg(long = "driver", value_name = "MODULE", conflicts_with = "no_boot")]
    drivers: Vec<String>,
    /// Address of the store that boot scripts name, if not their own
    #[arg(long, value_name = "URL")]
    pub(super) base_url: Option<String>,
    /// Another server of the same store, asked by booted machines when those before it fail or send
    /// something wrong; may be given several times. None of them is trusted
    #[arg(long = "mirror-url", value_name = "URL")]
    pub(super) mirror_urls: Vec<String>,
    /// Certificate authorities, in PEM, that booted machines believe: needed where they fetch over https, for their
    /// initramfs has no others
    #[arg(long, value_name = "FILE", env = "CIRCULAR_GUEST_CA")]
    guest_ca: Option<PathBuf>,
    /// Static circular-mount for the initramfs
    #[arg(long, value_name = "FILE", env = "CIRCULAR_GUEST_CLIENT")]
    guest_client: Option<PathBuf>,
    /// Static circular-init for the initramfs
    #[arg(long, value_name = "FILE", env = "CIRCULAR_GUEST_INIT")]
    guest_init: Option<PathBuf>,
    /// Static busybox for the initramfs
    #[arg(long, value_name = "FILE", env = "CIRCULAR_BUSYBOX")]
    busybox: Option<PathBuf>,
}

impl BootArgs {
    /// Whether the disk is to boot, come what may.
    fn asks_for_boot(&self) -> bool {
        self.kernel.is_some()
            || self.root.is_some()
            || !self.cmdline.is_empty()
            || !self.drivers.is_empty()
    }

    /// Whether anything was said about how it boots.
    pub(super) fn is_said(&self) -> bool {
        self.asks_for_boot() || self.base_url.is_some() || !self.mirror_urls.is_empty()
    }
}

/// Builds what booting needs. An image without a kernel of its own is published all the same, and
/// the summary says why it does not boot; a kernel that was asked for by name must work. Whatever else fails is an error: the
/// boot script of the tag would be gone, for no fault of the image.
pub(super) async fn make_bootable(
    store: &Store,
    source: &Source,
    args: &Args,
    root: Vec<u8>,
    ui: &Ui,
) -> anyhow::Result<(Option<BootBuilt>, Option<String>)> {
    let (reference, args) = (&args.reference, &args.boot);
    if args.no_boot {
        return Ok((None, None));
    }
    let asked = args.asks_for_boot();
    let paths = ProgramPaths {
        client: args.guest_client.clone(),
        init: args.guest_init.clone(),
        busybox: args.busybox.clone(),
    };
    let attempt = async {
        let config = BootConfig {
            kernel: match (&args.kernel, &args.modules) {
                (Some(kernel), Some(modules)) => KernelSource::Files {
                    kernel: kernel.clone(),
                    modules: modules.clone(),
                },
                _ => KernelSource::Image,
            },
            root: args.root.clone(),
            cmdline: args.cmdline.clone(),
            base_url: args.base_url.clone(),
            mirrors: args.mirror_urls.clone(),
            drivers: args.drivers.clone(),
            programs: paths,
            trusted_root: root,
            authorities: args.guest_ca.clone(),
        };
        boot::build(store, reference, source, config).await
    };
    let spinner = ui.spinner("making it bootable");
    let outcome = attempt.await;
    spinner.finish_and_clear();
    match outcome {
        Ok(built) => {
            let mut addresses = args.base_url.iter().chain(&args.mirror_urls);
            if args.guest_ca.is_none()
                && let Some(address) = addresses.find(|address| address.starts_with("https:"))
            {
                ui.warn(&format!(
                    "booted machines are to fetch from {address}, and believe no certificate: give --guest-ca FILE"
                ));
            }
            if built.needs_recovery {
                ui.warn(
                    "the root file system was not unmounted cleanly; machines boot it without replaying its journal: \
                     run e2fsck on the image and publish it again",
                );
            }
            if built.passed_over > 0 {
                ui.warn(&format!(
                    "{} ext4 file systems of the disk cannot be looked into; machines boot from another one, {}",
                    built.passed_over,
                    built.boot.root.as_deref().unwrap_or("the whole disk")
                ));
            }
            Ok((Some(built), None))
        }
        Err(error) if !asked && error.is_of_the_image() => {
            Ok((None, Some(format!("{:#}", anyhow::Error::from(error)))))
        }
        Err(error) => {
            Err(error).context("cannot make the image bootable (--no-boot publishes it without)")
        }
    }
}
