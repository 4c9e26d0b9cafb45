//! A file as HTTP sees it: a type, a version, and the parts that a client wants of it.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, LAST_MODIFIED, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use pingora::http::ResponseHeader;

use super::root::Opened;
use super::set;
use crate::disk;
use crate::exchange::{Body, Parts, Reply};
use crate::http::coding::Coding;
use crate::http::conditional::{self, Verdict};
use crate::http::date;
use crate::http::range::{self, Wanted};

/// What a file may weigh to be read as a whole, and to be remembered with its content. What is larger is read by the
/// sender, as fast as the client takes it.
pub const SMALL: u64 = 64 * 1024;

const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// Which file it is, and when it was last changed; what has the same has the same content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of anything about it: a program that sets the time of modification back does not get at this one.
    changed: (i64, i64),
}

impl Version {
    pub fn of(metadata: &Metadata) -> Version {
        Version {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// A strong tag: a file that is replaced has another inode, one that is written to another time or size.
    fn etag(&self) -> HeaderValue {
        let (seconds, nanoseconds) = self.modified;
        let (size, inode) = (self.size, self.inode);
        let tag = format!("\"{seconds:x}.{nanoseconds:x}-{size:x}-{inode:x}\"");
        HeaderValue::try_from(tag).expect("hexadecimal digits and punctuation make a header value")
    }

    /// Seconds since 1970; `None` before.
    fn modified(&self) -> Option<u64> {
        self.modified.0.try_into().ok()
    }
}

/// One version of a file, ready to be sent.
#[derive(Debug)]
pub struct Open {
    version: Version,
    content: Content,
    /// Whether it was the same version still when the content had been read.
    is_settled: bool,
    /// The header of an answer with the whole of it, under its own name and in no coding.
    plain: OnceLock<Arc<ResponseHeader>>,
}

#[derive(Debug)]
enum Content {
    Bytes(Bytes),
    File(Arc<File>),
}

impl Open {
    /// Reads it where it is small.
    pub async fn new((file, metadata): Opened) -> io::Result<Open> {
        let version = Version::of(&metadata);
        let mut is_settled = true;
        let content = match usize::try_from(version.size) {
            Ok(0) => Content::Bytes(Bytes::new()),
            Ok(size) if version.size <= SMALL => {
                let file = Arc::new(file);
                let bytes = disk::read(&file, 0, size).await?;
                if bytes.len() != size {
                    // somebody is writing to it; what was read belongs to no version that a tag could name
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it became shorter while it was read",
                    ));
                }
                is_settled = Version::of(&file.metadata()?) == version;
                Content::Bytes(bytes)
            }
            _ => Content::File(Arc::new(file)),
        };
        Ok(Open {
            version,
            content,
            is_settled,
            plain: OnceLock::new(),
        })
    }

    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Whether the open file was neither written to nor replaced since. What is in memory stays as it is.
    pub fn is_unchanged(&self) -> bool {
        match &self.content {
            Content::Bytes(_) => true,
            Content::File(file) => file
                .metadata()
                .is_ok_and(|metadata| Version::of(&metadata) == self.version),
        }
    }

    /// Whether what was read of it can be taken for this version in later answers, too.
    pub fn is_settled(&self) -> bool {
        self.is_settled
    }

    pub fn is_kept_open(&self) -> bool {
        matches!(self.content, Content::File(_))
    }

    /// Bytes of its content that are in memory.
    pub fn memory(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_) => 0,
        }
    }

    /// The header of an answer with the whole of it, under its own name and in no coding, made once.
    pub fn plain(&self, about: impl FnOnce() -> About) -> Arc<ResponseHeader> {
        let plain = self.plain.get_or_init(|| Arc::new(self.head(about())));
        plain.clone()
    }

    /// The header of an answer with the whole of it.
    pub fn head(&self, about: About) -> ResponseHeader {
        let mut reply = Reply::empty(StatusCode::OK);
        set(&mut reply, ETAG, self.version.etag());
        if let Some(modified) = self.version.modified().and_then(date::format) {
            set(&mut reply, LAST_MODIFIED, modified);
        }
        if let Some(cache_control) = about.cache_control {
            set(&mut reply, CACHE_CONTROL, cache_control);
        }
        set(&mut reply, CONTENT_TYPE, about.content_type);
        if let Some(coding) = about.coding {
            let coding = HeaderValue::from_static(coding.name());
            set(&mut reply, CONTENT_ENCODING, coding);
        }
        if about.has_variants {
            let by = HeaderValue::from_static("Accept-Encoding");
            set(&mut reply, VARY, by);
        }
        set(&mut reply, ACCEPT_RANGES, BYTES);
        set(&mut reply, CONTENT_LENGTH, self.version.size.into());
        *reply.head
    }

    fn body(&self, part: Range<u64>) -> Body {
        match &self.content {
            Content::Bytes(bytes) => Body::Bytes(slice(bytes, &part)),
            Content::File(file) => Body::File {
                file: file.clone(),
                start: part.start,
                length: part.end - part.start,
            },
        }
    }
}

