//! A body that is kept until it is wanted: in memory up to a size, and beyond that in a file without a name, of which nothing
//! is left when the process ends, in whichever way.
//!
//! Memory is what the file is written from: when it is full, all of it goes out at once, so that a body takes no more of it
//! than was said, and small pieces cost no system call each. No worker waits for the disk.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::disk;

/// How much is given out at a time.
const PIECE: usize = 64 * 1024;

/// Where that goes which memory has no room for.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    /// How many bytes may be there at a time.
    pub most: u64,
    /// How many are.
    pub used: Arc<Used>,
}

/// Bytes in files, of all spools that share this.
#[derive(Debug, Default)]
pub struct Used(AtomicU64);

impl Used {
    fn take(&self, bytes: u64, most: u64) -> io::Result<()> {
        let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
        let taken = (self.0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.map(drop).map_err(|_| {
            let why =
                format!("the bodies that are kept there have {most} bytes, as many as they may");
            io::Error::new(io::ErrorKind::QuotaExceeded, why)
        })
    }

    fn give_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A file without a name, and how much of it is written.
#[derive(Debug)]
struct Overflow {
    /// There until it is dropped.
    file: Option<Arc<File>>,
    length: u64,
    used: Arc<Used>,
}

impl Drop for Overflow {
    fn drop(&mut self) {
        self.used.give_back(self.length);
        // A large one takes its time to be freed.
        if let (Some(file), Ok(runtime)) = (self.file.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(file));
        }
    }
}

/// A body on its way in.
#[derive(Debug)]
pub struct Spool {
    place: Arc<Place>,
    /// How many bytes of it may be in memory.
    most: usize,
    /// What came last.
    held: Vec<u8>,
    /// All that came before.
    overflow: Option<Overflow>,
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
            place,
            most: memory,
            held: Vec::new(),
            overflow: None,
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
        let before = self.overflow.as_ref().map_or(0, |file| file.length);
        Spooled {
            length: before + self.held.len() as u64,
            overflow: self.overflow,
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
        let mut held = std::mem::take(&mut self.held);
        let length = held.len() as u64;
        self.place.used.take(length, self.place.most)?;
        let overflow = self.overflow.get_or_insert_with(|| Overflow {
            file: None,
            length: 0,
            used: self.place.used.clone(),
        });
        let at = overflow.length;
        overflow.length += length;
        let (file, place) = (overflow.file.clone(), self.place.clone());
        let written = disk::may_wait(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(unnamed(&place.dir)?),
            };
            file.write_all_at(&held, at)?;
            held.clear();
            Ok((file, held))
        });
        let (file, held) = written.await?;
        overflow.file = Some(file);
        self.held = held;
        Ok(())
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
        let Some(Overflow { file, length, .. }) = &self.overflow else {
            return Ok(self.read_rest(at));
        };
        let (Some(file), Some(left @ 1..)) = (file, length.checked_sub(at)) else {
            return Ok(self.read_rest(at - length));
        };
        let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        let piece = disk::read(file, at, most).await?;
        match piece.is_empty() {
            true => Err(io::ErrorKind::UnexpectedEof.into()),
            false => Ok(piece),
        }
    }

    fn read_rest(&self, at: u64) -> Bytes {
        let start = usize::try_from(at).map_or(self.rest.len(), |at| at.min(self.rest.len()));
        let end = self.rest.len().min(start + PIECE);
        self.rest.slice(start..end)
    }

    /// Gives back memory and disk; what is known is the length.
    pub fn forget(&mut self) {
        self.overflow = None;
        self.rest = Bytes::new();
    }
}

/// A new file of a folder that nobody else finds.
///
/// # Errors
/// What the file system says.
pub fn unnamed(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // A file system that knows of none such, as NFS.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let path = dir.join(format!(".weir-{:016x}", fastrand::u64(..)));
            let mut options = OpenOptions::new();
            let options = options.read(true).write(true).create_new(true).mode(0o600);
            let file = options.open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(e) => Err(e.into()),
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
        place.used.0.load(Ordering::Relaxed)
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
