//! The commands that speak to a running weir: `status`, `reload`, `upgrade`, `drain`, `undrain`, `stop`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::{DateTime, Local};
use clap::Args;
use http::StatusCode;

use super::{EXIT_BAD_CONFIG, EXIT_BAD_USAGE, print_json};
use crate::admin::client::{Client, Failure};
use crate::admin::{self, Passed, Receipt, Terms, Upgraded};
use crate::net::Bind;
use crate::pool::status::{MemberStatus, State};
use crate::process::EXIT_FAILED;
use crate::runtime::figures::Summary;
use crate::runtime::reload::Source;
use crate::runtime::status;
use crate::value::{Factor, Ratio, Span};

/// Which process is meant.
#[derive(Args)]
pub struct Place {
    /// The admin socket of the process; default: that of the configuration
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
}

#[derive(Args)]
pub struct Status {
    /// Print all there is as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Reload {
    /// Only print what would change
    #[arg(long)]
    dry_run: bool,
    /// Where the program was replaced on disk, have a new process of it take over, as `weir upgrade` does
    #[arg(long, conflicts_with = "dry_run")]
    upgrade: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Upgrade {
    /// The program to change to; default: the file that the running one was started from, as it is now
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// How long the new process may take until it serves, such as 2m; default: 60s
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Span>,
    /// Watch the new process for so long, such as 60s, before the old one ends; if it does worse than the limits below
    /// allow, or ends, the old one goes on. Prints what became of the connections
    #[arg(long, value_name = "SPAN")]
    probation: Option<Span>,
    /// How much larger the share of requests answered with 5xx may be, once there are 50 of them; default: 1%, so that 1.5%
    /// are allowed after 0.5%
    #[arg(long = "max-5xx", value_name = "SHARE", requires = "probation")]
    max_5xx: Option<Ratio>,
    /// How many times as long the slowest hundredth of 500 requests or more may take, 10 ms longer being always allowed;
    /// default: 2x
    #[arg(long = "max-p99", value_name = "FACTOR", requires = "probation")]
    max_p99: Option<Factor>,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Drain {
    pool: String,
    /// Its address, or the name it was written with
    member: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
pub struct Stop {
    #[command(flatten)]
    place: Place,
}

pub fn status(command: &Status, source: Option<&Source>) -> ExitCode {
    speak(&command.place, source, |client| {
        let status = client.status()?;
        match command.json {
            true => print_json(&status),
            false => print(&page(&status, Local::now())),
        }
        Ok(())
    })
}

pub fn reload(command: &Reload, source: Option<&Source>) -> ExitCode {
    speak(&command.place, source, |client| {
        let reloaded = client.reload(command.dry_run, command.upgrade)?;
        eprint!("{}", reloaded.warnings);
        if let Some(upgraded) = &reloaded.upgraded {
            let reason = match reloaded.start_only.as_slice() {
                [] => "the program on disk is a new one".to_owned(),
                keys => format!("only a new process can take {}", keys.join(", ")),
            };
            print(&format!(
                "{}{reason}:\n{}",
                reloaded.changes,
                receipt(upgraded)
            ));
            return Ok(());
        }
        let changes = match reloaded.changes.0.is_empty() {
            true => "nothing is different\n".to_owned(),
            false => reloaded.changes.to_string(),
        };
        let file = reloaded.file;
        print(&match reloaded.dry_run {
            true if !reloaded.start_only.is_empty() => format!(
                "{changes}{file} is good; a reload would bring up a new process, for only that can take {}; \
                 nothing has changed yet\n",
                reloaded.start_only.join(", ")
            ),
            true => format!("{changes}{file} is good; nothing has changed yet\n"),
            false => format!(
                "{changes}reloaded {file}: generation {}\n",
                reloaded.generation
            ),
        });
        Ok(())
    })
}

pub fn upgrade(command: &Upgrade, source: Option<&Source>) -> ExitCode {
    // The running process is in a folder of its own.
    let absolute = |path: &PathBuf| std::path::absolute(path).unwrap_or_else(|_| path.clone());
    let wanted = admin::Upgrade {
        binary: command.binary.as_ref().map(absolute),
        timeout: command.timeout,
        probation: command.probation.map(|length| Terms {
            length,
            max_5xx: command.max_5xx.unwrap_or(Terms::default().max_5xx),
            max_p99: command.max_p99.unwrap_or(Terms::default().max_p99),
        }),
    };
    speak(&command.place, source, |client| {
        print(&receipt(&client.upgrade(&wanted)?));
        Ok(())
    })
}

/// Who has taken over from whom.
fn receipt(upgraded: &Upgraded) -> String {
    let Upgraded {
        old,
        new,
        sockets,
        connections,
        probation,
    } = upgraded;
    let all = |number: &usize, thing| count(*number as u64, thing);
    let taken_over = format!(
        "process {} (weir {}) has taken over from process {} (weir {}): {} handed over",
        new.process,
        new.version,
        old.process,
        old.version,
        all(sockets, "socket"),
    );
    let Some(Passed { trial, receipt }) = probation.as_deref() else {
        let left = all(connections, "connection");
        return format!("{taken_over}, {left} left to finish\n");
    };
    let passed = match trial.cut_short {
        false => format!("probation of {} passed", trial.length),
        true => format!(
            "probation of {} cut short, for the old process was told to end",
            trial.length
        ),
    };
    let figures = |of: &Summary| {
        format!(
            "{}, {:.2}% answered with 5xx, p99 {:.1?}",
            count(of.requests, "request"),
            of.failures() * 100.0,
            of.p99
        )
    };
    let Receipt {
        kept,
        finished,
        closed,
        cut,
    } = receipt;
    format!(
        "{taken_over}\n{passed}: {}; before: {}\n{} kept: {finished} finished, {closed} closed, {cut} cut\n",
        figures(&trial.new),
        figures(&trial.before),
        all(kept, "connection"),
    )
}

pub fn drain(command: &Drain, draining: bool, source: Option<&Source>) -> ExitCode {
    speak(&command.place, source, |client| {
        let drained = client.drain(&command.pool, &command.member, draining)?;
        for member in drained.members {
            let (name, pool, state) = (&member.backend, &command.pool, word(&member));
            let busy = count(member.in_flight, "request");
            print(&format!("{name} of {pool} is {state}: {busy} in flight\n"));
        }
        Ok(())
    })
}

pub fn stop(command: &Stop, source: Option<&Source>) -> ExitCode {
    speak(&command.place, source, |client| {
        let stopped = client.stop()?;
        print(&format!("process {} has ended\n", stopped.process));
        Ok(())
    })
}

/// Finds the process, and reports why something did not come to pass.
fn speak(
    place: &Place,
    source: Option<&Source>,
    what: impl FnOnce(&Client) -> Result<(), Failure>,
) -> ExitCode {
    let client = match find(place, source) {
        Ok(client) => client,
        Err(status) => return ExitCode::from(status),
    };
    let Err(failure) = what(&client) else {
        return ExitCode::SUCCESS;
    };
    let mut status = EXIT_FAILED;
    let mut hint = None;
    if let Failure::Refused(refusal) = &failure {
        if let Some(report) = &refusal.report {
            eprintln!("{report}");
        }
        hint = refusal.hint.as_ref();
        status = match refusal.status {
            StatusCode::UNPROCESSABLE_ENTITY => EXIT_BAD_CONFIG,
            StatusCode::NOT_FOUND => EXIT_BAD_USAGE,
            _ => EXIT_FAILED,
        };
    }
    match hint {
        Some(hint) => eprintln!("weir: {failure} ({hint})"),
        None => eprintln!("weir: {failure}"),
    }
    ExitCode::from(status)
}

fn find(place: &Place, source: Option<&Source>) -> Result<Client, u8> {
    if let Some(address) = &place.admin {
        let path = address.strip_prefix("unix:").unwrap_or(address);
        return Ok(Client::new(Path::new(path)));
    }
    let Some(source) = source else {
        super::no_file();
        return Err(EXIT_BAD_USAGE);
    };
    match source.admin_socket() {
        Ok(Some(Bind::Unix(path))) => Ok(Client::new(&path)),
        Ok(_) => {
            eprintln!(
                "weir: a process that runs on {source} has no admin socket: give `pid_file` or `admin` there, \
                 or name its socket with --admin"
            );
            Err(EXIT_FAILED)
        }
        Err(issues) => {
            super::print_issues(&issues);
            eprintln!(
                "\nweir: {source} does not tell where the admin socket is: name it with --admin"
            );
            Err(EXIT_BAD_CONFIG)
        }
    }
}

fn print(text: &str) {
    // Whoever reads may have had enough (`| head`).
    let _ = write!(std::io::stdout().lock(), "{text}");
}

/// The status for people.
fn page(status: &status::Status, now: DateTime<Local>) -> String {
    let mut page = format!(
        "weir {}, process {}, up {}; {}\ngeneration {} of the configuration, since {}\n",
        status.version,
        status.process,
        span(status.uptime),
        match status.state {
            status::State::Serving => format!("{} open connections", status.connections),
            status::State::Draining => format!(
                "draining, {} left",
                count(status.connections as u64, "connection")
            ),
        },
        status.generation,
        moment(Some(status.since), now),
    );
    if let Some(probation) = &status.probation {
        page += &format!(
            "process {} (weir {}) is on probation, {} left\n",
            probation.process,
            probation.version,
            span(probation.left),
        );
    }
    page += &crowding(status);
    for older in &status.older {
        let held = [
            (older.requests, "request"),
            (older.tunnels, "tunnel"),
            (older.connections, "connection"),
        ];
        let held = held.into_iter().filter(|(number, _)| *number > 0);
        let held: Vec<String> = held.map(|(number, thing)| count(number, thing)).collect();
        page += &format!(
            "generation {}, until {}, still has {}\n",
            older.generation,
            moment(Some(older.until), now),
            held.join(", "),
        );
    }
    for pool in &status.pools {
        let members = pool.members.iter().map(|member| row(member, now));
        let heading = HEADING.map(str::to_owned);
        page += &format!(
            "\npool {}: {} of {} up\n",
            pool.name,
            pool.up,
            pool.members.len()
        );
        page += &table(std::iter::once(heading).chain(members).collect());
    }
    for status::FilesStatus { name, open_files } in &status.files {
        let asked = open_files.hits + open_files.misses;
        page += &format!(
            "\nfiles of {name}: {} known, {} of them open, {} KiB in memory; {} % of {asked} look-ups were hits\n",
            open_files.files,
            open_files.open,
            open_files.memory / 1024,
            open_files.hits * 100 / asked.max(1),
        );
    }
    if !status.certificates.is_empty() {
        let heading = ["CERTIFICATE OF", "NAMES", "ENDS", "DAYS LEFT"].map(str::to_owned);
        let certificates = status.certificates.iter().map(|one| {
            let ends = u64::try_from(one.expires).ok();
            [
                one.owner.clone(),
                names(&one.names),
                moment(ends, now),
                one.days_left.to_string(),
            ]
        });
        page += "\n";
        page += &table(std::iter::once(heading).chain(certificates).collect());
        for one in &status.certificates {
            if let Some(why) = &one.refused {
                page += &format!("new files of {} are refused: {why}\n", one.owner);
            }
        }
    }
    page
}

/// What was turned away, or had to wait.
fn crowding(status: &status::Status) -> String {
    let mut page = String::new();
    for one in &status.listeners {
        let (name, refused, of_one) = (&one.name, one.refused, one.refused_of_one);
        if refused + of_one > 0 {
            page += &format!(
                "{name}: {} of {} connections; refused: {refused} beyond these, {of_one} beyond {} of one client\n",
                one.connections, one.most_connections, one.most_per_client,
            );
        }
    }
    if status.waits + status.exhausted > 0 {
        page += &format!(
            "new connections had to wait: {} as descriptors ran short, {} as there was none\n",
            count(status.waits, "time"),
            count(status.exhausted, "time"),
        );
    }
    if status.malformed > 0 {
        let what = count(status.malformed, "request");
        page += &format!("{what} could not be read\n");
    }
    page
}

/// The first names of a certificate that may have many.
fn names(names: &[String]) -> String {
    const FIRST: usize = 3;
    match names.get(..FIRST) {
        Some(first) if names.len() > FIRST => {
            format!("{} and {} more", first.join(" "), names.len() - FIRST)
        }
        _ => names.join(" "),
    }
}

fn count(number: u64, thing: &str) -> String {
    match number {
        1 => format!("1 {thing}"),
        _ => format!("{number} {thing}s"),
    }
}

const HEADING: [&str; 9] = [
    "MEMBER",
    "STATE",
    "SINCE",
    "WEIGHT",
    "IN FLIGHT",
    "REQUESTS",
    "FAILURES",
    "LATENCY",
    "LAST PROBE",
];
/// Columns of numbers stand on the right.
const NUMBERS: std::ops::RangeInclusive<usize> = 3..=7;

fn row(member: &MemberStatus, now: DateTime<Local>) -> [String; 9] {
    let in_flight = match member.max_conns {
        Some(max) => format!("{} of {max}", member.in_flight),
        None => member.in_flight.to_string(),
    };
    let probe = member.probe.as_ref();
    let error = probe.and_then(|probe| probe.error.as_deref());
    let told = probe.map(|probe| {
        let result = error.unwrap_or("passed");
        format!("{} {result}", moment(Some(probe.at), now))
    });
    // What took it down, where the last probe found something else.
    let reason = member.reason.as_deref();
    let why = reason
        .filter(|reason| Some(*reason) != error)
        .and_then(|reason| match member.state {
            State::Down => Some(format!("down: {reason}")),
            State::Ejected => Some(format!("ejected: {reason}")),
            _ => None,
        });
    let last: Vec<String> = told.into_iter().chain(why).collect();
    [
        member.backend.clone(),
        word(member),
        moment(member.since, now),
        member.weight.to_string(),
        in_flight,
        member.requests.to_string(),
        member.failures.to_string(),
        member
            .latency_ms
            .map_or_else(|| "-".to_owned(), |latency| format!("{latency:.1} ms")),
        last.join("; "),
    ]
}

/// The state of a member.
fn word(member: &MemberStatus) -> String {
    let state = match member.state {
        State::Up => "up",
        State::Down => "down",
        State::Draining => "draining",
        State::Drained => "drained",
        State::Ejected => "ejected",
    };
    match member.backup {
        true => format!("{state} (backup)"),
        false => state.to_owned(),
    }
}

/// Aligned columns, two blanks between them.
fn table<const N: usize>(rows: Vec<[String; N]>) -> String {
    let length = |text: &String| text.chars().count();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| length(&row[column]));
        cells.max().unwrap_or_default()
    });
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            line += &match NUMBERS.contains(&column) {
                true => format!("  {cell:>width$}"),
                false => format!("  {cell:<width$}"),
            };
        }
        // A cell may quote a peer, which must not speak to the terminal.
        let line = line.replace(char::is_control, "\u{fffd}");
        table += line.trim_end();
        table.push('\n');
    }
    table
}

