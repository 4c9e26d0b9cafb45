//! Probes by gRPC's own health service, `grpc.health.v1.Health/Check`.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>. Its two messages have one field each, so that they
//! are written and read here without a library.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Request, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::AGENT;
use super::http::compile_host;
use super::http2::{self, Answer};
use crate::issue::{At, Issues};
use crate::pool::peer::Contact;

/// A question for gRPC's health service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which service must be serving, by its full name: `package.Service`. Default: empty, the server as a whole.
    pub service: String,
    /// The request's `:authority`. Default: the backend's own address as written, or `localhost` for a unix socket.
    pub host: Option<String>,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Option<Grpc> {
        let host = match &self.host {
            Some(host) => Some(compile_host(host, &at.key("host"), issues)?),
            None => None,
        };
        Some(Grpc {
            message: request(&self.service),
            host,
        })
    }
}

/// A probe by gRPC, ready to run.
#[derive(Debug)]
pub struct Grpc {
    message: Bytes,
    host: Option<Authority>,
}

const METHOD: &str = "/grpc.health.v1.Health/Check";
/// A response is 2 bytes and its frame; one that is much longer is none.
const LONGEST: usize = 1024;

impl Grpc {
    /// `authority` is the `:authority` unless the file names another.
    pub async fn run(&self, contact: Contact, authority: &str) -> Result<(), String> {
        let authority = self.host.as_ref().map_or(authority, Authority::as_str);
        let request = self.request(authority, contact.secure);
        let request = request.map_err(|error| error.to_string())?;
        let answer = http2::exchange(Box::new(contact.stream), request, LONGEST).await?;
        judge(&answer)
    }

    fn request(&self, authority: &str, secure: bool) -> http::Result<Request<Option<Bytes>>> {
        let path = PathAndQuery::from_static(METHOD);
        http2::request(Method::POST, path, authority, secure)?
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, AGENT)
            .body(Some(self.message.clone()))
    }
}

/// Whether the answer says that the service is serving, or what it says.
fn judge(answer: &Answer) -> Result<(), String> {
    if answer.status != StatusCode::OK {
        let status = answer.status.as_u16();
        return Err(format!("status {status}, expected 200"));
    }
    // without a message there may be no trailers: the header has it all then
    let trailers = answer.trailers.as_ref().unwrap_or(&answer.headers);
    match trailers.get("grpc-status").map(|code| code.as_bytes()) {
        Some(b"0") => {}
        Some(b"5") => return Err("the service is unknown (grpc-status 5)".to_owned()),
        Some(b"12") => return Err("there is no health service (grpc-status 12)".to_owned()),
        Some(code) => return Err(format!("grpc-status {}", code.escape_ascii())),
        None => return Err("the answer is not gRPC".to_owned()),
    }
    match serving_status(&answer.body) {
        Some(1) => Ok(()),
        Some(2) => Err("the service is not serving".to_owned()),
        Some(status) => Err(format!("serving status {status}, expected 1 (serving)")),
        None => Err("the answer is no message of the health service".to_owned()),
    }
}

/// `HealthCheckRequest { string service = 1 }`, in a frame.
fn request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    // an empty string is the default, which is not written
    if !service.is_empty() {
        message.put_u8(1 << 3 | LENGTH);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0); // not compressed
    frame.put_u32(message.len() as u32);
    frame.put(message);
    frame.freeze()
}

/// `HealthCheckResponse { ServingStatus status = 1 }`, in a frame; `None` when it is something else.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let mut frame = frame;
    let compressed = frame.try_get_u8().ok()?;
    let length = frame.try_get_u32().ok()? as usize;
    if compressed != 0 || length != frame.remaining() {
        return None;
    }
    let mut status = 0; // the default, which is not written
    while frame.has_remaining() {
        let key = varint(&mut frame)?;
        let value = match (key & 7) as u8 {
            VARINT => varint(&mut frame)?,
            EIGHT_BYTES => frame.try_get_u64_le().ok()?,
            FOUR_BYTES => frame.try_get_u32_le().ok()?.into(),
            LENGTH => {
                let length = usize::try_from(varint(&mut frame)?).ok()?;
                frame = frame.get(length..)?;
                continue;
            }
            _ => return None,
        };
        if key == 1 << 3 | u64::from(VARINT) {
            status = value;
        }
    }
    Some(status)
}

// protobuf's wire types
const VARINT: u8 = 0;
const EIGHT_BYTES: u8 = 1;
const LENGTH: u8 = 2;
const FOUR_BYTES: u8 = 5;

/// Seven bits in each byte, the lowest first; the eighth says that more follow.
fn put_varint(bytes: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        bytes.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.put_u8(value as u8);
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.try_get_u8().ok()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use proptest::prelude::*;

    fn answer(trailers: &[(&'static str, &str)], message: &[u8]) -> Result<(), String> {
        let mut map = HeaderMap::new();
        for (name, value) in trailers {
            map.insert(*name, value.parse().unwrap());
        }
        judge(&Answer {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: Bytes::copy_from_slice(message),
            trailers: Some(map),
        })
    }

    #[test]
    fn the_request_names_the_service() {
        assert_eq!(&request("")[..], b"\0\0\0\0\0");
        assert_eq!(&request("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = request(&"x".repeat(300));
        assert_eq!(&long[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn only_a_service_that_is_serving_passes() {
        let ok = [("grpc-status", "0")];
        assert_eq!(answer(&ok, b"\0\0\0\0\x02\x08\x01"), Ok(()));
        for (trailers, message, error) in [
            (
                &ok[..],
                &b"\0\0\0\0\x02\x08\x02"[..],
                "the service is not serving",
            ),
            (&ok, b"\0\0\0\0\0", "serving status 0, expected 1 (serving)"),
            (
                &ok,
                b"\0\0\0\0\x02\x08",
                "the answer is no message of the health service",
            ),
            (&ok, b"", "the answer is no message of the health service"),
            (
                &[("grpc-status", "5")],
                b"",
                "the service is unknown (grpc-status 5)",
            ),
            (
                &[("grpc-status", "12")],
                b"",
                "there is no health service (grpc-status 12)",
            ),
            (&[("grpc-status", "14")], b"", "grpc-status 14"),
            (&[], b"", "the answer is not gRPC"),
        ] {
            assert_eq!(answer(trailers, message), Err(error.to_owned()));
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        let frame =
            b"\0\0\0\0\x15\x12\x01x\x19\x08\x01\0\0\0\0\0\0\x25\x08\x01\0\0\x08\x01\x18\x02";
        assert_eq!(serving_status(frame), Some(1));
        for length in [0x14, 0x16] {
            let mut frame = frame.to_vec();
            frame[4] = length;
            assert_eq!(serving_status(&frame), None, "the length is wrong");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = serving_status(&bytes);
            let mut frame = vec![0, 0, 0, 0, bytes.len() as u8];
            frame.extend(bytes);
            let _ = serving_status(&frame);
        }

        #[test]
        fn a_number_is_read_back(value in any::<u64>()) {
            let mut bytes = BytesMut::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(varint(&mut &bytes[..]), Some(value));
        }
    }
}
