//! A response that weir makes itself: filters and handlers return it, `phases/send.rs` writes it.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use pingora::http::ResponseHeader;

/// Status, headers and body of a local answer. `Content-Length` is set from the body when it is sent.
#[derive(Debug)]
pub struct Reply {
    pub head: Box<ResponseHeader>,
    pub body: Body,
}

#[derive(Debug)]
pub enum Body {
    Empty,
    Bytes(Bytes),
    /// `length` bytes of an open regular file from `start`.
    File {
        file: Arc<File>,
        start: u64,
        length: u64,
    },
    Parts(Parts),
}

/// Several parts of an open regular file, and what stands between them (`multipart/byteranges`).
#[derive(Debug)]
pub struct Parts {
    pub file: Arc<File>,
    /// What is sent before a part, and the part.
    pub parts: Vec<(Bytes, Range<u64>)>,
    /// What is sent after the last part.
    pub end: Bytes,
}

impl Parts {
    fn length(&self) -> u64 {
        let parts = self.parts.iter();
        let lengths = parts.map(|(before, part)| before.len() as u64 + (part.end - part.start));
        lengths.sum::<u64>() + self.end.len() as u64
    }
}

impl Body {
    pub fn length(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
            Body::Parts(parts) => parts.length(),
        }
    }
}

impl Reply {
    pub fn new(status: StatusCode, body: Body) -> Reply {
        let head = ResponseHeader::build(status, Some(8)).expect("a StatusCode is a valid status");
        Reply {
            head: Box::new(head),
            body,
        }
    }

    /// A reply without a body.
    pub fn empty(status: StatusCode) -> Reply {
        Reply::new(status, Body::Empty)
    }
}
