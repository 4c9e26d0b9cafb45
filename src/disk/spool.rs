//! A body that is kept until it is wanted: in memory up to a size, and beyond that in a file without a name, of which nothing
//! is left when the process ends, in whichever way.
//!
//! Memory is what the file is written from: when it is full, all of it goes out at once, so that a body takes no more of it
//! than was said, and small pieces cost no system call each. No worker waits for the disk.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::overflow::{Overflow, Place};

/// How much is given out at a time.
const PIECE: u64 = 64 * 1024;

/// A body on its way in.
#[derive(Debug)]
pub struct Spool {
    /// How many bytes of it may be in memory.
    most: usize,
    /// What came last.
    held: Vec<u8>,
    /// All that came before.
    overflow: Overflow,
}

/// A body that is all there, and can be read as often as it is needed.
#[derive(Debug, Default)]
pub struct Spooled {
    overflow: Option<Overflow>,
    rest: Bytes,
    length: u64,
}

impl Spool {
    /// `memory` is how many bytes are held there; 0 would hold none.
    pub fn new(memory: usize, place: Arc<Place>) -> Spool {
        Spool {
            most: memory,
            held: Vec::new(),
            overflow: Overflow::new(place),
        }
    }

    /// # Errors
    /// What the file system says; that there is no room, in its words or those of [`Place::most`].
    pub async fn add(&mut self, mut piece: Bytes) -> io::Result<()> {
        while self.held.len() + piece.len() > self.most {
            let part = piece.split_to(self.most - self.held.len());
            self.hold(&part);
            self.write_out().await?;
        }
        self.hold(&piece);
        Ok(())
    }

    pub fn end(self) -> Spooled {
        let length = self.overflow.length() + self.held.len() as u64;
        Spooled {
            length,
            overflow: Some(self.overflow),
            rest: self.held.into(),
        }
    }

    fn hold(&mut self, part: &[u8]) {
        let needed = self.held.len() + part.len();
        if needed > self.held.capacity() {
            let room = (2 * self.held.capacity()).min(self.most).max(needed);
            self.held.reserve_exact(room - self.held.len());
        }
        self.held.extend_from_slice(part);
    }

    async fn write_out(&mut self) -> io::Result<()> {
        let held = std::mem::take(&mut self.held);
        let at = self.overflow.length();
        let (mut held, written) = self.overflow.write(held, at).await;
        held.clear();
        self.held = held;
        written
    }
}

impl Spooled {
    pub fn length(&self) -> u64 {
        self.length
    }

    /// What stands at `at`, as much as is convenient; nothing at the end.
    ///
    /// # Errors
    /// What the file system says.
    pub async fn read(&self, at: u64) -> io::Result<Bytes> {
        let before = self.overflow.as_ref().map_or(0, Overflow::length);
        match (&self.overflow, before.checked_sub(at)) {
            (Some(overflow), Some(left @ 1..)) => overflow.read(at, left.min(PIECE)).await,
            _ => Ok(self.read_rest(at - before)),
        }
    }

    fn read_rest(&self, at: u64) -> Bytes {
        let start = usize::try_from(at).map_or(self.rest.len(), |at| at.min(self.rest.len()));
        let end = self.rest.len().min(start + PIECE as usize);
        self.rest.slice(start..end)
    }

    /// Gives back memory and disk; what is known is the length.
    pub fn forget(&mut self) {
        self.overflow = None;
        self.rest = Bytes::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(most: u64) -> Arc<Place> {
        Arc::new(Place {
            dir: std::env::temp_dir(),
            most,
            used: Arc::default(),
        })
    }

    fn used(place: &Place) -> u64 {
        place.used.bytes()
    }

    async fn read(body: &Spooled) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let piece = body.read(bytes.len() as u64).await.unwrap();
            if piece.is_empty() {
                return bytes;
            }
            bytes.extend(piece);
        }
    }

    #[tokio::test]
    async fn body_comes_out_as_it_went_in_however_often_and_wherever_it_is() {
        for (memory, piece) in [(100, 7), (100, 100), (100, 1000), (10_000, 64), (70_000, 1)] {
            for length in [0, 1, 99, 100, 101, 200, 9_999, 10_000, 10_001, 150_000] {
                let whole: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
                let place = place(u64::MAX);
                let mut spool = Spool::new(memory, place.clone());
                for piece in whole.chunks(piece) {
                    spool.add(Bytes::copy_from_slice(piece)).await.unwrap();
                    assert!(spool.held.len() <= memory && spool.held.capacity() <= memory);
                }
                let mut body = spool.end();
                assert_eq!(body.length(), length as u64);
                assert_eq!(used(&place) > 0, length > memory, "{memory} {length}");
                for _ in 0..2 {
                    assert!(read(&body).await == whole, "{memory} {piece} {length}");
                }
                body.forget();
                assert_eq!((used(&place), body.length()), (0, length as u64));
            }
        }
    }

    #[tokio::test]
    async fn there_is_room_for_so_many_bytes_of_all_bodies() {
        let place = place(250);
        let spool = || Spool::new(100, place.clone());
        let (mut one, mut other) = (spool(), spool());
        one.add(Bytes::from(vec![1; 201])).await.unwrap();
        let error = other.add(Bytes::from(vec![1; 101])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        drop(one.end());
        let mut third = spool();
        third.add(Bytes::from(vec![1; 101])).await.unwrap();
        drop(other);
        assert_eq!(used(&place), 100);
        drop(third);
        assert_eq!(used(&place), 0);
    }

    #[tokio::test]
    async fn folder_that_is_not_there_takes_nothing() {
        let place = Arc::new(Place {
            dir: "/nowhere/at/all".into(),
            most: u64::MAX,
            used: Arc::default(),
        });
        let mut spool = Spool::new(10, place.clone());
        let error = spool.add(Bytes::from_static(b"eleven bytes")).await;
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(spool);
        assert_eq!(used(&place), 0);
    }
}
