//! The end of a request: what the operator is told of it, the figures that it counts for and its line in the access log.

use std::time::{Instant, SystemTime};

use http::{Method, StatusCode};
use pingora::Error;
use pingora::http::RequestHeader;
use pingora::protocols::http::ServerSession;

use super::Exchange;
use super::length::header_length;
use crate::exchange::vars::View;
use crate::exchange::{Cx, Failure};
use crate::log::AccessLogs;
use crate::runtime::Live;

/// What an operator is told of a request that the end of the process cut off.
pub(super) fn cut(kind: &str, method: &Method, cx: &Cx) -> String {
    format!(
        "{kind} {method} {}{} from {}, {:.1} s old",
        cx.host,
        cx.path.escape_debug(),
        cx.client_name(),
        cx.started.elapsed().as_secs_f64(),
    )
}

/// One line for the operator about a request that weir ended.
pub(super) fn report(request: &RequestHeader, x: &Exchange, failure: Failure, e: &Error) {
    let cx = &x.cx;
    let level = match failure {
        Failure::ClientClosed
        | Failure::ClientTimeout
        | Failure::BadRequest
        | Failure::BodyTooLarge => log::Level::Info,
        _ => log::Level::Warn,
    };
    let asked = match (cx.tries.last(), x.chosen.proxy()) {
        (Some(last), Ok(proxy)) => format!("{} of pool `{}`: ", last.backend, proxy.pool.name()),
        _ => String::new(),
    };
    log::log!(
        level,
        "{}: {}: {asked}{}",
        failure.word(),
        cx.asked(request),
        crate::handler::proxy::brief(e),
    );
}

/// Adds a request to the figures of this process: with the time until a backend's answer began, or else all of it.
pub(super) fn count(session: &ServerSession, cx: &Cx, now: Instant, live: &Live) {
    let status = status_of(session, cx);
    // A tunnel takes as long as it pleases.
    if status == StatusCode::SWITCHING_PROTOCOLS.as_u16() {
        return;
    }
    let last = cx.tries.last();
    let answered = last.and_then(|last| Some(last.started + last.header?));
    let time = answered
        .unwrap_or(now)
        .saturating_duration_since(cx.started);
    live.figures.count(status, time);
}

/// What the client was answered with, or would have been; 0 for neither.
pub(super) fn status_of(session: &ServerSession, cx: &Cx) -> u16 {
    match (session.response_written(), cx.failure) {
        (Some(response), _) => response.status.as_u16(),
        (None, Some(failure)) => failure.status(),
        (None, None) => 0,
    }
}

/// The last thing that happens to a request: its line in the access log.
pub(super) fn log(session: &ServerSession, logs: &AccessLogs, cx: &mut Cx, now: Instant) {
    if logs.is_empty() {
        return;
    }
    let response = session.response_written();
    cx.ended = Some(now);
    cx.status = status_of(session, cx);
    cx.body_bytes_sent = session.body_bytes_sent() as u64;
    cx.bytes_sent = cx.body_bytes_sent + response.map_or(0, header_length);
    cx.request_length += session.body_bytes_read() as u64;
    let request = session.req_header();
    logs.log(&View {
        cx,
        request,
        response,
        wall: SystemTime::now(),
    });
}
