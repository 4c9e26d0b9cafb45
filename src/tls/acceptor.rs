//! From a new connection to an established TLS stream.

use std::sync::Arc;

use arc_swap::ArcSwap;
use boring::ssl::{
    AlpnError, ClientHello, NameType, SelectCertError, SslAcceptor, SslMethod, SslVersion,
    select_next_proto,
};
use pingora::protocols::IO;
use pingora::protocols::tls::SslStream;
use pingora::protocols::tls::server::handshake;

use super::{CertifiedKey, Version};
use crate::http::version::Protocols;

/// The certificate for a server name (lower case; empty when the client named none).
pub type Resolver = dyn Fn(&str) -> Option<Arc<CertifiedKey>> + Send + Sync;

/// TLS of one listener.
pub struct Acceptor {
    ssl: SslAcceptor,
    settings: Settings,
    resolver: Arc<ArcSwap<Arc<Resolver>>>,
}

/// What cannot change in an acceptor that exists.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    pub min_version: Version,
    pub protocols: Protocols,
}

impl Acceptor {
    /// # Errors
    /// When the library refuses the settings.
    pub fn new(settings: Settings) -> Result<Acceptor, String> {
        let nobody: Arc<Resolver> = Arc::new(|_: &str| None);
        let resolver = Arc::new(ArcSwap::from_pointee(nobody));
        let mut builder =
            SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).map_err(|e| e.to_string())?;
        builder
            .set_min_proto_version(Some(match settings.min_version {
                Version::Tls12 => SslVersion::TLS1_2,
                Version::Tls13 => SslVersion::TLS1_3,
            }))
            .map_err(|e| e.to_string())?;
        let offer: &'static [u8] = match (settings.protocols.h1, settings.protocols.h2) {
            (true, true) => b"\x02h2\x08http/1.1",
            (false, true) => b"\x02h2",
            _ => b"\x08http/1.1",
        };
        builder.set_alpn_select_callback(move |_, client| {
            select_next_proto(offer, client).ok_or(AlpnError::NOACK)
        });
        let certificates = resolver.clone();
        builder
            .set_select_certificate_callback(move |hello| select(hello, &***certificates.load()));
        Ok(Acceptor {
            ssl: builder.build(),
            settings,
            resolver,
        })
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// From now on handshakes get their certificates from `resolver`.
    pub fn resolve_with(&self, resolver: Arc<Resolver>) {
        self.resolver.store(Arc::new(resolver));
    }

    /// # Errors
    /// When the client is not one, or there is no certificate for it.
    pub async fn handshake<S: IO>(&self, stream: S) -> pingora::Result<SslStream<S>> {
        handshake(&self.ssl, stream).await
    }
}

fn select(mut hello: ClientHello<'_>, resolver: &Resolver) -> Result<(), SelectCertError> {
    let name = hello
        .servername(NameType::HOST_NAME)
        .unwrap_or_default()
        .to_ascii_lowercase();
    let certificate = resolver(&name).ok_or(SelectCertError::ERROR)?;
    certificate
        .present(hello.ssl_mut())
        .map_err(|_| SelectCertError::ERROR)
}
