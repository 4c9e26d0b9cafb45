//! The facts about one exchange, from the first byte of the request to the access log.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method};
use pingora::http::RequestHeader;

use super::named::Memo;
use super::pace::Pace;
use super::{Failure, Slots};
use crate::http::path;
pub use crate::net::{Connection, TlsFacts};
use crate::pool::peer::Ahead;

/// What is known about one request and its answer so far.
///
/// The phases fill it in as they learn; filters, handlers, variables and the access log read it.
#[derive(Debug)]
pub struct Cx {
    /// When the request's header was complete.
    pub started: Instant,
    /// When the last byte of the answer was handed over; set before the access log runs.
    pub ended: Option<Instant>,
    /// The connection the request came on.
    pub connection: Arc<Connection>,
    /// The request line as it came, as far as it is known, of what could not be read as a request.
    pub unread: Option<Box<[u8]>>,
    /// Whose request it is: the peer of the connection, or whom a trusted proxy names. `None` on a unix socket.
    pub client: Option<IpAddr>,
    /// Host of the request: lower case, without port and trailing dot. Empty when there was none.
    pub host: String,
    /// nginx's `$uri`: the path percent-decoded, dot segments resolved, slashes merged; filters may rewrite it.
    pub path: String,
    /// A filter stripped all of `path` but a slash that the client did not send: `/api` without `/api`.
    pub is_stripped_whole: bool,
    /// What the route's regex captured, in the order of its capture names.
    pub captures: Vec<String>,
    /// Path and query to send upstream where a filter rewrote them; otherwise what the client sent goes out.
    pub target: Option<String>,
    /// While a route makes the page for an error: what the client asked for (nginx's `$request_uri`).
    pub page_of: Option<Box<[u8]>>,
    /// The method by which backends are asked where a filter changed it.
    pub method: Option<Method>,
    /// The variables that the document defines.
    pub named: Memo,
    /// The identifier of this request, once it has one: see [`Cx::request_id`].
    pub request_id: OnceLock<String>,
    /// Name of the site that was chosen.
    pub site: Option<Arc<str>>,
    /// The first of its hosts, if that is a name.
    pub server_name: Option<Arc<str>>,
    /// Whether the request has a body, even an empty one; set before a backend gets its header.
    pub has_body: bool,
    /// Bytes of the request's body that the present try has seen.
    pub body_received: u64,
    /// Who the client is, as a policy has found.
    pub user: Option<String>,
    /// What a service that was asked about the request tells its backend.
    pub vouched: Vec<(Bytes, HeaderValue)>,
    /// What it tells the client.
    pub told: Vec<(Bytes, HeaderValue)>,
    /// What a token says that is a variable, in the order in which these were compiled.
    pub claims: Vec<Option<String>>,
    /// What came of `limit_req`, in nginx's words.
    pub limit_req: Option<&'static str>,
    /// What came of `limit_conn`, in nginx's words.
    pub limit_conn: Option<&'static str>,
    /// What the request holds and gives back when it ends, in whichever way.
    pub held: Vec<Box<dyn Held>>,
    /// How fast the answer may go to the client, if that is limited.
    pub pace: Option<Pace>,
    /// What the route says in place of `timeouts.read` and `timeouts.total` of the pool.
    pub read_timeout: Option<Duration>,
    pub total_timeout: Option<Duration>,
    /// How far a backend's answer is to be read ahead of the client; `None`: no further than need be.
    pub read_ahead: Option<Ahead>,
    /// Every try to reach a backend, in order.
    pub tries: Vec<Try>,
    /// Fields of the last backend's header as it came, as far as variables ask for them.
    pub upstream: Option<Box<HeaderMap>>,
    /// Status sent to the client; 0 when nothing was sent.
    pub status: u16,
    /// Bytes of body sent to the client.
    pub body_bytes_sent: u64,
    /// Bytes of header and body sent to the client.
    pub bytes_sent: u64,
    /// Bytes of the request, header and body.
    pub request_length: u64,
    /// Why weir itself ended this request, if it did.
    pub failure: Option<Failure>,
    /// What policies keep for their later phases.
    pub slots: Slots,
}

