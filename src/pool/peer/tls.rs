//! `tls`: TLS towards backends.
//!
//! Made here and not left to Pingora, whose one context for all backends takes TLS 1.0 and 3DES, builds the store of a
//! pool's own CA anew for each connection, and does not verify at all where there is no name to send.

use std::borrow::Cow;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use boring::error::ErrorStack;
use boring::ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode, SslVersion};
use boring::x509::X509;
use boring::x509::store::X509StoreBuilder;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::SslStream;
use pingora::protocols::tls::client::handshake;
use pingora::{ErrorType, OrErr, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::issue::{At, Dependency, Issues, Sources};
use crate::tls::{CertifiedKey, LoadError};

/// TLS towards the backends of a pool, 1.2 or newer. `tls: true` takes all defaults.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The name to ask for and to verify. Default: the name or address in `backends`; `localhost` for a unix socket.
    /// nginx: `proxy_ssl_name`, with `proxy_ssl_server_name on`.
    pub sni: Option<String>,
    /// Whether the certificate must be trusted and be for the name. Default true. nginx: `proxy_ssl_verify`, whose default is
    /// off.
    pub verify: bool,
    /// PEM file with the authorities to trust instead of the system's. nginx: `proxy_ssl_trusted_certificate`.
    pub ca: Option<PathBuf>,
    /// PEM file with weir's own certificate, for backends that ask for one. nginx: `proxy_ssl_certificate`.
    pub cert: Option<PathBuf>,
    /// PEM file with its private key. nginx: `proxy_ssl_certificate_key`.
    pub key: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            sni: None,
            verify: true,
            ca: None,
            cert: None,
            key: None,
        }
    }
}

/// `true`, or a map.
#[derive(Clone, Debug, PartialEq)]
pub struct TrueOr(pub Config);

impl<'de> Deserialize<'de> for TrueOr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct TrueOrMap;
        impl<'de> Visitor<'de> for TrueOrMap {
            type Value = TrueOr;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`true` or a map")
            }

            fn visit_bool<E: Error>(self, on: bool) -> std::result::Result<TrueOr, E> {
                match on {
                    true => Ok(TrueOr(Config::default())),
                    false => Err(E::custom("no TLS is the default: leave `tls` out")),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<TrueOr, A::Error> {
                Config::deserialize(MapAccessDeserializer::new(map)).map(TrueOr)
            }
        }
        deserializer.deserialize_any(TrueOrMap)
    }
}

impl JsonSchema for TrueOr {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "TrueOrMap".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let map = generator.subschema_for::<Config>();
        json_schema!({ "anyOf": [{ "const": true }, map] })
    }
}

/// What Mozilla calls intermediate, without the key exchanges that have no forward secrecy.
const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// TLS of one pool.
pub struct Tls {
    connector: SslConnector,
    /// The name for all backends; each its own without.
    sni: Option<String>,
    verify: bool,
    /// Of what was in the files: a reload that finds something else there makes the pool anew.
    files: u64,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The protocols to offer, in the form of ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Http1,
    Http2,
    Both,
}

impl Config {
    pub(super) fn compile(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<Tls> {
        let path = |key: &str, written: &Path| {
            let file = sources.file(&at.key(key).to_path());
            file.parent().unwrap_or(Path::new("")).join(written)
        };
        let mut files = DefaultHasher::new();
        let mut complete = true;
        let authorities = self.ca.as_ref().map(|ca| {
            let ca = path("ca", ca);
            sources.depends_on(Dependency::File(ca.clone()));
            fs::read(&ca)
                .map_err(|e| format!("cannot read `{}`: {e}", ca.display()))
                .and_then(|pem| {
                    pem.hash(&mut files);
                    match X509::stack_from_pem(&pem) {
                        Ok(authorities) if !authorities.is_empty() => Ok(authorities),
                        _ => Err(format!("no PEM certificate in `{}`", ca.display())),
                    }
                })
                .inspect_err(|message| {
                    issues.error(&at.key("ca"), message);
                    complete = false;
                })
                .unwrap_or_default()
        });
        if !self.verify && self.ca.is_some() {
            issues
                .error(&at.key("ca"), "nothing is verified, so `ca` has no effect")
                .hint("leave out `verify: false`, or `ca`");
            complete = false;
        }
        if let Some(sni) = &self.sni
            && !is_name(sni)
        {
            issues.error(&at.key("sni"), format!("`{sni}` is not a host name"));
            complete = false;
        }
        let own = match (&self.cert, &self.key) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let (cert, key) = (path("cert", cert), path("key", key));
                for file in [&cert, &key] {
                    sources.depends_on(Dependency::File(file.clone()));
                    fs::read(file).unwrap_or_default().hash(&mut files);
                }
                match CertifiedKey::load(&cert, &key) {
                    Ok(own) => Some(own),
                    Err(error) => {
                        let (key, message) = match error {
                            LoadError::Cert(message) => ("cert", message),
                            LoadError::Key(message) => ("key", message),
                            LoadError::Mismatch => {
                                ("key", "the key does not fit the certificate".to_owned())
                            }
                        };
                        issues.error(&at.key(key), message);
                        return None;
                    }
                }
            }
            (Some(_), None) => {
                issues.error(&at.key("cert"), "`cert` needs its `key`");
                return None;
            }
            (None, Some(_)) => {
                issues.error(&at.key("key"), "`key` needs its `cert`");
                return None;
            }
        };
        if !complete {
            return None;
        }
        match connector(self.verify, authorities, own) {
            Ok(connector) => Some(Tls {
                connector: connector.build(),
                sni: self.sni.clone(),
                verify: self.verify,
                files: files.finish(),
            }),
            Err(e) => {
                issues.error(at, format!("the TLS library refuses this: {e}"));
                None
            }
        }
    }
}

fn connector(
    verify: bool,
    authorities: Option<Vec<X509>>,
    own: Option<CertifiedKey>,
) -> std::result::Result<SslConnectorBuilder, ErrorStack> {
    let mut builder = SslConnector::builder(SslMethod::tls())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_cipher_list(CIPHERS)?;
    if let Some(authorities) = authorities {
        let mut store = X509StoreBuilder::new()?;
        for authority in authorities {
            store.add_cert(authority)?;
        }
        builder.set_cert_store(store.build());
    }
    if let Some(own) = own {
        own.install(&mut builder)?;
    }
    if !verify {
        builder.set_verify(SslVerifyMode::NONE);
    }
    Ok(builder)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
}

impl Tls {
    /// A TLS connection over `stream`, to a backend of that name.
    ///
    /// # Errors
    /// When the backend is not who it should be, or no handshake comes about.
    pub async fn connect(
        &self,
        stream: Stream,
        name: &str,
        offer: Offer,
    ) -> Result<SslStream<Stream>> {
        const WHAT: &str = "setting up TLS";
        let mut settings = self
            .connector
            .configure()
            .or_err(ErrorType::InternalError, WHAT)?;
        settings.set_verify_hostname(self.verify);
        let offer: &[u8] = match offer {
            Offer::Http1 => b"\x08http/1.1",
            Offer::Http2 => b"\x02h2",
            Offer::Both => b"\x02h2\x08http/1.1",
        };
        settings
            .set_alpn_protos(offer)
            .or_err(ErrorType::InternalError, WHAT)?;
        let name = self.sni.as_deref().unwrap_or(name);
        handshake(settings, name, stream, None).await
    }

    /// Whether the files hold the same for both.
    pub fn has_same_files(&self, other: &Tls) -> bool {
        self.files == other.files
    }
}
