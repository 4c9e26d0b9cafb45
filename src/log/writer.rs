//! Logs, written off the request path.
//!
//! A request only appends its line to a buffer in memory; one thread per file writes the buffers out. On a quiet
//! server a line is in the file at once; on a busy one the thread writes at most once per second, or whenever 64 KiB
//! have come together. So a slow disk, a full one or a pipe that nobody reads never holds up a request: the buffers
//! are bounded, and what does not fit is dropped, counted and reported in the error log.
//!
//! The buffer is split into shards, and each thread keeps to one, so that appending takes one lock that is hardly
//! ever contended. The price is nginx's too: lines of different threads can be out of order within one flush.
//!
//! [`Writers`] outlives reloads: the same destination is the same open file, whichever configuration asks. Opening
//! starts a thread, and threads do not survive a fork: open logs only once the process has become a daemon.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::sink::{Destination, Sink};

/// All open logs of the process, by destination.
#[derive(Debug, Default)]
pub struct Writers(Mutex<HashMap<Destination, Weak<Writer>>>);

impl Writers {
    /// The writer of that destination, opened now unless it is open already. It closes with its last user, after it
    /// has written what it holds.
    pub fn open(&self, destination: &Destination) -> io::Result<Arc<Writer>> {
        let mut open = self.0.lock();
        if let Some(writer) = open.get(destination).and_then(Weak::upgrade) {
            return Ok(writer);
        }
        let writer = Arc::new(Writer::open(destination)?);
        open.retain(|_, writer| writer.strong_count() > 0);
        open.insert(destination.clone(), Arc::downgrade(&writer));
        Ok(writer)
    }

    /// Opens every file anew, for a tool that has renamed it. Where that fails the old file stays in use.
    pub fn reopen(&self) -> Result<(), Vec<(Destination, io::Error)>> {
        let mut failed = Vec::new();
        for writer in self.all() {
            if let Err(error) = writer.reopen() {
                failed.push((writer.destination().clone(), error));
            }
        }
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed)
        }
    }

    /// Writes what all buffers hold and waits for it, but no longer than `patience`: a pipe that nobody reads must
    /// not hold up the end of the process. False if that was too short.
    pub fn flush(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let writers = self.all();
        let tickets: Vec<u64> = writers
            .iter()
            .map(|writer| writer.request_flush())
            .collect();
        let mut done = writers.iter().zip(tickets);
        done.all(|(writer, ticket)| writer.wait_flushed(ticket, until))
    }

    fn all(&self) -> Vec<Arc<Writer>> {
        self.0.lock().values().filter_map(Weak::upgrade).collect()
    }
}

/// One open log.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Thread,
}

/// What requests and the thread that writes have in common.
#[derive(Debug)]
struct Shared {
    destination: Destination,
    shards: [Shard; SHARDS],
    /// Lines that did not fit since the last report.
    dropped: AtomicU64,
    /// The thread sleeps until somebody wakes it, because there was nothing to write.
    idle: AtomicBool,
    /// No writer is left: write the rest and end.
    closing: AtomicBool,
    /// How often a flush was asked for, and up to which of these all is written.
    flush_requests: AtomicU64,
    flushed: Mutex<u64>,
    flush_done: Condvar,
    output: Mutex<Output>,
}

/// Lines of the threads that use this shard. Apart from its neighbours, so that they do not share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(Mutex<Vec<u8>>);

#[derive(Debug)]
struct Output {
    sink: Sink,
    /// Taken from a shard and being written; after an error, what is still to be written.
    batch: Vec<u8>,
    /// The last write failed, and that was reported.
    failing: bool,
    /// When dropped lines were last reported.
    reported: Option<Instant>,
}

impl Output {
    fn write(&mut self) -> io::Result<()> {
        self.sink.write(&mut self.batch)
    }
}

impl Writer {
    fn open(destination: &Destination) -> io::Result<Writer> {
        let shared = Arc::new(Shared {
            destination: destination.clone(),
            shards: Default::default(),
            dropped: AtomicU64::new(0),
            idle: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            flush_requests: AtomicU64::new(0),
            flushed: Mutex::new(0),
            flush_done: Condvar::new(),
            output: Mutex::new(Output {
                sink: destination.open()?,
                batch: Vec::new(),
                failing: false,
                reported: None,
            }),
        });
        let writing = shared.clone();
        let thread = thread::Builder::new()
            .name("weir-log".to_owned())
            .spawn(move || writing.run())?;
        Ok(Writer {
            shared,
            thread: thread.thread().clone(),
        })
    }

    pub fn destination(&self) -> &Destination {
        &self.shared.destination
    }

    /// Takes over one or more whole lines; never waits for the disk.
    pub fn append(&self, lines: &[u8]) {
        let shared = &*self.shared;
        let mut buffer = shared.shards[shard()].0.lock();
        let held = buffer.len();
        if held + lines.len() > SHARD_LIMIT {
            drop(buffer);
            shared.dropped.fetch_add(count(lines), Ordering::Relaxed);
            return;
        }
        buffer.extend_from_slice(lines);
        drop(buffer);
        let full = held < FLUSH_SIZE && held + lines.len() >= FLUSH_SIZE;
        // the swap leaves it to one of many threads to wake the writer
        if full || shared.idle.load(Ordering::SeqCst) && shared.idle.swap(false, Ordering::SeqCst) {
            self.thread.unpark();
        }
    }

