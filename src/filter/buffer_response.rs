//! `buffer_response`: a backend's answer is read ahead of a client that takes it slowly.
//!
//! ```yaml
//! buffer_response: 1MiB
//! ```
//!
//! A client on a slow line keeps a thread or a process of many backends busy until it has the last byte. With this policy up to
//! so much of the answer is read ahead into memory, beside what lies in the kernel's buffers, so that the backend has
//! written all of an answer of that size and is free. Without it weir reads a piece of 64 KiB at most. Nothing waits until the room is
//! full: the client gets each piece as soon as it takes it. nginx: `proxy_buffering on`, `proxy_buffers`.
//!
//! Memory is taken only for what a client leaves waiting, so that it costs at most the size times the number of clients that
//! are slower than their backends. Nothing goes to disk (nginx: `proxy_max_temp_file_size 0`). WebSockets pass as
//! without it, and events come at once as always. A backend of HTTP/2 has no use for it: it may send 256 KiB ahead in any case, as much as its window is.

use std::time::SystemTime;

use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::issue::At;
use crate::value::Size;

/// How far ahead of its client the answer of a backend is read, at least 64KiB.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(Size);

/// In bytes.
#[derive(Debug)]
pub struct BufferResponse(usize);

/// What is read at once in any case.
const LEAST: Size = Size::new(64 << 10);

impl Config {
    pub fn compile(self, at: &At<'_>, b: &mut Build<'_>) -> Option<BufferResponse> {
        let bytes = usize::try_from(self.0.get()).ok();
        let bytes = bytes.filter(|_| self.0 >= LEAST);
        if bytes.is_none() {
            b.error(at, format!("must be at least {LEAST}"))
                .hint("`off` reads no further than the next piece");
        }
        bytes.map(BufferResponse)
    }
}

impl Filter for BufferResponse {
    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        cx.read_ahead = self.0;
        Flow::Continue
    }
}
