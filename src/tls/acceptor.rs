//! From a new connection to an established TLS stream.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use boring::error::ErrorStack;
use boring::hash::{MessageDigest, hash};
use boring::ssl::{
    AlpnError, ClientHello, SelectCertError, SniError, SslAcceptor, SslAcceptorBuilder, SslAlert,
    SslContextBuilder, SslMethod, SslOptions, SslSessionCacheMode, SslVersion, select_next_proto,
};
use pingora::protocols::IO;
use pingora::protocols::tls::SslStream;
use pingora::protocols::tls::server::handshake;

use super::client_auth::ClientAuth;
use super::hello::{Algorithm, server_name};
use super::tickets::{self, TicketKeys};
use super::{CertifiedKey, KeyLog, Version};
use crate::http::version::Protocols;

/// All that the library knows, but for those with SHA-1: clients which know nothing else are as old as those without TLS 1.2.
const SIGNATURES: &str = "ed25519:\
    ECDSA+SHA256:RSA-PSS+SHA256:RSA+SHA256:\
    ECDSA+SHA384:RSA-PSS+SHA384:RSA+SHA384:\
    ECDSA+SHA512:RSA-PSS+SHA512:RSA+SHA512";

/// What a handshake asks about server names: lower case, empty when the client named none.
pub trait Resolve: Send + Sync + 'static {
    /// The certificates for a name. Of those that cover it, or else of all, the client is shown one that it can check.
    fn certificates(&self, name: &str) -> &[Arc<CertifiedKey>];

    /// Whether anybody here goes by this name.
    fn knows(&self, name: &str) -> bool;
}

/// Who is asked. Connections live on with the acceptor that they began with: it must not keep alive what a reload has
/// replaced, so that all acceptors of a listener share the slot of whoever is asked now.
#[derive(Clone)]
pub struct Resolver(Arc<ArcSwap<Arc<dyn Resolve>>>);

/// TLS of one listener.
pub struct Acceptor {
    ssl: SslAcceptor,
    client_auth: Option<Arc<ClientAuth>>,
    key_log: Option<PathBuf>,
    resolver: Resolver,
}

/// What an acceptor is made of.
pub struct Settings {
    /// Sessions of one are not resumed with another.
    pub listener: Arc<str>,
    pub min_version: Version,
    pub protocols: Protocols,
    /// In the language of the library.
    pub ciphers: String,
    pub groups: String,
    pub ticket_keys: Arc<TicketKeys>,
    pub client_auth: Option<Arc<ClientAuth>>,
    pub reject_unknown_sni: bool,
    pub key_log: Option<KeyLog>,
}

impl Acceptor {
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: Settings, resolver: Resolver) -> Result<Acceptor, ErrorStack> {
        let mut builder = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls())?;
        builder.set_min_proto_version(Some(match settings.min_version {
            Version::Tls12 => SslVersion::TLS1_2,
            Version::Tls13 => SslVersion::TLS1_3,
        }))?;
        builder.set_strict_cipher_list(&settings.ciphers)?;
        builder.set_curves_list(&settings.groups)?;
        builder.set_sigalgs_list(SIGNATURES)?;
        builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE);
        let offer: &'static [u8] = match (settings.protocols.h1, settings.protocols.h2) {
            (true, true) => b"\x02h2\x08http/1.1\x08http/1.0",
            (false, true) => b"\x02h2",
            _ => b"\x08http/1.1\x08http/1.0",
        };
        // Who speaks another protocol may be a client that was led here from its own server (RFC 7301 section 3.2).
        builder.set_alpn_select_callback(move |_, client| {
            select_next_proto(offer, client).ok_or(AlpnError::ALERT_FATAL)
        });
        resume_sessions(&mut builder, &settings)?;
        if let Some(client_auth) = &settings.client_auth {
            client_auth.install(&mut builder)?;
        }
        let mut key_log = None;
        if let Some(KeyLog { path, file }) = settings.key_log {
            key_log = Some(path);
            builder.set_keylog_callback(move |_, line| {
                // One write for a line: others may be written at the same time. A full disk must not end connections.
                let _ = (&file).write_all(format!("{line}\n").as_bytes());
            });
        }
        if settings.reject_unknown_sni {
            let resolver = resolver.clone();
            builder.set_servername_callback(move |ssl, alert| {
                if resolver.0.load().knows(&server_name(ssl)) {
                    return Ok(());
                }
                *alert = SslAlert::UNRECOGNIZED_NAME;
                Err(SniError::ALERT_FATAL)
            });
        }
        let certificates = resolver.clone();
        builder
            .set_select_certificate_callback(move |hello| select(hello, &***certificates.0.load()));
        Ok(Acceptor {
            ssl: builder.build(),
            client_auth: settings.client_auth,
            key_log,
            resolver,
        })
    }

    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What clients have to show of themselves, if anything.
    pub fn client_auth(&self) -> Option<&ClientAuth> {
        self.client_auth.as_deref()
    }

    /// Where the secrets of connections are written to, if anywhere.
    pub fn key_log(&self) -> Option<&Path> {
        self.key_log.as_deref()
    }

    /// # Errors
    /// When the client is not one, or there is no certificate for it.
    pub async fn handshake<S: IO>(&self, stream: S) -> pingora::Result<SslStream<S>> {
        handshake(&self.ssl, stream).await
    }
}