    fn reopen(&self) -> io::Result<()> {
        let Destination::File(_) = self.shared.destination else {
            return Ok(());
        };
        let sink = self.shared.destination.open()?;
        let mut output = self.shared.output.lock();
        // what happened before the file was renamed belongs into the renamed file
        self.shared.write_out(&mut output, Instant::now());
        output.sink = sink;
        Ok(())
    }

    fn request_flush(&self) -> u64 {
        let ticket = self.shared.flush_requests.fetch_add(1, Ordering::SeqCst) + 1;
        self.thread.unpark();
        ticket
    }

    fn wait_flushed(&self, ticket: u64, until: Instant) -> bool {
        let mut flushed = self.shared.flushed.lock();
        while *flushed < ticket {
            let wait = self.shared.flush_done.wait_until(&mut flushed, until);
            if wait.timed_out() {
                return *flushed >= ticket;
            }
        }
        true
    }
}

impl Drop for Writer {
    /// The thread ends by itself: a request that held the last snapshot must not wait for the disk here.
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

impl Shared {
    /// The life of the thread that writes.
    fn run(&self) {
        loop {
            // read before writing: what came before them is written when they are acted on
            let closing = self.closing.load(Ordering::SeqCst);
            let ticket = self.flush_requests.load(Ordering::SeqCst);
            let busy = self.write_out(&mut self.output.lock(), Instant::now());
            *self.flushed.lock() = ticket;
            self.flush_done.notify_all();
            if closing {
                return;
            }
            if busy {
                // leave the next lines a second to come together; a full shard ends the wait
                thread::park_timeout(FLUSH_INTERVAL);
                continue;
            }
            // a line is appended before `idle` is looked at, and `idle` set before the shards are looked at: so either
            // its thread sees that we sleep, or we see its line
            self.idle.store(true, Ordering::SeqCst);
            if self.is_empty() {
                thread::park();
            }
            self.idle.store(false, Ordering::SeqCst);
        }
    }

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.lock().is_empty())
    }

    /// Writes what the shards hold. After an error the rest of the batch waits for the next call, so that no line is
    /// torn, and the shards fill up meanwhile. True if there was something to write.
    fn write_out(&self, output: &mut Output, now: Instant) -> bool {
        let mut busy = !output.batch.is_empty();
        let mut result = output.write();
        for shard in &self.shards {
            if result.is_err() {
                break;
            }
            std::mem::swap(&mut *shard.0.lock(), &mut output.batch);
            busy |= !output.batch.is_empty();
            result = output.write();
        }
        // a burst must not be paid for in memory for ever
        if output.batch.is_empty() && output.batch.capacity() > 4 * FLUSH_SIZE {
            output.batch = Vec::new();
        }
        self.report(output, result, now);
        busy
    }

    /// Tells the error log once that the destination fails, and once that it works again; and about lines that were
    /// dropped, but not more often than once per minute.
    fn report(&self, output: &mut Output, result: io::Result<()>, now: Instant) {
        let destination = &self.destination;
        if let Err(error) = result {
            if !output.failing {
                log::error!(
                    "cannot write {destination}: {error}; lines wait in memory, and are dropped when it is full"
                );
            }
            output.failing = true;
            return;
        }
        let recovered = std::mem::take(&mut output.failing);
        let due = match output.reported {
            Some(last) => now.saturating_duration_since(last) >= REPORT_INTERVAL,
            None => true,
        };
        if recovered || due {
            let dropped = self.dropped.swap(0, Ordering::Relaxed);
            if dropped > 0 {
                output.reported = Some(now);
                log::warn!(
                    "{dropped} lines for {destination} were dropped: they came faster than it took them"
                );
            }
        }
        if recovered {
            log::warn!("{destination} is written again");
        }
    }
}

/// The shard of the calling thread. Threads are dealt out in turn.
fn shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static SHARD: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    SHARD.get()
}

fn count(lines: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', lines).count() as u64
}

