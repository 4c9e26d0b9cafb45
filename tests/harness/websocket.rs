//! WebSocket (RFC 6455) as far as an echo needs it: the handshake and frames, without I/O.

use boring::{base64, sha};

pub const TEXT: u8 = 1;
pub const CLOSE: u8 = 8;

#[derive(Debug, PartialEq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

/// The answer to a client's `Sec-WebSocket-Key`.
pub fn accept(key: &str) -> String {
    let salted = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    base64::encode_block(&sha::sha1(salted.as_bytes()))
}

/// The answer to an upgrade with that key.
pub fn agreed(key: &str) -> String {
    let accept = accept(key);
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n\r\n"
    )
}

impl Frame {
    pub fn text(text: &str) -> Frame {
        Frame {
            opcode: TEXT,
            payload: text.into(),
        }
    }

    /// The bytes of a whole message; clients mask (section 5.3), servers do not.
    pub fn encode(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        const FINAL: u8 = 0x80;
        let masked = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![FINAL | self.opcode];
        match self.payload.len() {
            length @ 0..126 => bytes.push(masked | length as u8),
            length @ 126..=0xffff => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            length => {
                bytes.push(masked | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        bytes.extend(mask.iter().flatten());
        let mask = mask.unwrap_or_default().into_iter().cycle();
        bytes.extend(
            self.payload
                .iter()
                .zip(mask)
                .map(|(byte, mask)| byte ^ mask),
        );
        bytes
    }

    /// The frame at the start of `bytes`, with its length; `None` while it is not complete.
    pub fn decode(bytes: &[u8]) -> Option<(Frame, usize)> {
        let masked = bytes.get(1)? & 0x80 != 0;
        let (length, start) = match bytes[1] & 0x7f {
            126 => (
                u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?).into(),
                4,
            ),
            127 => (u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?), 10),
            length => (length.into(), 2),
        };
        let (mask, start) = if masked {
            (bytes.get(start..start + 4)?.try_into().ok()?, start + 4)
        } else {
            ([0; 4], start)
        };
        let end = start + usize::try_from(length).ok()?;
        let payload = bytes.get(start..end)?.iter().zip(mask.into_iter().cycle());
        let frame = Frame {
            opcode: bytes[0] & 0x0f,
            payload: payload.map(|(byte, mask)| byte ^ mask).collect(),
        };
        Some((frame, end))
    }
}

#[test]
fn accept_key_is_that_of_the_rfc() {
    let key = accept("dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(key, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

#[test]
fn frames_survive_encoding() {
    for length in [0, 5, 125, 126, 70_000] {
        for mask in [None, Some([1, 2, 3, 4])] {
            let frame = Frame::text(&"x".repeat(length));
            let bytes = frame.encode(mask);
            assert_eq!(Frame::decode(&bytes[..bytes.len() - 1]), None);
            assert_eq!(Frame::decode(&bytes), Some((frame, bytes.len())));
        }
    }
}
