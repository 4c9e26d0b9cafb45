//! Bringing up the next process beside this one, by command or by hand, and watching it until it serves.
//!
//! Everything here happens on a thread of its own, while this process serves as if nothing were happening.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{Shutdown, shutdown};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::daemon::PidFile;
use super::systemd;
use super::upgrade::{self, Heir};
use crate::net::bind::ListenSocket;
use crate::tls::TicketKeys;

/// How much of what a new process says is told when it fails.
const LAST_LINES: usize = 30;
/// How long a process that has let go of the sockets may take to end.
const TO_END: Duration = Duration::from_secs(1);

/// The listening sockets, by address.
pub type Sockets = Vec<(String, Arc<ListenSocket>)>;

/// How the next process is started.
pub struct Swapper {
    /// This program, as the one who replaces it would name it.
    pub program: PathBuf,
    pub file: PathBuf,
    /// Whether this process is in the background, by its command line.
    pub background: bool,
    /// Where one that is started by hand waits.
    pub upgrade_sock: PathBuf,
    pub pid_file: Option<Arc<PidFile>>,
    /// Made by this process, or by the ones before it.
    pub ticket_keys: Arc<TicketKeys>,
}

/// What the next process gets, by name.
type Estate = Vec<(String, Arc<dyn AsFd + Send + Sync>)>;

/// Why there is no new process; this one goes on.
#[derive(Debug)]
pub struct Failed {
    pub reason: String,
    /// The last that the new process wrote to standard error.
    pub last_words: Vec<String>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// A new process that is on its way.
pub struct Swap {
    /// `None`: nobody waits on `upgrade_sock`.
    outcome: oneshot::Receiver<Result<Option<Heir>, Failed>>,
    leash: Option<Arc<Leash>>,
}

/// Ends a new process that is not wanted any more.
struct Leash {
    socket: OwnedFd,
    pulled: AtomicBool,
}

impl Swap {
    /// Ends when the new process serves or has failed.
    pub async fn outcome(&mut self) -> Result<Option<Heir>, Failed> {
        let failed = |_| Failed::because("the thread that watches the new process has ended");
        (&mut self.outcome).await.unwrap_or_else(|e| Err(failed(e)))
    }

    /// Gives up, and returns when a process that this one started has ended.
    pub async fn abort(mut self) {
        let Some(leash) = &self.leash else {
            // One that was started by hand ends by itself, when it gets no sockets.
            return;
        };
        leash.pulled.store(true, Ordering::Release);
        // Whoever waits for a word of the new process learns that there will be none.
        let _ = shutdown(leash.socket.as_raw_fd(), Shutdown::Both);
        let _ = self.outcome().await;
    }
}

impl Swapper {
    /// Starts `program`, by default this one as it is on disk now, and has it take the sockets over.
    ///
    /// # Errors
    /// When this process is out of file descriptors or threads.
    pub fn start(
        &self,
        program: Option<PathBuf>,
        sockets: Sockets,
        limit: Duration,
    ) -> io::Result<Swap> {
        let (ours, theirs) = upgrade::pair()?;
        let leash = Arc::new(Leash {
            socket: ours.try_clone()?,
            pulled: AtomicBool::new(false),
        });
        let program = program.unwrap_or_else(|| self.program.clone());
        let mut arguments = vec!["-c".into(), self.file.clone().into_os_string(), "-u".into()];
        if self.background {
            arguments.push("-d".into());
        }
        log::info!("starting {} to take over", program.display());
        let birth = Birth {
            program,
            arguments,
            leash: leash.clone(),
            limit,
        };
        let estate = self.estate(sockets);
        let outcome = on_a_thread(move || birth.attend(ours, theirs, &estate).map(Some))?;
        Ok(Swap {
            outcome,
            leash: Some(leash),
        })
    }

    /// Looks for a process that was started by hand, and has it take the sockets over.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn find(&self, sockets: Sockets) -> io::Result<Swap> {
        let path = self.upgrade_sock.clone();
        let estate = self.estate(sockets);
        let outcome = on_a_thread(move || {
            upgrade::hand_over(&path, &estate).map_err(|e| Failed::because(e.to_string()))
        })?;
        Ok(Swap {
            outcome,
            leash: None,
        })
    }

    /// The sockets, and the keys of session tickets: clients go on resuming their sessions with the next process.
    fn estate(&self, sockets: Sockets) -> Estate {
        let sockets = sockets.into_iter();
        let mut estate: Estate = sockets
            .map(|(name, socket)| (name, socket as Arc<dyn AsFd + Send + Sync>))
            .collect();
        match ticket_keys_file(&self.ticket_keys) {
            Ok(file) => estate.push((upgrade::TICKET_KEYS.to_owned(), Arc::new(file))),
            Err(e) => log::warn!("keys of sessions are not handed over: {e}"),
        }
        estate
    }

    /// Whether there is another program now where this one was started from. Not while there is none: whoever replaces it
    /// in two steps is in between.
    pub fn is_replaced(&self) -> bool {
        self.program.exists() && !is_same_file(&self.program, Path::new("/proc/self/exe"))
    }

    /// Leaves everything to the new process.
    pub fn keep(heir: Heir) {
        // Before the new one is told: it speaks for itself then, and would not be listened to.
        systemd::main_process(heir.process);
        heir.keep();
    }