const SHARDS: usize = 8;
/// A shard this full is written without waiting for the second to pass.
const FLUSH_SIZE: usize = 64 * 1024;
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// What a shard holds at most, as long as the writer cannot follow: a disk that stalls for a tenth of a second costs a
/// busy thread no line (100,000 lines of 220 bytes per second are 2 MiB in that time).
const SHARD_LIMIT: usize = 4 * 1024 * 1024;
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Read;
    use std::path::PathBuf;

    use super::*;

    /// A directory that is removed with the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("weir-log-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        fn destination(&self, name: &str) -> Destination {
            Destination::File(self.0.join(name))
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.0.join(name)).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
        let until = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < until, "{what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    #[test]
    fn a_line_on_a_quiet_server_is_written_at_once() {
        let scratch = Scratch::new("quiet");
        let writers = Writers::default();
        let writer = writers.open(&scratch.destination("a")).unwrap();
        eventually("idle", || writer.shared.idle.load(Ordering::SeqCst));
        writer.append(b"one\n");
        let started = Instant::now();
        eventually("written", || scratch.read("a") == "one\n");
        assert!(started.elapsed() < FLUSH_INTERVAL);
    }

    #[test]
    fn flush_waits_for_the_lines_of_all_threads() {
        let scratch = Scratch::new("threads");
        let writers = Writers::default();
        let writer = writers.open(&scratch.destination("a")).unwrap();
        thread::scope(|scope| {
            for n in 0..10 {
                let writer = &writer;
                scope.spawn(move || {
                    for i in 0..1000 {
                        writer.append(format!("{n} {i}\n").as_bytes());
                    }
                });
            }
        });
        assert!(writers.flush(PATIENCE));
        let text = scratch.read("a");
        assert_eq!(text.lines().count(), 10_000);
        // the lines of one thread keep their order
        for n in 0..10 {
            let of_thread: Vec<&str> = text
                .lines()
                .filter_map(|line| line.strip_prefix(&format!("{n} ")))
                .collect();
            let expected: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
            assert_eq!(of_thread, expected);
        }
    }

    #[test]
    fn the_same_destination_is_the_same_writer_until_its_last_user_goes() {
        let scratch = Scratch::new("same");
        let writers = Writers::default();
        let a = scratch.destination("a");
        let first = writers.open(&a).unwrap();
        let second = writers.open(&a).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(
            &first,
            &writers.open(&scratch.destination("b")).unwrap()
        ));
        first.append(b"last words\n");
        drop((first, second));
        eventually("written after the last user", || {
            scratch.read("a") == "last words\n"
        });
        assert!(writers.all().is_empty());
    }

    #[test]
    fn reopen_leaves_old_lines_in_the_renamed_file() {
        let scratch = Scratch::new("reopen");
        let writers = Writers::default();
        let writer = writers.open(&scratch.destination("a")).unwrap();
        writer.append(b"old\n");
        fs::rename(scratch.0.join("a"), scratch.0.join("a.1")).unwrap();
        writers.reopen().unwrap();
        writer.append(b"new\n");
        assert!(writers.flush(PATIENCE));
        assert_eq!(scratch.read("a.1"), "old\n");
        assert_eq!(scratch.read("a"), "new\n");
    }

    #[test]
    fn a_failed_reopen_names_the_file_and_keeps_the_old_one() {
        let scratch = Scratch::new("reopen-fails");
        let writers = Writers::default();
        let writer = writers.open(&scratch.destination("a")).unwrap();
        fs::rename(scratch.0.join("a"), scratch.0.join("a.1")).unwrap();
        fs::create_dir(scratch.0.join("a")).unwrap();
        let failed = writers.reopen().unwrap_err();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].0, scratch.destination("a"));
        writer.append(b"kept\n");
        assert!(writers.flush(PATIENCE));
        assert_eq!(scratch.read("a.1"), "kept\n");
    }

    /// A writer whose file is a pipe that is not read until the test does.
    fn piped() -> (Writers, Arc<Writer>, File) {
        let (read, write) = nix::unistd::pipe().unwrap();
        let writers = Writers::default();
        let writer = writers.open(&Destination::Stdout).unwrap();
        writer.shared.output.lock().sink = Sink::File(write.into());
        (writers, writer, read.into())
    }

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_but_never_waits() {
        let (writers, writer, mut read) = piped();
        let line = [b"x".repeat(999), b"\n".to_vec()].concat();
        // one thread uses one shard: what the thread has taken, what the pipe takes, and a full shard
        for _ in 0..10_000 {
            writer.append(&line);
        }
        let dropped = || writer.shared.dropped.load(Ordering::Relaxed);
        assert!(dropped() > 0);
        assert!(!writers.flush(Duration::from_millis(20)));
        let lost = dropped();
        drop((writers, writer));
        let mut text = Vec::new();
        read.read_to_end(&mut text).unwrap();
        assert_eq!(count(&text), 10_000 - lost);
        assert_eq!(text.len() as u64, 1000 * (10_000 - lost));
    }

    #[test]
    fn what_could_not_be_written_is_written_later_and_whole() {
        let scratch = Scratch::new("later");
        let writers = Writers::default();
        let writer = writers.open(&scratch.destination("a")).unwrap();
        // reading only: every write fails
        let broken = File::open(scratch.0.join("a")).unwrap();
        let whole = std::mem::replace(&mut writer.shared.output.lock().sink, Sink::File(broken));
        writer.append(b"one\n");
        assert!(writers.flush(PATIENCE));
        writer.append(b"two\n");
        assert!(writers.flush(PATIENCE));
        assert!(writer.shared.output.lock().failing);
        assert_eq!(scratch.read("a"), "");
        writer.shared.output.lock().sink = whole;
        assert!(writers.flush(PATIENCE));
        assert_eq!(scratch.read("a"), "one\ntwo\n");
        assert!(!writer.shared.output.lock().failing);
    }
}
