//! Going to the background, the pid file, and giving up root.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{self, ForkResult, Gid, Group, Uid, User};

/// The background process' line to the one that started it, which waits in the foreground.
///
/// Until [`Background::ready`] the background process writes errors to the terminal, so that whoever started it sees
/// what goes wrong, and gets the exit status of it.
pub struct Background {
    parent: File,
    output: File,
    directory: PathBuf,
}

/// Forks; returns in the child only. Must be called before any thread exists.
///
/// # Errors
/// When the process cannot be forked, or the file for output cannot be opened.
pub fn fork(output: &Path, directory: PathBuf) -> anyhow::Result<Background> {
    let output = OpenOptions::new()
        .create(true)
        .append(true)
        .open(output)
        .with_context(|| format!("cannot open `{}`", output.display()))?;
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
            // At once: whoever opens standard output from here on (an access log, say) keeps what it is then.
            unistd::dup2_stdout(&output)?;
            Ok(Background {
                parent: File::from(parent),
                output,
                directory,
            })
        }
    }
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
    /// Lets the foreground return, and leaves its terminal and folder.
    ///
    /// # Errors
    /// When there is no such folder.
    pub fn ready(mut self) -> anyhow::Result<()> {
        std::env::set_current_dir(&self.directory)
            .with_context(|| format!("cannot change to `{}`", self.directory.display()))?;
        unistd::dup2_stdin(File::open("/dev/null")?)?;
        unistd::dup2_stderr(&self.output)?;
        // If the foreground was killed meanwhile there is nobody to tell.
        let _ = self.parent.write_all(b"1");
        Ok(())
    }
}

/// The file that names this process; removed when it ends, unless a successor took it over.
pub struct PidFile(PathBuf);

impl PidFile {
    /// # Errors
    /// When the file cannot be written.
    pub fn write(path: &Path) -> io::Result<PidFile> {
        // Written beside and renamed: whoever reads it sees the old number or the new one, never a part.
        let beside = path.with_added_extension("new");
        fs::write(&beside, format!("{}\n", std::process::id()))?;
        fs::rename(&beside, path)?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = fs::read_to_string(&self.0)
            .is_ok_and(|text| text.trim() == std::process::id().to_string());
        if ours {
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
        unistd::setuid(user.uid).with_context(|| format!("cannot become user `{}`", user.name))?;
    }
    Ok(())
}

/// Makes a file that of `user`, as whom this process goes on.
///
/// # Errors
/// When there is no such user, or this process may not.
pub fn give(path: &Path, user: Option<&str>) -> anyhow::Result<()> {
    let Some(user) = user.map(find_user).transpose()? else {
        return Ok(());
    };
    unistd::chown(path, Some(user.uid), None)
        .with_context(|| format!("cannot give `{}` to user `{}`", path.display(), user.name))
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
