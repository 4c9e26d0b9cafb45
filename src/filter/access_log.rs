//! `access_log`: other access logs for a site or a route than the document's `log.access`, or none.
//!
//! ```yaml
//! access_log: { file: shop.log, format: json, when: "$status >= 400", sample: 10% }
//! ```
//!
//! ```yaml
//! access_log: [{ file: shop.log }, { syslog: {}, when: "$status >= 500" }]
//! ```
//!
//! A route's takes the place of its site's, which takes that of `log.access`: what shall go on to be written there is
//! written here again. `off` writes nothing. Where no level says anything, `log.access` counts.
//!
//! # Inside
//!
//! It takes part in no phase: the log is the last thing that happens to a request, and written by whoever ends it.

use schemars::JsonSchema;
use serde::Deserialize;

use super::Filter;
use crate::build::Build;
use crate::issue::At;
use crate::log::{AccessLogs, access};
use crate::value::OneOrMany;

/// One log or a list of them, with the keys of `log.access`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Config(OneOrMany<access::Config>);

#[derive(Debug)]
pub struct AccessLog(pub AccessLogs);

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<AccessLog> {
        AccessLogs::compile(&self.0, at, b).map(AccessLog)
    }
}

impl Filter for AccessLog {}
