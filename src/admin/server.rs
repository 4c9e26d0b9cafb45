//! The server behind the admin socket: one request for each connection.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{StatusCode, header};
use parking_lot::Mutex;
use percent_encoding::percent_decode_str;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use pingora::protocols::l4::stream::Stream;
use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::{Order, Orders, Refusal, Stopping, Terms, Upgrade};
use crate::net::Bind;
use crate::net::bind::ListenSocket;
use crate::runtime::Live;
use crate::runtime::status::Status;

/// For a request to arrive.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the last answers to leave when the process ends.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Before accepting again when that failed: the process is out of file descriptors.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// Orders that may wait to be carried out.
const WAITING: usize = 16;

/// The admin socket of this process.
pub struct Endpoint {
    bind: Bind,
    /// `None` once it is closed.
    socket: Mutex<Option<ListenSocket>>,
    closed: watch::Sender<bool>,
    live: Arc<Live>,
    orders: mpsc::Sender<Order>,
}

impl Endpoint {
    /// What is ordered over the socket comes out of the second part.
    pub fn new(bind: Bind, socket: ListenSocket, live: Arc<Live>) -> (Arc<Endpoint>, Orders) {
        let (sender, orders) = mpsc::channel(WAITING);
        let endpoint = Endpoint {
            bind,
            socket: Mutex::new(Some(socket)),
            closed: watch::Sender::new(false),
            live,
            orders: sender,
        };
        (Arc::new(endpoint), orders)
    }

    /// Answers until [`Endpoint::close`].
    ///
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut closed = self.closed.subscribe();
        let Some((_, socket)) = self.socket()? else {
            return Ok(());
        };
        let socket = socket.as_fd().try_clone_to_owned()?;
        let listener = UnixListener::from_std(socket.into())?;
        while !*closed.borrow_and_update() {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        tokio::spawn(self.clone().serve(client));
                    }
                    Err(_) => sleep(EXHAUSTED_PAUSE).await,
                },
                _ = closed.changed() => {}
            }
        }
        Ok(())
    }

    /// The socket and its address, for the next process; `None` once it is closed.
    ///
    /// # Errors
    /// When the process is out of file descriptors.
    pub fn socket(&self) -> io::Result<Option<(String, ListenSocket)>> {
        let socket = self.socket.lock();
        let socket = socket.as_ref().map(ListenSocket::try_clone).transpose()?;
        Ok(socket.map(|socket| (self.bind.to_string(), socket)))
    }

    /// Accepts no more; who is connected gets an answer. The file stays: it may be the next process' by now.
    pub fn close(&self) {
        self.socket.lock().take();
        self.closed.send_replace(true);
    }

    /// Returns when everybody who was connected has an answer, but waits for nobody who asks nothing.
    pub async fn answered(&self) {
        let _ = timeout(LAST_ANSWERS, self.closed.closed()).await;
    }

    async fn serve(self: Arc<Self>, client: UnixStream) {
        let _present = self.closed.subscribe();
        let allowed = is_allowed(&client);
        let mut session = ServerSession::new_http1(Box::new(Stream::from(client)));
        if !matches!(
            timeout(PATIENCE, session.read_request()).await,
            Ok(Ok(true))
        ) {
            return;
        }
        let answer = match allowed {
            true => self.answer(session.req_header()).await,
            false => Answer::no(Refusal::new(
                StatusCode::FORBIDDEN,
                "only weir's own user and root may ask",
            )),
        };
        let stops = answer.stops;
        if let Err(e) = write(&mut session, answer).await {
            return log::debug!("admin socket: {e}");
        }
        if stops {
            // An answer that fails to arrive must not leave the process running.
            let _ = self.orders.send(Order::Stop).await;
            // The kernel closes the connection when the process is gone. Nothing before that does.
            std::mem::forget(session);
        }
    }

    async fn answer(&self, request: &RequestHeader) -> Answer {
        let path = request.uri.path();
        let words: Vec<Cow<'_, str>> = path
            .split('/')
            .skip(1)
            .map(|word| percent_decode_str(word).decode_utf8_lossy())
            .collect();
        let words: Vec<&str> = words.iter().map(|word| &**word).collect();
        let method = request.method.as_str();
        match (words.as_slice(), method, request.uri.query()) {
            (["status"], "GET" | "HEAD", None) => {
                Answer::yes(Status::of(&self.live, SystemTime::now()).to_json())
            }
            (["ready"], "GET" | "HEAD", None) => Answer::ready(!self.live.is_draining()),
            (["reload"], "POST", query @ (None | Some("dry_run=true" | "upgrade=true"))) => {
                let (dry_run, upgrade) =
                    (query == Some("dry_run=true"), query == Some("upgrade=true"));
                self.order(|done| Order::Reload {
                    dry_run,
                    upgrade,
                    done,
                })
                .await
            }
            (["upgrade"], "POST", query) => match parse_upgrade(query.unwrap_or_default()) {
                Ok(wanted) => self.order(|done| Order::Upgrade { wanted, done }).await,
                Err(error) => Answer::no(Refusal::new(StatusCode::BAD_REQUEST, error)),
            },
            (
                [
                    "pools",
                    pool,
                    "members",
                    member,
                    what @ ("drain" | "undrain"),
                ],
                "POST",
                None,
            ) => {
                let (pool, member) = ((*pool).to_owned(), (*member).to_owned());
                let draining = *what == "drain";
                self.order(|done| Order::Drain {
                    pool,
                    member,
                    draining,
                    done,
                })
                .await
            }
            (["stop"], "POST", None) => Answer {
                stops: true,
                ..Answer::of(&Stopping {
                    process: std::process::id(),
                })
            },
            _ => Answer::no(Refusal::new(
                StatusCode::NOT_FOUND,
                format!(
                    "there is no `{method} {}` here",
                    request
                        .uri
                        .path_and_query()
                        .map_or(path, |all| all.as_str())
                ),
            )),
        }
    }

    /// Has an order carried out.
    async fn order<T: Serialize>(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Order,
    ) -> Answer {
        let (done, outcome) = oneshot::channel();
        // Either fails only when nobody takes orders any more.
        let _ = self.orders.send(order(done)).await;
        match outcome.await {
            Ok(Ok(outcome)) => Answer::of(&outcome),
            Ok(Err(refusal)) => Answer::no(refusal),
            Err(_) => Answer::no(Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this process is about to end",
            )),
        }
    }
}

