//! `decompress`: decodes answers that are in a content coding (gzip, brotli, zstd), for clients that do not take it.
//!
//! ```yaml
//! decompress: true
//! ```
//!
//! ```yaml
//! decompress: { always: true }
//! sub_filter: { replace: { "http://old.example": "https://new.example" } }
//! compress: true
//! ```
//!
//! For backends and folders of precompressed files that have an answer in one coding only. With `always` no answer
//! stays in its coding, so that `sub_filter` finds its texts and `compress` chooses another one: it comes before both.
//! A client without `Accept-Encoding` takes none.
//!
//! Parts (206), what is marked `no-transform`, calls of gRPC and several codings one over another stay as they are. An
//! answer that is not what its header says breaks off, as does one of which too much would come at once (`buffer`): a
//! bomb.
//!
//! A decoder's memory is bounded by the window that the encoder chose: 32 KiB for gzip, at most 8 MiB for zstd (RFC
//! 9659) and 16 MiB for brotli (RFC 7932; the larger windows that some encoders know are refused).

use std::io::{self, Write};
use std::time::SystemTime;

use brotli::enc::StandardAlloc;
use brotli::{BrotliDecompressStream, BrotliResult, BrotliState};
use flate2::write::MultiGzDecoder;
use http::{Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;
use zstd::stream::{raw, zio};
use zstd::zstd_safe::DParameter;

use super::Filter;
use crate::build::Build;
use crate::exchange::transform::{confirm, forget_body, is_grpc, is_to_stay, vary, weaken_etag};
use crate::exchange::{Cx, Transform};
use crate::http::coding::{self, Coding};
use crate::issue::At;
use crate::value::{Size, TrueOr};

pub type Config = TrueOr<Settings>;

/// What to decode; `decompress: true` takes all defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Also for clients that take the coding. Default false.
    pub always: bool,
    /// How much may come of what is read at once, 64 KiB at most: so much of an answer may be in memory while its client takes
    /// it. An answer of which more would come breaks off. Default 8MiB, at least 1MiB. nginx: `gunzip_buffers`.
    pub buffer: Size,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            always: false,
            buffer: Size::new(8 * 1024 * 1024),
        }
    }
}

const LEAST_BUFFER: Size = Size::new(1024 * 1024);

#[derive(Debug)]
pub struct Decompress {
    always: bool,
    buffer: usize,
}

impl Settings {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Decompress> {
        if self.buffer < LEAST_BUFFER {
            b.error(
                &at.key("buffer"),
                format!("`{}` is too little for a page", self.buffer),
            )
            .hint(format!("give at least `{LEAST_BUFFER}`"));
        }
        Some(Decompress {
            always: self.always,
            buffer: usize::try_from(self.buffer.get()).unwrap_or(usize::MAX),
        })
    }
}

impl Filter for Decompress {
    fn varies(&self) -> bool {
        true
    }

    fn body(
        &self,
        _cx: &Cx,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        _wall: SystemTime,
    ) -> Option<Box<dyn Transform>> {
        if response.status == StatusCode::NOT_MODIFIED {
            confirm(&request.headers, response);
            return None;
        }
        if !may_have_body(response.status)
            || is_to_stay(&response.headers)
            || is_to_stay(&request.headers)
            || is_grpc(&response.headers)
        {
            return None;
        }
        let coding = coding::of(&response.headers)?;
        if !self.always {
            vary(response, "Accept-Encoding");
            if coding::is_accepted(&request.headers, coding) {
                return None;
            }
        }
        forget_body(response);
        weaken_etag(response);
        response.remove_header(&header::CONTENT_ENCODING);
        if request.method == Method::HEAD {
            return None;
        }
        Some(Box::new(Decoder::new(coding, self.buffer)))
    }
}

/// Whether there may be a body, and all of it.
fn may_have_body(status: StatusCode) -> bool {
    !status.is_informational()
        && !matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
        )
}

/// As a power of two (RFC 9659 section 3).
const ZSTD_WINDOW: u32 = 23;
/// What is decoded in one step.
const STEP: usize = 32 * 1024;

/// One body on its way.
struct Decoder {
    inner: Inner,
    buffer: usize,
    /// Whether there was anything at all: of nothing comes nothing, though it is no body of any coding.
    has_begun: bool,
}

