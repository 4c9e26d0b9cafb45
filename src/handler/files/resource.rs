//! A file as HTTP sees it: a type, a version, and the parts that a client wants of it.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::root::Opened;
use super::set;
use crate::exchange::{Body, Parts, Reply};
use crate::http::coding::Coding;
use crate::http::conditional::{self, Verdict, Version};
use crate::http::range::{self, Wanted};
use crate::http::{date, mime};

/// What a file may weigh to be read at once, on the worker that serves the request.
///
/// To look up and read 64 KiB that the kernel has in memory took 15 us, the look-up alone 4 us; the same on a thread of
/// the blocking pool took 75 us, for it wakes another thread and is woken in turn. A disk that has to be waited for
/// stops the worker for the length of one read, as in nginx without `aio`. What is larger is read by the sender, off the
/// worker.
pub const SMALL: u64 = 64 * 1024;

const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// A file as HTTP sees it.
pub struct Resource {
    pub content_type: HeaderValue,
    pub coding: Option<Coding>,
    /// Another `Accept-Encoding` would have got another file.
    pub has_variants: bool,
    pub cache_control: Option<HeaderValue>,
    file: File,
    size: u64,
    etag: HeaderValue,
    /// Seconds since 1970; `None` before.
    modified: Option<u64>,
}

impl Resource {
    /// A file of which nothing is known but what the file system knows.
    pub fn new((file, metadata): Opened) -> Resource {
        Resource {
            content_type: mime::UNKNOWN,
            coding: None,
            has_variants: false,
            cache_control: None,
            file,
            size: metadata.len(),
            etag: etag(&metadata),
            modified: u64::try_from(metadata.mtime()).ok(),
        }
    }

    /// Gives an answer this file as its body, whatever the answer is about.
    pub fn become_body(self, reply: &mut Reply) -> io::Result<()> {
        reply.body = body(self.file, 0..self.size)?;
        describe(reply, self.content_type, self.coding, self.has_variants);
        Ok(())
    }

    /// `boundary` parts what is sent in several parts.
    pub fn reply(
        self,
        method: &Method,
        headers: &HeaderMap,
        boundary: &Boundary,
    ) -> io::Result<Reply> {
        let version = Version {
            etag: self.etag.as_bytes(),
            modified: self.modified,
        };
        let verdict = conditional::evaluate(method, headers, &version);
        // ranges are for GET alone (RFC 9110 section 14.2)
        let wanted = match method == Method::GET && conditional::range_applies(headers, &version) {
            true => range::wanted(headers, self.size),
            false => Wanted::Whole,
        };
        let size = self.size;
        match (verdict, wanted) {
            (Verdict::NotModified, _) => Ok(self.start(StatusCode::NOT_MODIFIED).0),
            (Verdict::Failed, _) => Ok(Reply::empty(StatusCode::PRECONDITION_FAILED)),
            (Verdict::Proceed, Wanted::Whole) if method == Method::HEAD => {
                let (mut reply, _) = self.start(StatusCode::OK);
                set(&mut reply, CONTENT_LENGTH, size.into());
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Whole) => {
                let (mut reply, file) = self.start(StatusCode::OK);
                reply.body = body(file, 0..size)?;
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Part(part)) => {
                let (mut reply, file) = self.start(StatusCode::PARTIAL_CONTENT);
                let content_range = range::content_range(&part, size);
                set(&mut reply, CONTENT_RANGE, content_range);
                reply.body = body(file, part)?;
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Parts(parts)) => Ok(self.multipart(parts, boundary)),
            (Verdict::Proceed, Wanted::Nothing) => {
                let mut reply = Reply::empty(StatusCode::RANGE_NOT_SATISFIABLE);
                let content_range = range::content_range_unsatisfied(size);
                set(&mut reply, CONTENT_RANGE, content_range);
                Ok(reply)
            }
        }
    }

