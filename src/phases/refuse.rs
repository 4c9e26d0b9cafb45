//! What never became a request: answered and logged here, since no phase hears of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::header;
use pingora::http::RequestHeader;

use super::send;
use crate::exchange::transform::Then;
use crate::exchange::vars::View;
use crate::exchange::{Body, Failure, Reply};
use crate::http::head::Fault;
use crate::net::crowd::Full;
use crate::net::gate::{Cause, Refuse, Refused};
use crate::runtime::{Live, Part};

/// Refuses for one of the two services.
pub struct Refusals {
    part: Part,
    live: Arc<Live>,
}

impl Refusals {
    pub fn new(part: Part, live: Arc<Live>) -> Refusals {
        Refusals { part, live }
    }
}

impl Refuse for Refusals {
    fn refuse(&self, refused: &Refused<'_>) -> Bytes {
        let failure = match refused.cause {
            Cause::Refused(fault) => failure(fault),
            Cause::TimedOut => Failure::ClientTimeout,
            Cause::Closed => Failure::ClientClosed,
            Cause::Full(Full::Listener) => Failure::ListenerFull,
            Cause::Full(Full::Client) => Failure::ClientFull,
        };
        if let Cause::Refused(_) = refused.cause {
            self.live.malformed.fetch_add(1, Ordering::Relaxed);
        }
        let snapshot = self.live.load();
        let mut cx = super::begin(&snapshot, refused.connection.clone());
        cx.failure = Some(failure);
        cx.unread = Some(refused.line.into());
        cx.request_length = refused.length;
        // Nothing that a header of the request could ask for is known.
        let request = RequestHeader::build("GET", b"/", Some(0)).expect("a valid request line");
        let wall = SystemTime::now();
        let mut response = None;
        let mut answer = Bytes::new();
        if failure.reaches_client() {
            let policies = &snapshot.router.chain;
            let mut reply = send::failure(failure);
            if self.part == Part::Edge {
                reply = send::with_own_page(reply, policies, &cx, &request);
            }
            let Reply { mut head, mut body } = send::with_page(reply, &request);
            send::set_server(&mut head);
            if self.part == Part::Edge {
                let mut transforms = policies.response(&cx, &request, &mut head, wall);
                if let Body::Bytes(page) = &mut body
                    && let Ok(changed) = transforms.pass(page.clone(), Then::End)
                {
                    // A static name with a number cannot be refused.
                    let _ = head.insert_header(header::CONTENT_LENGTH, changed.len());
                    *page = changed;
                }
            }
            if refused.line.starts_with(b"HEAD ") {
                body = Body::Empty;
            }
            answer = send::refusal(&mut head, &body, wall);
            cx.status = head.status.as_u16();
            cx.body_bytes_sent = body.length();
            cx.bytes_sent = answer.len() as u64;
            response = Some(head);
        }
        let logs = match self.part {
            Part::Edge => snapshot.access_logs_of(&snapshot.router.chain),
            Part::Companion => &snapshot.log.access,
        };
        if !logs.is_empty() {
            cx.ended = Some(Instant::now());
            logs.log(&View {
                cx: &cx,
                request: &request,
                response: response.as_deref(),
                wall,
            });
        }
        answer
    }
}

fn failure(fault: Fault) -> Failure {
    match fault {
        Fault::Malformed(_) => Failure::BadRequest,
        Fault::LineTooLong => Failure::UriTooLong,
        Fault::TooLarge => Failure::HeaderTooLarge,
        Fault::NotImplemented => Failure::NotImplemented,
        Fault::Version => Failure::VersionNotSupported,
    }
}
