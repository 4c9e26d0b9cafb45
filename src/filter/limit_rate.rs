//! `limit_rate`: how fast an answer goes to its client.
//!
//! ```yaml
//! limit_rate: { rate: 1MiB, after: 10MiB }
//! ```
//!
//! Bytes per second of each answer by itself; a client with two connections gets twice as much, which `limit_conn` can
//! prevent. The bytes of one second are sent at once in the beginning, as in nginx. It holds for answers of backends,
//! files and weir itself, over HTTP/1 and HTTP/2, and not for WebSockets. What counts is what goes out, so of
//! a compressed answer what compression left.
//!
//! # Inside
//!
//! Here stands what the file says; the bodies are slowed where they are sent, in `phases`.

use std::time::SystemTime;

use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::Cx;
use crate::exchange::pace::Pace;
use crate::issue::At;
use crate::value::Size;

/// Slows each answer down.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Bytes per second. nginx: `limit_rate`.
    rate: Size,
    /// How much goes out before the rate holds. Default 0. nginx: `limit_rate_after`.
    #[serde(default = "nothing")]
    after: Size,
}

fn nothing() -> Size {
    Size::new(0)
}

#[derive(Debug)]
pub struct LimitRate {
    pace: Pace,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<LimitRate> {
        if self.rate.get() == 0 {
            b.error(&at.key("rate"), "at this rate nothing is ever sent")
                .hint("`limit_rate: off` sends as fast as the client takes it");
            return None;
        }
        Some(LimitRate {
            pace: Pace::new(self.rate.get(), self.after.get()),
        })
    }
}

impl Filter for LimitRate {
    async fn request(&self, cx: &mut Cx, _request: &RequestHeader, _wall: SystemTime) -> Flow {
        cx.pace = Some(self.pace);
        Flow::Continue
    }
}
