//! Files without a name, for what memory has no room for: nothing of them is left when the process ends, in whichever way.

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

/// Where they are made.
#[derive(Debug)]
pub struct Place {
    pub dir: PathBuf,
    /// How many bytes may be there at a time.
    pub most: u64,
    /// How many are.
    pub used: Arc<Used>,
}

/// Bytes in files, of all that share this.
#[derive(Debug, Default)]
pub struct Used(AtomicU64);

impl Used {
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

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

/// One such file, made when something is written.
#[derive(Debug)]
pub struct Overflow {
    place: Arc<Place>,
    file: Option<Arc<File>>,
    length: u64,
}

impl Overflow {
    pub fn new(place: Arc<Place>) -> Overflow {
        Overflow {
            place,
            file: None,
            length: 0,
        }
    }

    /// How many bytes it has, and takes of its place.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Writes `bytes` to `at`, which is not behind the end, and gives them back, whatever came of it.
    ///
    /// # Errors
    /// What the file system says; that there is no room, in its words or those of [`Place::most`].
    pub async fn write(&mut self, bytes: Vec<u8>, at: u64) -> (Vec<u8>, io::Result<()>) {
        let length = self.length.max(at + bytes.len() as u64);
        if let Err(e) = self.place.used.take(length - self.length, self.place.most) {
            return (bytes, Err(e));
        }
        self.length = length;
        let (file, place) = (self.file.clone(), self.place.clone());
        let written = super::may_wait(move || {
            let written = match file {
                Some(file) => Ok(file),
                None => unnamed(&place.dir).map(Arc::new),
            }
            .and_then(|file| file.write_all_at(&bytes, at).map(|()| file));
            Ok((bytes, written))
        });
        match written.await {
            Ok((bytes, Ok(file))) => {
                self.file = Some(file);
                (bytes, Ok(()))
            }
            Ok((bytes, Err(e))) => (bytes, Err(e)),
            // The process ends.
            Err(e) => (Vec::new(), Err(e)),
        }
    }

    /// The `length` bytes at `at`, or fewer where that is more than is convenient.
    ///
    /// # Errors
    /// What the file system says; that there are none.
    pub async fn read(&self, at: u64, length: u64) -> io::Result<Bytes> {
        let end = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let file = self.file.as_ref().ok_or_else(end)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let piece = super::read(file, at, length).await?;
        match piece.is_empty() {
            true => Err(end()),
            false => Ok(piece),
        }
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        self.place.used.give_back(self.length);
        // A large one takes its time to be freed.
        if let (Some(file), Ok(runtime)) = (self.file.take(), Handle::try_current()) {
            runtime.spawn_blocking(move || drop(file));
        }
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
