//! The two services that weir registers on the Pingora server: the edge (listeners in front of `ProxyHttp`) and the
//! companion (listeners in front of files). Each owns its open sockets and follows the live snapshot.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::apps::HttpServerApp;
use pingora::server::{ListenFds, ShutdownWatch};
use pingora::services::Service;
use tokio::sync::{mpsc, watch};

use crate::net::bind::{Bind, ListenSocket};
use crate::net::connection::Shared;
use crate::net::gate::Refuse;
use crate::net::{Listener, Open, accept};
use crate::runtime::tasks::Tasks;
use crate::runtime::{Live, Part, Snapshot};

/// Sockets that are open but not yet served, by address.
pub type Opened = HashMap<Bind, ListenSocket>;

/// What the tasks of a service are told.
enum Event {
    /// Accept from this socket.
    Accept(Entrance),
    /// Run what this snapshot needs beside requests.
    Follow(Arc<Snapshot>),
    Drain,
}

/// What an accept loop runs on.
#[derive(Clone)]
struct Entrance {
    socket: Arc<ListenSocket>,
    open: Arc<Open>,
    listener: Arc<ArcSwap<Listener>>,
    draining: ShutdownWatch,
    accepting: Accepting,
}

/// An accept loop, counted until it has ended.
struct Accepting(Arc<AtomicUsize>);

impl Accepting {
    fn begin(count: &Arc<AtomicUsize>) -> Accepting {
        count.fetch_add(1, Ordering::Relaxed);
        Accepting(count.clone())
    }
}

