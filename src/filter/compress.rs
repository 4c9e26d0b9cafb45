//! `compress`: answers in a content coding that the client takes: zstd, brotli or gzip.
//!
//! ```yaml
//! compress: true
//! ```
//!
//! ```yaml
//! compress: { algorithms: [zstd, br, gzip], min_size: 1KiB, types: [text/*, application/json], level: 5 }
//! ```
//!
//! It works on any answer, whoever made it, but for those that are in a coding already (precompressed files are), a
//! part of a body (206), calls of gRPC, and what is marked `no-transform`. `Vary: Accept-Encoding` is in each answer
//! that is or could have been compressed; a strong `ETag` becomes a weak one, and `Content-Length` and `Accept-Ranges`
//! go.
//!
//! Nothing is held back: where a backend pauses, all that it has sent goes out, so that events and pages that are made
//! bit by bit arrive as they do without compression. An answer in flight takes 0.4 MiB of memory with gzip, up to 1.7
//! MiB with zstd and up to 3.1 MiB with brotli, however long it is.
//!
//! A page that holds a secret and beside it what the client sent gives the secret away by its length
//! ([BREACH](https://www.breachattack.com/)). `compress: off` in the routes of such pages, or `SameSite` cookies, is
//! the way out.
//!
//! # Inside
//!
//! It is the last policy to see a body, as all others left it, and `headers` sees what it came to. Between pauses the
//! encoder decides what goes out. Where the memory goes is up to [`WINDOW`].

use std::io::{self, Write};
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderValue, Method, StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;
use zstd::zstd_safe::CParameter;

use super::Filter;
use crate::build::Build;
use crate::exchange::transform::{confirm, forget_body, is_grpc, is_to_stay, vary, weaken_etag};
use crate::exchange::{Cx, Transform};
use crate::http::coding::{self, Coding};
use crate::http::media::{self, Pattern};
use crate::issue::At;
use crate::value::{Size, TrueOr};

pub type Config = TrueOr<Settings>;

/// How to compress; `compress: true` takes all defaults.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The codings to use. Among those that a client likes as well as each other the first one is taken. Default
    /// `[zstd, br, gzip]`. nginx: `gzip on`, and modules for the others.
    pub algorithms: Vec<Coding>,
    /// Bodies that are shorter are left alone; one whose length is not known beforehand is long enough. Default 1KiB.
    /// nginx: `gzip_min_length`.
    pub min_size: Size,
    /// The types of bodies to compress: `text/html`, `text/*`, `application/*+json`. Default: text, JSON, XML, JavaScript,
    /// WebAssembly, SVG, and the fonts and icons that are not compressed in themselves. nginx: `gzip_types`.
    pub types: Vec<Pattern>,
    /// How much work to put into it, from 1 (least) to 9 (most); the same number costs about the same with each
    /// algorithm. Default 5. nginx: `gzip_comp_level`.
    #[schemars(range(min = 1, max = 9))]
    pub level: u8,
}

/// What compresses well and is commonly served.
const TYPES: [&str; 16] = [
    "text/*",
    "application/json",
    "application/*+json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/*+xml",
    "application/wasm",
    "application/x-ndjson",
    "image/svg+xml",
    "image/bmp",
    "image/x-icon",
    "image/vnd.microsoft.icon",
    "font/ttf",
    "font/otf",
    "application/vnd.ms-fontobject",
];

impl Default for Settings {
    fn default() -> Settings {
        let types = TYPES.iter().filter_map(|text| text.parse().ok());
        Settings {
            algorithms: vec![Coding::Zstd, Coding::Br, Coding::Gzip],
            min_size: Size::new(1024),
            types: types.collect(),
            level: 5,
        }
    }
}

#[derive(Debug)]
pub struct Compress {
    algorithms: Vec<Coding>,
    min_size: u64,
    types: Vec<Pattern>,
    level: u8,
}

impl Settings {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Compress> {
        if self.algorithms.is_empty() {
            b.error(&at.key("algorithms"), "there is nothing to compress with")
                .hint("`compress: off` switches it off");
        }
        for (i, coding) in self.algorithms.iter().enumerate() {
            if self.algorithms[..i].contains(coding) {
                let message = format!("`{}` is given twice", coding.name());
                b.error(&at.key("algorithms").index(i), message);
            }
        }
        if self.types.is_empty() {
            b.error(&at.key("types"), "there is nothing to compress")
                .hint("`compress: off` switches it off");
        }
        if !(1..=9).contains(&self.level) {
            b.error(&at.key("level"), format!("`{}` is no level", self.level))
                .hint("it is a number from 1 to 9");
        }
        Some(Compress {
            algorithms: self.algorithms.clone(),
            min_size: self.min_size.get(),
            types: self.types.clone(),
            level: self.level,
        })
    }
}

