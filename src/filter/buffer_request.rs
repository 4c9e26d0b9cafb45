//! `buffer_request`: the whole body of a request is received before a backend is asked.
//!
//! ```yaml
//! buffer_request: { memory: 1MiB, dir: ., max: 10GiB }
//! ```
//!
//! A client that sends slowly keeps a thread or a process of many backends busy for all that time. With this policy
//! weir takes the body, and the backend gets it as fast as it reads, with a `Content-Length` even where the client sent
//! chunks. What fails meanwhile (413, 408, a client that leaves) has touched no backend, and a request that fails at
//! one member can go to another with a body of any size; without this policy it is 64 KiB. Up to `memory` bytes of a
//! body are held there; longer ones go to a file without a name in `dir`. Where the disk or `max` is full, the request
//! gets 507 (`no_room` in `$failure`).
//!
//! Once all other policies have let the request in: whom they refuse sends nothing. Calls of gRPC and requests for
//! another protocol (WebSocket) pass as they are; they are conversations. The price is time: nothing of the body is at
//! the backend before all of it is here. Without this policy, bodies pass as they come (nginx: the other way round).

use std::path::PathBuf;
use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::disk::overflow::Place;
use crate::disk::spool::Spool;
use crate::issue::At;
use crate::value::{FromShort, Short, Size};

/// How much of a body is held, and where; a size alone is short for `{ memory: SIZE }`.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(Short<Fields>);

#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// How much of one body is held in memory, at least 16KiB. Default 1MiB. nginx: `client_body_buffer_size`.
    #[serde(default = "default_memory")]
    pub memory: Size,
    /// The folder for longer ones; whoever weir runs as must be able to write there. Default: the system's for temporary
    /// files (`$TMPDIR`, or `/tmp`), which on many systems is memory, too. nginx: `client_body_temp_path`.
    pub dir: Option<PathBuf>,
    /// How much of it the bodies of all requests of this policy may take together; one more is answered with 507. Default: as
    /// much as there is.
    pub max: Option<Size>,
}

const fn default_memory() -> Size {
    Size::new(1 << 20)
}

/// Less would be written to disk a network packet at a time.
const LEAST: Size = Size::new(16 << 10);

impl FromShort for Fields {
    const EXPECTING: &'static str = "a size such as `64KiB`, or a map";

    fn short_schema(generator: &mut SchemaGenerator) -> Schema {
        generator.subschema_for::<Size>()
    }

    fn from_short(text: &str) -> Result<Fields, String> {
        Ok(Fields {
            memory: text.parse()?,
            dir: None,
            max: None,
        })
    }
}

#[derive(Debug)]
pub struct BufferRequest {
    /// In bytes.
    memory: usize,
    place: Arc<Place>,
}

/// It takes part in no phase: whoever proxies the request asks it for a place to keep the body.
impl Filter for BufferRequest {}

impl BufferRequest {
    pub fn spool(&self) -> Spool {
        Spool::new(self.memory, self.place.clone())
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<BufferRequest> {
        let Config(Short(fields)) = self;
        let memory = usize::try_from(fields.memory.get()).ok();
        let memory = memory.filter(|_| fields.memory >= LEAST);
        if memory.is_none() {
            b.error(
                &at.key("memory"),
                format!("must hold at least {LEAST} in memory"),
            )
            .hint("longer bodies go to a file; `off` holds none");
        }
        let place = b.place(at, fields.dir.as_deref(), fields.max);
        Some(BufferRequest {
            memory: memory?,
            place: place?,
        })
    }
}
