//! The one door out: every answer that weir makes itself is written here.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::{Error, ErrorType, OrErr, Result};

use super::{Exchange, grpc};
use crate::disk;
use crate::exchange::pace::Pace;
use crate::exchange::transform::{Then, is_bodiless, replace_body};
use crate::exchange::vars::View;
use crate::exchange::{Body, Cx, Failure, Parts, Reply, Transforms};
use crate::filter::Chain;
use crate::http::{accept, date, expect};
use crate::net::{Connection, MOST_STAND_IN, stand_in};

const SERVER: HeaderValue = HeaderValue::from_static("weir");
/// How much of a file is in memory at a time for one answer that `sendfile` cannot send.
const CHUNK: usize = 64 * 1024;
/// The same for a client that leaves others of its answers waiting: a frame of HTTP/2.
const SMALL_CHUNK: usize = 16 * 1024;

/// Writes an answer, with the policies that its route has for answers.
pub(super) async fn reply(session: &mut ServerSession, x: &Exchange, reply: Reply) -> Result<()> {
    let request = session.req_header();
    let reply = with_own_page(reply, x.chain(), &x.cx, request);
    let Reply { mut head, body } = with_page(reply, request);
    set_length(&mut head, &body)?;
    let transforms = finish_header(session, &mut head, x);
    write(session, head, body, transforms, x.cx.pace).await
}

/// What the header of every answer gets last, whoever made it, and what becomes of the body behind it.
pub(super) fn finish_header(
    session: &mut ServerSession,
    head: &mut ResponseHeader,
    x: &Exchange,
) -> Transforms {
    // As nginx: what software a backend runs is nobody's business. A `headers` policy can say otherwise.
    set_server(head);
    let chain = x.chain();
    if chain.is_empty() {
        return Transforms::default();
    }
    let request = session.req_header();
    let transforms = chain.response(&x.cx, request, head, SystemTime::now());
    if transforms.is_empty() || is_bodiless(&request.method, head.status) {
        return Transforms::default();
    }
    // How long it gets, nobody knows.
    match request.version {
        Version::HTTP_11 => {
            head.set_version(Version::HTTP_11);
            // A static name with a static value cannot be refused.
            let _ = head.insert_header(header::TRANSFER_ENCODING, "chunked");
        }
        Version::HTTP_2 => {}
        // It knows no chunks: the end of the connection is the end of the body.
        _ => session.set_keepalive(None),
    }
    transforms
}

pub(super) fn set_server(head: &mut ResponseHeader) {
    // A static value under a static name cannot be refused.
    let _ = head.insert_header(header::SERVER, SERVER);
}

pub(super) fn set_length(head: &mut ResponseHeader, body: &Body) -> Result<()> {
    let has_none = head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED;
    if !has_none && !head.headers.contains_key(header::CONTENT_LENGTH) {
        head.insert_header(header::CONTENT_LENGTH, body.length())?;
    }
    Ok(())
}

/// Writes header and body, as fast as it may go; the body is left out where the request wants none.
pub(super) async fn write(
    session: &mut ServerSession,
    head: Box<ResponseHeader>,
    body: Body,
    transforms: Transforms,
    mut pace: Option<Pace>,
) -> Result<()> {
    let request = session.req_header();
    let head_only = request.method == Method::HEAD;
    let ends = matches!(
        head.status,
        StatusCode::BAD_REQUEST | StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE
    );
    // Who waits to be told to send the body, and is told something else, may send it or may not.
    let ends = ends || request.method == Method::CONNECT || expect::waits_to_continue(request);
    if ends {
        // What follows on this connection may not be what the client means by it.
        session.set_keepalive(None);
    }
    session.write_response_header(head).await?;
    if !transforms.is_empty() {
        return write_changed(session, body, transforms, &mut pace).await;
    }
    // What is written last says so: on HTTP/2 the end would be a frame of its own.
    match body {
        Body::Bytes(bytes) if !head_only && !bytes.is_empty() => {
            write_bytes(session, bytes, true, &mut pace).await
        }
        Body::File {
            file,
            start,
            length,
        } if !head_only => {
            write_file(session, file, start, length, &mut pace).await?;
            session.finish_body().await
        }
        Body::Parts(Parts { file, parts, end }) if !head_only => {
            for (before, part) in parts {
                write_bytes(session, before, false, &mut pace).await?;
                let length = part.end - part.start;
                write_file(session, file.clone(), part.start, length, &mut pace).await?;
            }
            write_bytes(session, end, true, &mut pace).await
        }
        _ => session.finish_body().await,
    }
}

