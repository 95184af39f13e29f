//! Checks of what may be typed, and of what comes of it.

use super::*;

fn config(extra: &[&str]) -> Config {
    let base = [
        "circular-mount",
        "http://host:8080",
        "lab/debian:12",
        "/mnt",
    ];
    let args = Args::try_parse_from(base.iter().chain(extra)).unwrap();
    args.into_config(Directories {
        cache: Some(PathBuf::from("/var/cache/circular")),
        state: Some(PathBuf::from("/var/lib/circular")),
    })
}

#[test]
fn the_command_line_is_sound() {
    Args::command().debug_assert();
    command().debug_assert();
}

#[test]
fn metrics_are_served_nowhere_unless_that_is_said() {
    assert_eq!(config(&[]).metrics, None);
    assert_eq!(config(&["--initramfs"]).metrics, None);
    let local = config(&["--metrics", "9184"]).metrics.unwrap();
    assert_eq!(local.to_string(), "127.0.0.1:9184");
}

#[test]
fn a_plain_mount_gives_up_in_the_end_and_a_root_disk_never() {
    assert_eq!(
        config(&[]).network.retry.deadline,
        Some(Duration::from_secs(60))
    );
    assert_eq!(config(&["--deadline", "0"]).network.retry.deadline, None);
    assert_eq!(config(&["--initramfs"]).network.retry.deadline, None);
    assert_eq!(config(&["--initramfs"]).network.retry_open.deadline, None);
}

#[test]
fn a_root_disk_is_supervised_and_one_that_is_written_to_if_asked() {
    let supervision = |extra: &[&str]| config(extra).process.supervision;
    assert_eq!(supervision(&[]), Supervision::Off);
    assert_eq!(supervision(&["--supervise"]), Supervision::Auto);
    assert_eq!(supervision(&["--supervise=relay"]), Supervision::Relay);
    assert_eq!(supervision(&["--initramfs"]), Supervision::Auto);
    let asked = supervision(&["--supervise", "--overlay", "o"]);
    assert_eq!(asked, Supervision::Auto);
    let off = supervision(&["--initramfs", "--supervise=off"]);
    assert_eq!(off, Supervision::Off);
    let written = supervision(&["--initramfs", "--overlay", "o"]);
    assert_eq!(written, Supervision::Off);
}

#[test]
fn the_cache_has_a_default_that_can_be_refused() {
    assert!(config(&[]).disk_cache.is_some());
    assert!(config(&["--no-cache"]).disk_cache.is_none());
    assert!(config(&["--initramfs"]).disk_cache.is_none());
    assert!(config(&[]).passthrough.is_some());
    assert!(config(&["--no-passthrough"]).passthrough.is_none());
    assert!(
        config(&["--initramfs", "--cache", "/c"])
            .passthrough
            .is_none()
    );
    let chosen = config(&["--initramfs", "--cache", "/run/cache"])
        .disk_cache
        .unwrap();
    assert_eq!(chosen.directory, PathBuf::from("/run/cache"));
}

#[test]
fn trust_begins_with_one_thing() {
    assert_eq!(config(&[]).trust.root, RootConfig::Remembered);
    let given = config(&["--root", "root.json"]).trust.root;
    assert_eq!(given, RootConfig::File(PathBuf::from("root.json")));
    let first = config(&["--trust-on-first-use"]).trust.root;
    assert_eq!(first, RootConfig::FirstUse);
}

#[test]
fn a_machine_that_boots_remembers_nothing_and_may_have_no_clock() {
    let plain = config(&[]).trust;
    assert_eq!(plain.state, Some(PathBuf::from("/var/lib/circular")));
    assert_eq!(plain.expiry, Expiry::Enforce);
    assert_eq!(config(&["--no-state"]).trust.state, None);
    let boot = config(&["--initramfs"]).trust;
    assert_eq!(boot.state, None);
    assert_eq!(boot.expiry, Expiry::Warn);
    let told = config(&["--initramfs", "--expiry", "enforce", "--state", "/s"]).trust;
    assert_eq!(told.state, Some(PathBuf::from("/s")));
    assert_eq!(told.expiry, Expiry::Enforce);
}

#[test]
fn authorities_are_added_unless_they_are_all() {
    let authorities = |extra: &[&str]| config(extra).identity.authorities;
    let file = || PathBuf::from("ca.pem");
    assert_eq!(authorities(&[]), Authorities::System);
    assert_eq!(
        authorities(&["--ca", "ca.pem"]),
        Authorities::SystemAnd(file())
    );
    assert_eq!(
        authorities(&["--ca", "ca.pem", "--ca-only"]),
        Authorities::Only(file())
    );
}

#[test]
fn mirrors_are_asked_in_the_order_given() {
    let mirrors = config(&["--mirror", "http://b/", "--mirror", "https://a/s"]).mirrors;
    let mirrors: Vec<_> = mirrors.iter().map(ToString::to_string).collect();
    assert_eq!(mirrors, ["http://b/", "https://a/s/"]);
}

#[test]
fn a_server_that_is_named_twice_is_no_second_one() {
    let twice = ["http://b/", "http://host:8080/", "http://b"];
    let typed: Vec<&str> = twice.iter().flat_map(|url| ["--mirror", url]).collect();
    let mirrors = config(&typed).mirrors;
    let mirrors: Vec<_> = mirrors.iter().map(ToString::to_string).collect();
    assert_eq!(mirrors, ["http://b/"]);
}

#[test]
fn wrong_usage_is_refused() {
    let parse = |args: &[&str]| Args::try_parse_from([&["circular-mount"], args].concat()).is_err();
    assert!(parse(&["ftp://host/", "debian", "/mnt"]));
    assert!(parse(&["http://host/", "../debian", "/mnt"]));
    assert!(parse(&["http://host/", "debian"]));
    let trust = |extra: &[&str]| parse(&[&["http://host/", "debian", "/mnt"], extra].concat());
    assert!(trust(&["--root", "root.json", "--trust-on-first-use"]));
    assert!(trust(&["--no-state", "--trust-on-first-use"]));
    assert!(trust(&["--no-state", "--state", "/s"]));
    assert!(trust(&["--expiry", "never"]));
    assert!(trust(&["--ca-only"]));
    assert!(trust(&["--supervise=now"]));
    assert!(trust(&["--mirror", "file:///store"]));
    assert!(parse(&[
        "http://host/",
        "debian",
        "/mnt",
        "--connections",
        "0"
    ]));
    assert!(parse(&[
        "http://host/",
        "debian",
        "/mnt",
        "--cache-size",
        "many"
    ]));
}
