//! `status`: a small JSON page about the running server: version, generation of the configuration, pools and their
//! members. While the process drains it comes with status 503, so that it serves a load balancer in front as a check.
//!
//! ```yaml
//! status: {}
//! ```
//!
//! Guard it with `match: { client: [10.0.0.0/8] }`. nginx: `stub_status`.

use schemars::JsonSchema;
use serde::Deserialize;

/// A page about the running server, in JSON.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {}
