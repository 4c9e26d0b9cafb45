//! Clients that keep asking while something happens to the server, and tell whether any request failed.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::client::{Connection, Http2, Response, get};
use super::wait::{PATIENCE, eventually};

/// How the requests of a load travel.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// All on one connection, for as long as the server keeps it.
    KeepAlive,
    /// Each on a connection of its own.
    Fresh,
    /// As `KeepAlive`, by HTTP/2 on TLS.
    Http2,
}

/// `GET /` over and over, by several clients at once.
pub struct Load {
    progress: Arc<Progress>,
    clients: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Progress {
    stop: AtomicBool,
    answered: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

/// No load outlives this, whatever becomes of its test.
const LONGEST: Duration = Duration::from_secs(60);

/// Between two requests of a client, so that a load leaves the machine some time for the server.
const PAUSE: Duration = Duration::from_millis(1);

impl Load {
    pub fn start(kind: Kind, address: SocketAddr, clients: usize) -> Load {
        let progress = Arc::new(Progress::default());
        let clients = (0..clients).map(|_| {
            let progress = Arc::clone(&progress);
            thread::spawn(move || progress.ask(kind, address))
        });
        Load {
            clients: clients.collect(),
            progress,
        }
    }

    /// Waits for `count` more answers.
    #[track_caller]
    pub fn wait_for_answers(&self, count: usize) {
        let before = self.progress.answered.load(Ordering::Relaxed);
        eventually(PATIENCE, || {
            self.progress.answered.load(Ordering::Relaxed) >= before + count || self.has_failed()
        });
    }

    fn has_failed(&self) -> bool {
        !self.progress.failures().is_empty()
    }

    /// Stops asking; every request must have been answered by 200 in full.
    #[track_caller]
    pub fn stop_without_failure(self) {
        self.progress.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().expect("a client does not panic");
        }
        let failures = self.progress.failures();
        let answered = self.progress.answered.load(Ordering::Relaxed);
        assert!(answered > 0, "no request was made");
        assert!(
            failures.is_empty(),
            "{} failures beside {answered} answers: {:#?}",
            failures.len(),
            &failures[..failures.len().min(10)]
        );
    }
}

impl Progress {
    fn ask(&self, kind: Kind, address: SocketAddr) {
        let end = Instant::now() + LONGEST;
        let mut connection = None;
        while !self.stop.load(Ordering::Relaxed) && Instant::now() < end {
            match exchange(kind, address, &mut connection) {
                Ok(answer) if answer.status == 200 && answer.complete => {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(answer) => self.fail(format!("{kind:?}: {answer:?}")),
                // the server had announced to close, and nothing was sent
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => self.fail(format!("{kind:?}: {error}")),
            }
            thread::sleep(PAUSE);
        }
    }

    fn fail(&self, failure: String) {
        self.failures
            .lock()
            .expect("no holder panics")
            .push(failure);
    }

    fn failures(&self) -> Vec<String> {
        self.failures.lock().expect("no holder panics").clone()
    }
}

/// What a client holds on to between two requests.
enum Kept {
    Http1(Connection),
    Http2(Http2),
}

/// One request; leaves the connection in `kept` where another one may follow on it.
fn exchange(kind: Kind, address: SocketAddr, kept: &mut Option<Kept>) -> io::Result<Response> {
    let connection = match (kept.take(), kind) {
        (Some(connection), _) => connection,
        (None, Kind::Http2) => Kept::Http2(Http2::connect(address, "localhost")?),
        (None, _) => Kept::Http1(Connection::tcp(address)?),
    };
    match connection {
        Kept::Http1(mut client) => {
            let answer = client.fetch(&get("/"))?;
            let closes = answer.header("connection") == Some("close");
            if matches!(kind, Kind::KeepAlive) && !closes {
                *kept = Some(Kept::Http1(client));
            }
            Ok(answer)
        }
        Kept::Http2(mut client) => {
            let answer = client.fetch(&get("/"))?;
            *kept = Some(Kept::Http2(client));
            Ok(answer)
        }
    }
}