    /// Has the pid file name this process again, where a new one has put itself there that does not take over, or not yet.
    /// Whether it had.
    pub fn reclaim_pid_file(&self) -> bool {
        self.on_pid_file(PidFile::reclaim).unwrap_or_default()
    }

    /// Has the pid file name the process that takes over.
    pub fn give_pid_file(&self, heir: u32) {
        self.on_pid_file(|file| file.put(heir));
    }

    fn on_pid_file<T>(&self, change: impl FnOnce(&PidFile) -> io::Result<T>) -> Option<T> {
        let changed = change(self.pid_file.as_ref()?);
        changed
            .inspect_err(|e| log::warn!("cannot write the pid file: {e}"))
            .ok()
    }
}

/// A file that is nowhere but in memory.
fn ticket_keys_file(keys: &TicketKeys) -> io::Result<File> {
    let mut file = File::from(memfd_create("ticket keys", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&keys.to_bytes(Instant::now()))?;
    Ok(file)
}

/// Takes the keys of the process before this one.
///
/// # Errors
/// When it is not they that are in the file.
pub fn adopt_ticket_keys(keys: &TicketKeys, file: OwnedFd) -> io::Result<()> {
    let file = File::from(file);
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(TicketKeys::MAX_BYTES)];
    // The place that the writer has in it is shared.
    file.read_exact_at(&mut bytes, 0)?;
    match keys.adopt(&bytes, Instant::now()) {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let (done, outcome) = oneshot::channel();
    thread::Builder::new()
        .name("swap".to_owned())
        .spawn(move || done.send(work()).ok())?;
    Ok(outcome)
}

impl Failed {
    fn because(reason: impl Into<String>) -> Failed {
        Failed {
            reason: reason.into(),
            last_words: Vec::new(),
        }
    }
}

/// A new process from its start until it serves.
struct Birth {
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
    leash: Arc<Leash>,
    limit: Duration,
}

impl Birth {
    fn attend(self, ours: OwnedFd, theirs: OwnedFd, estate: &Estate) -> Result<Heir, Failed> {
        let deadline = Instant::now() + self.limit;
        let (mut child, words) = self
            .spawn(theirs)
            .map_err(|e| Failed::because(format!("{e:#}")))?;
        let stderr = io::stderr();
        let error = match upgrade::pass(ours, estate, Some(stderr.as_fd()), deadline) {
            Ok(mut heir) => {
                heir.child = Some(child);
                return Ok(heir);
            }
            Err(e) => e,
        };
        let patience = match error.kind() {
            _ if self.leash.pulled.load(Ordering::Acquire) => Duration::ZERO,
            io::ErrorKind::TimedOut => Duration::ZERO,
            _ => TO_END,
        };
        let ended = end(&mut child, patience);
        let reason = match ended {
            Ok(Some(status)) => format!("the new process ended before it served: {status}"),
            _ if self.leash.pulled.load(Ordering::Acquire) => {
                "this process was told to end".to_owned()
            }
            _ if error.kind() == io::ErrorKind::TimedOut => {
                format!("the new process did not serve within {:?}", self.limit)
            }
            _ => error.to_string(),
        };
        Err(Failed {
            reason,
            last_words: words.last(),
        })
    }

    fn spawn(&self, theirs: OwnedFd) -> anyhow::Result<(Child, Words)> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .stdin(theirs)
            .stderr(Stdio::piped());
        for variable in systemd::OF_THIS_PROCESS {
            command.env_remove(variable);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.program.display()))?;
        // With it goes the other end of the pair: only the child has it now.
        drop(command);
        let stderr = child
            .stderr
            .take()
            .context("its standard error is a pipe")?;
        Ok((child, Words::listen(stderr)?))
    }
}

/// Waits until a process has ended, and ends it if it takes longer than `patience`. `None`: it had to be ended.
fn end(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(Duration::from_millis(10));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

/// What a new process writes to standard error until it has that of this one: passed on, and the end of it kept.
struct Words {
    last: Arc<Mutex<VecDeque<String>>>,
    silence: mpsc::Receiver<()>,
}

impl Words {
    fn listen(stderr: ChildStderr) -> io::Result<Words> {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let (end, silence) = mpsc::channel();
        let kept = last.clone();
        thread::Builder::new()
            .name("swap-stderr".to_owned())
            .spawn(move || {
                // Dropped at the end.
                let _end: mpsc::Sender<()> = end;
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    let _ = writeln!(io::stderr(), "{line}");
                    let mut kept = kept.lock();
                    if kept.len() == LAST_LINES {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
            })?;
        Ok(Words { last, silence })
    }

    /// The last lines, once the process has ended. Not for ever: it may have left somebody behind who could still write.
    fn last(self) -> Vec<String> {
        let _ = self.silence.recv_timeout(TO_END);
        std::mem::take(&mut *self.last.lock()).into()
    }
}

/// The file that this program was started from. Not what it is a link to, and not where that file may have been moved:
/// whoever replaces the program puts the next one in its place.
///
/// # Errors
/// When the kernel does not tell.
pub fn program() -> io::Result<PathBuf> {
    let running = std::env::current_exe()?;
    let named = std::env::args_os().next().map(PathBuf::from);
    // A bare name was found in PATH, and any name may be a fancy of whoever started this process.
    let named = named.filter(|name| name.components().count() > 1 && is_same_file(name, &running));
    named.map_or(Ok(running), std::path::absolute)
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}