impl Clone for Accepting {
    fn clone(&self) -> Accepting {
        Accepting::begin(&self.0)
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

/// What a service is told after the live snapshot changed.
pub struct Change {
    pub snapshot: Arc<Snapshot>,
    pub opened: Opened,
}

/// A service, seen from the outside. Doors open and close here, at once, so that whoever asks next sees them as they
/// are to be; the tasks behind them follow.
#[derive(Clone)]
pub struct Handle {
    pub part: Part,
    events: mpsc::UnboundedSender<Event>,
    doors: Arc<Mutex<Doors>>,
    live: Arc<Live>,
    tunnels: Arc<watch::Sender<bool>>,
    /// Accept loops that have not ended, or are about to begin.
    accepting: Arc<AtomicUsize>,
}

impl Handle {
    /// Opens, changes and closes doors until they are those of the snapshot.
    pub fn follow(&self, change: Change) {
        let Change {
            snapshot,
            mut opened,
        } = change;
        let mut doors = self.doors.lock();
        let mut wanted = HashMap::new();
        for listener in snapshot.listeners(self.part).values() {
            let listener = Arc::new(listener.clone());
            let binds = listener.binds.iter().cloned();
            wanted.extend(binds.map(|bind| (bind, listener.clone())));
        }
        doors.0.retain(|bind, door| {
            let stays = wanted.contains_key(bind);
            if !stays {
                log::info!("no longer listening on {bind}");
                let _ = door.drain.send(true);
                self.live.leave(door.open.clone());
            }
            stays
        });
        for (bind, listener) in wanted {
            if let Some(door) = doors.0.get(&bind) {
                door.listener.store(listener);
            } else if let Some(socket) = opened.remove(&bind) {
                log::info!("listening on {bind}");
                doors.0.insert(bind, self.open(socket, listener));
            }
        }
        self.tell(Event::Follow(snapshot));
    }

    fn open(&self, socket: ListenSocket, listener: Arc<Listener>) -> Door {
        let (socket, listener) = (Arc::new(socket), Arc::new(ArcSwap::new(listener)));
        let open = Open::new(self.live.crowd(self.part).clone());
        Door {
            drain: self.accept(&socket, &open, &listener),
            socket,
            open,
            listener,
        }
    }

    /// Accepts until it is told to drain.
    fn accept(
        &self,
        socket: &Arc<ListenSocket>,
        open: &Arc<Open>,
        listener: &Arc<ArcSwap<Listener>>,
    ) -> watch::Sender<bool> {
        let (drain, draining) = watch::channel(false);
        self.tell(Event::Accept(Entrance {
            socket: socket.clone(),
            open: open.clone(),
            listener: listener.clone(),
            draining,
            accepting: Accepting::begin(&self.accepting),
        }));
        drain
    }

    fn tell(&self, event: Event) {
        // Fails only when the service's runtime is gone, that is, when the process ends.
        let _ = self.events.send(event);
    }

    /// Connections that are open now.
    pub fn open_connections(&self) -> usize {
        self.live.crowd(self.part).open()
    }

    /// Whether there is, or may still come in, a connection to serve: an accept loop that has not yet heard of the
    /// drain takes whoever is next, and a process that ended then would reset that client.
    pub fn is_at_work(&self) -> bool {
        // In this order: a loop has counted its last connection before it ends.
        self.is_accepting() || self.open_connections() > 0
    }

    pub fn is_listening_on(&self, bind: &Bind) -> bool {
        self.doors.lock().0.contains_key(bind)
    }

    /// The listening sockets, by address as written.
    pub fn sockets(&self) -> Vec<(String, Arc<ListenSocket>)> {
        let doors = self.doors.lock();
        let each = doors.0.iter();
        each.map(|(bind, door)| (bind.to_string(), door.socket.clone()))
            .collect()
    }

    /// As [`Handle::drain`], but the sockets stay, on which another process accepts, and so does all that runs beside
    /// requests; [`Handle::resume`] takes it back.
    pub fn pause(&self) {
        for door in self.doors.lock().0.values() {
            let _ = door.drain.send(true);
        }
    }

    /// Accepts again. Connections that were told to close stay told.
    pub fn resume(&self) {
        for door in self.doors.lock().0.values_mut() {
            door.drain = self.accept(&door.socket, &door.open, &door.listener);
        }
    }

    /// Whether a connection may still come in.
    pub fn is_accepting(&self) -> bool {
        self.accepting.load(Ordering::Acquire) > 0
    }

    /// Stops accepting and lets every connection finish what it is at.
    pub fn drain(&self) {
        self.tell(Event::Drain);
        // The sockets close with the last of their holders; those of the accept loops end by this word.
        for (_, door) in self.doors.lock().0.drain() {
            let _ = door.drain.send(true);
        }
    }

    /// Has both sides of each WebSocket close it.
    pub fn close_tunnels(&self) {
        self.tunnels.send_replace(true);
    }
}

/// The listening sockets of a service, by address.
#[derive(Default)]
struct Doors(HashMap<Bind, Door>);

/// One listening socket in use.
struct Door {
    /// Kept to be handed to the next process.
    socket: Arc<ListenSocket>,
    open: Arc<Open>,
    listener: Arc<ArcSwap<Listener>>,
    drain: watch::Sender<bool>,
}

/// One of weir's two services.
pub struct ListenerService<A> {
    part: Part,
    threads: usize,
    tasks_per_socket: usize,
    shared: Arc<Shared<A>>,
    events: mpsc::UnboundedReceiver<Event>,
}

impl<A: HttpServerApp + Send + Sync + 'static> ListenerService<A> {
    pub fn new(
        part: Part,
        app: Arc<A>,
        refuse: Arc<dyn Refuse>,
        live: &Arc<Live>,
        threads: usize,
        tasks_per_socket: usize,
    ) -> (ListenerService<A>, Handle) {
        let (sender, events) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(app, refuse, live.crowd(part).clone()));
        let handle = Handle {
            part,
            events: sender,
            doors: Arc::default(),
            live: live.clone(),
            tunnels: shared.tunnels.clone(),
            accepting: Arc::default(),
        };
        let service = ListenerService {
            part,
            threads,
            tasks_per_socket,
            shared,
            events,
        };
        (service, handle)
    }

    fn accept(&self, entrance: Entrance) {
        for _ in 0..self.tasks_per_socket {
            let (shared, entrance) = (self.shared.clone(), entrance.clone());
            pingora_runtime::current_handle().spawn(async move {
                let Entrance {
                    socket,
                    open,
                    listener,
                    draining,
                    accepting: _accepting,
                } = entrance;
                if let Err(e) = accept::run(shared, &socket, open, listener, draining).await {
                    log::error!("cannot accept: {e}");
                }
            });
        }
    }
}

#[async_trait]
impl<A: HttpServerApp + Send + Sync + 'static> Service for ListenerService<A> {
    async fn start_service(
        &mut self,
        _fds: Option<ListenFds>,
        _shutdown: ShutdownWatch,
        _listeners_per_fd: usize,
    ) {
        let mut tasks = Tasks::default();
        while let Some(event) = self.events.recv().await {
            match event {
                Event::Accept(entrance) => self.accept(entrance),
                Event::Follow(snapshot) if self.part == Part::Edge => tasks.follow(&snapshot),
                Event::Follow(_) => {}
                // Ends the tasks as well: nothing new will be asked of the backends.
                Event::Drain => return,
            }
        }
    }

    fn name(&self) -> &str {
        match self.part {
            Part::Edge => "weir",
            Part::Companion => "weir-static",
        }
    }

    fn threads(&self) -> Option<usize> {
        Some(self.threads)
    }
}
