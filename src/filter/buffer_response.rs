//! `buffer_response`: a backend's answer is read ahead of a client that takes it slowly.
//!
//! ```yaml
//! buffer_response: { memory: 1MiB, disk: 1GiB, dir: /var/tmp, max: 20GiB }
//! ```
//!
//! A client on a slow line keeps a thread or a process of many backends busy until it has the last byte. With this
//! policy up to `memory` of the answer is read ahead, beside what lies in the kernel's buffers, and up to `disk` more
//! into a file without a name, so that the backend has written all of an answer of that size and is free. Without it
//! weir reads a piece of 64 KiB at most. Nothing waits until the room is full: the client gets each piece as soon as it
//! takes it.
//!
//! Memory and disk are taken only for what a client leaves waiting. Where the disk has no more room the answer is not
//! lost: no more of it is read then than goes out. WebSockets pass as without it, and events come at once as always. A
//! backend of HTTP/2 has no use for it: it may send 256 KiB ahead in any case, as much as its window is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use pingora::http::RequestHeader;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::issue::At;
use crate::net::crowd::Occasions;
use crate::pool::peer::{Ahead, Disk};
use crate::value::{FromShort, Short, Size};

/// How much of an answer is read ahead, and to where; a size alone is short for `{ memory: SIZE }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(Short<Fields>);

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// How much of one answer is read ahead into memory, at least 64KiB. Default 1MiB. nginx: `proxy_buffers`.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// How much more of it is read ahead into a file, at least 256KiB. Default: nothing. nginx: `proxy_max_temp_file_size`.
    pub disk: Option<Size>,
    /// The folder for such files; whoever weir runs as must be able to write there. Default: the system's for temporary
    /// files (`$TMPDIR`, or `/tmp`), which on many systems is memory, too. nginx: `proxy_temp_path`.
    pub dir: Option<PathBuf>,
    /// How much of it the answers to all requests of this policy may take together; beyond that no more is read than goes
    /// out. Default: as much as there is.
    pub max: Option<Size>,
}

const fn default_memory() -> Size {
    Size::new(1 << 20)
}

/// What is read at once in any case.
const LEAST: Size = Size::new(64 << 10);
/// What is written at once.
const LEAST_ON_DISK: Size = Size::new(256 << 10);

impl FromShort for Fields {
    const EXPECTING: &'static str = "a size such as `1MiB`, or a map";

    fn short_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Size>()
    }

    fn from_short(text: &str) -> Result<Fields, String> {
        Ok(Fields {
            memory: text.parse()?,
            disk: None,
            dir: None,
            max: None,
        })
    }
}

#[derive(Debug)]
pub struct BufferResponse(Ahead);

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<BufferResponse> {
        let Config(Short(fields)) = self;
        let memory = usize::try_from(fields.memory.get()).ok();
        let memory = memory.filter(|_| fields.memory >= LEAST);
        if memory.is_none() {
            b.error(&at.key("memory"), format!("must be at least {LEAST}"))
                .hint("`off` reads no further than the next piece");
        }
        let disk = match fields.disk {
            Some(most) => Some(fields.disk(most, at, b)?),
            None => {
                for (key, is_there) in
                    [("dir", fields.dir.is_some()), ("max", fields.max.is_some())]
                {
                    if is_there {
                        b.error(&at.key(key), "nothing goes to disk without `disk`")
                            .hint("`disk: 1GiB` lets so much of each answer go there");
                    }
                }
                None
            }
        };
        Some(BufferResponse(Ahead {
            memory: memory?,
            disk,
        }))
    }
}

impl Fields {
    fn disk(&self, most: Size, at: &At<'_>, b: &mut Build<'_>) -> Option<Arc<Disk>> {
        if most < LEAST_ON_DISK {
            b.error(&at.key("disk"), format!("must be at least {LEAST_ON_DISK}"))
                .hint("without `disk` nothing goes to disk");
            return None;
        }
        let place = b.place(at, self.dir.as_deref(), self.max)?;
        let name = at.to_path().to_string();
        Some(Arc::new(Disk {
            place,
            most: most.get(),
            failures: b.carry(name, |_| true, Occasions::default),
        }))
    }
}

impl Filter for BufferResponse {
    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        cx.read_ahead = Some(self.0.clone());
        Flow::Continue
    }
}
