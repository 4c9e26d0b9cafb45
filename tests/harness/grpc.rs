//! An origin with gRPC's health service, over HTTP/2 without TLS.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::port::Port;
use super::runtime;

/// What the service says of itself.
#[derive(Clone, Copy, Debug)]
pub enum Says {
    /// `ServingStatus`: 1 is serving, 2 is not.
    Status(u8),
    /// No message, but this `grpc-status`.
    Code(u8),
    /// The stream is reset.
    Reset,
}

pub struct GrpcOrigin {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
    _port: Port,
}

struct State {
    says: Mutex<Says>,
    asked: Mutex<Vec<Asked>>,
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub path: String,
    pub authority: String,
    pub headers: HeaderMap,
    pub message: Vec<u8>,
}

impl GrpcOrigin {
    pub fn start(says: Says) -> GrpcOrigin {
        let port = Port::reserve();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let state = Arc::new(State {
            says: Mutex::new(says),
            asked: Mutex::default(),
        });
        let listener = runtime().block_on(TcpListener::bind(address));
        let listener = listener.expect("bind an origin");
        let task = runtime().spawn(accept(listener, Arc::clone(&state)));
        GrpcOrigin {
            address,
            state,
            task,
            _port: port,
        }
    }

    pub fn say(&self, says: Says) {
        *self
            .state
            .says
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = says;
    }

    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.state.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for GrpcOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The address as a `backends:` entry.
impl fmt::Display for GrpcOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    while let Ok((stream, _)) = listener.accept().await {
        // peers may go away at any time; what that means is for the test to judge
        tokio::spawn(converse(stream, Arc::clone(&state)));
    }
}

async fn converse(stream: TcpStream, state: Arc<State>) -> Result<(), h2::Error> {
    let mut connection = server::handshake(stream).await?;
    while let Some(exchange) = connection.accept().await {
        let (request, respond) = exchange?;
        tokio::spawn(answer(request, respond, Arc::clone(&state)));
    }
    Ok(())
}

async fn answer(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    state: Arc<State>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut message = Vec::new();
    while let Some(part) = body.data().await {
        message.extend_from_slice(&part?);
    }
    let asked = Asked {
        path: head.uri.path().to_owned(),
        authority: head.uri.authority().map_or("", |a| a.as_str()).to_owned(),
        headers: head.headers,
        message,
    };
    let record = state.asked.lock();
    record.unwrap_or_else(PoisonError::into_inner).push(asked);
    let says = *state.says.lock().unwrap_or_else(PoisonError::into_inner);
    let response = || Response::builder().header("content-type", "application/grpc");
    match says {
        Says::Reset => respond.send_reset(Reason::INTERNAL_ERROR),
        Says::Code(code) => {
            let response = response().header("grpc-status", code.to_string()).body(());
            respond.send_response(response.expect("a response"), true)?;
        }
        Says::Status(status) => {
            let response = response().body(()).expect("a response");
            let mut stream = respond.send_response(response, false)?;
            let message = [0, 0, 0, 0, 2, 8, status];
            stream.send_data(Bytes::copy_from_slice(&message), false)?;
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().expect("a value"));
            stream.send_trailers(trailers)?;
        }
    }
    Ok(())
}
