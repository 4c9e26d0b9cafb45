//! A client that chooses what its handshakes say, and remembers sessions.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};

use boring::pkey::Id;
use boring::ssl::{
    SslConnector, SslConnectorBuilder, SslFiletype, SslMethod, SslSession, SslSessionCacheMode,
    SslVerifyMode, SslVersion,
};

use super::certs::Pair;
use super::client::Connection;

/// Believes any certificate. From its second connection on it resumes the session of the one before.
pub struct TlsClient {
    connector: SslConnector,
    session: Arc<Mutex<Option<SslSession>>>,
}

/// What a handshake came to.
pub struct Shaken {
    pub connection: Connection,
    pub resumed: bool,
    /// Of the key in it; none where the session was resumed without it.
    pub key: Option<Id>,
    pub cipher: &'static str,
    pub group: &'static str,
    pub ocsp: Option<Vec<u8>>,
}

impl TlsClient {
    pub fn new() -> TlsClient {
        TlsClient::with(|_| {})
    }

    /// One that speaks only this version.
    pub fn of_version(version: SslVersion) -> TlsClient {
        TlsClient::with(|builder| only(builder, version))
    }

    /// One that shows a certificate when it is asked for one.
    pub fn showing(pair: &Pair) -> TlsClient {
        TlsClient::with(|builder| show(builder, pair))
    }

    pub fn with(set: impl FnOnce(&mut SslConnectorBuilder)) -> TlsClient {
        let mut builder = SslConnector::builder(SslMethod::tls()).expect("a connector");
        builder.set_verify(SslVerifyMode::NONE);
        builder.set_session_cache_mode(SslSessionCacheMode::CLIENT);
        builder.enable_ocsp_stapling();
        let session = Arc::new(Mutex::new(None));
        let newest = session.clone();
        builder.set_new_session_callback(move |_, session| {
            *newest.lock().expect("no test has panicked") = Some(session);
        });
        set(&mut builder);
        TlsClient {
            connector: builder.build(),
            session,
        }
    }

    pub fn connect(&self, address: SocketAddr, server_name: &str) -> io::Result<Shaken> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(super::client::SILENCE))?;
        let mut setup = self.connector.configure()?;
        setup.set_verify_hostname(false);
        setup.set_use_server_name_indication(!server_name.is_empty());
        if let Some(session) = &*self.session.lock().expect("no test has panicked") {
            resume(&mut setup, session)?;
        }
        let stream = setup
            .connect(server_name, stream)
            .map_err(|error| io::Error::other(error.to_string()))?;
        let ssl = stream.ssl();
        let key = ssl.peer_certificate().and_then(|own| own.public_key().ok());
        Ok(Shaken {
            resumed: ssl.session_reused(),
            key: key.map(|key| key.id()),
            cipher: ssl.current_cipher().map_or("", |cipher| cipher.name()),
            group: ssl.curve_name().unwrap_or_default(),
            ocsp: ssl.ocsp_status().map(<[u8]>::to_vec),
            connection: Connection::over(stream),
        })
    }
}

#[expect(unsafe_code, reason = "the library's only way to resume a session")]
fn resume(setup: &mut boring::ssl::ConnectConfiguration, session: &SslSession) -> io::Result<()> {
    // SAFETY: the session comes from a connection of the same connector.
    unsafe { setup.set_session(session) }.map_err(io::Error::other)
}

pub fn only(builder: &mut SslConnectorBuilder, version: SslVersion) {
    let set = builder.set_min_proto_version(Some(version));
    set.and_then(|()| builder.set_max_proto_version(Some(version)))
        .expect("a known version");
}

pub fn show(builder: &mut SslConnectorBuilder, pair: &Pair) {
    let set = builder.set_certificate_chain_file(&pair.cert);
    set.and_then(|()| builder.set_private_key_file(&pair.key, SslFiletype::PEM))
        .expect("a pair");
}