impl Filter for Compress {
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
        if !self.is_for(response) || is_to_stay(&request.headers) {
            return None;
        }
        vary(response, "Accept-Encoding");
        let coding = coding::best(&request.headers, &self.algorithms)?;
        let length = length(response);
        forget_body(response);
        weaken_etag(response);
        // A static name with a static value cannot be refused.
        let name = HeaderValue::from_static(coding.name());
        let _ = response.insert_header("Content-Encoding", name);
        if request.method == Method::HEAD {
            return None;
        }
        Some(Box::new(Encoder::new(coding, self.level, length)))
    }
}

impl Compress {
    /// Whether an answer is one to compress, for clients that like it.
    fn is_for(&self, response: &ResponseHeader) -> bool {
        let headers = &response.headers;
        let may_have_body = !response.status.is_informational()
            && !matches!(
                response.status,
                // of the last, what was asked for are these bytes of the body, and no other
                StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::PARTIAL_CONTENT
            );
        may_have_body
            && length(response).is_none_or(|length| length >= self.min_size.max(1))
            && !headers.contains_key(header::CONTENT_ENCODING)
            && !is_to_stay(headers)
            && media::is_one_of(&self.types, headers)
            // its messages are compressed one by one
            && !is_grpc(headers)
    }
}

fn length(response: &ResponseHeader) -> Option<u64> {
    let length = response.headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// How far back an encoder looks, as a power of two: 256 KiB. What it keeps of a body in flight grows with that, and is
/// paid for each at once; pages hardly get smaller with more. A body in flight costs 0.4 MiB with gzip (whose window is
/// 32 KiB), at most 1.7 MiB with zstd and 3.1 MiB with brotli. Browsers take 8 MiB at most of zstd (RFC 9659).
const WINDOW: u32 = 18;

/// Brotli takes 4.5 MiB with the other one, for bodies that are smaller by two percent.
const BROTLI_WINDOW: u32 = 17;

/// How large the tables of zstd are at most, as powers of two. At its own sizes it takes 3.5 MiB at level 5 and 11 MiB at
/// level 9, and makes bodies smaller by no more than one percent.
const ZSTD_TABLES: (u32, u32) = (17, 16);

/// What the levels are called by each algorithm: by measurement, what takes about the time of gzip. Brotli ends at its 4:
/// from 5 on, the encoder takes three times as long and makes more of a body with such a window.
const ZSTD: [i32; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];
const BROTLI: [u32; 9] = [1, 2, 3, 3, 4, 4, 4, 4, 4];

/// One body on its way.
enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    // large, and moved about
    Brotli(Option<Box<brotli::CompressorWriter<Vec<u8>>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
    /// It could not be made for want of memory.
    Broken,
}

impl Encoder {
    /// `length` is that of the whole body, if it is known.
    fn new(coding: Coding, level: u8, length: Option<u64>) -> Encoder {
        let window = window(length);
        let step = usize::from(level.clamp(1, 9) - 1);
        match coding {
            Coding::Gzip => {
                let level = Compression::new(level.into());
                Encoder::Gzip(GzEncoder::new(Vec::new(), level))
            }
            Coding::Br => {
                let window = window.min(BROTLI_WINDOW);
                let encoder = brotli::CompressorWriter::new(Vec::new(), 4096, BROTLI[step], window);
                Encoder::Brotli(Some(Box::new(encoder)))
            }
            Coding::Zstd => {
                let encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD[step]);
                let encoder = encoder.and_then(|mut encoder| {
                    let (hash, chain) = ZSTD_TABLES;
                    encoder.set_parameter(CParameter::WindowLog(window))?;
                    encoder.set_parameter(CParameter::HashLog(hash.min(window)))?;
                    encoder.set_parameter(CParameter::ChainLog(chain.min(window)))?;
                    Ok(encoder)
                });
                encoder.map_or(Encoder::Broken, Encoder::Zstd)
            }
        }
    }
}

/// No larger than the body needs.
fn window(length: Option<u64>) -> u32 {
    const LEAST: u32 = 12;
    let enough = length.map_or(WINDOW, |length| u64::BITS - length.leading_zeros());
    enough.clamp(LEAST, WINDOW)
}

