//! `tls`: TLS towards backends.
//!
//! Made here and not left to Pingora, whose one context for all backends takes TLS 1.0 and 3DES, builds the store of a
//! pool's own CA anew for each connection, and does not verify at all where there is no name to send.

use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use boring::error::ErrorStack;
use boring::ex_data::Index;
use boring::ssl::{
    ConnectConfiguration, Ssl, SslConnector, SslConnectorBuilder, SslMethod, SslRef, SslSession,
    SslSessionCacheMode, SslSessionRef, SslVerifyMode, SslVersion,
};
use boring::x509::X509;
use boring::x509::store::X509StoreBuilder;
use parking_lot::Mutex;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::tls::SslStream;
use pingora::protocols::tls::client::handshake;
use pingora::{ErrorType, OrErr, Result};
use schemars::JsonSchema;
use serde::Deserialize;

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

/// What Mozilla calls intermediate, without the key exchanges that have no forward secrecy.
const CIPHERS: &str = "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:\
    ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:\
    ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305";

/// TLS of one pool.
pub struct Tls {
    connector: SslConnector,
    config: Config,
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
                match CertifiedKey::load(&cert, &key, &[]) {
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
                config: self.clone(),
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
    builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
    builder.set_new_session_callback(|connection, session| {
        if let Some(sessions) = connection.ex_data(*SESSIONS) {
            sessions.put(session);
        }
    });
    Ok(builder)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 253
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte))
}

/// Whether nobody could tell the connections of the two apart.
impl PartialEq for Tls {
    fn eq(&self, other: &Tls) -> bool {
        self.config == other.config && self.files == other.files
    }
}

impl Tls {
    /// TLS towards a backend of that name.
    pub fn client(&self, name: &str) -> Client {
        Client {
            connector: self.connector.clone(),
            name: self.config.sni.as_deref().unwrap_or(name).to_owned(),
            verify: self.config.verify,
            sessions: Arc::default(),
        }
    }
}

/// TLS towards one backend.
pub struct Client {
    connector: SslConnector,
    name: String,
    verify: bool,
    /// Of its own connections only.
    sessions: Arc<Sessions>,
}

impl Client {
    /// A TLS connection over `stream`.
    ///
    /// # Errors
    /// When the backend is not who it should be, or no handshake comes about.
    pub async fn connect(&self, stream: Stream, offer: Offer) -> Result<SslStream<Stream>> {
        let settings = self.settings(offer);
        let settings = settings.or_err(ErrorType::InternalError, "setting up TLS")?;
        handshake(settings, &self.name, stream, None).await
    }

    fn settings(&self, offer: Offer) -> std::result::Result<ConnectConfiguration, ErrorStack> {
        let mut settings = self.connector.configure()?;
        settings.set_verify_hostname(self.verify);
        settings.set_alpn_protos(match offer {
            Offer::Http1 => b"\x08http/1.1",
            Offer::Http2 => b"\x02h2",
            Offer::Both => b"\x02h2\x08http/1.1",
        })?;
        settings.set_ex_data(*SESSIONS, self.sessions.clone());
        if let Some(session) = self.sessions.take() {
            self.resume(&mut settings, &session)?;
        }
        Ok(settings)
    }

    #[expect(
        unsafe_code,
        reason = "boring leaves it to its caller to keep sessions and contexts together"
    )]
    fn resume(
        &self,
        connection: &mut SslRef,
        session: &SslSessionRef,
    ) -> std::result::Result<(), ErrorStack> {
        // SAFETY: `sessions` is where the session comes from, and is told to the connections of this client alone, which
        // are all made from its one context, as is this one.
        unsafe { connection.set_session(session) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// What a backend has given out to spare both sides most of the next handshake.
#[derive(Default)]
struct Sessions(Mutex<Vec<SslSession>>);

impl Sessions {
    /// As many as most servers give out at a time.
    const KEPT: usize = 2;

    fn put(&self, session: SslSession) {
        let mut sessions = self.0.lock();
        if sessions.len() == Sessions::KEPT {
            sessions.remove(0);
        }
        sessions.push(session);
    }

    /// The newest. Those of TLS 1.3 serve once, so that nobody who listens can tell two connections for the same client's
    /// (RFC 8446 appendix C.4).
    fn take(&self) -> Option<SslSession> {
        let mut sessions = self.0.lock();
        let newest = sessions.last()?;
        match newest.protocol_version() {
            SslVersion::TLS1_3 => sessions.pop(),
            _ => Some(newest.clone()),
        }
    }
}

/// Where a connection has the sessions of its client.
static SESSIONS: LazyLock<Index<Ssl, Arc<Sessions>>> = LazyLock::new(|| {
    // fails when there is no memory, at the first start of a process
    Ssl::new_ex_index().expect("memory for an index")
});
