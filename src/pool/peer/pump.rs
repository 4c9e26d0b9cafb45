//! Reads an answer ahead of a client that takes it slowly, so that the backend is soon done with it.
//!
//! Pingora asks a stream for more only while there is room between the stream and the client, which is four pieces, however
//! small. So as soon as an answer turns out to be longer than what came at once, a task of its own reads, into memory, up to
//! the size that the request may have; the stream gives out what is there. What it gives out comes no later for that: nothing
//! waits for more to come.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use tokio::io::ReadBuf;
use tokio::task::JoinHandle;

use super::wire::Link;

/// How much is read at once; memory comes in pieces of this size.
const CHUNK: usize = 64 * 1024;

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
    /// Nothing more comes, for this reason or because that was all.
    end: Option<Option<io::Error>>,
    /// Who waits for something to be read, and who for room.
    reader: Option<Waker>,
    pump: Option<Waker>,
}

impl Pump {
    /// Reads `link` as far ahead as `most` bytes.
    pub fn start(link: Link, most: usize) -> Pump {
        let shared = Arc::new(Mutex::new(Shared {
            link: Some(link),
            read: Chunks::new(most),
            end: None,
            reader: None,
            pump: None,
        }));
        let pumped = shared.clone();
        Pump {
            shared,
            task: tokio::spawn(poll_fn(move |cx| pumped.lock().poll_pump(cx))),
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
            return match &mut shared.end {
                Some(why) => Poll::Ready(why.take().map_or(Ok(()), Err)),
                None => {
                    shared.reader = Some(cx.waker().clone());
                    Poll::Pending
                }
            };
        }
        shared.read.give(buf, most);
        shared.pump.take().inspect(Waker::wake_by_ref);
        Poll::Ready(Ok(()))
    }

    /// The connection, if all that was read of it was given out and it has not ended.
    pub fn stop(self) -> Option<Link> {
        let mut shared = self.shared.lock();
        let is_clean = shared.read.is_empty() && shared.end.is_none();
        shared.link.take().filter(|_| is_clean)
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn poll_pump(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(link) = &mut self.link else {
            return Poll::Ready(());
        };
        let Some(mut room) = self.read.room() else {
            self.pump = Some(cx.waker().clone());
            return Poll::Pending;
        };
        let read = ready!(link.poll_read(cx, &mut room));
        let count = room.filled().len();
        self.reader.take().inspect(Waker::wake_by_ref);
        match (read, count) {
            (Ok(()), 1..) => {
                self.read.took(count);
                // In a turn of its own, for who reads waits for this one.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            (read, _) => {
                self.end = Some(read.err());
                Poll::Ready(())
            }
        }
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

    /// Where more may be read to, unless there is enough.
    fn room(&mut self) -> Option<ReadBuf<'_>> {
        let room = self.most.saturating_sub(self.length());
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

    use super::super::wire::Io;
    use super::*;

    fn pump(most: usize) -> (Pump, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Pump::start(Link::new(Io::Unix(ours), false), most), theirs)
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
        let second = Pump::start(link, CHUNK);
        backend.write_all(b"more").await.unwrap();
        assert_eq!(read(&second, 2).await.unwrap(), b"mo");
        assert!(second.stop().is_none(), "a rest is left");
        assert_eq!(backend.read(&mut [0; 9]).await.unwrap(), 0, "it is closed");
    }
}
