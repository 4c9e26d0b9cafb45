//! The folder that files are served from: the only place that opens them, and nothing outside of the folder.
//!
//! Looking at a path and opening it afterwards cannot be made safe: a symbolic link can change in between. So the kernel
//! does both at once (`openat2` with `RESOLVE_BENEATH`), relative to a folder that was opened when the configuration was
//! loaded. Where the kernel or a sandbox does not know that call, each component is opened from the one before without
//! following links, which comes to the same. Only `symlinks: follow` gives that up, and only for links.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::dir::{Dir, OwningIter, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use schemars::JsonSchema;
use serde::Deserialize;

/// `O_NONBLOCK`: opening a FIFO must not wait for a writer. It has no effect on regular files.
const READ: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY)
    .union(OFlag::O_CLOEXEC);

/// A handle that only names a place: needs no permission to read, has no effect on devices.
const NAME: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);
const FOLDER: OFlag = NAME.union(OFlag::O_DIRECTORY);

/// Look up no further than the kernel's memory of names reaches; nix has no name for it.
const RESOLVE_CACHED: ResolveFlag = ResolveFlag::from_bits_retain(nix::libc::RESOLVE_CACHED);

/// How often a lookup is repeated that the kernel gave up because something was renamed meanwhile.
const ATTEMPTS: usize = 8;

/// Which symbolic links below the root are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Symlinks {
    /// Those that end within the root, however they are written.
    #[default]
    FollowInside,
    /// All, wherever they lead.
    Follow,
    /// None: what is behind a link is not there.
    Deny,
}

/// An open folder.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    symlinks: Symlinks,
    /// Whether `openat2` can be used; decided once, as it does not change under a running process.
    openat2: bool,
    /// Whether it can be told not to wait for the disk.
    knows_cached: bool,
}

/// A regular file, and what the kernel knew of it when it was opened.
pub type Opened = (File, Metadata);

/// What a path leads to.
#[derive(Debug)]
pub enum Found {
    File(Opened),
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

/// What a look at a file tells, without opening it. Not all that the kernel says: listings hold many of these.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    kind: SFlag,
    size: u64,
    modified: i64,
}

impl From<FileStat> for Facts {
    fn from(stat: FileStat) -> Facts {
        Facts {
            kind: SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT,
            // no file is smaller than nothing
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: stat.st_mtime,
        }
    }
}

impl Facts {
    pub fn is_file(self) -> bool {
        self.kind == SFlag::S_IFREG
    }

    pub fn is_folder(self) -> bool {
        self.kind == SFlag::S_IFDIR
    }

    pub fn is_link(self) -> bool {
        self.kind == SFlag::S_IFLNK
    }

    pub fn size(self) -> u64 {
        self.size
    }

    /// Seconds since 1970.
    pub fn modified(self) -> i64 {
        self.modified
    }
}

/// What is in a folder, entry by entry; names that are not UTF-8, which no request can name, are left out.
pub struct Children {
    folder: OwnedFd,
    entries: OwningIter,
}

pub struct Child {
    pub name: String,
    /// `None` where the file system does not tell it.
    pub kind: Option<Type>,
}

impl Children {
    /// About the entry itself, even if it is a link.
    pub fn facts(&self, name: &str) -> nix::Result<Facts> {
        fstatat(&self.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).map(Facts::from)
    }
}