/// Writes a body that changes on its way, whatever it is made of.
async fn write_changed(
    session: &mut ServerSession,
    body: Body,
    mut transforms: Transforms,
    pace: &mut Option<Pace>,
) -> Result<()> {
    let to = &mut transforms;
    match body {
        Body::Empty => {}
        Body::Bytes(bytes) => change_bytes(session, bytes, to, pace).await?,
        Body::File {
            file,
            start,
            length,
        } => change_file(session, &file, start..start + length, to, pace).await?,
        Body::Parts(Parts { file, parts, end }) => {
            for (before, part) in parts {
                change_bytes(session, before, to, pace).await?;
                change_file(session, &file, part, to, pace).await?;
            }
            change_bytes(session, end, to, pace).await?;
        }
    }
    let rest = pass(to, Bytes::new(), Then::End)?;
    write_bytes(session, rest, true, pace).await
}

async fn change_bytes(
    session: &mut ServerSession,
    mut bytes: Bytes,
    transforms: &mut Transforms,
    pace: &mut Option<Pace>,
) -> Result<()> {
    while !bytes.is_empty() {
        let piece = bytes.split_to(CHUNK.min(bytes.len()));
        let piece = pass(transforms, piece, Then::Next)?;
        write_bytes(session, piece, false, pace).await?;
        // Others are waiting while a large body is worked at.
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn change_file(
    session: &mut ServerSession,
    file: &Arc<File>,
    part: Range<u64>,
    transforms: &mut Transforms,
    pace: &mut Option<Pace>,
) -> Result<()> {
    let mut at = part.start;
    while at < part.end {
        let piece = read_piece(file, at, part.end, CHUNK).await?;
        at += piece.len() as u64;
        change_bytes(session, piece, transforms, pace).await?;
    }
    Ok(())
}

fn pass(transforms: &mut Transforms, piece: Bytes, then: Then) -> Result<Bytes> {
    let passed = transforms.pass(piece, then);
    passed.or_err(ErrorType::InternalError, "changing a body")
}

async fn write_bytes(
    session: &mut ServerSession,
    mut bytes: Bytes,
    end: bool,
    pace: &mut Option<Pace>,
) -> Result<()> {
    if pace.is_some() {
        let piece = piece(pace, usize::MAX);
        while bytes.len() > piece {
            hold(pace, piece).await;
            let part = bytes.split_to(piece);
            session.write_response_body(part, false).await?;
        }
        hold(pace, bytes.len()).await;
    }
    session.write_response_body(bytes, end).await
}

/// How much to send at a time.
fn piece(pace: &Option<Pace>, most: usize) -> usize {
    pace.as_ref().map_or(most, |pace| pace.piece(most))
}

/// Waits until these bytes may go out.
async fn hold(pace: &mut Option<Pace>, bytes: usize) {
    if let Some(pace) = pace {
        let wait = pace.send(bytes as u64, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Sends a part of a file, a piece at a time, never waiting for a disk on the worker.
async fn write_file(
    session: &mut ServerSession,
    file: Arc<File>,
    start: u64,
    length: u64,
    pace: &mut Option<Pace>,
) -> Result<()> {
    match plain_http1(session) {
        Some(connection) => {
            connection.lend(file.clone(), start);
            let sent = send_file(session, &file, start, length, pace).await;
            connection.take_back();
            sent
        }
        None => copy_file(session, &file, start, length, pace).await,
    }
}

/// The connection, where what the engine writes goes to the socket as it is.
fn plain_http1(session: &ServerSession) -> Option<Arc<Connection>> {
    let connection = Connection::of(session.as_http1()?.digest().into())?;
    connection.tls.is_none().then_some(connection)
}

/// Lets the kernel send it.
async fn send_file(
    session: &mut ServerSession,
    file: &Arc<File>,
    mut at: u64,
    length: u64,
    pace: &mut Option<Pace>,
) -> Result<()> {
    let end = at + length;
    let most = piece(pace, MOST_STAND_IN);
    while at < end {
        let size = at_most(most, end - at);
        hold(pace, size).await;
        disk::bring_in(file, at, size).await;
        session.write_response_body(stand_in(size), false).await?;
        at += size as u64;
    }
    Ok(())
}

/// Reads it and sends what was read.
async fn copy_file(
    session: &mut ServerSession,
    file: &Arc<File>,
    mut at: u64,
    length: u64,
    pace: &mut Option<Pace>,
) -> Result<()> {
    let connection = Connection::of(session.digest());
    let is_held_up = || connection.as_ref().is_some_and(|it| it.is_held_up());
    let end = at + length;
    while at < end {
        let most = if is_held_up() { SMALL_CHUNK } else { CHUNK };
        let chunk = read_piece(file, at, end, piece(pace, most)).await?;
        hold(pace, chunk.len()).await;
        at += chunk.len() as u64;
        session.write_response_body(chunk, false).await?;
    }
    Ok(())
}

/// What comes next of a part of a file that ends at `end`, but not more than `most` bytes.
async fn read_piece(file: &Arc<File>, at: u64, end: u64, most: usize) -> Result<Bytes> {
    let piece = disk::read(file, at, at_most(most, end - at))
        .await
        .or_err(ErrorType::FileReadError, "reading a file")?;
    if piece.is_empty() {
        // The length was promised already: the client must see that this is not all.
        return Error::e_explain(ErrorType::FileReadError, "the file became shorter");
    }
    Ok(piece)
}

fn at_most(most: usize, left: u64) -> usize {
    usize::try_from(left).map_or(most, |left| left.min(most))
}

/// The answer to what could not be read as a request, as it goes over the wire; the connection ends with it.
pub(super) fn refusal(head: &mut ResponseHeader, page: &Body, wall: SystemTime) -> Bytes {
    // Static names with values made here cannot be refused.
    if let Some(date) = date::seconds(wall).and_then(date::format) {
        let _ = head.insert_header(header::DATE, date);
    }
    let _ = head.insert_header(header::CONNECTION, HeaderValue::from_static("close"));
    let status = head.status;
    let reason = status.canonical_reason().unwrap_or_default();
    let mut answer = BytesMut::new();
    answer.put_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    head.header_to_h1_wire(&mut answer);
    answer.put_slice(b"\r\n");
    if let Body::Bytes(page) = page {
        answer.put_slice(page);
    }
    answer.freeze()
}

/// The answer to a request that weir ended.
pub(super) fn failure(failure: Failure) -> Reply {
    let status = StatusCode::from_u16(failure.status());
    let mut reply = Reply::empty(status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR));
    if failure == Failure::MethodNotAllowed {
        // A 405 names the methods that the target has (RFC 9110 section 15.5.6). The end of a tunnel has none here, and
        // those of a site are not known where no site was asked.
        let none = HeaderValue::from_static("");
        let _ = reply.head.insert_header(header::ALLOW, none);
    }
    reply
}

/// Gives an error without a body the page that the policies of its route have for it.
pub(super) fn with_own_page(
    mut reply: Reply,
    chain: &Chain,
    cx: &Cx,
    request: &RequestHeader,
) -> Reply {
    if wants_page(&reply)
        && let Some((kind, page)) = own_page(&reply.head, chain, cx, request)
    {
        set_page(&mut reply.head, kind, page.len());
        reply.body = Body::Bytes(page);
    }
    reply
}

/// Gives the header of a backend's error, of which the body is on its way, the page that takes its place.
pub(super) fn replace_with_own_page(
    head: &mut ResponseHeader,
    chain: &Chain,
    cx: &Cx,
    request: &RequestHeader,
) -> Option<Bytes> {
    replace_body(head);
    let (kind, page) = own_page(head, chain, cx, request)?;
    set_page(head, kind, page.len());
    Some(page)
}

/// Type and body of the page that the policies have for an error. Calls of gRPC get none: they have their own way to
/// tell.
fn own_page(
    head: &ResponseHeader,
    chain: &Chain,
    cx: &Cx,
    request: &RequestHeader,
) -> Option<(HeaderValue, Bytes)> {
    let errors = chain.errors.as_ref()?;
    if grpc::is_grpc(&request.headers) {
        return None;
    }
    let view = View {
        cx,
        request,
        response: Some(head),
        wall: SystemTime::now(),
    };
    errors.page(head.status.as_u16(), &view)
}

/// Whether an answer is an error and says no more than that.
pub(super) fn wants_page(reply: &Reply) -> bool {
    is_error(reply.head.status)
        && matches!(reply.body, Body::Empty)
        && !reply.head.headers.contains_key(header::CONTENT_TYPE)
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

fn set_page(head: &mut ResponseHeader, kind: HeaderValue, length: usize) {
    // Static names with values made here cannot be refused.
    let _ = head.insert_header(header::CONTENT_TYPE, kind);
    let _ = head.insert_header(header::CONTENT_LENGTH, length);
}

/// Gives an error without a body a small page: JSON for clients that prefer it, HTML for all others.
pub(super) fn with_page(mut reply: Reply, request: &RequestHeader) -> Reply {
    let status = reply.head.status;
    if is_error(status) && grpc::is_grpc(&request.headers) {
        return grpc::failure(status);
    }
    if !wants_page(&reply) {
        return reply;
    }
    let (code, reason) = (
        status.as_u16(),
        status.canonical_reason().unwrap_or("Error"),
    );
    let (page, kind) = match accept::prefers_json(&request.headers) {
        true => (
            format!("{{\"status\":{code},\"error\":\"{reason}\"}}\n"),
            HeaderValue::from_static("application/json"),
        ),
        false => (
            html(code, reason),
            HeaderValue::from_static("text/html; charset=utf-8"),
        ),
    };
    set_page(&mut reply.head, kind, page.len());
    reply.body = Body::Bytes(page.into());
    reply
}

fn html(code: u16, reason: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{code} {reason}</title>\n<h1>{code} {reason}</h1>\n<p>weir</p>\n</html>\n"
    )
}
