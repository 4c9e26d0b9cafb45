//! A weir that is no child of the test: found by its pid file.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use super::Setup;
use super::wait::{PATIENCE, value_within};

/// Does not outlive its test.
pub struct Daemon {
    pub pid: i32,
    dir: PathBuf,
}

impl Daemon {
    #[track_caller]
    pub fn find(setup: &Setup) -> Daemon {
        let pid = value_within(PATIENCE, || setup.read("weir.pid").trim().parse().ok());
        let pid = pid.expect("a pid file");
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(
            command.contains("weir"),
            "the pid file names {pid}: `{command}`"
        );
        Daemon {
            pid,
            dir: setup.dir().to_owned(),
        }
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        signal::kill(Pid::from_raw(self.pid), signal).expect("the daemon is there");
    }

    /// Nobody may be there to reap it: a zombie is not running.
    pub fn is_running(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        Path::new(&format!("/proc/{}", self.pid)).exists() && !stat.contains(") Z ")
    }

    /// Gives the process up, which may go on; returns its pid.
    pub fn leave_alone(self) -> i32 {
        let pid = self.pid;
        std::mem::forget(self);
        pid
    }

    /// Resident bytes.
    #[track_caller]
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.expect("the process is running");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        let kilobytes: Option<u64> = kilobytes.and_then(|text| text.parse().ok());
        kilobytes.expect("a number of kB") * 1024
    }

    pub fn open_files(&self) -> usize {
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid));
        files.expect("the process is running").count()
    }

    /// Other processes in the folder of the test.
    pub fn siblings(&self) -> usize {
        let processes = fs::read_dir("/proc")
            .expect("there are processes")
            .flatten();
        let is_sibling = |path: PathBuf| {
            let here = fs::read_link(path.join("cwd")).is_ok_and(|folder| folder == self.dir);
            here && !path.ends_with(self.pid.to_string())
        };
        processes
            .filter(|process| is_sibling(process.path()))
            .count()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.is_running() {
            self.signal(Signal::SIGKILL);
        }
    }
}
