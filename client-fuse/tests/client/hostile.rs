//! An HTTP server that answers right, but for one file, which it damages in one way.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use image_format::frame::Encoder;

/// In which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// One bit is another.
    Flip,
    /// The second half is missing, and the length says so too.
    Truncate,
    /// Something follows.
    Extend,
    /// The same file of another store, signed well by its publisher.
    Swap,
    /// The same file as it was one release before, signed well.
    Old,
    /// Something follows, without end.
    Endless,
    /// A few bytes that a reader who unpacks them makes many of.
    GzipBomb,
    /// The same; a pack has it in the place of a chunk.
    ZstdBomb,
    /// A part of the file, but not the one that was asked for.
    WrongRange,
    /// The file as a whole, whatever was asked for.
    Whole,
    /// A redirect to itself.
    RedirectLoop,
}

pub(crate) const DAMAGES: [Damage; 11] = [
    Damage::Flip,
    Damage::Truncate,
    Damage::Extend,
    Damage::Swap,
    Damage::Old,
    Damage::Endless,
    Damage::GzipBomb,
    Damage::ZstdBomb,
    Damage::WrongRange,
    Damage::Whole,
    Damage::RedirectLoop,
];

/// What is damaged, how, and what is needed for it.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    pub(crate) path: String,
    /// Parts of the file that begin before are given as they are.
    pub(crate) from: usize,
    pub(crate) damage: Damage,
    /// The same file of another store.
    pub(crate) foreign: Bytes,
    /// The same file one release before.
    pub(crate) old: Bytes,
}

impl Plot {
    fn concerns(&self, path: &str, range: Option<&Range<usize>>) -> bool {
        self.path == path && range.map_or(0, |range| range.start) >= self.from
    }
}

/// Serves `files` until the process ends; returns the base address.
pub(crate) fn serve(files: &Arc<HashMap<String, Bytes>>, plot: Option<Plot>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let served = Arc::new((Arc::clone(files), plot, address));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let served = Arc::clone(&served);
            // A client that has seen enough closes, which ends this with an error.
            std::thread::spawn(move || drop(connection(stream, &served)));
        }
    });
    format!("http://{address}/")
}

type Served = (Arc<HashMap<String, Bytes>>, Option<Plot>, SocketAddr);

fn connection(stream: TcpStream, (files, plot, address): &Served) -> io::Result<()> {
    let mut out = stream.try_clone()?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        let path = request.split(' ').nth(1).unwrap_or("/")[1..].to_owned();
        let mut range = None;
        while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("range: bytes=") {
                let (first, last) = value.split_once('-').unwrap();
                range = Some(first.parse().unwrap()..last.parse::<usize>().unwrap() + 1);
            }
        }
        match (files.get(&path), plot) {
            (Some(file), Some(plot)) if plot.concerns(&path, range.as_ref()) => {
                damaged(&mut out, file, range, plot, *address)?;
            }
            (Some(file), _) => {
                let (head, body) = right(file, range);
                answer(&mut out, &head, &body)?;
            }
            (None, _) => out.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
        }
    }
    Ok(())
}

/// Status and range of a right answer, and its body.
fn right(file: &Bytes, range: Option<Range<usize>>) -> (String, Bytes) {
    match range {
        None => ("200 OK".to_owned(), file.clone()),
        Some(range) => (head_of(&range, file.len()), file.slice(range)),
    }
}

fn head_of(range: &Range<usize>, length: usize) -> String {
    let (first, last) = (range.start, range.end - 1);
    format!("206 Partial Content\r\nContent-Range: bytes {first}-{last}/{length}")
}