impl Resolver {
    /// From now on handshakes get their certificates from there.
    pub fn ask(&self, whom: Arc<dyn Resolve>) {
        self.0.store(Arc::new(whom));
    }
}

impl Default for Resolver {
    /// Nobody has a certificate.
    fn default() -> Resolver {
        struct Nobody;
        impl Resolve for Nobody {
            fn certificates(&self, _name: &str) -> &[Arc<CertifiedKey>] {
                &[]
            }

            fn knows(&self, _name: &str) -> bool {
                false
            }
        }
        let nobody: Arc<dyn Resolve> = Arc::new(Nobody);
        Resolver(Arc::new(ArcSwap::from_pointee(nobody)))
    }
}

/// Whether this is a suite of TLS 1.2, and not a word for many.
pub(super) fn is_cipher(name: &str) -> bool {
    SslContextBuilder::new(SslMethod::tls()).is_ok_and(|mut builder| {
        let accepted = builder.set_strict_cipher_list(name).is_ok();
        let mut ciphers = builder.ciphers().into_iter().flatten();
        accepted && ciphers.any(|cipher| cipher.name() == name)
    })
}

pub(super) fn is_group(name: &str) -> bool {
    !name.contains(':')
        && SslContextBuilder::new(SslMethod::tls())
            .is_ok_and(|mut builder| builder.set_curves_list(name).is_ok())
}

/// By tickets alone: a cache would be this process' own, and end with the acceptor.
fn resume_sessions(
    builder: &mut SslAcceptorBuilder,
    settings: &Settings,
) -> Result<(), ErrorStack> {
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    tickets::install(builder, settings.ticket_keys.clone());
    // A session that is resumed brings along what was found out about the client, so it must have been found out by
    // the same rules.
    let mut rules = settings.listener.as_bytes().to_vec();
    if let Some(client_auth) = &settings.client_auth {
        rules.push(0);
        rules.extend_from_slice(client_auth.rules());
    }
    builder.set_session_id_context(&hash(MessageDigest::sha256(), &rules)?)
}

fn select(mut hello: ClientHello<'_>, resolver: &dyn Resolve) -> Result<(), SelectCertError> {
    let name = server_name(hello.ssl_mut());
    let certificates = resolver.certificates(&name);
    let first = certificates.first().ok_or(SelectCertError::ERROR)?;
    let covering = certificates.iter().any(|one| one.covers(&name));
    let candidates = certificates.iter().filter(|one| match covering {
        true => one.covers(&name),
        false => one.names() == first.names(),
    });
    let first = candidates.clone().next().unwrap_or(first);
    // Where there is but one, the handshake itself finds out whether it suits.
    let chosen = match candidates.clone().count() {
        1 => first,
        // The signatures of RSA take much longer to make.
        _ => candidates
            .filter(|one| one.algorithm().suits(&mut hello))
            .min_by_key(|one| one.algorithm() == Algorithm::Rsa)
            .unwrap_or(first),
    };
    chosen
        .present(hello.ssl_mut())
        .map_err(|_| SelectCertError::ERROR)
}