    /// Each part under its own type and range (RFC 9110 section 14.6); those of the answer say how to take it apart.
    fn multipart(self, parts: Vec<Range<u64>>, boundary: &Boundary) -> Reply {
        let size = self.size;
        let kind = self.content_type.clone();
        let head = |part: &Range<u64>, line_end: &str| {
            let mut head = BytesMut::from(line_end);
            for piece in [
                b"--",
                boundary.text.as_bytes(),
                b"\r\nContent-Type: ",
                kind.as_bytes(),
                b"\r\nContent-Range: ",
                range::content_range(part, size).as_bytes(),
                b"\r\n\r\n",
            ] {
                head.put_slice(piece);
            }
            head.freeze()
        };
        let parts = parts.into_iter().enumerate().map(|(i, part)| match i {
            0 => (head(&part, ""), part),
            _ => (head(&part, "\r\n"), part),
        });
        let parts = parts.collect();
        let (mut reply, file) = self.start(StatusCode::PARTIAL_CONTENT);
        set(&mut reply, CONTENT_TYPE, boundary.content_type.clone());
        reply.body = Body::Parts(Parts {
            file: Arc::new(file),
            parts,
            end: boundary.end.clone(),
        });
        reply
    }

    /// The header that tells about this file; a 304 repeats only what a cache needs (RFC 9110 section 15.4.5).
    fn start(self, status: StatusCode) -> (Reply, File) {
        let mut reply = Reply::empty(status);
        set(&mut reply, ETAG, self.etag);
        if let Some(modified) = self.modified.and_then(date::format) {
            set(&mut reply, LAST_MODIFIED, modified);
        }
        if let Some(cache_control) = self.cache_control {
            set(&mut reply, CACHE_CONTROL, cache_control);
        }
        if status == StatusCode::NOT_MODIFIED {
            vary(&mut reply, self.has_variants);
        } else {
            describe(
                &mut reply,
                self.content_type,
                self.coding,
                self.has_variants,
            );
            set(&mut reply, ACCEPT_RANGES, BYTES);
        }
        (reply, self.file)
    }
}

fn describe(reply: &mut Reply, kind: HeaderValue, coding: Option<Coding>, has_variants: bool) {
    set(reply, CONTENT_TYPE, kind);
    if let Some(coding) = coding {
        set(
            reply,
            CONTENT_ENCODING,
            HeaderValue::from_static(coding.name()),
        );
    }
    vary(reply, has_variants);
}

fn vary(reply: &mut Reply, has_variants: bool) {
    if has_variants {
        set(reply, VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// What stands between the parts of a `multipart/byteranges` answer. One is made for each configuration, by chance: what is
/// in a file cannot be made to look like it in advance.
#[derive(Debug)]
pub struct Boundary {
    text: String,
    content_type: HeaderValue,
    end: Bytes,
}

impl Boundary {
    /// `random` is half of it each.
    pub fn new(random: [u64; 2]) -> Boundary {
        let text = format!("{:016x}{:016x}", random[0], random[1]);
        let content_type = format!("multipart/byteranges; boundary={text}");
        Boundary {
            content_type: HeaderValue::try_from(content_type)
                .expect("letters, digits and punctuation make a header value"),
            end: format!("\r\n--{text}--\r\n").into(),
            text,
        }
    }
}

/// A strong tag: a file that is replaced has another inode, one that is written to another time or size.
fn etag(metadata: &Metadata) -> HeaderValue {
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    let (size, inode) = (metadata.size(), metadata.ino());
    let tag = format!("\"{seconds:x}.{nanoseconds:x}-{size:x}-{inode:x}\"");
    HeaderValue::try_from(tag).expect("hexadecimal digits and punctuation make a header value")
}

fn body(mut file: File, part: Range<u64>) -> io::Result<Body> {
    let length = part.end - part.start;
    if length > SMALL {
        return Ok(Body::File {
            file: Arc::new(file),
            start: part.start,
            length,
        });
    }
    let mut bytes = Vec::with_capacity(length as usize);
    if part.start > 0 {
        file.seek(SeekFrom::Start(part.start))?;
    }
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        // somebody is writing to it; what was read belongs to no version that a tag could name
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it became shorter while it was read",
        ));
    }
    Ok(Body::Bytes(Bytes::from(bytes)))
}