impl Iterator for Children {
    type Item = Result<Child, Missing>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error.into())),
            };
            if let Ok(name) = entry.file_name().to_str() {
                return Some(Ok(Child {
                    name: name.to_owned(),
                    kind: entry.file_type(),
                }));
            }
        }
    }
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
    pub fn open(path: &Path, symlinks: Symlinks) -> nix::Result<Root> {
        let folder = open(path, FOLDER, Mode::empty())?;
        let resolve = ResolveFlag::RESOLVE_BENEATH;
        let openat2 = match resolved(folder.as_fd(), Path::new("."), FOLDER, resolve) {
            Ok(_) => true,
            // an old kernel; a sandbox whose list of calls is old
            Err(Errno::ENOSYS | Errno::EPERM) => false,
            Err(error) => return Err(error),
        };
        // Linux 5.12; any answer but this one comes from a kernel that has the flag
        let cached = resolved(
            folder.as_fd(),
            Path::new("."),
            FOLDER,
            resolve | RESOLVE_CACHED,
        );
        Ok(Root {
            knows_cached: openat2 && !matches!(cached, Err(Errno::EINVAL)),
            folder,
            symlinks,
            openat2,
        })
    }

    #[cfg(test)]
    pub fn symlinks(&self) -> Symlinks {
        self.symlinks
    }

    /// As on a kernel that does not know `openat2`.
    #[cfg(test)]
    pub fn without_openat2(mut self) -> Root {
        self.openat2 = false;
        self.knows_cached = false;
        self
    }

    /// Which folder it is, among all of this machine.
    pub fn identity(&self) -> nix::Result<(u64, u64)> {
        let stat = fstat(&self.folder)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Opens what stands at `relative`, which begins with no slash and holds no `..`.
    pub fn find(&self, relative: &str) -> Result<Found, Missing> {
        let relative = Path::new(relative);
        let file = match self.follow(relative, READ) {
            Ok(file) => File::from(file),
            // a folder that may be entered but not read is a folder still
            Err(Errno::EACCES) => return self.find_unreadable(relative),
            Err(error) => return Err(error.into()),
        };
        found(file)
    }

    /// As `find`, where that takes no disk; `None` where it may.
    pub fn find_known(&self, relative: &str) -> Option<Result<Found, Missing>> {
        let relative = or_itself(Path::new(relative));
        if !self.knows_cached || !relative.components().all(leads_down) {
            return None;
        }
        let resolve = self.boundary() | RESOLVE_CACHED;
        let how = OpenHow::new().flags(READ).resolve(resolve);
        match openat2(&self.folder, relative, how) {
            Ok(file) => Some(found(File::from(file))),
            Err(error @ (Errno::ENOENT | Errno::ENOTDIR)) => Some(Err(error.into())),
            // the kernel would have to look, or there is more to it
            Err(_) => None,
        }
    }

    /// What is in the folder `relative`.
    pub fn children(&self, relative: &str) -> Result<Children, Missing> {
        let folder = self.follow(Path::new(relative), READ | OFlag::O_DIRECTORY)?;
        Ok(Children {
            folder: folder.try_clone().map_err(broken)?,
            entries: Dir::from_fd(folder)?.into_iter(),
        })
    }

    /// About what stands at `relative`, at the end of its links.
    pub fn facts(&self, relative: &str) -> Result<Facts, Missing> {
        let end = self.follow(Path::new(relative), NAME)?;
        Ok(fstat(&end).map(Facts::from)?)
    }

    fn find_unreadable(&self, relative: &Path) -> Result<Found, Missing> {
        match self.follow(relative, FOLDER) {
            Ok(_) => Ok(Found::Folder),
            Err(_) => Err(Missing::Forbidden),
        }
    }

    fn follow(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        match self.symlinks {
            Symlinks::FollowInside => self.follow_inside(relative, flags),
            Symlinks::Follow => self.follow_anywhere(relative, flags),
            Symlinks::Deny => self.open_beneath(relative, flags),
        }
    }

    fn follow_inside(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
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

    /// Only a link may lead out of the folder, not the path.
    fn follow_anywhere(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let relative = or_itself(relative);
        if !relative.components().all(leads_down) {
            return Err(Errno::EXDEV);
        }
        match self.openat2 {
            true => resolved(self.folder.as_fd(), relative, flags, self.boundary()),
            false => openat(&self.folder, relative, flags, Mode::empty()),
        }
    }

    fn open_beneath(&self, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let relative = or_itself(relative);
        if !self.openat2 {
            return walk(self.folder.as_fd(), relative, flags);
        }
        resolved(self.folder.as_fd(), relative, flags, self.boundary())
    }

    /// What the kernel is to see to on its way.
    fn boundary(&self) -> ResolveFlag {
        match self.symlinks {
            Symlinks::Deny => ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH,
            Symlinks::FollowInside => {
                ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_BENEATH
            }
            Symlinks::Follow => ResolveFlag::RESOLVE_NO_MAGICLINKS,
        }
    }
}

fn found(file: File) -> Result<Found, Missing> {
    let metadata = file.metadata().map_err(broken)?;
    match metadata.file_type() {
        kind if kind.is_file() => Ok(Found::File((file, metadata))),
        kind if kind.is_dir() => Ok(Found::Folder),
        _ => Err(Missing::NotFound),
    }
}

fn resolved(
    folder: BorrowedFd<'_>,
    relative: &Path,
    flags: OFlag,
    resolve: ResolveFlag,
) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(flags).resolve(resolve);
    for _ in 1..ATTEMPTS {
        match openat2(folder, relative, how) {
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            result => return result,
        }
    }
    openat2(folder, relative, how)
}

/// No system call knows the folder itself by an empty path.
fn or_itself(relative: &Path) -> &Path {
    match relative.as_os_str().is_empty() {
        true => Path::new("."),
        false => relative,
    }
}

fn leads_down(component: Component<'_>) -> bool {
    matches!(component, Component::Normal(_) | Component::CurDir)
}

/// Component by component, following no link.
fn walk(folder: BorrowedFd<'_>, relative: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let mut above: Option<OwnedFd> = None;
    let mut components = relative.components().peekable();
    while let Some(component) = components.next() {
        if !leads_down(component) {
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
    let end = above.ok_or(Errno::ENOENT)?;
    // a handle that only names a place names the link, where any other would not be given
    if flags.contains(OFlag::O_PATH) && Facts::from(fstat(&end)?).is_link() {
        return Err(Errno::ELOOP);
    }
    Ok(end)
}

/// Where an open file stands now.
fn path_of(file: BorrowedFd<'_>) -> nix::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(|error| errno(&error))
}

/// Something went wrong with a file that is there.
pub fn broken(error: io::Error) -> Missing {
    Missing::Broken(errno(&error))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