enum Inner {
    Gzip(MultiGzDecoder<Room>),
    Brotli(Box<Brotli>),
    Zstd(zio::Writer<Room, raw::Decoder<'static>>),
    /// It could not be made for want of memory.
    Broken,
}

impl Decoder {
    fn new(coding: Coding, buffer: usize) -> Decoder {
        let room = Room::default();
        let inner = match coding {
            Coding::Gzip => Inner::Gzip(MultiGzDecoder::new(room)),
            Coding::Br => Inner::Brotli(Box::default()),
            Coding::Zstd => {
                let decoder = raw::Decoder::new().and_then(|mut decoder| {
                    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW))?;
                    Ok(decoder)
                });
                decoder.map_or(Inner::Broken, |decoder| {
                    Inner::Zstd(zio::Writer::new(room, decoder))
                })
            }
        };
        Decoder {
            inner,
            buffer,
            has_begun: false,
        }
    }

    /// Lets the decoder put something into `out`, as much as may come at once.
    fn step(
        &mut self,
        out: &mut Vec<u8>,
        act: impl FnOnce(&mut Inner, &mut Room) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut room = Room {
            out: std::mem::take(out),
            left: self.buffer,
        };
        self.inner.exchange(&mut room);
        let done = act(&mut self.inner, &mut room);
        self.inner.exchange(&mut room);
        *out = room.out;
        done
    }
}

impl Transform for Decoder {
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        self.has_begun |= !piece.is_empty();
        self.step(out, |inner, room| match inner {
            Inner::Gzip(decoder) => decoder.write_all(piece),
            Inner::Zstd(decoder) => decoder.write_all(piece),
            Inner::Brotli(decoder) => decoder.write_all(piece, room),
            Inner::Broken => Err(no_decoder()),
        })
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if !self.has_begun {
            return Ok(());
        }
        self.step(out, |inner, _| match inner {
            Inner::Gzip(decoder) => decoder.flush(),
            Inner::Zstd(decoder) => decoder.flush(),
            // keeps nothing back
            Inner::Brotli(_) => Ok(()),
            Inner::Broken => Err(no_decoder()),
        })
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if !self.has_begun {
            return Ok(());
        }
        self.step(out, |inner, _| match inner {
            Inner::Gzip(decoder) => decoder.try_finish(),
            Inner::Zstd(decoder) => decoder.finish(),
            Inner::Brotli(decoder) => decoder.finish(),
            Inner::Broken => Err(no_decoder()),
        })
    }
}

impl Inner {
    /// Gives the decoder another place for what comes out. (That of brotli has none of its own.)
    fn exchange(&mut self, room: &mut Room) {
        match self {
            Inner::Gzip(decoder) => std::mem::swap(decoder.get_mut(), room),
            Inner::Zstd(decoder) => std::mem::swap(decoder.writer_mut(), room),
            Inner::Brotli(_) | Inner::Broken => {}
        }
    }
}

/// What has come out, and how much more may. By itself it takes nothing: decoders that are dropped go on to write.
#[derive(Debug, Default)]
struct Room {
    out: Vec<u8>,
    left: usize,
}

impl Write for Room {
    fn write(&mut self, decoded: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(decoded.len()).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "too much comes of a coding")
        })?;
        self.out.extend_from_slice(decoded);
        Ok(decoded.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Brotli without the adapters of its crate, which would allow for windows of up to 1 GiB.
struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    is_over: bool,
}

impl Default for Brotli {
    fn default() -> Brotli {
        let alloc = StandardAlloc::default;
        Brotli {
            state: BrotliState::new_strict(alloc(), alloc(), alloc()),
            is_over: false,
        }
    }
}

impl Brotli {
    fn write_all(&mut self, piece: &[u8], room: &mut Room) -> io::Result<()> {
        let (mut available, mut taken) = (piece.len(), 0);
        let mut step = vec![0; STEP];
        let mut total = 0;
        while !self.is_over {
            let (mut space, mut made) = (step.len(), 0);
            let result = BrotliDecompressStream(
                &mut available,
                &mut taken,
                piece,
                &mut space,
                &mut made,
                &mut step,
                &mut total,
                &mut self.state,
            );
            room.write_all(&step[..made])?;
            match result {
                BrotliResult::NeedsMoreInput => return Ok(()),
                BrotliResult::NeedsMoreOutput => {}
                BrotliResult::ResultSuccess => self.is_over = true,
                BrotliResult::ResultFailure => return Err(broken("no brotli")),
            }
        }
        match available {
            0 => Ok(()),
            _ => Err(broken("more behind the end of brotli")),
        }
    }

