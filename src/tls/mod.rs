//! TLS towards clients: certificates, the acceptor that chooses among them by server name, and clients' own ones.
//!
//! ```text
//!  certificate.rs  certificates with their keys, from files or made here
//!  hello.rs        what a client says of itself before it is shown one
//!  acceptor.rs     a new connection -> an established TLS stream
//!  tickets.rs      keys to resume sessions with, over reloads and on other nodes
//!  ocsp.rs         what an authority says of a certificate
//!  client_auth.rs  certificates of clients
//! ```

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::issue::{At, Issues, Sources};
use crate::value::{OneOrMany, Span};

mod acceptor;
mod certificate;
pub mod client_auth;
mod hello;
mod ocsp;
mod tickets;

pub use acceptor::{Acceptor, Resolve, Resolver, Settings};
pub use certificate::{CertifiedKey, LoadError, passwords};
pub use client_auth::{ClientAuth, ClientFact, Shown, Verdict};
pub use hello::server_name;
pub use tickets::{TicketKey, TicketKeys};

/// One certificate: `{ cert: FILE, key: FILE }`, or `{ self_signed: true }` for development. Several for the same names
/// stand side by side, such as one of ECDSA and one of RSA: a client is shown the first that it can check.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file with the certificate, followed by its intermediates. nginx: `ssl_certificate`.
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of the certificate. nginx: `ssl_certificate_key`.
    pub key: Option<PathBuf>,
    /// File with passwords of an encrypted key, one on each line, which are tried in turn. nginx: `ssl_password_file`.
    pub password_file: Option<PathBuf>,
    /// File with an answer of the certificate's authority, in DER, that it is still good (OCSP), to be shown along with it
    /// while it counts. nginx: `ssl_stapling_file`.
    pub ocsp: Option<PathBuf>,
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
    /// Cipher suites of TLS 1.2 by OpenSSL's names, the best first. Default: those with forward secrecy and authenticated
    /// encryption, where the client chooses between AES-128 and ChaCha20. Those of TLS 1.3 are all good, and not to be
    /// chosen. nginx: `ssl_ciphers`, with `ssl_prefer_server_ciphers on`.
    pub ciphers: Option<Vec<String>>,
    /// Groups for the key exchange, the best first. Default: `[X25519MLKEM768, X25519, P-256, P-384]`. nginx:
    /// `ssl_ecdh_curve`.
    pub groups: Option<Vec<String>>,
    /// Files of 48 or 80 random bytes with the keys of session tickets: the first encrypts, all decrypt. With the same
    /// files, nodes resume each other's sessions. Default: keys made here, kept over reloads and
    /// handed to the next process, a new one every 12 hours.
    /// nginx: `ssl_session_ticket_key`.
    pub ticket_keys: Option<OneOrMany<PathBuf>>,
    /// Ask clients for a certificate. Default: do not.
    pub client_auth: Option<client_auth::Config>,
    /// Refuse handshakes with clients that name no site's host (`*` is none) and no certificate's name, or none at all.
    /// Default: false. nginx: `ssl_reject_handshake` in the default server.
    #[serde(default)]
    pub reject_unknown_sni: bool,
    /// For a handshake. Default: 10s.
    #[serde(default = "handshake_timeout")]
    pub handshake_timeout: Span,
    /// File to append the secrets of all connections to, as Wireshark reads them. Whoever has it can read the traffic.
    /// Default: none. nginx: `ssl_key_log`.
    pub key_log: Option<PathBuf>,
}

/// How long a handshake may take where nothing is said of it.
pub fn handshake_timeout() -> Span {
    Span::new(Duration::from_secs(10))
}

/// An open file for the secrets of connections.
pub struct KeyLog {
    path: PathBuf,
    file: File,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Version {
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    #[serde(rename = "1.3")]
    Tls13,
}

/// What Mozilla calls intermediate, without the key exchange that the library does not have. What stands in brackets
/// is equally good: there the client knows better what its processor does fast.
const CIPHERS: &str = "[ECDHE-ECDSA-AES128-GCM-SHA256|ECDHE-ECDSA-CHACHA20-POLY1305|\
    ECDHE-RSA-AES128-GCM-SHA256|ECDHE-RSA-CHACHA20-POLY1305]:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384";
/// The first withstands quantum computers (draft-ietf-tls-ecdhe-mlkem).
const GROUPS: &str = "X25519MLKEM768:X25519:P-256:P-384";

impl ListenerConfig {
    /// The cipher suites in the language of the library.
    pub fn ciphers(&self, at: &At<'_>, issues: &mut Issues) -> String {
        let Some(names) = &self.ciphers else {
            return CIPHERS.to_owned();
        };
        let at = at.key("ciphers");
        for (i, name) in names.iter().enumerate() {
            if name.starts_with("TLS_") {
                issues
                    .error(&at.index(i), format!("`{name}` cannot be chosen"))
                    .hint("list suites of TLS 1.2; those of TLS 1.3 are always there");
            } else if !acceptor::is_cipher(name) {
                issues
                    .error(&at.index(i), format!("no cipher suite named `{name}`"))
                    .hint("names are OpenSSL's, such as `ECDHE-ECDSA-AES128-GCM-SHA256`");
            }
        }
        if names.is_empty() {
            issues.error(&at, "needs at least one cipher suite");
        }
        names.join(":")
    }

    /// The groups in the language of the library.
    pub fn groups(&self, at: &At<'_>, issues: &mut Issues) -> String {
        let Some(names) = &self.groups else {
            return GROUPS.to_owned();
        };
        let at = at.key("groups");
        for (i, name) in names.iter().enumerate() {
            if !acceptor::is_group(name) {
                issues
                    .error(&at.index(i), format!("no group named `{name}`"))
                    .hint("groups are `X25519MLKEM768`, `X25519`, `P-256`, `P-384` and `P-521`");
            }
        }
        if names.is_empty() {
            issues.error(&at, "needs at least one group");
        }
        names.join(":")
    }

    /// The ticket keys in files, if it is for files to say.
    pub fn ticket_keys(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<TicketKeys> {
        let OneOrMany(files) = self.ticket_keys.as_ref()?;
        let at = at.key("ticket_keys");
        let mut keys = Vec::new();
        for (i, file) in files.iter().enumerate() {
            let at = at.index(i);
            match TicketKey::load(&sources.input(&at, file)) {
                Ok(key) => keys.push(key),
                Err(message) => {
                    issues.error(&at, message);
                }
            }
        }
        if files.is_empty() {
            issues.error(&at, "needs at least one file");
        }
        (!keys.is_empty()).then_some(TicketKeys::Fixed(keys))
    }

    /// Opens the file for secrets.
    pub fn key_log(&self, at: &At<'_>, sources: &Sources, issues: &mut Issues) -> Option<KeyLog> {
        use std::os::unix::fs::OpenOptionsExt;
        let at = at.key("key_log");
        let path = sources.path(&at, self.key_log.as_ref()?);
        let mut options = File::options();
        match options.append(true).create(true).mode(0o600).open(&path) {
            Ok(file) => Some(KeyLog { path, file }),
            Err(e) => {
                let path = path.display();
                issues.error(&at, format!("cannot write to `{path}`: {e}"));
                None
            }
        }
    }
}
