//! Versions of HTTP, as a listener is told to speak them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// Which of them are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    pub h1: bool,
    pub h2: bool,
}

impl Protocols {
    pub const ALL: Protocols = Protocols { h1: true, h2: true };
}

impl FromIterator<Protocol> for Protocols {
    fn from_iter<I: IntoIterator<Item = Protocol>>(protocols: I) -> Protocols {
        let mut spoken = Protocols {
            h1: false,
            h2: false,
        };
        for protocol in protocols {
            match protocol {
                Protocol::H1 => spoken.h1 = true,
                Protocol::H2 => spoken.h2 = true,
            }
        }
        spoken
    }
}
