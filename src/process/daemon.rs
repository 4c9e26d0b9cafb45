//! Going to the background, the pid file, and giving up root.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use caps::errors::CapsError;
use caps::{CapSet, Capability, CapsHashSet};
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::prctl;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, ForkResult, Gid, Group, Uid, User};

/// A process in the background, and its line to the one that started it, which waits in the foreground.
///
/// Until [`Background::ready`] it writes errors to the terminal, so that whoever started it sees what goes wrong, and
/// gets the exit status of it.
pub struct Background {
    /// `None` where nobody waits.
    parent: Option<File>,
    output: File,
}

/// Forks; returns in the child only. Must be called before any thread exists.
///
/// # Errors
/// When the process cannot be forked, the file for output cannot be opened, or there is no such folder.
pub fn fork(output: &Path, directory: &Path) -> anyhow::Result<Background> {
    let output = open(output)?;
    let (ready, parent) = unistd::pipe().context("cannot make a pipe")?;
    #[expect(unsafe_code, reason = "fork(2) has no safe form")]
    // SAFETY: no other thread exists yet, so the child may do anything the parent could.
    let forked = unsafe { unistd::fork() }.context("cannot fork")?;
    match forked {
        ForkResult::Parent { child } => {
            drop(parent);
            std::process::exit(wait_for(ready, child));
        }
        ForkResult::Child => {
            drop(ready);
            unistd::setsid().context("cannot leave the terminal's session")?;
            Background::leave(Some(File::from(parent)), output, directory)
        }
    }
}

/// Goes on in the background, where this process was started by one that is there.
///
/// # Errors
/// As [`fork`].
pub fn stay(output: &Path, directory: &Path) -> anyhow::Result<Background> {
    Background::leave(None, open(output)?, directory)
}

fn open(output: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(output)
        .with_context(|| format!("cannot open `{}`", output.display()))
}

/// Exit status for the foreground: 0 once the child is ready, its own if it ended before.
fn wait_for(ready: OwnedFd, child: nix::unistd::Pid) -> i32 {
    let mut byte = [0];
    if matches!(File::from(ready).read(&mut byte), Ok(1)) {
        return 0;
    }
    match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) => status,
        _ => super::EXIT_FAILED.into(),
    }
}

impl Background {
    fn leave(parent: Option<File>, output: File, directory: &Path) -> anyhow::Result<Background> {
        // At once: whoever opens standard output from here on (an access log, say) keeps what it is then.
        unistd::dup2_stdout(&output)?;
        unistd::dup2_stdin(File::open("/dev/null")?)?;
        std::env::set_current_dir(directory)
            .with_context(|| format!("cannot change to `{}`", directory.display()))?;
        Ok(Background { parent, output })
    }

    /// Lets the foreground return, and leaves its terminal.
    pub fn ready(mut self) {
        if let Err(e) = unistd::dup2_stderr(&self.output) {
            log::warn!("cannot leave the terminal: {e}");
        }
        if let Some(parent) = &mut self.parent {
            // If the foreground was killed meanwhile there is nobody to tell.
            let _ = parent.write_all(b"1");
        }
    }
}