/// `binary=/path&timeout=60s&probation=60s&max_5xx=1%25&max_p99=2x`, percent-encoded.
fn parse_upgrade(query: &str) -> Result<Upgrade, String> {
    let mut wanted = Upgrade::default();
    let mut terms = Terms::default();
    let (mut probation, mut limits) = (false, false);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = percent_decode_str(value);
        match name {
            "binary" => {
                let path: Vec<u8> = value.collect();
                wanted.binary = Some(OsString::from_vec(path).into());
            }
            "timeout" => wanted.timeout = Some(value.decode_utf8_lossy().parse()?),
            "probation" => {
                terms.length = value.decode_utf8_lossy().parse()?;
                probation = true;
            }
            "max_5xx" => {
                terms.max_5xx = value.decode_utf8_lossy().parse()?;
                limits = true;
            }
            "max_p99" => {
                terms.max_p99 = value.decode_utf8_lossy().parse()?;
                limits = true;
            }
            _ => return Err(format!("an upgrade has no `{name}`")),
        }
    }
    if limits && !probation {
        return Err("`max_5xx` and `max_p99` are limits of a `probation`".to_owned());
    }
    wanted.probation = probation.then_some(terms);
    Ok(wanted)
}

struct Answer {
    status: StatusCode,
    kind: &'static str,
    body: Vec<u8>,
    /// The process is to end, and the answer with it.
    stops: bool,
}

impl Answer {
    fn yes(json: Vec<u8>) -> Answer {
        Answer {
            status: StatusCode::OK,
            kind: "application/json",
            body: json,
            stops: false,
        }
    }

    /// Of `GET /ready`: plain text, for checks that look at it.
    fn ready(ready: bool) -> Answer {
        let (status, word) = match ready {
            true => (StatusCode::OK, "ready\n"),
            false => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        };
        Answer {
            status,
            kind: "text/plain",
            body: word.into(),
            stops: false,
        }
    }

    fn no(refusal: Refusal) -> Answer {
        Answer {
            status: refusal.status,
            ..Answer::of(&refusal)
        }
    }

    fn of(value: &impl Serialize) -> Answer {
        // Numbers, strings and lists of them: there is nothing in it that JSON cannot say.
        let mut json = serde_json::to_vec_pretty(value).unwrap_or_default();
        json.push(b'\n');
        Answer::yes(json)
    }
}

async fn write(session: &mut ServerSession, answer: Answer) -> pingora::Result<()> {
    let mut head = ResponseHeader::build(answer.status, Some(3))?;
    head.insert_header(header::CONTENT_TYPE, answer.kind)?;
    head.insert_header(header::CONNECTION, "close")?;
    if !answer.stops {
        head.insert_header(header::CONTENT_LENGTH, answer.body.len())?;
    }
    session.set_keepalive(None);
    session.write_response_header(Box::new(head)).await?;
    session
        .write_response_body(Bytes::from(answer.body), false)
        .await?;
    match answer.stops {
        true => Ok(()),
        false => session.finish_body().await,
    }
}

/// The permissions of the socket's file say the same, unless somebody changes them.
fn is_allowed(client: &UnixStream) -> bool {
    let us = nix::unistd::geteuid().as_raw();
    client
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == us || peer.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_for_an_upgrade_are_read() {
        assert_eq!(parse_upgrade(""), Ok(Upgrade::default()));
        let wanted = parse_upgrade("binary=%2Fopt%2Fa%20b%2Fweir&timeout=5s").unwrap();
        assert_eq!(wanted.binary, Some("/opt/a b/weir".into()));
        assert_eq!(
            wanted.timeout.map(|span| span.to_string()),
            Some("5s".to_owned())
        );
        assert_eq!(wanted.probation, None);
        let wanted = parse_upgrade("probation=2s&max_5xx=0.5%25").unwrap();
        let terms = wanted.probation.unwrap();
        assert_eq!(terms.length.to_string(), "2s");
        assert_eq!(terms.max_5xx.to_string(), "0.5%");
        assert_eq!(terms.max_p99, Terms::default().max_p99);
        assert!(parse_upgrade("max_p99=3x").is_err());
        assert!(parse_upgrade("timeout=soon").is_err());
        assert!(parse_upgrade("binarry=x").is_err());
    }
}
