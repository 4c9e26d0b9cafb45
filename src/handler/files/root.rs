//! The folder that files are served from: the only place that opens them, and nothing outside of the folder.
//!
//! Looking at a path and opening it afterwards cannot be made safe: a symbolic link can change in between. So the kernel
//! does both at once (`openat2` with `RESOLVE_BENEATH`), relative to a folder that was opened when the configuration was
//! loaded. Where the kernel or a sandbox does not know that call, each component is opened from the one before without
//! following links, which comes to the same.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::Mode;

/// `O_NONBLOCK`: opening a FIFO must not wait for a writer. It has no effect on regular files.
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// A handle that only names a place: needs no permission to read, has no effect on devices.
const NAME: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
const FOLDER: OFlag = NAME.union(OFlag::O_DIRECTORY);

/// How often a lookup is repeated that the kernel gave up because something was renamed meanwhile.
const ATTEMPTS: usize = 8;

/// An open folder.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    /// Whether `openat2` can be used; decided once, as it does not change under a running process.
    openat2: bool,
}

/// What a path leads to.
#[derive(Debug)]
pub enum Found {
    File(File, Metadata),
    Folder,
}

/// Why there is nothing to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// Nothing that may be served is there: no such file, a special file, or a link that leads outside.
    NotFound,
    /// The permissions of the file or of a folder above it forbid it.
    Forbidden,
    /// It may be there, but something on this machine is exhausted or broken.
    Broken(Errno),
}

impl From<Errno> for Missing {
    fn from(error: Errno) -> Missing {
        match error {
            // EXDEV: leads outside. ENXIO: a socket, or a device without a driver. EINVAL: a NUL byte
            Errno::ENOENT | Errno::ENOTDIR | Errno::EXDEV | Errno::ENXIO | Errno::EINVAL => {
                Missing::NotFound
            }
            Errno::ELOOP | Errno::ENAMETOOLONG => Missing::NotFound,
            Errno::EACCES | Errno::EPERM => Missing::Forbidden,
            error => Missing::Broken(error),
        }
    }
}

impl Root {
    pub fn open(path: &Path) -> nix::Result<Root> {
        let folder = open(path, FOLDER, Mode::empty())?;
        let openat2 = match beneath(folder.as_fd(), Path::new("."), FOLDER) {
            Ok(_) => true,
            // an old kernel; a sandbox whose list of calls is old
            Err(Errno::ENOSYS | Errno::EPERM) => false,
            Err(error) => return Err(error),
        };
        Ok(Root { folder, openat2 })
    }

    /// As on a kernel that does not know `openat2`.
    #[cfg(test)]
    pub fn without_openat2(mut self) -> Root {
        self.openat2 = false;
        self
    }

    /// Opens what stands at `relative`, which begins with no slash and holds no `..`. Links are followed as long as
    /// they lead to something within the folder, however they are written.
    pub fn find(&self, relative: &str) -> Result<Found, Missing> {
        let relative = Path::new(relative);
        let file = match self.follow(relative, READ) {
            Ok(file) => File::from(file),
            // a folder that may be entered but not read is a folder still
            Err(Errno::EACCES) => return self.find_unreadable(relative),
            Err(error) => return Err(error.into()),
        };
        let metadata = file.metadata().map_err(broken)?;
        match metadata.file_type() {
            kind if kind.is_file() => Ok(Found::File(file, metadata)),
            kind if kind.is_dir() => Ok(Found::Folder),
            _ => Err(Missing::NotFound),
        }
    }

    fn find_unreadable(&self, relative: &Path) -> Result<Found, Missing> {
        match self.follow(relative, FOLDER) {
            Ok(_) => Ok(Found::Folder),
            Err(_) => Err(Missing::Forbidden),
        }
    }

    fn follow(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        match self.open_beneath(relative, flags) {
            // A link stopped it. `openat2` refuses absolute links, and those that climb out and come back in, even
            // when they end within the folder; without it, any link.
            Err(Errno::EXDEV) => self.open_beneath(&self.destination(relative)?, flags),
            Err(Errno::ELOOP | Errno::ENOTDIR) if !self.openat2 => {
                self.open_beneath(&self.destination(relative)?, flags)
            }
            result => result,
        }
    }

    /// Where `relative` ends when all links are followed, as a path from the folder without links. That is no more than
    /// a hint: whoever opens it goes beneath the folder again.
    fn destination(&self, relative: &Path) -> nix::Result<PathBuf> {
        let end = openat(&self.folder, relative, NAME, Mode::empty())?;
        let root = path_of(self.folder.as_fd())?;
        let inside = path_of(end.as_fd())?;
        let inside = inside.strip_prefix(root).map_err(|_| Errno::EXDEV)?;
        Ok(inside.to_owned())
    }

    fn open_beneath(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        // the folder itself
        let relative = match relative.as_os_str().is_empty() {
            true => Path::new("."),
            false => relative,
        };
        if self.openat2 {
            beneath(self.folder.as_fd(), relative, flags)
        } else {
            walk(self.folder.as_fd(), relative, flags)
        }
    }
}

fn beneath(folder: BorrowedFd<'_>, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    for _ in 1..ATTEMPTS {
        match openat2(folder, relative, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            result => return result,
        }
    }
    openat2(folder, relative, how)
}

/// Component by component, following no link.
fn walk(folder: BorrowedFd<'_>, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let mut above: Option<OwnedFd> = None;
    let mut components = relative.components().peekable();
    while let Some(component) = components.next() {
        if !matches!(component, Component::Normal(_) | Component::CurDir) {
            return Err(Errno::EXDEV);
        }
        let flags = match components.peek() {
            Some(_) => FOLDER,
            None => flags,
        };
        let from = above.as_ref().map_or(folder, |folder| folder.as_fd());
        above = Some(openat(
            from,
            component.as_os_str(),
            flags | OFlag::O_NOFOLLOW,
            Mode::empty(),
        )?);
    }
    above.ok_or(Errno::ENOENT)
}

/// Where an open file stands now.
fn path_of(file: BorrowedFd<'_>) -> nix::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|error| errno(&error))
}

fn broken(error: io::Error) -> Missing {
    Missing::Broken(errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