    fn finish(&self) -> io::Result<()> {
        match self.is_over {
            true => Ok(()),
            false => Err(broken("brotli breaks off")),
        }
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn no_decoder() -> io::Error {
    io::Error::other("no decoder")
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::exchange::cx::Connection;
    use crate::issue::Sources;

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Br, Coding::Zstd];
    const BUFFER: usize = 1024 * 1024;

    #[test]
    fn who_does_not_take_the_coding_gets_it_decoded() {
        for (accepted, coding, decoded) in [
            (None, "gzip", true),
            (Some("br"), "gzip", true),
            (Some("gzip;q=0"), "gzip", true),
            (Some("gzip"), "gzip", false),
            (Some("gzip"), "x-gzip", false),
            (Some("*"), "br", false),
            (Some("identity, zstd;q=0.1"), "zstd", false),
            (Some("gzip"), "zstd", true),
            (None, "deflate", false),
            (None, "gzip, br", false),
        ] {
            let head = pass("{}", accepted, 200, &[("content-encoding", coding)]);
            let is_decoded = !head.headers.contains_key("content-encoding");
            assert_eq!(is_decoded, decoded, "{accepted:?} {coding}");
            let is_known = !coding.contains("deflate") && !coding.contains(',');
            assert_eq!(head.headers.contains_key("vary"), is_known, "{coding}");
            assert_eq!(head.headers.contains_key("content-length"), !decoded);
            assert_eq!(head.headers["etag"].as_bytes()[0] == b'W', decoded);
        }
        let always = pass(
            "{ always: true }",
            Some("gzip"),
            200,
            &[("content-encoding", "gzip")],
        );
        assert!(!always.headers.contains_key("content-encoding"));
        assert!(!always.headers.contains_key("vary"));
    }

    #[test]
    fn what_may_not_be_changed_is_left_alone() {
        let gzip = ("content-encoding", "gzip");
        for (status, lines) in [
            (206, &[gzip][..]),
            (204, &[gzip]),
            (200, &[gzip, ("cache-control", "no-transform")]),
            (200, &[]),
        ] {
            let head = pass("{}", None, status, lines);
            assert_eq!(head.headers["etag"], "\"a\"", "{status} {lines:?}");
            assert!(head.headers.contains_key("content-length"));
        }
    }

    #[test]
    fn a_client_that_has_it_decoded_is_told_so() {
        let head = pass("{}", None, 304, &[]);
        assert_eq!(head.headers["etag"], "\"a\"");
    }

    fn encoded(coding: Coding, body: &[u8]) -> Vec<u8> {
        let mut encoded = Vec::new();
        match coding {
            Coding::Gzip => {
                let mut encoder = flate2::read::GzEncoder::new(body, flate2::Compression::best());
                encoder.read_to_end(&mut encoded).unwrap();
            }
            Coding::Br => {
                let mut encoder = brotli::CompressorReader::new(body, 4096, 5, 22);
                encoder.read_to_end(&mut encoded).unwrap();
            }
            Coding::Zstd => encoded = zstd::stream::encode_all(body, 3).unwrap(),
        }
        encoded
    }

    fn decode(coding: Coding, encoded: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Decoder::new(coding, BUFFER);
        let mut out = Vec::new();
        for piece in encoded.chunks(piece) {
            decoder.push(piece, &mut out)?;
            decoder.flush(&mut out)?;
        }
        decoder.finish(&mut out)?;
        Ok(out)
    }

    #[test]
    fn what_is_broken_breaks_off() {
        let body: Vec<u8> = (0..50_000u32).flat_map(u32::to_le_bytes).collect();
        for coding in ALL {
            let encoded = encoded(coding, &body);
            assert!(decode(coding, &encoded, 1000).unwrap() == body);
            let cut = &encoded[..encoded.len() - 5];
            assert!(decode(coding, cut, 1000).is_err(), "{coding:?}");
            let mut longer = encoded.clone();
            longer.extend_from_slice(b"and more");
            assert!(decode(coding, &longer, 1000).is_err(), "{coding:?}");
            assert!(decode(coding, b"no body of that kind", 7).is_err());
            // of nothing comes nothing
            assert_eq!(decode(coding, b"", 1).unwrap(), b"");
        }
    }

    #[test]
    fn bodies_of_several_members_are_one() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            let two = [encoded(coding, b"one "), encoded(coding, b"two")].concat();
            for piece in [1, 7, 1000] {
                assert_eq!(decode(coding, &two, piece).unwrap(), b"one two");
            }
        }
    }

    #[test]
    fn no_more_than_so_much_comes_at_once() {
        let body = vec![0; 4 * BUFFER];
        for coding in ALL {
            let encoded = encoded(coding, &body);
            assert!(encoded.len() < 8192, "{coding:?}");
            let mut decoder = Decoder::new(coding, BUFFER);
            let mut out = Vec::new();
            let error = decoder.push(&encoded, &mut out).unwrap_err();
            assert!(error.to_string().contains("too much"), "{coding:?} {error}");
            assert!(out.len() <= BUFFER && out.capacity() <= 2 * BUFFER);
            drop(decoder);
        }
        // in parts it is as much as there is
        let gzip = encoded(Coding::Gzip, &body);
        assert!(decode(Coding::Gzip, &gzip, 500).unwrap() == body);
    }

    #[test]
    fn windows_beyond_the_usual_are_refused() {
        // a window of 2^30, as only some decoders know
        let mut decoder = Decoder::new(Coding::Br, BUFFER);
        let large = [0x11, 30 | 0x40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(decoder.push(&large, &mut Vec::new()).is_err());
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let window = zstd::zstd_safe::CParameter::WindowLog(ZSTD_WINDOW + 1);
        encoder.set_parameter(window).unwrap();
        encoder.write_all(&[7; 100]).unwrap();
        encoder.flush().unwrap();
        let encoded = encoder.finish().unwrap();
        let mut decoder = Decoder::new(Coding::Zstd, BUFFER);
        assert!(decoder.push(&encoded, &mut Vec::new()).is_err());
    }

    #[test]
    fn what_was_flushed_is_there_at_once() {
        let events = ["data: one\n\n", "data: two\n\n"];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let mut brotli = brotli::CompressorWriter::new(Vec::new(), 4096, 4, 18);
        let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        let mut decoders = ALL.map(|coding| Decoder::new(coding, BUFFER));
        for event in events {
            let encode = |encoder: &mut dyn Write| {
                encoder.write_all(event.as_bytes()).unwrap();
                encoder.flush().unwrap();
            };
            encode(&mut gzip);
            encode(&mut brotli);
            encode(&mut zstd);
            let pieces = [gzip.get_mut(), brotli.get_mut(), zstd.get_mut()];
            for (piece, decoder) in pieces.into_iter().zip(&mut decoders) {
                let mut out = Vec::new();
                decoder.push(&std::mem::take(piece), &mut out).unwrap();
                decoder.flush(&mut out).unwrap();
                assert_eq!(out, event.as_bytes());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn bodies_come_back_in_whatever_pieces(body in "[ab]{0,4000}", piece in 1usize..500) {
            for coding in ALL {
                let encoded = encoded(coding, body.as_bytes());
                prop_assert_eq!(decode(coding, &encoded, piece).unwrap(), body.as_bytes());
            }
        }

        #[test]
        fn nothing_that_comes_does_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300, flip in any::<u8>()) {
            for coding in ALL {
                let _ = decode(coding, &bytes, 50);
                let mut damaged = encoded(coding, &bytes);
                let index = at % damaged.len();
                damaged[index] ^= flip;
                let _ = decode(coding, &damaged, 50);
            }
        }
    }

    /// The header of an answer to GET, as it leaves.
    fn pass(
        yaml: &str,
        accepted: Option<&str>,
        status: u16,
        lines: &[(&'static str, &str)],
    ) -> ResponseHeader {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Config = serde_yaml::from_str(yaml).unwrap();
        let decompress = config.compile(&At::Root, &mut b).unwrap();
        let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        let mut get = RequestHeader::build("GET", b"/", None).unwrap();
        if let Some(accepted) = accepted {
            get.append_header("accept-encoding", accepted).unwrap();
        }
        let mut response = ResponseHeader::build(status, None).unwrap();
        response.append_header("etag", "\"a\"").unwrap();
        response.append_header("content-length", "5000").unwrap();
        for (name, value) in lines {
            response.append_header(*name, *value).unwrap();
        }
        let had_coding = response.headers.contains_key("content-encoding");
        let transform = decompress.body(&cx, &get, &mut response, SystemTime::UNIX_EPOCH);
        let has_coding = response.headers.contains_key("content-encoding");
        assert_eq!(transform.is_some(), had_coding && !has_coding);
        response
    }
}
