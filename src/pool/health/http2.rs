//! One exchange over HTTP/2, on a connection of its own.

use std::pin::pin;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::{self, SendRequest};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method, Request, StatusCode, Version, request};
use pingora::protocols::Stream;

use crate::pool::reason;

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// As much of it as was to be kept.
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

/// The beginning of a request.
///
/// # Errors
/// When `authority` is none.
pub fn request(
    method: Method,
    path: PathAndQuery,
    authority: &str,
    secure: bool,
) -> http::Result<request::Builder> {
    let scheme = if secure { Scheme::HTTPS } else { Scheme::HTTP };
    let uri = Uri::builder().scheme(scheme).authority(authority);
    let uri = uri.path_and_query(path).build()?;
    let request = Request::builder().method(method).uri(uri);
    Ok(request.version(Version::HTTP_2))
}

/// Sends a request and reads the answer to its end; so many bytes of the body are kept.
pub async fn exchange(
    stream: Stream,
    request: Request<Option<Bytes>>,
    keep: usize,
) -> Result<Answer, String> {
    let (send, connection) = client::handshake(stream).await.map_err(explain)?;
    let mut answer = pin!(ask(send, request, keep));
    // The connection moves the bytes of the exchange. It may end right behind the answer, which is still to be read.
    let answer = tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    };
    answer.map_err(explain)
}

async fn ask(
    send: SendRequest<Bytes>,
    request: Request<Option<Bytes>>,
    keep: usize,
) -> Result<Answer, h2::Error> {
    let (head, body) = request.into_parts();
    let request = Request::from_parts(head, ());
    let (response, mut stream) = send.ready().await?.send_request(request, body.is_none())?;
    if let Some(body) = body {
        stream.send_data(body, true)?;
    }
    let (head, mut body) = response.await?.into_parts();
    Ok(Answer {
        status: head.status,
        headers: head.headers,
        body: read(&mut body, keep).await?,
        trailers: body.trailers().await?,
    })
}

async fn read(body: &mut RecvStream, keep: usize) -> Result<Bytes, h2::Error> {
    let mut kept = BytesMut::new();
    while let Some(part) = body.data().await {
        let part = part?;
        let room = keep - kept.len();
        kept.extend_from_slice(&part[..part.len().min(room)]);
        body.flow_control().release_capacity(part.len())?;
    }
    Ok(kept.freeze())
}

fn explain(error: h2::Error) -> String {
    match error.get_io() {
        Some(error) => reason::of_io(error),
        None => format!("HTTP/2: {error}"),
    }
}
