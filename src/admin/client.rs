//! Asking a running process.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::StatusCode;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode, utf8_percent_encode};
use serde::de::DeserializeOwned;

use super::{Drained, Refusal, Reloaded, Stopping, Upgrade, Upgraded};
use crate::runtime::status::Status;

/// For an answer that needs no work.
const PATIENCE: Duration = Duration::from_secs(10);

/// A process, by its admin socket.
pub struct Client {
    socket: PathBuf,
}

/// Why there is no good answer.
#[derive(Debug)]
pub enum Failure {
    /// Nobody answers there.
    Unreached(PathBuf, io::Error),
    /// What came back is no answer.
    Nonsense(PathBuf),
    Refused(Refusal),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Unreached(socket, e) => {
                let socket = socket.display();
                match e.kind() {
                    ErrorKind::NotFound => {
                        write!(f, "no weir runs here: there is no admin socket `{socket}`")
                    }
                    ErrorKind::ConnectionRefused => {
                        write!(f, "no weir runs here: nobody listens on `{socket}`")
                    }
                    ErrorKind::PermissionDenied => write!(
                        f,
                        "`{socket}` is not yours: only root, and the user that weir runs as, may ask"
                    ),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                        write!(f, "the process behind `{socket}` does not answer")
                    }
                    _ => write!(f, "cannot ask over `{socket}`: {e}"),
                }
            }
            Failure::Nonsense(socket) => {
                let socket = socket.display();
                write!(
                    f,
                    "the answer of `{socket}` is not understood: is it a weir of another version?"
                )
            }
            Failure::Refused(refusal) => f.write_str(&refusal.error),
        }
    }
}

impl Client {
    pub fn new(socket: &Path) -> Client {
        Client {
            socket: socket.to_owned(),
        }
    }

    /// # Errors
    /// As each of these: when nobody answers, or the answer is no.
    pub fn status(&self) -> Result<Status, Failure> {
        self.ask("GET", "/status", Some(PATIENCE))
    }

    /// # Errors
    /// As above.
    pub fn reload(&self, dry_run: bool, upgrade: bool) -> Result<Reloaded, Failure> {
        let query = match (dry_run, upgrade) {
            (true, _) => "?dry_run=true",
            (false, true) => "?upgrade=true",
            (false, false) => "",
        };
        // Names may be slow to resolve.
        self.ask("POST", &format!("/reload{query}"), None)
    }

    /// Returns when the new process has taken over, or has failed; with a probation, when the old one is about to end.
    ///
    /// # Errors
    /// As above.
    pub fn upgrade(&self, wanted: &Upgrade) -> Result<Upgraded, Failure> {
        let mut query = Vec::new();
        if let Some(binary) = &wanted.binary {
            let path = percent_encode(binary.as_os_str().as_bytes(), NON_ALPHANUMERIC);
            query.push(format!("binary={path}"));
        }
        query.extend(wanted.timeout.map(|limit| format!("timeout={limit}")));
        if let Some(terms) = &wanted.probation {
            query.push(format!("probation={}", terms.length));
            let share = terms.max_5xx.to_string();
            let share = utf8_percent_encode(&share, NON_ALPHANUMERIC);
            query.push(format!("max_5xx={share}"));
            query.push(format!("max_p99={}", terms.max_p99));
        }
        self.ask("POST", &format!("/upgrade?{}", query.join("&")), None)
    }

    /// # Errors
    /// As above.
    pub fn drain(&self, pool: &str, member: &str, draining: bool) -> Result<Drained, Failure> {
        let word = if draining { "drain" } else { "undrain" };
        let [pool, member] = [pool, member].map(|name| utf8_percent_encode(name, NON_ALPHANUMERIC));
        // A reload may be at work.
        self.ask(
            "POST",
            &format!("/pools/{pool}/members/{member}/{word}"),
            None,
        )
    }

    /// Returns when the process is gone.
    ///
    /// # Errors
    /// As above.
    pub fn stop(&self) -> Result<Stopping, Failure> {
        self.ask("POST", "/stop", None)
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: &str,
        target: &str,
        patience: Option<Duration>,
    ) -> Result<T, Failure> {
        let answer = self
            .exchange(method, target, patience)
            .map_err(|e| Failure::Unreached(self.socket.clone(), e))?;
        let nonsense = || Failure::Nonsense(self.socket.clone());
        let (status, body) = parse(&answer).ok_or_else(nonsense)?;
        if status == StatusCode::OK {
            return serde_json::from_slice(body).map_err(|_| nonsense());
        }
        match serde_json::from_slice(body) {
            Ok(refusal) => Err(Failure::Refused(Refusal { status, ..refusal })),
            Err(_) => Err(nonsense()),
        }
    }

    /// Sends a request and reads to the end of the answer.
    fn exchange(
        &self,
        method: &str,
        target: &str,
        patience: Option<Duration>,
    ) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(patience)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Version 1.0: the answer comes as it is, and ends with the connection.
        write!(stream, "{method} {target} HTTP/1.0\r\nHost: weir\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// Status and body of an answer.
fn parse(answer: &[u8]) -> Option<(StatusCode, &[u8])> {
    let head_end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..head_end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some((status.parse().ok()?, &answer[head_end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_and_body_are_found() {
        let answer = b"HTTP/1.1 404 Not Found\r\nA: b\r\n\r\n{}";
        assert_eq!(parse(answer), Some((StatusCode::NOT_FOUND, &b"{}"[..])));
        for nonsense in [
            &b""[..],
            b"HTTP/1.1 200 OK\r\n",
            b"SSH-2.0\r\n\r\n",
            b"HTTP/1.1\r\n\r\n",
        ] {
            assert_eq!(parse(nonsense), None);
        }
    }
}
