//! One client connection, from accept to close.
//!
//! Between requests a connection is *parked*: nothing is held but the stream itself, until the first bytes of the
//! next request are there. Pingora's own wait would keep its parser's buffer and the state of the whole proxy for
//! it, and would drop the connection at shutdown while the client is writing.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::BytesMut;
use http::HeaderMap;
use pingora::apps::HttpServerApp;
use pingora::protocols::http::ServerSession;
use pingora::protocols::tls::SslStream;
use pingora::protocols::{ALPN, Shutdown, Ssl};
use pingora::server::ShutdownWatch;
use pingora_timeout::timeout;
use tokio::io::AsyncReadExt;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep};

use super::bounds::Bounds;
use super::crowd::{Crowd, Full};
use super::encrypted::EncryptedStream;
use super::gate::{self, Cause, Gate, Refuse, Refused, Transport};
use super::handshakes::Handshakes;
use super::http2::{self, Stalled};
use super::proxy_protocol;
use super::stream::{ClientStream, Connection, Slot, Socket};
use super::{Listener, TlsFacts};
use crate::http::forwarded;
use crate::http::frames;
use crate::http::head::{self, Fault, Head};
use crate::tls::{self, Acceptor};

/// How long a parked connection may still bring a request after draining began: clients that are just writing one
/// get an answer with `Connection: close` instead of a reset.
const DRAIN_LINGER: Duration = Duration::from_secs(2);
/// How many of those that are turned away at a time get an answer and are heard out, and for how long: they are no less
/// connections than those that are let in.
const MOST_TURNED_AWAY: usize = 256;
const TURN_AWAY: Duration = Duration::from_secs(1);
/// What one read may bring of a request's header; most fit.
const HEAD_BUFFER: usize = 4096;
/// The beginning of HTTP/2's preface. No HTTP/1 method begins so.
const PREFACE: &[u8] = frames::PREFACE.split_at(3).0;

/// What the connections of one service have in common.
pub struct Shared<A> {
    pub app: Arc<A>,
    pub refuse: Arc<dyn Refuse>,
    /// Connections accepted so far.
    pub accepted: AtomicU64,
    handshakes: Handshakes,
    pub crowd: Arc<Crowd>,
    /// Those that are turned away and heard out.
    turned_away: AtomicUsize,
    /// Answers that clients of HTTP/2 do not take.
    pub(super) stalled: Arc<Stalled>,
    /// Turns true when tunnels are to close.
    pub tunnels: Arc<watch::Sender<bool>>,
}

impl<A> Shared<A> {
    pub fn new(app: Arc<A>, refuse: Arc<dyn Refuse>, crowd: Arc<Crowd>) -> Shared<A> {
        Shared {
            app,
            refuse,
            accepted: AtomicU64::new(0),
            handshakes: Handshakes::default(),
            crowd,
            turned_away: AtomicUsize::new(0),
            stalled: Arc::default(),
            tunnels: Arc::default(),
        }
    }
}

