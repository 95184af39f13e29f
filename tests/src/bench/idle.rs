//! The memory of servers that have many connections on which nothing is asked.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::Bench;
use super::line::LOOPBACK;
use super::table::{Row, Series, Unit};
use super::turns::{Course, bytes};

/// Connections at once.
const CONNECTIONS: usize = 1000;

/// The same with `--quick`.
const CONNECTIONS_QUICK: usize = 50;

/// Longest wait for an answer.
const DEADLINE: Duration = Duration::from_secs(20);

/// The longest head of an answer.
const HEAD_MAX: usize = 16 << 10;

/// Compares our server with nginx when each has answered once on each of its connections.
///
/// # Errors
/// A server does not answer, or this process may not have as many files open.
pub fn servers(bench: &Bench<'_>) -> Result<Row> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot open more files")?;
    let count = match bench.options.quick {
        true => CONNECTIONS_QUICK,
        false => CONNECTIONS,
    };
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..bench.repeats() {
        let course = Course::new(bench, &LOOPBACK)?;
        let files = [
            (course.servers.store(), "circular.json"),
            (course.servers.files(), "noise"),
        ];
        for ((figures, id), (url, file)) in figures.iter_mut().zip(course.servers.ids()).zip(files)
        {
            let open = || connections(url, file, count);
            let open = course.line.client().within(open)??;
            let memory = resident(id)?;
            drop(open);
            super::say(&format!("     {url} {:.1} MB", bytes(memory) / 1e6));
            figures.push(bytes(memory));
        }
    }
    let [ours, nginx] = figures;
    Ok(Row::new(
        format!("{count} idle connections"),
        Unit::Bytes,
        Series::new("circular-server", ours),
        Series::new("nginx", nginx),
    ))
}

/// Opens connections to the server at `url`, and has it answer on each.
fn connections(url: &str, file: &str, count: usize) -> Result<Vec<TcpStream>> {
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    let address: SocketAddr = host.parse().context("servers have plain addresses")?;
    let question = format!("GET /{file} HTTP/1.1\r\nHost: {host}\r\nRange: bytes=0-15\r\n\r\n");
    let open = |_| {
        let mut connection = TcpStream::connect(address)?;
        connection.set_read_timeout(Some(DEADLINE))?;
        connection.write_all(question.as_bytes())?;
        answer(&mut connection)?;
        Ok(connection)
    };
    (0..count).map(open).collect()
}

/// Reads an answer to its end.
fn answer(connection: &mut TcpStream) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        head.extend(byte);
        ensure!(head.len() < HEAD_MAX, "an answer has no end");
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok())
        .with_context(|| format!("an answer has no length: {head}"))?;
    ensure!(head.contains(" 206 ") || head.contains(" 200 "), "{head}");
    let mut body = vec![0; length];
    connection.read_exact(&mut body)?;
    Ok(())
}

/// Returns the resident memory of a process, in bytes.
fn resident(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .context("the kernel does not tell the memory of a process")?;
    Ok(kib << 10)
}