/// Something that is given back by dropping it.
pub trait Held: fmt::Debug + Send + Sync {}

/// One try to get an answer from a backend.
#[derive(Debug)]
pub struct Try {
    pub backend: Arc<str>,
    pub started: Instant,
    /// Until the connection stood (new or reused).
    pub connect: Option<Duration>,
    /// Until the response header was there.
    pub header: Option<Duration>,
    /// Until the last byte of the response.
    pub response: Option<Duration>,
    /// Status of the backend's answer, or of the failure that took its place; 0 until known.
    pub status: u16,
    /// Bytes of the backend's header, as they are on HTTP/1.
    pub head: u64,
    /// Bytes of its body so far.
    pub length: u64,
}

impl Cx {
    pub fn new(started: Instant, connection: Arc<Connection>) -> Cx {
        Cx {
            started,
            ended: None,
            client: connection.peer_ip(),
            connection,
            unread: None,
            host: String::new(),
            path: String::new(),
            is_stripped_whole: false,
            captures: Vec::new(),
            target: None,
            page_of: None,
            method: None,
            named: Memo::default(),
            request_id: OnceLock::new(),
            site: None,
            server_name: None,
            has_body: false,
            body_received: 0,
            user: None,
            vouched: Vec::new(),
            told: Vec::new(),
            claims: Vec::new(),
            limit_req: None,
            limit_conn: None,
            held: Vec::new(),
            pace: None,
            read_timeout: None,
            total_timeout: None,
            read_ahead: None,
            tries: Vec::new(),
            upstream: None,
            status: 0,
            body_bytes_sent: 0,
            bytes_sent: 0,
            request_length: 0,
            failure: None,
            slots: Slots::default(),
        }
    }

    /// Goes on as if the client had asked for `path`, which is normalised; `query` is its own.
    pub fn redirect(&mut self, path: &str, query: Option<&str>) {
        let mut target: String = path::encode(path).collect();
        if let Some(query) = query {
            target.push('?');
            target.push_str(query);
        }
        self.path.clear();
        self.path.push_str(path);
        self.target = Some(target);
        self.is_stripped_whole = false;
        // What the first route has decided for its answer holds for no other.
        self.pace = None;
        self.read_timeout = None;
        self.total_timeout = None;
        self.read_ahead = None;
        self.vouched.clear();
        self.told.clear();
        self.claims.clear();
    }

    /// The identifier of this request, made when it is first asked for: 32 hexadecimal digits that differ between
    /// requests, processes and machines. They are keyed hashes, where the key is new each time and comes from a random
    /// one of the thread: that takes no system call and no lock.
    pub fn request_id(&self) -> &str {
        self.request_id.get_or_init(|| {
            let key = RandomState::new();
            let (high, low) = (key.hash_one(0u8), key.hash_one(1u8));
            format!("{high:016x}{low:016x}")
        })
    }

    /// Who asks for what, for the error log.
    pub fn asked(&self, request: &RequestHeader) -> String {
        let (method, path) = (&request.method, request.uri.path());
        format!("{method} {}{path} from {}", self.host, self.client_name())
    }

    /// The client's address, for the error log.
    pub fn client_name(&self) -> String {
        let client = self.client.map(|client| client.to_string());
        client.unwrap_or_else(|| "unix".to_owned())
    }

    /// `http` or `https`, as the client spoke to weir.
    pub fn scheme(&self) -> &'static str {
        if self.connection.tls.is_some() {
            "https"
        } else {
            "http"
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn identifiers_are_unique_hex_digits() {
        let id = || {
            let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
            assert_eq!(cx.request_id(), cx.request_id());
            cx.request_id().to_owned()
        };
        let ids: HashSet<_> = (0..2000).map(|_| id()).collect();
        assert_eq!(ids.len(), 2000);
        for id in ids {
            assert_eq!(id.len(), 32);
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        }
    }
}
