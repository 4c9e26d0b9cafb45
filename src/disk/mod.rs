//! Files, read and written without stopping the worker that serves the request.
//!
//! What the kernel has in memory is read at once: handing that to another thread and back would cost several times the
//! read. Only what has to come from a disk is left to the pool of threads that may wait.

pub mod overflow;
pub mod spool;

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// How much the threads that may wait read at a time, where nobody wants the bytes themselves.
const SCRATCH: usize = 64 * 1024;

/// The `length` bytes at `at`, or fewer where the file is shorter.
///
/// # Errors
/// What the file system says.
pub async fn read(file: &Arc<File>, at: u64, length: usize) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(length);
    let known = read_known(file, &mut bytes, at)?;
    if known == length {
        return Ok(bytes.freeze());
    }
    let file = file.clone();
    may_wait(move || {
        let mut filled = known;
        while filled < length {
            match file.read_at(&mut bytes[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(filled);
        read_ahead(&file, at + length as u64, length);
        Ok(bytes.freeze())
    })
    .await
}

/// Sees to it that the kernel has the `length` bytes at `at` in memory, so that `sendfile` finds them there.
pub async fn bring_in(file: &Arc<File>, at: u64, length: usize) {
    if is_known(file, at, length) {
        return;
    }
    let file = file.clone();
    let read = may_wait(move || {
        let mut scratch = vec![0; SCRATCH.min(length)];
        let mut done = 0;
        while done < length {
            match file.read_at(&mut scratch, at + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        read_ahead(&file, at + length as u64, length);
        Ok(())
    });
    // Whatever is wrong with the file, its sender meets it again.
    let _ = read.await;
}

/// Whether the first and the last of these bytes are in memory; then so is what is between them, as far as one can tell
/// at the price of two system calls.
pub fn is_known(file: &File, at: u64, length: usize) -> bool {
    let last = at + (length as u64).saturating_sub(1);
    let is_known = |at| matches!(read_known(file, &mut [0], at), Ok(1));
    is_known(last) && is_known(at)
}

/// Reads what the kernel has in memory, from `at` on; 0 where it has nothing, or the file ends.
fn read_known(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut buffers = [IoSliceMut::new(buffer)];
    match preadv2(file, &mut buffers, at, ReadWriteFlags::NOWAIT) {
        Ok(read) => Ok(read),
        // Not in memory; interrupted; a file system or kernel that cannot tell.
        Err(Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// Starts to read what is asked for next, and does not wait for it.
fn read_ahead(file: &File, at: u64, length: usize) {
    if let (Ok(at), Ok(length)) = (at.try_into(), length.try_into()) {
        // An advice: where it is not taken, the next read waits a little longer.
        let _ = posix_fadvise(file, at, length, PosixFadviseAdvice::POSIX_FADV_WILLNEED);
    }
}

/// Leaves work that may wait for a disk to the pool of threads that may. It is done, whether or not anybody waits for it.
///
/// # Errors
/// What `work` says.
pub async fn may_wait<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|e| Err(io::Error::other(e)))
}
