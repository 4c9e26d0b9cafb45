//! HTTP/2 frame by frame, for clients that do what no client library would.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::client::connect;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS.
pub const END_STREAM: u8 = 0x1;
/// Of HEADERS and CONTINUATION.
pub const END_HEADERS: u8 = 0x4;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long one write may wait for a server that does not read.
const STUCK: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len())
        .expect("a short payload")
        .to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields as they are: neither indexed nor shortened (RFC 7541 section 6.2.2).
pub fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            put_length(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// RFC 7541 section 5.1, with a prefix of seven bits.
fn put_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        return block.push(length as u8);
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push((rest % 128 + 128) as u8);
        rest /= 128;
    }
    block.push(rest as u8);
}

/// A whole request without a body.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    let pseudo = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ];
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &fields(&pseudo))
}

/// The header of a request with a body.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
    ];
    frame(HEADERS, END_HEADERS, stream, &fields(&pseudo))
}

/// A plain connection.
pub struct Raw(TcpStream);

impl Raw {
    /// Nothing is sent yet.
    pub fn connect(address: SocketAddr) -> io::Result<Raw> {
        let stream = connect(address)?;
        stream.set_write_timeout(Some(STUCK))?;
        Ok(Raw(stream))
    }

    /// The preface and these settings are sent.
    pub fn open(address: SocketAddr, settings: &[(u16, u32)]) -> io::Result<Raw> {
        let mut raw = Raw::connect(address)?;
        let mut payload = Vec::new();
        for (setting, value) in settings {
            payload.extend(setting.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        raw.send(PREFACE)?;
        raw.send(&frame(SETTINGS, 0, 0, &payload))?;
        Ok(raw)
    }

    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next frame; an error at the end of the connection.
    pub fn read(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let [high, mid, low, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, high, mid, low]);
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload)?;
        Ok(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// All frames until the server ends the connection, and whether it did.
    pub fn read_to_end(&mut self) -> (Vec<Frame>, bool) {
        let mut frames = Vec::new();
        loop {
            match self.read() {
                Ok(frame) => frames.push(frame),
                Err(error) => return (frames, !is_silence(&error)),
            }
        }
    }

    /// Throws away whatever comes from now on; the outcome is whether the server ended the connection.
    pub fn drain(&self) -> io::Result<JoinHandle<bool>> {
        let mut stream = self.0.try_clone()?;
        Ok(thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            loop {
                match stream.read(&mut bytes) {
                    Ok(0) => return true,
                    Ok(_) => {}
                    Err(error) => return !is_silence(&error),
                }
            }
        }))
    }
}

fn is_silence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