/// The time of a day, with the day if that is not today; `-` for never.
fn moment(seconds: Option<u64>, now: DateTime<Local>) -> String {
    let time = seconds
        .and_then(|seconds| DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0))
        .map(|time| time.with_timezone(&Local));
    match time {
        None => "-".to_owned(),
        Some(time) if time.date_naive() == now.date_naive() => time.format("%H:%M:%S").to_string(),
        Some(time) => time.format("%Y-%m-%d %H:%M:%S").to_string(),
    }
}

/// Two units are exact enough: `3d 4h`.
fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m 0s"),
            (3_600, "1h 0m"),
            (90_061, "1d 1h"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn moments_of_other_days_have_their_day() {
        let now = DateTime::from_timestamp(1_795_362_225, 0)
            .unwrap()
            .with_timezone(&Local);
        assert_eq!(moment(None, now), "-");
        assert_eq!(
            moment(Some(1_795_362_225), now),
            now.format("%H:%M:%S").to_string()
        );
        assert!(moment(Some(1_700_000_000), now).starts_with("2023-11-1"));
    }

    #[test]
    fn columns_are_aligned_and_quote_nothing_dangerous() {
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        let rows = vec![row(["A", "B", "C", "D"]), row(["\u{1b}bcd", "x", "", "10"])];
        assert_eq!(table(rows), "  A     B  C   D\n  \u{fffd}bcd  x     10\n");
    }
}