/// The file that names this process; removed when it ends, unless a successor took it over.
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file, over one that a dead process has left.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(path: &Path) -> io::Result<PidFile> {
        let file = PidFile(path.to_owned());
        file.put(std::process::id())?;
        Ok(file)
    }

    /// Names this process again, where another one has put itself there. Whether one had.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn reclaim(&self) -> io::Result<bool> {
        let was_taken = !self.is_ours();
        if was_taken {
            self.put(std::process::id())?;
        }
        Ok(was_taken)
    }

    /// Names a process. Written beside and renamed: whoever reads it sees the old number or the new one, never a part.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put(&self, process: u32) -> io::Result<()> {
        // A name that no other process uses, and never a file, or a link, that somebody has put there: the folder may be
        // open to all, as `/tmp` is.
        let beside = self.0.with_added_extension(std::process::id().to_string());
        let _ = fs::remove_file(&beside);
        let mut file = File::create_new(&beside)?;
        writeln!(file, "{process}")
            .and_then(|()| fs::rename(&beside, &self.0))
            .inspect_err(|_| {
                let _ = fs::remove_file(&beside);
            })
    }

    fn is_ours(&self) -> bool {
        fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == std::process::id().to_string())
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.is_ours() {
            // Not ours to remove any more when root was given up: harmless, it names a dead process.
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Goes on as `user`, with the groups of that user (or `group` alone), once everything that needs root is done.
///
/// # Errors
/// When there is no such user or group, or this process may not become it.
pub fn become_user(user: Option<&str>, group: Option<&str>) -> anyhow::Result<()> {
    let user = user.map(find_user).transpose()?;
    let group = match group {
        Some(name) => Some(find_group(name)?),
        None => user.as_ref().map(|user| user.gid),
    };
    let already = user
        .as_ref()
        .is_none_or(|user| user.uid == Uid::effective())
        && group.is_none_or(|group| group == Gid::effective());
    if already {
        return Ok(());
    }
    if let Some(group) = group {
        match &user {
            Some(user) => {
                let name = std::ffi::CString::new(user.name.as_str())?;
                unistd::initgroups(&name, group).context("cannot set the groups")?;
            }
            None => unistd::setgroups(&[group]).context("cannot set the groups")?,
        }
        unistd::setgid(group).context("cannot change the group")?;
    }
    if let Some(user) = user {
        let low_ports = !user.uid.is_root()
            && caps::has_cap(None, CapSet::Permitted, LOW_PORTS).unwrap_or(false);
        // Of this thread and those that it starts from now on; the ones that write logs keep nothing.
        prctl::set_keepcaps(low_ports).context("cannot keep a capability")?;
        unistd::setuid(user.uid).with_context(|| format!("cannot become user `{}`", user.name))?;
        if low_ports {
            keep_low_ports().context("cannot keep a capability")?;
        }
    }
    Ok(())
}

/// The one thing of root's that is needed later: a reload may add port 443, and the next process opens what is new in
/// its file.
const LOW_PORTS: Capability = Capability::CAP_NET_BIND_SERVICE;

fn keep_low_ports() -> Result<(), CapsError> {
    let only = CapsHashSet::from([LOW_PORTS]);
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Permitted] {
        caps::set(None, set, &only)?;
    }
    // So that a new process has it that this one starts.
    caps::raise(None, CapSet::Ambient, LOW_PORTS)
}

/// Makes a file, or a socket, that of `user`, as whom this process goes on: to write it again, and so that the next
/// process can. Nothing where nobody but root could.
///
/// # Errors
/// When there is no such user, or root may not.
pub fn give(path: &Path, user: Option<&str>) -> anyhow::Result<()> {
    let Some(user) = user.map(find_user).transpose()? else {
        return Ok(());
    };
    // The folder may be that user's, who must not get what a link there leads to. Nor is `/dev/null` for anybody.
    let file = fs::symlink_metadata(path).ok();
    let is_own =
        |file: fs::Metadata| (file.is_file() && file.nlink() == 1) || file.file_type().is_socket();
    if !Uid::effective().is_root() || !file.is_some_and(is_own) {
        return Ok(());
    }
    let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
    unistd::fchownat(AT_FDCWD, path, Some(user.uid), None, flags)
        .with_context(|| format!("cannot give `{}` to user `{}`", path.display(), user.name))
}

/// The number of a user.
///
/// # Errors
/// When there is no such user.
pub fn id_of(user: Option<&str>) -> anyhow::Result<Option<u32>> {
    let user = user.map(find_user).transpose()?;
    Ok(user.map(|user| user.uid.as_raw()))
}

fn find_user(name: &str) -> anyhow::Result<User> {
    match User::from_name(name)? {
        Some(user) => Ok(user),
        None => bail!("user: no user named `{name}`"),
    }
}

fn find_group(name: &str) -> anyhow::Result<Gid> {
    match Group::from_name(name)? {
        Some(group) => Ok(group.gid),
        None => bail!("group: no group named `{name}`"),
    }
}
