//! A response that weir makes itself: filters and handlers return it, `phases/send.rs` writes it.

use std::fs::File;
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
}

impl Body {
    pub fn length(&self) -> u64 {
        match self {
            Body::Empty => 0,
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::File { length, .. } => *length,
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