impl<A: HttpServerApp + Send + Sync + 'static> Shared<A> {
    /// Serves one accepted connection until it ends.
    pub(super) async fn serve(
        self: Arc<Self>,
        slot: Slot,
        mut socket: Socket,
        mut peer: Option<SocketAddr>,
        mut local: Option<SocketAddr>,
        listener: Arc<Listener>,
        mut drain: ShutdownWatch,
    ) {
        let bounds = &listener.bounds;
        let since = Instant::now();
        let mut by_proxy = false;
        let mut ahead = BytesMut::new();
        if let Some(config) = &listener.proxy_protocol
            && config.is_proxy(peer)
        {
            // Boxed, here and below: a local keeps its room in the task for as long as the connection lives.
            let header = Box::pin(proxy_protocol::read(&mut socket));
            match timeout(bounds.header, header).await {
                Ok(Ok((ends, rest))) => {
                    if let Some(ends) = ends {
                        (peer, local) = (Some(ends.client), Some(ends.server));
                        by_proxy = true;
                    }
                    ahead = rest;
                }
                Ok(Err(e)) => return log::info!("a proxy, {}: {e}", name_of(peer)),
                Err(_) => return log::info!("a proxy, {}: too slow", name_of(peer)),
            }
        }
        let mut connection = Connection {
            number: self.accepted.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            local,
            by_proxy,
            since: Some(since.into_std()),
            listener: listener.name.clone(),
            underscores: bounds.underscores,
            ..Connection::default()
        };
        connection.forwarded_for =
            forwarded::forwarded_for(connection.peer_ip(), &HeaderMap::new(), false);
        let one_client = listener.one_client(peer);
        let entered = self.crowd.enter(&listener.name, one_client, bounds.most);
        let _place = match entered {
            Ok(place) => place,
            Err(full) if listener.tls.is_none() => {
                let client = ClientStream::new(socket, peer, slot);
                return Box::pin(self.turn_away(client, connection, full)).await;
            }
            // There is no way to tell that would not take a handshake.
            Err(_) => return,
        };
        let mut patience = Patience::new(bounds.header);
        let mut client = Box::new(ClientStream::new(socket, peer, slot));
        client.unread(ahead);
        match &listener.tls {
            Some(acceptor) => {
                let handshake = Box::pin(async {
                    // Who comes over a unix socket stands for many.
                    let _place = match peer {
                        Some(peer) => {
                            let limit = bounds.handshakes;
                            Some(self.handshakes.enter(peer.ip(), limit).await)
                        }
                        None => None,
                    };
                    acceptor.handshake(*client).await
                });
                let mut stream = match timeout(bounds.handshake, handshake).await {
                    Ok(Ok(stream)) => Box::new(EncryptedStream::new(stream)),
                    Ok(Err(e)) => return log::debug!("connection {}: {e}", connection.number),
                    Err(_) => return,
                };
                connection.tls = Some(tls_facts(stream.get_ref(), acceptor));
                let http2 = stream.selected_alpn_proto() == Some(ALPN::H2);
                connection.limits = http2.then_some(bounds.head);
                connection.terms = http2.then_some(bounds.body);
                let connection = Arc::new(connection);
                stream.get_ref().get_ref().identify(connection.clone());
                if http2 {
                    let first = next_bytes(&mut *stream, bounds.header, &mut patience, &mut drain);
                    if let Some(bytes) = first.await {
                        self.http2(*stream, bytes, connection, bounds, patience, drain)
                            .await;
                    }
                } else if listener.protocols.h1 {
                    match next_bytes(&mut *stream, bounds.header, &mut patience, &mut drain).await {
                        Some(bytes) => {
                            let tunnels = self.tunnels.clone();
                            let gate = Gate::new(*stream, connection, bounds.body, tunnels);
                            self.http1(gate, bytes, bounds, &mut patience, &mut drain)
                                .await;
                        }
                        None => Shutdown::shutdown(&mut *stream).await,
                    }
                }
            }
            None => {
                let opened = open_plain(&mut client, &listener, &mut patience, &mut drain).await;
                let Some(bytes) = opened else {
                    return;
                };
                let http2 = client.selected_alpn_proto() == Some(ALPN::H2);
                connection.limits = http2.then_some(bounds.head);
                connection.terms = http2.then_some(bounds.body);
                let connection = Arc::new(connection);
                client.identify(connection.clone());
                if http2 {
                    self.http2(*client, bytes, connection, bounds, patience, drain)
                        .await;
                } else if listener.protocols.h1 {
                    let tunnels = self.tunnels.clone();
                    let gate = Gate::new(*client, connection, bounds.body, tunnels);
                    self.http1(gate, bytes, bounds, &mut patience, &mut drain)
                        .await;
                }
            }
        }
    }

    /// Tells a client that there is no place for it.
    async fn turn_away(&self, mut client: ClientStream, connection: Connection, full: Full) {
        let answer = self.refuse.refuse(&Refused {
            connection: &Arc::new(connection),
            cause: Cause::Full(full),
            line: b"",
            length: 0,
        });
        if self.turned_away.fetch_add(1, Ordering::Relaxed) < MOST_TURNED_AWAY {
            let _ = timeout(TURN_AWAY, gate::part_with(&mut client, &answer)).await;
        }
        self.turned_away.fetch_sub(1, Ordering::Relaxed);
    }

    /// `bytes` are the first of its preface.
    async fn http2<S: Transport>(
        &self,
        mut stream: S,
        bytes: BytesMut,
        connection: Arc<Connection>,
        bounds: &Bounds,
        mut patience: Patience,
        mut drain: ShutdownWatch,
    ) {
        let ahead = http2::read_preface(&mut stream, bytes, bounds.header, &mut patience).await;
        if let Some(ahead) = ahead {
            drop(patience);
            let serving = http2::serve(self, stream, ahead, connection, bounds, &mut drain);
            Box::pin(serving).await;
        }
    }

    /// `bytes` are the first of its first request.
    async fn http1<S: Transport>(
        &self,
        mut gate: Box<Gate<S>>,
        mut bytes: BytesMut,
        bounds: &Bounds,
        patience: &mut Patience,
        drain: &mut ShutdownWatch,
    ) {
        let back = gate.back();
        for left in (0..bounds.requests).rev() {
            let head = match read_head(gate.stream_mut(), &mut bytes, bounds, patience).await {
                Ok(head) => head,
                Err(Some(cause)) => {
                    // Boxed, as below: every connection would have the room for it that hardly any needs.
                    return Box::pin(gate.refuse(&bytes).refuse(cause, &*self.refuse)).await;
                }
                Err(None) => return Shutdown::shutdown(gate.stream_mut()).await,
            };
            let ahead = match head.length == bytes.len() {
                // as usual: splitting would make the rest shared memory
                true => BytesMut::new(),
                false => bytes.split_off(head.length),
            };
            gate.begin(&bytes, head.framing, ahead);
            let mut session = ServerSession::new_http1(gate);
            session.set_pipelined_prefix(bytes);
            session.set_keepalive_reuses_remaining(Some(left));
            let Some(reusable) = self.app.process_new_http(session, drain).await else {
                let held = back.lock().take();
                match held {
                    Some(held) if held.is_unanswered() => {
                        let cause = Cause::Refused(Fault::Malformed("the engine cannot read it"));
                        Box::pin(held.refuse(cause, &*self.refuse)).await;
                    }
                    Some(held) => tokio::select! {
                        () = Box::pin(held.linger()) => {}
                        _ = drain.changed() => {}
                    },
                    None => {}
                }
                return;
            };
            let (idle, _) = reusable.consume();
            let Ok(idle) = idle.into_any().downcast() else {
                return;
            };
            gate = idle;
            let Some(ahead) = gate.take_ahead() else {
                return;
            };
            bytes = ahead;
            if bytes.is_empty() {
                let stream = gate.stream_mut();
                match next_bytes(stream, bounds.idle, patience, drain).await {
                    Some(first) => bytes = first,
                    None => return Shutdown::shutdown(stream).await,
                }
            }
        }
    }
}

