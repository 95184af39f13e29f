//! A server of the store for one boot.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use super::BootError;

/// A running `circular-server`; it ends with this.
#[derive(Debug)]
pub struct Server {
    child: Child,
    port: u16,
}

impl Server {
    /// Serves `store` on a free port of the loopback.
    ///
    /// # Errors
    /// It does not come up; the message has what it said.
    pub fn start(program: &Path, store: &Path) -> Result<Self, BootError> {
        let mut command = Command::new(program);
        command
            .args(["--listen", "127.0.0.1:0", "--no-access-log", "--store"])
            .arg(store)
            // What the environment says of another server is not for this one.
            .env_remove("CIRCULAR_LISTEN")
            .env_remove("CIRCULAR_LISTEN_PLAIN")
            .env_remove("CIRCULAR_TLS_CERT")
            .env_remove("CIRCULAR_TLS_KEY")
            .env_remove("CIRCULAR_TOKENS")
            .env_remove("CIRCULAR_TRACES")
            .env_remove("CIRCULAR_UPLOAD_ROOT")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|source| BootError::Start {
            program: program.to_owned(),
            source,
        })?;
        let said = child.stderr.take();
        let mut lines = BufReader::new(said.map_or_else(nothing, |it| Box::new(it) as _));
        // From here on it ends with this value, whatever happens.
        let mut server = Self { child, port: 0 };
        let mut all = String::new();
        loop {
            let before = all.len();
            match lines.read_line(&mut all) {
                Ok(1..) => {}
                Ok(0) | Err(_) => {
                    let said = all.trim_end().to_owned();
                    return Err(BootError::Server { said });
                }
            }
            if let Some(port) = port(&all[before..]) {
                server.port = port;
                break;
            }
        }
        // It would stop where nobody takes what it says.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Ok(server)
    }

    /// Returns the port.
    pub const fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It holds nothing; either fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn nothing() -> Box<dyn Read + Send> {
    Box::new(std::io::empty())
}

/// The port in the line that says where the store is served.
fn port(line: &str) -> Option<u16> {
    let (_, address) = line.split_once(" on http://127.0.0.1:")?;
    address.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_in_the_line_of_the_server() {
        let line = "serving store on http://127.0.0.1:41234/ (boot menu: http://127.0.0.1:41234/boot.ipxe)\n";
        assert_eq!(port(line), Some(41_234));
        assert_eq!(port("cannot listen on 127.0.0.1:80"), None);
    }
}
