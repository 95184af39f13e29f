//! A small HTTP server over a store in memory, on a port of its own, with answers that can be wrong.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use crate::store::Store;

/// How the server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Right,
    /// Sends whole files when ranges are asked for.
    IgnoresRanges,
    /// Says another range than was asked for.
    WrongRange,
    /// Says that the body is compressed.
    Encoded,
    /// Closes in the middle of a body.
    Truncates,
    /// Redirects to itself for ever.
    RedirectLoop,
    /// Redirects to a file.
    RedirectToFile,
    /// Redirects once, then answers right.
    RedirectOnce,
    /// Is overloaded.
    Unavailable,
}

/// Serves until the process ends; returns the base address.
pub(crate) fn serve(store: &Arc<Store>, manner: Manner) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let store = Arc::clone(store);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let store = Arc::clone(&store);
            std::thread::spawn(move || connection(stream, &store, manner, address));
        }
    });
    format!("http://{address}/")
}

fn connection(stream: TcpStream, store: &Store, manner: Manner, address: SocketAddr) {
    let mut writer = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let path = request
            .split(' ')
            .nth(1)
            .unwrap()
            .trim_start_matches('/')
            .to_owned();
        let head: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let range = head.iter().find_map(|line| {
            let line = line.to_ascii_lowercase();
            let (first, last) = line.strip_prefix("range: bytes=")?.split_once('-')?;
            Some((first.parse().ok()?, last.parse().ok()?))
        });
        if answer(&mut writer, store, manner, address, &path, range).is_err() {
            return;
        }
    }
}

fn answer(
    out: &mut TcpStream,
    store: &Store,
    manner: Manner,
    address: SocketAddr,
    path: &str,
    range: Option<(usize, usize)>,
) -> std::io::Result<()> {
    let moved = path.strip_prefix("moved/");
    let location = match manner {
        Manner::RedirectLoop => Some(format!("http://{address}/{path}")),
        Manner::RedirectToFile => Some("file:///etc/passwd".to_owned()),
        Manner::RedirectOnce if moved.is_none() => Some(format!("http://{address}/moved/{path}")),
        _ => None,
    };
    if let Some(location) = location {
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
        );
    }
    if manner == Manner::Unavailable {
        return write!(
            out,
            "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
        );
    }
    let Some(whole) = store.files.get(moved.unwrap_or(path)) else {
        return write!(out, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    };
    let range = range.filter(|_| manner != Manner::IgnoresRanges);
    let (status, body, extra) = match range {
        None => ("200 OK", &whole[..], String::new()),
        Some((first, last)) => {
            let said = if manner == Manner::WrongRange {
                first + 1
            } else {
                first
            };
            let extra = format!("Content-Range: bytes {said}-{last}/{}\r\n", whole.len());
            ("206 Partial Content", &whole[first..=last], extra)
        }
    };
    let encoded = if manner == Manner::Encoded {
        "Content-Encoding: gzip\r\n"
    } else {
        ""
    };
    write!(
        out,
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\n{extra}{encoded}\r\n",
        body.len()
    )?;
    if manner == Manner::Truncates {
        out.write_all(&body[..body.len() / 2])?;
        return Err(std::io::ErrorKind::ConnectionReset.into());
    }
    out.write_all(body)
}
