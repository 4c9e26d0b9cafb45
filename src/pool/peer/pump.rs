//! Reads an answer ahead of a client that takes it slowly, so that the backend is soon done with it.
//!
//! Pingora asks a stream for more only while there is room between the stream and the client, which is four pieces, however
//! small. So as soon as an answer turns out to be longer than what came at once, a task of its own reads, into memory, up to
//! the size that the request may have; the stream gives out what is there. What it gives out comes no later for that: nothing
//! waits for more to come.
//!
//! What memory has no room for may go to a file, whose bytes come back to memory as the client makes room there. The file is
//! a ring: where it is as long as it may be, or as there is room for, what has come back makes room for more.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::ReadBuf;
use tokio::task::JoinHandle;

use super::wire::Link;
use crate::disk::overflow::{Overflow, Place};
use crate::net::crowd::Occasions;

/// How much is read at once; memory comes in pieces of this size.
const CHUNK: usize = 64 * 1024;
/// How much is written to a file at once.
const BATCH: usize = 4 * CHUNK;

/// How far ahead of its client an answer is read.
#[derive(Clone, Debug)]
pub struct Ahead {
    /// In bytes.
    pub memory: usize,
    /// Where more goes to.
    pub disk: Option<Arc<Disk>>,
}

/// Room for answers on a disk.
#[derive(Debug)]
pub struct Disk {
    pub place: Arc<Place>,
    /// How many bytes of one answer may be there.
    pub most: u64,
    /// Times that there was none, which does not stop the answer.
    pub failures: Arc<Occasions>,
}

/// A connection that is read by a task of its own.
#[derive(Debug)]
pub(super) struct Pump {
    shared: Arc<Mutex<Shared>>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// There until the pump is stopped.
    link: Option<Link>,
    read: Chunks,
    /// What comes behind that, if it may.
    rest: Option<Rest>,
    /// Nothing more comes from the backend, for this reason or because that was all.
    end: Option<Option<io::Error>>,
    /// Who waits for something to be read, and who for room.
    reader: Option<Waker>,
    pump: Option<Waker>,
}

/// What is on disk of an answer, and what came after that.
#[derive(Debug)]
struct Rest {
    /// The bytes of the answer that are in the file, counted from its first one that went there.
    start: u64,
    end: u64,
    /// How long the ring is, a multiple of [`BATCH`]: a byte stands at its number modulo this.
    length: u64,
    /// What came last.
    late: Vec<u8>,
    /// How many bytes that is.
    held: usize,
    /// The file takes no more.
    closed: bool,
}

/// What the pump has to do next, other than to read the connection.
enum Step {
    Write { bytes: Vec<u8>, at: u64 },
    Load { at: u64, length: u64 },
    End,
}

impl Pump {
    /// Reads `link` as far ahead as that.
    pub fn start(link: Link, ahead: &Ahead) -> Pump {
        let shared = Arc::new(Mutex::new(Shared {
            link: Some(link),
            read: Chunks::new(ahead.memory),
            rest: ahead.disk.as_deref().map(Rest::new),
            end: None,
            reader: None,
            pump: None,
        }));
        Pump {
            shared: shared.clone(),
            task: tokio::spawn(pump(shared, ahead.disk.clone())),
        }
    }

    pub fn with_link<T>(&self, work: impl FnOnce(&mut Link) -> T) -> Option<T> {
        self.shared.lock().link.as_mut().map(work)
    }