fn answer(out: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<()> {
    let length = body.len();
    write!(out, "HTTP/1.1 {head}\r\nContent-Length: {length}\r\n\r\n")?;
    out.write_all(body)
}

fn damaged(
    out: &mut TcpStream,
    file: &Bytes,
    range: Option<Range<usize>>,
    plot: &Plot,
    address: SocketAddr,
) -> io::Result<()> {
    let (head, body) = right(file, range.clone());
    match plot.damage {
        Damage::Endless => endless(out, &head, &body),
        Damage::GzipBomb => {
            let head = format!("{head}\r\nContent-Encoding: gzip");
            answer(out, &head, &gzip_bomb())
        }
        Damage::ZstdBomb if range.is_none() => {
            let head = format!("{head}\r\nContent-Encoding: zstd");
            answer(out, &head, &zstd_bomb())
        }
        Damage::WrongRange => {
            let length = file.len();
            let asked = range.unwrap_or(0..length);
            // As many bytes as were asked for, from elsewhere; of a whole file, all but one.
            let other = match asked.start {
                0 => 1..asked.end.max(2).min(length),
                start => start - 1..asked.end - 1,
            };
            let body = file.slice(other.clone());
            answer(out, &head_of(&other, length), &body)
        }
        Damage::Whole => answer(out, "200 OK", file),
        Damage::RedirectLoop => {
            let head = format!("302 Found\r\nLocation: http://{address}/{}", plot.path);
            answer(out, &head, b"")
        }
        _ => answer(out, &head, &tampered(&body, range.as_ref(), plot)),
    }
}

/// The body of an answer, damaged; as long as it was where only a part was asked for.
fn tampered(good: &Bytes, range: Option<&Range<usize>>, plot: &Plot) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let other = |file: &Bytes| match range {
        None => file.to_vec(),
        Some(_) => file.iter().copied().cycle().take(good.len()).collect(),
    };
    match plot.damage {
        Damage::Flip => flip(&mut bytes),
        Damage::Truncate => bytes.truncate(good.len() / 2),
        Damage::Extend => bytes.extend_from_slice(b"{}"),
        Damage::Swap => return other(&plot.foreign),
        Damage::Old => return other(&plot.old),
        Damage::ZstdBomb => {
            let bomb = zstd_bomb();
            let length = bomb.len().min(bytes.len());
            bytes[..length].copy_from_slice(&bomb[..length]);
        }
        other => panic!("{other:?} is not done to the body"),
    }
    bytes
}

/// Changes one bit: of the date of expiry, if there is one.
pub(crate) fn flip(bytes: &mut [u8]) {
    let label = b"\"expires\": \"2";
    let date = bytes.windows(label.len()).position(|at| at == label);
    let at = date.map_or(bytes.len() / 2, |at| at + label.len());
    bytes[at] ^= 1;
}

/// Sends a body and then noise until the other side has had enough.
fn endless(out: &mut TcpStream, head: &str, body: &[u8]) -> io::Result<()> {
    write!(out, "HTTP/1.1 {head}\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let mut part = body;
    loop {
        write!(out, "{:x}\r\n", part.len())?;
        out.write_all(part)?;
        out.write_all(b"\r\n")?;
        part = &[7; 16 << 10];
    }
}

/// 64 MiB of zeros in one zstd frame.
fn zstd_bomb() -> Vec<u8> {
    let plain = vec![0; 64 << 20];
    Encoder::new(1).unwrap().encode(&plain).unwrap()
}

/// Some 13 MiB of zeros in 80 KiB of gzip (RFC 1951, 3.2.6): a zero, and then "258 bytes as the one
/// before" again and again. No client ever looks at it, or else it could read it.
fn gzip_bomb() -> Vec<u8> {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    let (mut bits, mut n_bits) = (0_u32, 0);
    // A last block with fixed codes; the literal 0 (00110000).
    let head = [true, true, false].into_iter();
    let literal = [false, false, true, true, false, false, false, false];
    // Length 258 (code 285, 11000101), distance 1 (00000).
    let again = [
        true, true, false, false, false, true, false, true, false, false, false, false, false,
    ];
    let end = [false; 7];
    let all = head.chain(literal);
    let all = all.chain(again.into_iter().cycle().take(again.len() * 50_000));
    for bit in all.chain(end) {
        bits |= u32::from(bit) << n_bits;
        n_bits += 1;
        if n_bits == 8 {
            bytes.push(u8::try_from(bits).unwrap());
            (bits, n_bits) = (0, 0);
        }
    }
    bytes.push(u8::try_from(bits).unwrap());
    // Checksum and length; who gets so far has unpacked it all.
    bytes.extend_from_slice(&[0; 8]);
    bytes
}

#[test]
fn bombs_are_small_until_they_are_unpacked() {
    assert!(zstd_bomb().len() < 8 << 10, "{}", zstd_bomb().len());
    assert!(gzip_bomb().len() < 100 << 10, "{}", gzip_bomb().len());
}