/// Reads on until a head is complete. `Err(None)`: nothing has come that could be answered.
async fn read_head<S: Transport>(
    stream: &mut S,
    bytes: &mut BytesMut,
    bounds: &Bounds,
    patience: &mut Patience,
) -> Result<Head, Option<Cause>> {
    let mut reader = head::Reader::new(bounds.head);
    // Most heads come whole: no clock is looked at for them.
    let mut deadline = None;
    loop {
        match reader.read(bytes) {
            Ok(Some(head)) => return Ok(head),
            Ok(None) => {}
            Err(fault) => return Err(Some(Cause::Refused(fault))),
        }
        let deadline = *deadline.get_or_insert_with(|| Instant::now() + bounds.header);
        bytes.reserve(HEAD_BUFFER);
        let read = patience.until(deadline, stream.read_buf(bytes)).await;
        let cause = match read {
            Some(Ok(count)) if count > 0 => continue,
            Some(_) => Cause::Closed,
            None => Cause::TimedOut,
        };
        return Err(reader.has_begun().then_some(cause));
    }
}

/// Reads as much of a plain connection as tells HTTP/2 by prior knowledge from HTTP/1.
async fn open_plain(
    client: &mut ClientStream,
    listener: &Listener,
    patience: &mut Patience,
    drain: &mut ShutdownWatch,
) -> Option<BytesMut> {
    let limit = listener.bounds.header;
    let mut head = next_bytes(client, limit, patience, drain).await?;
    if listener.protocols.h2 {
        while head.len() < PREFACE.len() && PREFACE.starts_with(&head) {
            match next_bytes(client, limit, patience, drain).await {
                Some(more) => head.unsplit(more),
                // Whatever it was to be, it is a head that broke off.
                None => break,
            }
        }
        if head.starts_with(PREFACE) {
            client.set_prior_knowledge();
        }
    }
    Some(head)
}