    /// Gives out at most `most` bytes of what was read; nothing at the end.
    pub fn poll_read(
        &self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
        most: usize,
    ) -> Poll<io::Result<()>> {
        let mut shared = self.shared.lock();
        if shared.read.is_empty() {
            let has_rest = shared.has_rest();
            return match &mut shared.end {
                Some(why) if !has_rest => Poll::Ready(why.take().map_or(Ok(()), Err)),
                _ => {
                    shared.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        shared.read.give(buf, most);
        shared.pump.take().inspect(Waker::wake_by_ref);
        Poll::Ready(Ok(()))
    }

    /// Whether it is the file that is waited for, and not the backend.
    pub fn has_rest(&self) -> bool {
        self.shared.lock().has_rest()
    }

    /// The connection, if all that was read of it was given out and it has not ended.
    pub fn stop(self) -> Option<Link> {
        let mut shared = self.shared.lock();
        let is_clean = shared.read.is_empty() && !shared.has_rest() && shared.end.is_none();
        shared.link.take().filter(|_| is_clean)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pump(shared: Arc<Mutex<Shared>>, disk: Option<Arc<Disk>>) {
    let mut file = disk.as_ref().map(|disk| Overflow::new(disk.place.clone()));
    loop {
        let step = poll_fn(|cx| shared.lock().poll_step(cx)).await;
        // Without a place for it nothing is to be written.
        let (Some(disk), Some(file)) = (&disk, &mut file) else {
            return;
        };
        match step {
            Step::Write { bytes, at } => {
                let (bytes, written) = file.write(bytes, at).await;
                if let Err(e) = &written
                    && disk.failures.note(Instant::now())
                {
                    let count = disk.failures.count();
                    log::warn!("no room to read an answer further ahead, {count} so far: {e}");
                }
                shared.lock().written(bytes, written);
            }
            Step::Load { at, length } => {
                let loaded = file.read(at, length).await;
                if let Err(e) = &loaded {
                    log::error!("what was read ahead of an answer is lost: {e}");
                }
                shared.lock().loaded(loaded);
            }
            Step::End => return,
        }
    }
}

impl Shared {
    fn has_rest(&self) -> bool {
        self.rest.as_ref().is_some_and(|rest| !rest.is_empty())
    }

    /// Reads the connection until there is something else to do.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Step> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(Step::End);
        };
        if let Some(rest) = &mut self.rest
            && !rest.is_empty()
        {
            if let Some(load) = rest.next_load(self.read.free()) {
                return Poll::Ready(load);
            }
            if rest.come_forward(&mut self.read) {
                self.reader.take().inspect(Waker::wake_by_ref);
            }
        }
        let is_behind = self.rest.as_ref().is_some_and(|rest| !rest.is_empty());
        if self.end.is_some() && !is_behind {
            return Poll::Ready(Step::End);
        }
        let is_full = is_behind || self.read.free() == 0;
        if is_full {
            // Woken by whoever makes room.
            self.pump = Some(cx.waker().clone());
        }
        if self.end.is_some() {
            return Poll::Pending;
        }
        let room = match &mut self.rest {
            Some(rest) if is_full => {
                if let Some(write) = rest.next_write() {
                    return Poll::Ready(write);
                }
                rest.room()
            }
            _ => self.read.room(),
        };
        let Some(mut room) = room else {
            return Poll::Pending;
        };
        let read = ready!(link.poll_read(cx, &mut room));
        let count = room.filled().len();
        match (read, count) {
            (Ok(()), 1..) => match &mut self.rest {
                Some(rest) if is_full => rest.held += count,
                _ => self.read.took(count),
            },
            (read, _) => self.end = Some(read.err()),
        }
        if !self.has_rest() {
            self.reader.take().inspect(Waker::wake_by_ref);
        }
        // In a turn of its own, for who reads waits for this one.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// What came last went to the file, or did not and is to wait.
    fn written(&mut self, bytes: Vec<u8>, written: io::Result<()>) {
        let Some(rest) = &mut self.rest else {
            return;
        };
        rest.late = bytes;
        match written {
            Ok(()) => {
                rest.end += rest.held as u64;
                rest.held = 0;
            }
            Err(e) if rest.late.len() < rest.held => self.lose(e),
            Err(_) => rest.shrink(),
        }
    }

    /// So much came back from the file.
    fn loaded(&mut self, bytes: io::Result<Bytes>) {
        let Some(rest) = &mut self.rest else {
            return;
        };
        match bytes {
            Ok(bytes) => {
                self.read.take(&bytes);
                rest.start += bytes.len() as u64;
            }
            Err(e) => self.lose(e),
        }
        self.reader.take().inspect(Waker::wake_by_ref);
    }

    /// Ends the answer where something of it is lost: nothing comes behind that.
    fn lose(&mut self, why: io::Error) {
        self.rest = None;
        self.link = None;
        self.end = Some(Some(why));
        self.reader.take().inspect(Waker::wake_by_ref);
    }
}

impl Rest {
    fn new(disk: &Disk) -> Rest {
        Rest {
            length: disk.most - disk.most % BATCH as u64,
            start: 0,
            end: 0,
            late: Vec::new(),
            held: 0,
            closed: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end && self.held == 0
    }

    /// The next bytes of the file, if there is room for them.
    fn next_load(&self, room: usize) -> Option<Step> {
        let length = (self.end - self.start).min(CHUNK as u64);
        if length == 0 || length > room as u64 {
            return None;
        }
        let at = self.start % self.length;
        let length = length.min(self.length - at);
        Some(Step::Load { at, length })
    }

    /// What came last follows what is in memory already, as far as there is room, unless the file comes before it.
    fn come_forward(&mut self, read: &mut Chunks) -> bool {
        let count = self.held.min(read.free());
        if self.start < self.end || count < self.held.min(CHUNK) {
            return false;
        }
        read.take(&self.late[..count]);
        self.late.copy_within(count..self.held, 0);
        self.held -= count;
        true
    }

    /// What came last, when that is as much as is written at once and the file takes it.
    fn next_write(&mut self) -> Option<Step> {
        let used = self.end - self.start;
        let fits = used + BATCH as u64 <= self.length;
        (self.held == BATCH && fits && !self.closed).then(|| Step::Write {
            bytes: std::mem::take(&mut self.late),
            at: self.end % self.length,
        })
    }

    /// The file did not take what came last. It makes do with what it has, if that is anything.
    fn shrink(&mut self) {
        match 0 < self.end && self.end < self.length {
            true => self.length = self.end,
            false => self.closed = true,
        }
    }

    fn room(&mut self) -> Option<ReadBuf<'_>> {
        self.late.resize(BATCH, 0);
        let end = BATCH.min(self.held + CHUNK);
        (self.held < BATCH).then(|| ReadBuf::new(&mut self.late[self.held..end]))
    }
}

/// Bytes in the order in which they came.
#[derive(Debug)]
struct Chunks {
    chunks: VecDeque<Box<[u8]>>,
    /// Where those that are not given out begin, in the first chunk.
    start: usize,
    /// Where they end, in the last one.
    end: usize,
    most: usize,
}

impl Chunks {
    fn new(most: usize) -> Chunks {
        Chunks {
            chunks: VecDeque::new(),
            start: 0,
            end: CHUNK,
            most,
        }
    }

    fn length(&self) -> usize {
        (self.chunks.len() * CHUNK + self.end).saturating_sub(CHUNK + self.start)
    }

    fn is_empty(&self) -> bool {
        self.length() == 0
    }

    /// How much more they may be.
    fn free(&self) -> usize {
        self.most.saturating_sub(self.length())
    }

    /// Where more may be read to, unless there is enough.
    fn room(&mut self) -> Option<ReadBuf<'_>> {
        let room = self.free();
        if room == 0 {
            return None;
        }
        if self.end == CHUNK {
            self.chunks.push_back(vec![0; CHUNK].into());
            self.end = 0;
        }
        let end = CHUNK.min(self.end + room);
        let last = self.chunks.back_mut()?;
        Some(ReadBuf::new(&mut last[self.end..end]))
    }

    /// So many bytes were read there.
    fn took(&mut self, count: usize) {
        self.end += count;
    }

    /// Puts as many of `bytes` behind the others as there is room for.
    fn take(&mut self, mut bytes: &[u8]) {
        while let Some(mut room) = self.room()
            && !bytes.is_empty()
        {
            let (now, later) = bytes.split_at(bytes.len().min(room.remaining()));
            room.put_slice(now);
            self.took(now.len());
            bytes = later;
        }
    }

    fn give(&mut self, buf: &mut ReadBuf<'_>, most: usize) {
        let mut most = most.min(buf.remaining());
        while let Some(first) = self.chunks.front() {
            let end = match self.chunks.len() {
                1 => self.end,
                _ => CHUNK,
            };
            let count = most.min(end - self.start);
            buf.put_slice(&first[self.start..self.start + count]);
            most -= count;
            self.start += count;
            if self.start < end {
                return;
            }
            self.chunks.pop_front();
            self.start = 0;
        }
        self.end = CHUNK;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::sync::watch;

    use super::super::wire::Io;
    use super::*;

    fn pump(most: usize) -> (Pump, UnixStream) {
        pump_ahead(&Ahead {
            memory: most,
            disk: None,
        })
    }

    fn pump_ahead(ahead: &Ahead) -> (Pump, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Pump::start(Link::new(Io::Unix(ours), false), ahead), theirs)
    }

    async fn read(pump: &Pump, most: usize) -> io::Result<Vec<u8>> {
        poll_fn(|cx| {
            let mut bytes = vec![0; most];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(pump.poll_read(cx, &mut buf, most))?;
            let count = buf.filled().len();
            bytes.truncate(count);
            Poll::Ready(Ok(bytes))
        })
        .await
    }

    #[test]
    fn bytes_come_out_in_order_and_no_more_are_held_than_may_be() {
        for most in [1, 1000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5] {
            let mut chunks = Chunks::new(most);
            let (mut written, mut given) = (0u64, 0u64);
            for step in 0..600usize {
                let size = step * 7919 % (2 * CHUNK);
                if step % 3 != 0 {
                    if let Some(mut room) = chunks.room() {
                        let count = room.remaining().min(size);
                        for i in 0..count as u64 {
                            room.put_slice(&[((written + i) % 251) as u8]);
                        }
                        chunks.took(count);
                        written += count as u64;
                    } else {
                        assert_eq!(chunks.length(), most);
                    }
                } else {
                    let mut bytes = vec![0; size];
                    let mut buf = ReadBuf::new(&mut bytes);
                    chunks.give(&mut buf, size);
                    for byte in buf.filled() {
                        assert_eq!(u64::from(*byte), given % 251);
                        given += 1;
                    }
                }
                assert_eq!(chunks.length() as u64, written - given);
                assert!(chunks.chunks.len() <= most / CHUNK + 2);
            }
        }
    }

    #[tokio::test]
    async fn what_nobody_asks_for_is_read_up_to_the_size() {
        let (pump, mut backend) = pump(1 << 20);
        backend.write_all(&vec![7; 1 << 20]).await.unwrap();
        let more = vec![7; 1 << 20];
        let wait = Duration::from_millis(100);
        let sent = tokio::time::timeout(wait, backend.write_all(&more)).await;
        assert!(sent.is_err(), "more than fits");
        let mut count = 0;
        while count < 1 << 20 {
            count += read(&pump, 10_000).await.unwrap().len();
        }
    }

    /// Memory for one chunk, and a disk with so many bytes for one answer and for all.
    fn disk(one: u64, all: u64) -> Ahead {
        Ahead {
            memory: CHUNK,
            disk: Some(Arc::new(Disk {
                place: Arc::new(Place {
                    dir: std::env::temp_dir(),
                    most: all,
                    used: Arc::default(),
                }),
                most: one,
                failures: Arc::default(),
            })),
        }
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i % 251) as u8).collect()
    }

    /// What comes of `work`, which is not to hang.
    async fn soon<T>(work: impl Future<Output = T>) -> T {
        let done = tokio::time::timeout(Duration::from_secs(30), work).await;
        done.expect("it goes on")
    }

    async fn read_all(pump: &Pump, length: usize) -> Vec<u8> {
        let mut got = Vec::new();
        while got.len() < length {
            // sizes of which no buffer is a multiple
            let most = 1 + got.len() % 100_003;
            got.extend(soon(read(pump, most)).await.unwrap());
        }
        got
    }

    #[tokio::test]
    async fn what_memory_has_no_room_for_comes_back_from_disk() {
        let ahead = disk(8 << 20, u64::MAX);
        let used = ahead.disk.as_ref().unwrap().place.used.clone();
        let (pump, mut backend) = pump_ahead(&ahead);
        let whole = pattern(8 << 20);
        for _ in 0..3 {
            soon(backend.write_all(&whole)).await.unwrap();
            assert!(read_all(&pump, whole.len()).await == whole);
        }
        assert!(used.bytes() > 7 << 20);
        assert!(pump.stop().is_some());
        soon(async {
            while used.bytes() > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn disk_is_used_again_as_soon_as_there_is_room() {
        // as much as the file may have, or as there is for all files
        for ahead in [disk(1 << 20, u64::MAX), disk(8 << 20, 1 << 20)] {
            let (pump, mut backend) = pump_ahead(&ahead);
            let whole = pattern(6 << 20);
            let (sent, mut sending) = watch::channel(0);
            let bytes = whole.clone();
            tokio::spawn(async move {
                for part in bytes.chunks(CHUNK) {
                    backend.write_all(part).await.unwrap();
                    sent.send_modify(|count| *count += part.len());
                }
                backend
            });
            let mut got = Vec::new();
            for step in 1..=5 {
                let on_its_way = sending.wait_for(|count| *count >= step << 20);
                soon(on_its_way).await.unwrap();
                got.extend(read_all(&pump, (step << 20) - got.len()).await);
            }
            assert!(whole.starts_with(&got));
            assert!(ahead.disk.unwrap().place.used.bytes() <= (1 << 20) + BATCH as u64);
        }
    }

    #[tokio::test]
    async fn disk_without_any_room_loses_nothing() {
        let ahead = disk(8 << 20, 0);
        let (pump, mut backend) = pump_ahead(&ahead);
        let whole = pattern(4 << 20);
        let sent = whole.clone();
        let sending = tokio::spawn(async move { backend.write_all(&sent).await });
        let disk = ahead.disk.unwrap();
        soon(async {
            while disk.failures.count() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert!(read_all(&pump, whole.len()).await == whole);
        soon(sending).await.unwrap().unwrap();
        assert_eq!(disk.failures.count(), 1, "it is tried once");
    }

    #[tokio::test]
    async fn end_and_its_reason_come_last() {
        let (pump, mut backend) = pump(CHUNK);
        backend.write_all(b"all").await.unwrap();
        drop(backend);
        assert_eq!(read(&pump, 2).await.unwrap(), b"al");
        assert_eq!(read(&pump, 9).await.unwrap(), b"l");
        assert_eq!(read(&pump, 9).await.unwrap(), b"");
        assert_eq!(read(&pump, 9).await.unwrap(), b"");
        assert!(pump.stop().is_none(), "it has ended");
    }

    #[tokio::test]
    async fn connection_comes_back_when_all_was_given_out() {
        let (first, mut backend) = pump(CHUNK);
        backend.write_all(b"all").await.unwrap();
        assert_eq!(read(&first, 9).await.unwrap(), b"all");
        let link = first.stop().expect("the connection");
        let ahead = Ahead {
            memory: CHUNK,
            disk: None,
        };
        let second = Pump::start(link, &ahead);
        backend.write_all(b"more").await.unwrap();
        assert_eq!(read(&second, 2).await.unwrap(), b"mo");
        assert!(second.stop().is_none(), "a rest is left");
        assert_eq!(backend.read(&mut [0; 9]).await.unwrap(), 0, "it is closed");
    }
}
