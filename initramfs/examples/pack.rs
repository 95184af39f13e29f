//! Builds an initramfs from files of this machine, to try init without publishing an image.
//!
//! ```text
//! cargo run -p initramfs --example pack -- MODULES CLIENT INIT BUSYBOX FILESYSTEM OUT
//! ```
//! MODULES is a directory such as `/lib/modules/6.1.0-1-amd64`; its name is the kernel release.

use std::{env, fs, path::PathBuf};

use anyhow::{Context as _, anyhow, bail};
use initramfs::{DirectoryModules, Spec, build};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [modules, client, init, busybox, filesystem, out] = &arguments[..] else {
        bail!("give MODULES CLIENT INIT BUSYBOX FILESYSTEM OUT");
    };
    let modules = PathBuf::from(modules);
    let release = modules.file_name().and_then(|name| name.to_str());
    let release = release.ok_or_else(|| anyhow!("MODULES has no name"))?;
    let initramfs = build(&Spec {
        kernel_release: release.to_owned(),
        modules: &DirectoryModules::new(&modules),
        filesystem: filesystem.parse()?,
        root: None,
        client: client.into(),
        init: init.into(),
        busybox: busybox.into(),
        extra_modules: Vec::new(),
        extra_files: Vec::new(),
    })?;
    fs::write(out, &initramfs.bytes).context(out.clone())?;
    #[expect(clippy::print_stdout, reason = "this is what the example is for")]
    {
        println!("{:#?}", initramfs.report);
    }
    Ok(())
}
