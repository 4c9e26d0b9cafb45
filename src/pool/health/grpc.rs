//! Probes by gRPC's own health service, `grpc.health.v1.Health/Check`.
//!
//! <https://github.com/grpc/grpc/blob/master/doc/health-checking.md>. Its two messages have one field each, so that they
//! are written and read here without a library.

use std::pin::pin;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, client};
use http::header::{CONTENT_TYPE, TE, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use pingora::protocols::Stream;
use schemars::JsonSchema;
use serde::Deserialize;

use super::AGENT;
use super::http::compile_host;
use crate::issue::{At, Issues};
use crate::pool::reason;

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
            Some(host) => {
                let host = compile_host(host, &at.key("host"), issues)?;
                Some(Authority::from_maybe_shared(Bytes::copy_from_slice(host.as_bytes())).ok()?)
            }
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
    pub async fn run(&self, stream: Stream, authority: &str, secure: bool) -> Result<(), String> {
        let request = self
            .request(authority, secure)
            .map_err(|error| error.to_string())?;
        let (send, connection) = client::handshake(stream).await.map_err(explain)?;
        let mut answer = pin!(ask(send, request, self.message.clone()));
        // The connection moves the bytes of the exchange. It may end right behind the answer, which is still to be read.
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            _ = connection => answer.await,
        };
        let (response, message, trailers) = answer.map_err(explain)?;
        judge(&response, &message, trailers.as_ref())
    }

    fn request(&self, authority: &str, secure: bool) -> http::Result<Request<()>> {
        let scheme = if secure { Scheme::HTTPS } else { Scheme::HTTP };
        let uri = Uri::builder()
            .scheme(scheme)
            .path_and_query(PathAndQuery::from_static(METHOD));
        let uri = match &self.host {
            Some(host) => uri.authority(host.clone()),
            None => uri.authority(authority),
        };
        Request::post(uri.build()?)
            .version(Version::HTTP_2)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, AGENT)
            .body(())
    }
}

async fn ask(
    send: SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
) -> Result<(Response<()>, Bytes, Option<HeaderMap>), h2::Error> {
    let (response, mut body) = send.ready().await?.send_request(request, false)?;
    body.send_data(message, true)?;
    let (head, mut body) = response.await?.into_parts();
    let message = read(&mut body).await?;
    let trailers = body.trailers().await?;
    Ok((Response::from_parts(head, ()), message, trailers))
}

async fn read(body: &mut RecvStream) -> Result<Bytes, h2::Error> {
    let mut message = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        let room = LONGEST - message.len();
        message.extend_from_slice(&part[..part.len().min(room)]);
        body.flow_control().release_capacity(part.len())?;
    }
    Ok(message.freeze())
}

fn explain(error: h2::Error) -> String {
    match error.get_io() {
        Some(error) => reason::of_io(error),
        None => format!("the answer is not HTTP/2: {error}"),
    }
}

/// Whether the answer says that the service is serving, or what it says.
fn judge(
    response: &Response<()>,
    message: &[u8],
    trailers: Option<&HeaderMap>,
) -> Result<(), String> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("status {}, expected 200", status.as_u16()));
    }
    // without a message there may be no trailers: the header has it all then
    let trailers = trailers.unwrap_or(response.headers());
    match trailers.get("grpc-status").map(|code| code.as_bytes()) {
        Some(b"0") => {}
        Some(b"5") => return Err("the service is unknown (grpc-status 5)".to_owned()),
        Some(b"12") => return Err("there is no health service (grpc-status 12)".to_owned()),
        Some(code) => return Err(format!("grpc-status {}", code.escape_ascii())),
        None => return Err("the answer is not gRPC".to_owned()),
    }
    match serving_status(message) {
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
    use proptest::prelude::*;

    fn answer(trailers: &[(&'static str, &str)], message: &[u8]) -> Result<(), String> {
        let mut map = HeaderMap::new();
        for (name, value) in trailers {
            map.insert(*name, value.parse().unwrap());
        }
        judge(&Response::new(()), message, Some(&map))
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
