//! A server process and its children: started on one core, read out of `/proc`, ended by process id.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Linux counts in hundredths of a second in `/proc`, whatever the kernel's own tick (USER_HZ).
const TICK: Duration = Duration::from_millis(10);

pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command`, its output in the file `log`, and waits until `ready` says yes.
    pub fn start(mut command: Command, log: &Path, ready: impl Fn() -> bool) -> Result<Self> {
        let output = File::create(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{command:?}"))?;
        let mut process = Process { child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ready() {
            let ended = process.child.try_wait()?;
            if ended.is_none() && Instant::now() < deadline {
                sleep(Duration::from_millis(20));
                continue;
            }
            let said = fs::read_to_string(log).unwrap_or_default();
            match ended {
                Some(status) => bail!("ended at once ({status}): {}", said.trim()),
                None => bail!("not ready after ten seconds: {}", said.trim()),
            }
        }
        Ok(process)
    }

    /// CPU time of the process and its children so far, user and system.
    pub fn cpu(&self) -> Result<Duration> {
        let mut ticks = 0;
        for pid in self.family() {
            ticks += stat(pid)
                .with_context(|| format!("process {pid} is gone"))?
                .ticks;
        }
        Ok(TICK * ticks)
    }

    /// Resident memory of the process and its children, in bytes.
    pub fn memory(&self) -> Result<u64> {
        let mut kib = 0;
        for pid in self.family() {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))
                .with_context(|| format!("process {pid} is gone"))?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("VmRSS:"))
                .context("no VmRSS")?;
            kib += line
                .trim()
                .trim_end_matches(" kB")
                .parse::<u64>()
                .context("VmRSS")?;
        }
        Ok(kib * 1024)
    }

    /// The process and its children (nginx has a master and a worker).
    fn family(&self) -> Vec<i32> {
        let parent = self.child.id() as i32;
        let all = fs::read_dir("/proc").into_iter().flatten().flatten();
        all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid| *pid == parent || stat(*pid).is_some_and(|stat| stat.parent == parent))
            .collect()
    }
}

impl Drop for Process {
    /// INT is the fast stop of all three; whoever does not take it is killed, with its children.
    fn drop(&mut self) {
        let family = self.family();
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGINT);
        let deadline = Instant::now() + Duration::from_secs(5);
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() > deadline {
                for pid in family {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                let _ = self.child.wait();
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

struct Stat {
    parent: i32,
    ticks: u32,
}

/// `/proc/PID/stat`; `None` when the process has ended.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field, the name, may hold spaces and parentheses: count from the last one. See proc(5).
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse().ok();
    Some(Stat {
        parent: number(1)?,
        ticks: (number(11)? + number(12)?) as u32,
    })
}
