//! The emulated line: real packets through it are never early, never too many, and all accounted for.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use circular_tests::images::noise;
use circular_tests::link::shaper::{Loss, Rate};
use circular_tests::link::{Conditions, Link, SERVER};
use circular_tests::require::{self, Need};

const MIB: usize = 1 << 20;

/// Returns the shortest of a few times that a datagram takes to the server and back.
fn round_trip(link: &Link) -> Result<Duration> {
    let socket = link.server().within(|| UdpSocket::bind((SERVER, 0)))??;
    let address = socket.local_addr()?;
    let echo = thread::spawn(move || -> std::io::Result<()> {
        let mut buffer = [0; 8];
        for _ in 0..5 {
            let (length, from) = socket.recv_from(&mut buffer)?;
            socket.send_to(&buffer[..length], from)?;
        }
        Ok(())
    });
    let client = link.client().within(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    let mut shortest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        client.send_to(b"?", address)?;
        client.recv(&mut [0; 8])?;
        shortest = shortest.min(start.elapsed());
    }
    ensure!(echo.join().is_ok(), "the echo failed");
    Ok(shortest)
}

/// Sends `bytes` from the server to the client and returns how long that took from the connection on.
fn download(link: &Link, bytes: &[u8]) -> Result<Duration> {
    let listener = link.server().within(|| TcpListener::bind((SERVER, 0)))??;
    let address = listener.local_addr()?;
    thread::scope(|scope| {
        let sender = scope.spawn(move || listener.accept()?.0.write_all(bytes));
        let start = Instant::now();
        let mut stream = link.client().within(|| TcpStream::connect(address))??;
        let mut received = Vec::new();
        stream.read_to_end(&mut received)?;
        let time = start.elapsed();
        sender.join().ok().context("the sender panicked")??;
        ensure!(received == bytes, "other bytes came out");
        Ok(time)
    })
}

fn interfaces() -> Result<Vec<String>> {
    let entries = fs::read_dir("/sys/class/net")?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

#[test]
fn a_line_is_never_faster_than_it_says() -> Result<()> {
    if require::missing(&[Need::Link])? {
        return Ok(());
    }
    let before = interfaces()?;
    for (rtt, mbit, length) in [(1, 1000, 16 * MIB), (20, 100, 4 * MIB), (50, 20, MIB)] {
        let (asked, rate) = (Duration::from_millis(rtt), Rate::from_mbit(mbit));
        let link = Link::new(&Conditions::new(asked, rate))?;
        let measured = round_trip(&link)?;
        ensure!(measured >= asked, "{asked:?} were {measured:?}");
        let bytes = noise(mbit, length);
        let time = download(&link, &bytes)?;
        let down = link.totals().down;
        ensure!(
            down.bytes > length as u64,
            "{} bytes passed of {length}",
            down.bytes
        );
        ensure!(down.lost == 0 && down.refused == 0, "{down:?}");
        let least = rate.time_of(down.bytes).saturating_sub(asked);
        ensure!(time >= least, "{length} bytes in {time:?}, not {least:?}");
        println!(
            "asked {asked:?}, {mbit} Mbit/s; round trip {measured:?}, {length} bytes in {time:?} at {:.0} %",
            rate.time_of(down.bytes).as_secs_f64() * 100.0 / time.as_secs_f64()
        );
    }
    ensure!(
        interfaces()? == before,
        "a device is left: {:?}",
        interfaces()?
    );
    Ok(())
}

#[test]
fn lost_packets_are_counted_and_sent_again() -> Result<()> {
    if require::missing(&[Need::Link])? {
        return Ok(());
    }
    let link = Link::new(&Conditions {
        rtt: Duration::from_millis(2),
        rate: Some(Rate::from_mbit(100)),
        queue: None,
        loss: Some(Loss {
            share: 0.02,
            seed: 3,
        }),
    })?;
    let bytes = noise(3, 2 * MIB);
    let time = download(&link, &bytes)?;
    let down = link.totals().down;
    println!("{time:?}, {down:?}");
    // One by one: not a single one is longer than the MTU.
    ensure!(down.packets * 1500 >= down.bytes, "{down:?}");
    ensure!(down.lost > 0 && down.bytes > bytes.len() as u64, "{down:?}");
    Ok(())
}

#[test]
fn programs_run_at_both_ends_and_see_nothing_else() -> Result<()> {
    if require::missing(&[Need::Link])? {
        return Ok(());
    }
    let link = Link::new(&Conditions::new(Duration::ZERO, Rate::from_mbit(1000)))?;
    for side in [link.server(), link.client()] {
        let output = side.output(std::process::Command::new("ip").args(["-o", "-4", "address"]))?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(text.lines().count() == 2, "{text}");
        ensure!(text.contains(&side.address().to_string()), "{text}");
    }
    Ok(())
}
