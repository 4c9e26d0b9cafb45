//! TLS towards clients: certificates, and the acceptor that chooses among them by server name.
//!
//! A listener's [`Acceptor`] lives as long as its settings stay the same, over reloads, so that clients go on
//! resuming sessions; which certificate a handshake gets comes from the live snapshot through its [`Resolver`].

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::value::OneOrMany;

mod acceptor;
mod certificate;

pub use acceptor::{Acceptor, Resolver, Settings};
pub use certificate::{CertifiedKey, LoadError};

/// One certificate: `{ cert: FILE, key: FILE }`, or `{ self_signed: true }` for development.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file with the certificate, followed by its intermediates. nginx: `ssl_certificate`.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate. nginx: `ssl_certificate_key`.
    pub key: Option<PathBuf>,
    /// Make a certificate for the site's hosts when weir starts, kept until it ends. Browsers warn about it.
    #[serde(default)]
    pub self_signed: bool,
}

/// TLS of a listener.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerConfig {
    /// Certificates for clients that name no site's host; sites bring their own. nginx: those of the default server.
    #[serde(default)]
    pub certificates: OneOrMany<Config>,
    /// Oldest version to accept. Default: `"1.2"`. nginx: `ssl_protocols`.
    #[serde(default)]
    pub min_version: Version,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Version {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}