impl Transform for Encoder {
    fn push(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => {
                encoder.write_all(piece)?;
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(Some(encoder)) => {
                encoder.write_all(piece)?;
                out.append(encoder.get_mut());
            }
            Encoder::Zstd(encoder) => {
                encoder.write_all(piece)?;
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(None) | Encoder::Broken => return Err(no_encoder()),
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => {
                encoder.flush()?;
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(Some(encoder)) => {
                encoder.flush()?;
                out.append(encoder.get_mut());
            }
            Encoder::Zstd(encoder) => {
                encoder.flush()?;
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(None) | Encoder::Broken => return Err(no_encoder()),
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => {
                encoder.try_finish()?;
                out.append(encoder.get_mut());
            }
            Encoder::Brotli(encoder) => {
                let encoder = encoder.take().ok_or_else(no_encoder)?;
                out.append(&mut encoder.into_inner());
            }
            Encoder::Zstd(encoder) => {
                encoder.do_finish()?;
                out.append(encoder.get_mut());
            }
            Encoder::Broken => return Err(no_encoder()),
        }
        Ok(())
    }
}

fn no_encoder() -> io::Error {
    io::Error::other("no encoder")
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

    const TEXT: [(&str, &str); 2] = [("content-type", "text/html"), ("content-length", "5000")];

    #[test]
    fn what_the_client_takes_and_the_server_likes_best_is_chosen() {
        for (accepted, expected) in [
            ("gzip, br, zstd", Some("zstd")),
            ("gzip, deflate, br", Some("br")),
            ("gzip;q=1.0, br;q=0.5", Some("gzip")),
            ("identity;q=0, *;q=0.1", Some("zstd")),
            ("identity, gzip;q=0.5", None),
            ("gzip;q=0", None),
            ("deflate", None),
        ] {
            let head = pass("{}", &[("accept-encoding", accepted)], 200, &TEXT);
            let coding = head.headers.get("content-encoding");
            assert_eq!(coding.map(|c| c.to_str().unwrap()), expected, "{accepted}");
            assert_eq!(head.headers["vary"], "Accept-Encoding", "{accepted}");
            let has_length = head.headers.contains_key("content-length");
            assert_eq!(has_length, expected.is_none(), "{accepted}");
        }
        let head = pass(
            "{ algorithms: [gzip, br] }",
            &[("accept-encoding", "br, gzip")],
            200,
            &TEXT,
        );
        assert_eq!(head.headers["content-encoding"], "gzip");
        assert_eq!(
            pass("{}", &[], 200, &TEXT).headers["vary"],
            "Accept-Encoding"
        );
    }

    #[test]
    fn what_does_not_gain_or_may_not_be_changed_is_left_alone() {
        let gzip = [("accept-encoding", "gzip")];
        let html = ("content-type", "text/html");
        for (status, lines) in [
            (200, &[("content-length", "5000")][..]),
            (200, &[("content-type", "image/png")]),
            (200, &[("content-type", "application/grpc+proto")]),
            (200, &[html, ("content-length", "1023")]),
            (200, &[html, ("content-encoding", "br")]),
            (200, &[html, ("cache-control", "public, No-Transform")]),
            (204, &[html]),
            (206, &[html]),
            (304, &[html]),
            (101, &[html]),
        ] {
            let settings = "{ types: [text/*, application/*] }";
            let head = pass(settings, &gzip, status, lines);
            let coding = head.headers.get("content-encoding");
            assert_ne!(
                coding.map(HeaderValue::as_bytes),
                Some(&b"gzip"[..]),
                "{status} {lines:?}"
            );
            assert!(!head.headers.contains_key("vary"), "{status} {lines:?}");
        }
        let request = [gzip[0], ("cache-control", "no-transform")];
        let head = pass("{}", &request, 200, &TEXT);
        assert!(!head.headers.contains_key("content-encoding"));
        for lines in [&[html][..], &[html, ("content-length", "1024")]] {
            let head = pass("{}", &gzip, 404, lines);
            assert_eq!(head.headers["content-encoding"], "gzip", "{lines:?}");
        }
    }

    #[test]
    fn strong_tag_becomes_weak_and_is_confirmed_as_such() {
        let etag = ("etag", "\"a\"");
        let gzip = ("accept-encoding", "gzip");
        let head = pass("{}", &[gzip], 200, &[TEXT[0], TEXT[1], etag]);
        assert_eq!(head.headers["etag"], "W/\"a\"");
        let head = pass(
            "{}",
            &[gzip, ("if-none-match", "\"b\", W/\"a\"")],
            304,
            &[etag],
        );
        assert_eq!(head.headers["etag"], "W/\"a\"");
        assert_eq!(head.headers["vary"], "Accept-Encoding");
        let head = pass("{}", &[gzip, ("if-none-match", "\"a\"")], 304, &[etag]);
        assert_eq!(head.headers["etag"], "\"a\"");
    }

    #[test]
    fn mistakes_are_reported() {
        for (yaml, expected) in [
            (
                "{ algorithms: [] }",
                "compress.algorithms: there is nothing to compress with",
            ),
            (
                "{ algorithms: [br, gzip, br] }",
                "compress.algorithms[2]: `br` is given twice",
            ),
            (
                "{ types: [] }",
                "compress.types: there is nothing to compress",
            ),
            ("{ level: 0 }", "compress.level: `0` is no level"),
            ("{ level: 10 }", "compress.level: `10` is no level"),
        ] {
            let sources = Sources::default();
            let mut b = Build::new(&sources);
            let config: Config = serde_yaml::from_str(yaml).unwrap();
            config.compile(&At::Root.key("compress"), &mut b);
            let texts: Vec<_> = b
                .issues
                .0
                .iter()
                .map(|i| format!("{}: {}", i.path, i.message))
                .collect();
            assert_eq!(texts, [expected]);
        }
        for yaml in [
            "{ types: [html] }",
            "{ algorithms: [deflate] }",
            "{ level: 256 }",
            "{ min_size: 1000 }",
        ] {
            assert!(serde_yaml::from_str::<Config>(yaml).is_err(), "{yaml}");
        }
    }

    #[test]
    fn windows_are_no_larger_than_needed() {
        assert_eq!(window(None), WINDOW);
        assert_eq!(window(Some(0)), 12);
        assert_eq!(window(Some(65_536)), 17);
        assert_eq!(window(Some(u64::MAX)), WINDOW);
    }

    #[test]
    fn flush_gives_out_all_that_was_put_in() {
        for coding in [Coding::Gzip, Coding::Br, Coding::Zstd] {
            let mut encoder = Encoder::new(coding, 5, None);
            let mut out = Vec::new();
            for event in ["data: 1\n\n", "data: 2\n\n"] {
                encoder.push(event.as_bytes(), &mut out).unwrap();
                encoder.flush(&mut out).unwrap();
                assert!(
                    decoded_so_far(coding, &out).ends_with(event.as_bytes()),
                    "{coding:?}"
                );
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn decoders_give_back_what_was_put_in(
            pieces in proptest::collection::vec(("[ab]{0,400}", any::<bool>()), 0..8),
            level in 1u8..=9,
            knows_length in any::<bool>(),
        ) {
            let body: String = pieces.iter().map(|(piece, _)| piece.as_str()).collect();
            for coding in [Coding::Gzip, Coding::Br, Coding::Zstd] {
                let length = knows_length.then_some(body.len() as u64);
                let mut encoder = Encoder::new(coding, level, length);
                let mut out = Vec::new();
                for (piece, pauses) in &pieces {
                    encoder.push(piece.as_bytes(), &mut out).unwrap();
                    if *pauses {
                        encoder.flush(&mut out).unwrap();
                    }
                }
                encoder.finish(&mut out).unwrap();
                prop_assert_eq!(decoded_so_far(coding, &out), body.as_bytes());
            }
        }
    }

    /// What a decoder makes of the beginning of a body.
    fn decoded_so_far(coding: Coding, encoded: &[u8]) -> Vec<u8> {
        let mut decoder: Box<dyn Read + '_> = match coding {
            Coding::Gzip => Box::new(flate2::read::GzDecoder::new(encoded)),
            Coding::Br => Box::new(brotli::Decompressor::new(encoded, 4096)),
            Coding::Zstd => Box::new(zstd::stream::read::Decoder::new(encoded).unwrap()),
        };
        let mut decoded = Vec::new();
        let mut byte = [0];
        while let Ok(1) = decoder.read(&mut byte) {
            decoded.push(byte[0]);
        }
        decoded
    }

    /// The header of an answer to GET, as it leaves.
    fn pass(
        yaml: &str,
        request: &[(&'static str, &str)],
        status: u16,
        lines: &[(&'static str, &str)],
    ) -> ResponseHeader {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config: Config = serde_yaml::from_str(yaml).unwrap();
        let compress = config.compile(&At::Root, &mut b).unwrap();
        assert_eq!(b.issues.0.len(), 0, "{:?}", b.issues);
        let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        let mut get = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in request {
            get.append_header(*name, *value).unwrap();
        }
        let mut response = ResponseHeader::build(status, None).unwrap();
        for (name, value) in lines {
            response.append_header(*name, *value).unwrap();
        }
        let transform = compress.body(&cx, &get, &mut response, SystemTime::UNIX_EPOCH);
        let is_encoded = ["gzip", "br", "zstd"].iter().any(|coding| {
            response
                .headers
                .get("content-encoding")
                .is_some_and(|c| c == coding)
        });
        if transform.is_some() {
            assert!(is_encoded);
        }
        response
    }
}
