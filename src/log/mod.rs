//! Access log and error log.
//!
//! The access log is the last thing that happens to a request: one line, formatted on its thread (`access.rs`) and
//! written by another (`writer.rs`). The error log is for weir itself (`error.rs`). No line of either can be forged by
//! what a peer sends: control characters are always escaped.

pub mod access;
pub mod error;

mod condition;
mod redact;
mod sink;
mod writer;

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::build::Build;
use crate::issue::At;
use crate::value::{OneOrMany, OrOff};

pub use access::AccessLogs;
pub use error::ErrorLog;
pub use writer::Writers;

/// What weir writes about itself and about requests.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What weir reports about itself.
    pub error: error::Config,
    /// A line per request, in one log or a list of them, or `off`. Default: `combined` to standard output, so that a server
    /// that was just started shows what it does and a container's runtime collects it (nginx's is on by default, too).
    /// `access_log` in a site or a route replaces it there.
    pub access: Option<OrOff<OneOrMany<access::Config>>>,
}

/// Both logs as they are to be.
#[derive(Debug)]
pub struct Compiled {
    pub error: error::Settings,
    /// Those of requests whose level has none of its own.
    pub access: AccessLogs,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Compiled> {
        let error = self.error.compile(&at.key("error"), b);
        let at = at.key("access");
        let access = match &self.access {
            None => AccessLogs::compile(&OneOrMany(vec![access::Config::default()]), &at, b),
            Some(OrOff::On(access)) => AccessLogs::compile(access, &at, b),
            Some(OrOff::Off) => Some(AccessLogs::none()),
        };
        Some(Compiled {
            error: error?,
            access: access?,
        })
    }
}

/// The path of a log file, which can be written as far as a test can tell.
fn file(at: &At<'_>, written: &Path, b: &mut Build<'_>) -> Option<PathBuf> {
    let path = b.path(at, written);
    match sink::check(&path) {
        Ok(()) => Some(path),
        Err(reason) => {
            b.error(at, reason);
            None
        }
    }
}

/// Appends a JSON string, with its quotes.
fn quote(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a Vec takes everything, and text is always JSON");
}