/// The time limit of a connection's waits. A timer of its own for each wait would be made and thrown away with each
/// request; this one is looked at when it fires, and then set to what is left.
pub(super) struct Patience(Pin<Box<Sleep>>);

impl Patience {
    fn new(first: Duration) -> Patience {
        Patience(Box::pin(sleep(first)))
    }

    /// What `wait` comes to, or `None` if it takes longer than `limit`.
    async fn within<T>(&mut self, limit: Duration, wait: impl Future<Output = T>) -> Option<T> {
        self.until(Instant::now() + limit, wait).await
    }

    /// The same until a point in time.
    pub(super) async fn until<T>(
        &mut self,
        deadline: Instant,
        wait: impl Future<Output = T>,
    ) -> Option<T> {
        if self.0.is_elapsed() || self.0.deadline() > deadline {
            self.0.as_mut().reset(deadline);
        }
        let mut wait = pin!(wait);
        loop {
            tokio::select! {
                biased;
                outcome = &mut wait => return Some(outcome),
                () = self.0.as_mut() => {}
            }
            if Instant::now() >= deadline {
                return None;
            }
            self.0.as_mut().reset(deadline);
        }
    }
}

/// Parks the connection until its next bytes are there. `None`: it ended, was idle for too long, or is to end.
async fn next_bytes<S: Transport>(
    stream: &mut S,
    limit: Duration,
    patience: &mut Patience,
    drain: &mut ShutdownWatch,
) -> Option<BytesMut> {
    let draining = *drain.borrow();
    let limit = if draining { DRAIN_LINGER } else { limit };
    let bytes = tokio::select! {
        biased;
        bytes = patience.within(limit, read_when_ready(stream)) => Some(bytes),
        _ = drain.changed(), if !draining => None,
    };
    let bytes = match bytes {
        Some(bytes) => bytes,
        None => patience.within(DRAIN_LINGER, read_when_ready(stream)).await,
    };
    bytes?.ok().filter(|bytes| !bytes.is_empty())
}

/// Reads once, with a buffer that exists only while there is something to read.
async fn read_when_ready<S: Transport>(stream: &mut S) -> io::Result<BytesMut> {
    poll_fn(|cx| {
        if let Some(socket) = stream.idle_socket() {
            ready!(socket.poll_readable(cx))?;
        }
        let mut bytes = BytesMut::with_capacity(HEAD_BUFFER);
        match ready!(pin!(stream.read_buf(&mut bytes)).poll(cx)) {
            Ok(_) => Poll::Ready(Ok(bytes)),
            Err(e) => Poll::Ready(Err(e)),
        }
    })
    .await
}

pub(super) fn name_of(peer: Option<SocketAddr>) -> String {
    peer.map_or_else(|| "on a unix socket".to_owned(), |peer| peer.to_string())
}

fn tls_facts(stream: &SslStream<ClientStream>, acceptor: &Acceptor) -> TlsFacts {
    let ssl = stream.ssl();
    let client_auth = acceptor.client_auth();
    TlsFacts {
        version: ssl.version_str(),
        cipher: ssl.current_cipher().map_or("", |cipher| cipher.name()),
        group: ssl.curve_name().unwrap_or_default(),
        alpn: match ssl.selected_alpn_protocol() {
            Some(b"h2") => "h2",
            Some(b"http/1.1") => "http/1.1",
            Some(b"http/1.0") => "http/1.0",
            _ => "",
        },
        resumed: ssl.session_reused(),
        server_name: tls::server_name(ssl),
        client: client_auth.map(|client_auth| client_auth.shown(ssl, SystemTime::now())),
    }
}
