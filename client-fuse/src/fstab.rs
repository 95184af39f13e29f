//! `mount.fuse.circular`: what `mount` and fstab say, as the command line of `circular-mount`. Pure.
//!
//! A line of fstab is `URL#IMAGE DIRECTORY fuse.circular OPTIONS 0 0`. For that type `mount` runs
//! `mount.fuse.circular URL#IMAGE DIRECTORY [-sfnv] [-o OPTIONS]`, which is a link to this program.
//! An option `name=value` is `--name value` here, with `_` as `-`; options for the kernel or for
//! whoever reads fstab are left out, because they are nothing to a mount like this.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// How the program is called when `mount` calls it.
const HELPER: &str = "mount.fuse.circular";

/// Options that are not for us: of fstab, of systemd (`x-…` too), and those for the kernel that do
/// not change what a disk file is.
const OTHERS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "rw",
    "suid",
    "nosuid",
    "dev",
    "nodev",
    "exec",
    "noexec",
    "async",
    "sync",
    "dirsync",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "lazytime",
    "nolazytime",
    "default_permissions",
    "comment",
    "subtype",
    "fsname",
    "uhelper",
    "helper",
];

/// Why a line of fstab cannot be mounted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum FstabError {
    #[error(
        "usage: {HELPER} URL#IMAGE DIRECTORY [-o OPTION,…]; in fstab: http://host:8080/#debian:12 /mnt fuse.circular root=/etc/circular/root.json,_netdev 0 0"
    )]
    Usage,
    #[error("`{0}` names no image; write it as http://host:8080/#debian:12")]
    NoImage(String),
    #[error("the options contradict each other: ro, and an overlay to write to; leave one out")]
    ReadOnlyOverlay,
    #[error("an option is not UTF-8")]
    NotText,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Call {
    /// Run with these arguments, the name of the program first.
    Run(Vec<OsString>),
    /// Nothing: `mount -f` only pretends.
    Pretend,
}

/// Translates what `mount` said; any other call stays as it is.
///
/// # Errors
///
/// When it does not say what to mount where.
pub fn translate(arguments: Vec<OsString>) -> Result<Call, FstabError> {
    let name = arguments
        .first()
        .and_then(|name| Path::new(name).file_name());
    let name = name.and_then(OsStr::to_str).unwrap_or_default();
    if !name.starts_with(HELPER) {
        return Ok(Call::Run(arguments));
    }
    let (mut places, mut options, mut pretend) = (Vec::new(), Vec::new(), false);
    let mut rest = arguments.into_iter().skip(1);
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("-o") => {
                let list = rest.next().ok_or(FstabError::Usage)?;
                options.push(list.into_string().map_err(|_| FstabError::NotText)?);
            }
            Some("-N" | "-t") => drop(rest.next()),
            // A single letter each, of which only this one matters.
            Some(flags) if flags.starts_with('-') && flags.len() > 1 => {
                pretend |= flags.contains('f');
            }
            _ => places.push(argument),
        }
    }
    let [what, directory] = &places[..] else {
        return Err(FstabError::Usage);
    };
    let what = what.to_str().ok_or(FstabError::NotText)?;
    let (url, image) = what
        .rsplit_once('#')
        .filter(|(url, image)| !url.is_empty() && !image.is_empty())
        .ok_or_else(|| FstabError::NoImage(what.to_owned()))?;
    let mut out = vec![OsString::from("circular-mount")];
    out.extend(long_options(&options)?.into_iter().map(OsString::from));
    // `mount -a` compares what is mounted with the line of fstab, letter by letter.
    out.push(format!("--source={what}").into());
    out.extend([url.into(), image.into(), directory.clone()]);
    if pretend {
        return Ok(Call::Pretend);
    }
    Ok(Call::Run(out))
}

/// The options that are ours.
fn long_options(lists: &[String]) -> Result<Vec<String>, FstabError> {
    let all = || lists.iter().flat_map(|list| list.split(','));
    let name_of = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    if all().any(|option| option == "ro") && all().any(|option| name_of(option) == "overlay") {
        return Err(FstabError::ReadOnlyOverlay);
    }
    let ours = all().filter(|option| {
        let name = name_of(option);
        !name.is_empty() && name != "ro" && !name.starts_with("x-") && !OTHERS.contains(&&*name)
    });
    let long = ours.map(|option| {
        let name = name_of(option);
        format!("--{}{}", name.replace('_', "-"), &option[name.len()..])
    });
    Ok(long.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(arguments: &[&str]) -> Result<Vec<String>, FstabError> {
        let arguments = arguments.iter().map(OsString::from).collect();
        match translate(arguments)? {
            Call::Run(out) => Ok(out.into_iter().map(|s| s.into_string().unwrap()).collect()),
            Call::Pretend => Ok(Vec::new()),
        }
    }

    #[test]
    fn a_line_of_fstab_is_a_command_line() {
        let options = "rw,_netdev,x-systemd.requires=a,root=/etc/r.json,cache_size=1G,no_state";
        let helper = "/sbin/mount.fuse.circular";
        let found = call(&[helper, "http://h:1/#lab/debian:12@3", "/mnt", "-o", options]);
        let expected = [
            "circular-mount",
            "--root=/etc/r.json",
            "--cache-size=1G",
            "--no-state",
            "--source=http://h:1/#lab/debian:12@3",
            "http://h:1/",
            "lab/debian:12@3",
            "/mnt",
        ];
        assert_eq!(found.unwrap(), expected);
    }

    #[test]
    fn any_other_call_stays_as_it_is() {
        let typed = ["circular-mount", "-f", "http://h/", "debian", "/mnt"];
        assert_eq!(call(&typed).unwrap(), typed);
        assert_eq!(call(&[]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_mounted_is_said() {
        let helper = "mount.fuse.circular";
        assert_eq!(call(&[helper]), Err(FstabError::Usage));
        assert_eq!(
            call(&[helper, "http://h/#a", "/mnt", "-o"]),
            Err(FstabError::Usage)
        );
        let no_image = FstabError::NoImage("http://h/".to_owned());
        assert_eq!(call(&[helper, "http://h/", "/mnt"]), Err(no_image));
        let both = call(&[helper, "http://h/#a", "/mnt", "-o", "ro,overlay=/o"]);
        assert_eq!(both, Err(FstabError::ReadOnlyOverlay));
        assert_eq!(
            call(&[helper, "http://h/#a", "/mnt", "-sf"]).unwrap(),
            Vec::<String>::new()
        );
    }
}