/// What is said about a file that the file system does not know.
pub struct About {
    pub content_type: HeaderValue,
    pub coding: Option<Coding>,
    /// Another `Accept-Encoding` would have got another file.
    pub has_variants: bool,
    pub cache_control: Option<HeaderValue>,
}

/// A file as HTTP sees it.
pub struct Resource {
    pub file: Arc<Open>,
    /// The header of an answer with the whole of it.
    pub head: Arc<ResponseHeader>,
}

impl Resource {
    /// Gives an answer this file as its body, whatever the answer is about.
    pub fn become_body(self, reply: &mut Reply) {
        self.copy(&[CONTENT_TYPE, CONTENT_ENCODING, VARY], reply);
        reply.body = self.file.body(0..self.size());
    }

    /// `boundary` parts what is sent in several parts.
    pub fn reply(self, method: &Method, headers: &HeaderMap, boundary: &Boundary) -> Reply {
        let etag = &self.head.headers[ETAG];
        let version = conditional::Version {
            etag: etag.as_bytes(),
            modified: self.file.version.modified(),
        };
        let verdict = conditional::evaluate(method, headers, &version);
        // ranges are for GET alone (RFC 9110 section 14.2)
        let wanted = match method == Method::GET && conditional::range_applies(headers, &version) {
            true => range::wanted(headers, self.size()),
            false => Wanted::Whole,
        };
        match (verdict, wanted) {
            (Verdict::NotModified, _) => {
                // only what a cache needs (RFC 9110 section 15.4.5)
                let mut reply = Reply::empty(StatusCode::NOT_MODIFIED);
                self.copy(&[ETAG, LAST_MODIFIED, CACHE_CONTROL, VARY], &mut reply);
                reply
            }
            (Verdict::Failed, _) => Reply::empty(StatusCode::PRECONDITION_FAILED),
            (Verdict::Proceed, Wanted::Whole) => {
                let body = match method == Method::HEAD {
                    true => Body::Empty,
                    false => self.file.body(0..self.size()),
                };
                Reply {
                    head: Box::new(ResponseHeader::clone(&self.head)),
                    body,
                }
            }
            (Verdict::Proceed, Wanted::Part(part)) => {
                let mut reply = self.partial();
                let content_range = range::content_range(&part, self.size());
                set(&mut reply, CONTENT_RANGE, content_range);
                reply.body = self.file.body(part);
                reply
            }
            (Verdict::Proceed, Wanted::Parts(parts)) => self.multipart(parts, boundary),
            (Verdict::Proceed, Wanted::Nothing) => {
                let mut reply = Reply::empty(StatusCode::RANGE_NOT_SATISFIABLE);
                let content_range = range::content_range_unsatisfied(self.size());
                set(&mut reply, CONTENT_RANGE, content_range);
                reply
            }
        }
    }

    /// Each part under its own type and range (RFC 9110 section 14.6); those of the answer say how to take it apart.
    fn multipart(self, parts: Vec<Range<u64>>, boundary: &Boundary) -> Reply {
        let kind = &self.head.headers[CONTENT_TYPE];
        let head = |part: &Range<u64>, line_end: &str| {
            let mut head = BytesMut::from(line_end);
            for piece in [
                b"--",
                boundary.text.as_bytes(),
                b"\r\nContent-Type: ",
                kind.as_bytes(),
                b"\r\nContent-Range: ",
                range::content_range(part, self.size()).as_bytes(),
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
        let end = boundary.end.clone();
        let body = match &self.file.content {
            Content::Bytes(bytes) => {
                let mut all = BytesMut::new();
                for (before, part) in parts {
                    all.put_slice(&before);
                    all.put_slice(&slice(bytes, &part));
                }
                all.put_slice(&end);
                Body::Bytes(all.freeze())
            }
            Content::File(file) => Body::Parts(Parts {
                file: file.clone(),
                parts: parts.collect(),
                end,
            }),
        };
        let mut reply = self.partial();
        set(&mut reply, CONTENT_TYPE, boundary.content_type.clone());
        reply.body = body;
        reply
    }

    /// The header of an answer with a part.
    fn partial(&self) -> Reply {
        let mut head = ResponseHeader::clone(&self.head);
        // a status is a valid status
        let _ = head.set_status(StatusCode::PARTIAL_CONTENT);
        head.remove_header(&CONTENT_LENGTH);
        Reply {
            head: Box::new(head),
            body: Body::Empty,
        }
    }

    fn copy(&self, names: &[HeaderName], reply: &mut Reply) {
        for name in names {
            if let Some(value) = self.head.headers.get(name) {
                set(reply, name.clone(), value.clone());
            }
        }
    }

    fn size(&self) -> u64 {
        self.file.version.size
    }
}

/// A part of a file that is in memory whole.
fn slice(bytes: &Bytes, part: &Range<u64>) -> Bytes {
    bytes.slice(part.start as usize..part.end as usize)
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
