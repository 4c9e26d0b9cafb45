//! The error log: what weir and the crates below it report through the `log` facade.
//!
//! `env_logger` filters; this module decides how a line looks and where it goes, because files are reopened (USR1) and
//! level, file and format change with a reload. A line is written before the call returns, unlike in the access log:
//! such lines are rare, and the last one before a crash is the one that matters.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use env_logger::{Builder, Logger, Target};
use log::{LevelFilter, Log, Metadata, Record, SetLoggerError};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use super::sink;
use crate::build::Build;
use crate::exchange::date;
use crate::issue::At;

/// The error log (nginx's `error_log`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The least severe messages that are written. Default: `info`.
    ///
    /// Messages of Pingora itself are written from `warn` on where this says `info`. The environment variable
    /// `RUST_LOG`, if it is set, takes the place of this key (`RUST_LOG=weir=debug,pingora=info`): it is there for
    /// the one run that is looked into.
    pub level: Level,
    /// The file, opened anew on USR1. Default: standard error.
    pub file: Option<PathBuf>,
    /// How a line looks. Default: `text`.
    pub format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// What an operator must act on.
    Error,
    /// What is wrong but was coped with.
    Warn,
    /// What happens rarely and on purpose: start, reload, a backend that goes down.
    #[default]
    Info,
    /// What explains a single request.
    Debug,
    /// Everything.
    Trace,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `2026-11-22T15:43:45.123Z WARN  weir::pool: message`, control characters escaped.
    #[default]
    Text,
    /// An object per line with `time`, `level`, `target` and `message`.
    Json,
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Settings> {
        let file = match &self.file {
            Some(written) => Some(super::file(&at.key("file"), written, b)?),
            None => None,
        };
        Some(Settings {
            level: self.level.filter(),
            file,
            format: self.format,
        })
    }
}

impl Level {
    fn filter(self) -> LevelFilter {
        match self {
            Level::Error => LevelFilter::Error,
            Level::Warn => LevelFilter::Warn,
            Level::Info => LevelFilter::Info,
            Level::Debug => LevelFilter::Debug,
            Level::Trace => LevelFilter::Trace,
        }
    }
}

/// What an error log is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    level: LevelFilter,
    file: Option<PathBuf>,
    format: Format,
}

impl Settings {
    /// `None` for standard error.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }
}

impl Default for Settings {
    /// Before a configuration is read.
    fn default() -> Settings {
        Settings {
            level: Level::default().filter(),
            file: None,
            format: Format::default(),
        }
    }
}

/// The error log of the process.
#[derive(Clone)]
pub struct ErrorLog(Arc<Shared>);

struct Shared {
    /// `RUST_LOG`, if it is set.
    environment: Option<String>,
    logger: ArcSwap<Logger>,
    output: Output,
}

impl ErrorLog {
    /// Makes this the target of the `log` facade, once per process. It starts no thread, so it may happen before
    /// the process becomes a daemon.
    pub fn install(settings: &Settings) -> Result<ErrorLog, InstallError> {
        let environment = std::env::var("RUST_LOG")
            .ok()
            .filter(|filters| !filters.is_empty());
        let error_log = ErrorLog::new(settings, environment).map_err(InstallError::Open)?;
        log::set_boxed_logger(Box::new(error_log.clone())).map_err(InstallError::Twice)?;
        log::set_max_level(error_log.0.logger.load().filter());
        Ok(error_log)
    }

    /// Changes to other settings. If the file cannot be opened, nothing changes.
    pub fn apply(&self, settings: &Settings) -> io::Result<()> {
        let shared = &*self.0;
        let sink = Sink::open(settings.file.clone())?;
        let logger = logger(settings, shared.environment.as_deref(), &shared.output);
        *shared.output.0.lock() = sink;
        log::set_max_level(logger.filter());
        shared.logger.store(Arc::new(logger));
        Ok(())
    }

    /// Opens the file anew, for a tool that has renamed it. If that fails the old file stays in use.
    pub fn reopen(&self) -> io::Result<()> {
        let file = match &*self.0.output.0.lock() {
            Sink::Stderr => return Ok(()),
            Sink::File { path, .. } => path.clone(),
        };
        // opened outside the lock: nobody who logs waits for it
        let sink = Sink::open(Some(file))?;
        *self.0.output.0.lock() = sink;
        Ok(())
    }

    fn new(settings: &Settings, environment: Option<String>) -> io::Result<ErrorLog> {
        let output = Output(Arc::new(Mutex::new(Sink::open(settings.file.clone())?)));
        let logger = logger(settings, environment.as_deref(), &output);
        Ok(ErrorLog(Arc::new(Shared {
            environment,
            logger: ArcSwap::from_pointee(logger),
            output,
        })))
    }
}

impl Log for ErrorLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.logger.load().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        self.0.logger.load().log(record);
    }

    fn flush(&self) {
        self.0.logger.load().flush();
    }
}

/// Why there is no error log.
#[derive(Debug)]
pub enum InstallError {
    Open(io::Error),
    Twice(SetLoggerError),
}

impl std::fmt::Display for InstallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            InstallError::Open(error) => write!(f, "cannot open the error log: {error}"),
            InstallError::Twice(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for InstallError {}

fn logger(settings: &Settings, environment: Option<&str>, output: &Output) -> Logger {
    let mut builder = Builder::new();
    match environment {
        Some(filters) => builder.parse_filters(filters),
        None => builder
            .filter_level(settings.level)
            .filter_module("pingora", pingora_level(settings.level))
            .filter_module("pingora_proxy", told_by_weir(settings.level))
            .filter_module("pingora_core::apps", told_by_weir(settings.level))
            .filter_module("pingora_core::connectors", told_by_weir(settings.level))
            .filter_module("pingora_load_balancing", told_by_weir(settings.level)),
    };
    builder.target(Target::Pipe(Box::new(output.clone())));
    let write = match settings.format {
        Format::Text => text,
        Format::Json => json,
    };
    builder.format(move |formatter, record| {
        let mut line = Vec::with_capacity(128);
        write(SystemTime::now(), record, &mut line);
        formatter.write_all(&line)
    });
    builder.build()
}

/// Pingora tells at `info` how its server starts and stops step by step, of which weir reports what matters in its own
/// words. Its warnings and errors stay; so does everything once somebody asks for `debug`.
fn pingora_level(level: LevelFilter) -> LevelFilter {
    match level {
        LevelFilter::Info => LevelFilter::Warn,
        other => other,
    }
}

/// What weir reports itself, with what it knows of it: failed requests and connections, members that go up or down. And what clients do
/// to themselves (they hang up in the middle of a header, or speak no HTTP/2 after all), which is no error of weir.
fn told_by_weir(level: LevelFilter) -> LevelFilter {
    match level {
        LevelFilter::Debug | LevelFilter::Trace => level,
        _ => LevelFilter::Off,
    }
}

fn text(wall: SystemTime, record: &Record<'_>, out: &mut Vec<u8>) {
    date::utc_millis(wall, out);
    let level = record.level().as_str();
    out.extend_from_slice(format!(" {level:<5} {}: ", record.target()).as_bytes());
    escape(&record.args().to_string(), out);
    out.push(b'\n');
}

fn json(wall: SystemTime, record: &Record<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"time\":\"");
    date::utc_millis(wall, out);
    out.extend_from_slice(b"\",\"level\":\"");
    out.extend_from_slice(record.level().as_str().to_ascii_lowercase().as_bytes());
    out.extend_from_slice(b"\",\"target\":");
    super::quote(record.target(), out);
    out.extend_from_slice(b",\"message\":");
    super::quote(&record.args().to_string(), out);
    out.extend_from_slice(b"}\n");
}

/// Control characters as in Rust's literals (`\n`, `\u{1b}`): a message that quotes a peer cannot start a line of its
/// own, nor command the terminal it is read on. So do the two line separators of Unicode.
fn escape(message: &str, out: &mut Vec<u8>) {
    for c in message.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
            out.extend(c.escape_default().map(|escaped| escaped as u8));
        } else {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
}

/// What `env_logger` writes to; the file behind it can change.
#[derive(Clone)]
struct Output(Arc<Mutex<Sink>>);

enum Sink {
    Stderr,
    File { path: PathBuf, file: File },
}

impl Sink {
    fn open(path: Option<PathBuf>) -> io::Result<Sink> {
        match path {
            None => Ok(Sink::Stderr),
            Some(path) => {
                let file = sink::open_append(&path)?;
                Ok(Sink::File { path, file })
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock() {
            Sink::Stderr => io::stderr().write(line),
            // on a full disk the message is still worth something
            Sink::File { file, .. } => file.write(line).or_else(|_| io::stderr().write(line)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // neither has a buffer
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use log::Level as Severity;
    use proptest::prelude::*;

    use super::*;

    type Line = fn(SystemTime, &Record<'_>, &mut Vec<u8>);

    fn line(write: Line, message: &str) -> String {
        let mut out = Vec::new();
        let wall = UNIX_EPOCH + Duration::from_millis(1_795_362_225_123);
        let args = format_args!("{message}");
        let record = Record::builder()
            .level(Severity::Warn)
            .target("weir::pool")
            .args(args)
            .build();
        write(wall, &record, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn allows(error_log: &ErrorLog, target: &str, level: Severity) -> bool {
        error_log.enabled(&Metadata::builder().target(target).level(level).build())
    }

    fn settings(level: Level, file: Option<PathBuf>) -> Settings {
        Settings {
            level: level.filter(),
            file,
            format: Format::Text,
        }
    }

    #[test]
    fn text_has_time_level_target_and_message() {
        assert_eq!(
            line(text, "`a` is down"),
            "2026-11-22T15:43:45.123Z WARN  weir::pool: `a` is down\n"
        );
    }

    #[test]
    fn control_characters_are_escaped() {
        assert!(
            line(text, "a\nb\t\u{1b}[31m\u{9b}é\u{2028}")
                .ends_with(": a\\nb\\t\\u{1b}[31m\\u{9b}é\\u{2028}\n")
        );
    }

    #[test]
    fn json_has_the_same_by_name() {
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&line(json, "a\n\"b\"")).unwrap(),
            serde_json::json!({
                "time": "2026-11-22T15:43:45.123Z",
                "level": "warn",
                "target": "weir::pool",
                "message": "a\n\"b\"",
            })
        );
    }

    #[test]
    fn pingora_is_heard_from_warn_on_unless_more_is_asked_for() {
        let at = |level| ErrorLog::new(&settings(level, None), None).unwrap();
        let info = at(Level::Info);
        assert!(allows(&info, "weir::pool", Severity::Info));
        assert!(!allows(&info, "pingora_core::server", Severity::Info));
        assert!(allows(&info, "pingora_core::server", Severity::Warn));
        let error = at(Level::Error);
        assert!(!allows(&error, "pingora_core::server", Severity::Warn));
        let debug = at(Level::Debug);
        assert!(allows(&debug, "pingora_core::server", Severity::Debug));
    }

    #[test]
    fn the_environment_takes_the_place_of_the_level() {
        let filters = Some("warn,weir::tls=trace".to_owned());
        let error_log = ErrorLog::new(&settings(Level::Debug, None), filters).unwrap();
        assert!(!allows(&error_log, "weir::pool", Severity::Info));
        assert!(allows(&error_log, "weir::tls", Severity::Trace));
        // also after a reload
        error_log.apply(&settings(Level::Debug, None)).unwrap();
        assert!(!allows(&error_log, "weir::pool", Severity::Info));
    }

    #[test]
    fn a_reload_changes_the_level_and_a_signal_reopens_the_file() {
        let name = format!("weir-error-log-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let (path, old) = (directory.join("error.log"), directory.join("error.log.1"));
        let tell = |error_log: &ErrorLog, level, message| {
            let args = format_args!("{message}");
            let record = Record::builder()
                .level(level)
                .target("weir")
                .args(args)
                .build();
            error_log.log(&record);
        };
        let messages = |path| -> Vec<String> {
            let text = std::fs::read_to_string(path).unwrap();
            let message = |line: &str| line.rsplit(' ').next().unwrap().to_owned();
            text.lines().map(message).collect()
        };

        let error_log = ErrorLog::new(&settings(Level::Info, Some(path.clone())), None).unwrap();
        tell(&error_log, Severity::Info, "one");
        tell(&error_log, Severity::Debug, "silent");
        error_log
            .apply(&settings(Level::Debug, Some(path.clone())))
            .unwrap();
        tell(&error_log, Severity::Debug, "two");
        std::fs::rename(&path, &old).unwrap();
        tell(&error_log, Severity::Info, "three");
        error_log.reopen().unwrap();
        tell(&error_log, Severity::Info, "four");
        assert_eq!(messages(&old), ["one", "two", "three"]);
        assert_eq!(messages(&path), ["four"]);

        // a file that cannot be opened changes nothing
        let nowhere = directory.join("none/error.log");
        assert!(
            error_log
                .apply(&settings(Level::Error, Some(nowhere)))
                .is_err()
        );
        tell(&error_log, Severity::Debug, "five");
        assert_eq!(messages(&path), ["four", "five"]);
        std::fs::remove_dir_all(&directory).unwrap();
    }

    proptest! {
        #[test]
        fn no_message_starts_a_line_or_commands_a_terminal(message in "(?s).{0,40}|[\\x00-\\x9f]{0,40}") {
            let line = line(text, &message);
            let body = line.strip_suffix('\n').unwrap();
            prop_assert!(!body.contains(|c: char| c.is_control()));
        }

        #[test]
        fn every_json_line_gives_the_message_back(message in "(?s).{0,40}") {
            let line = line(json, &message);
            prop_assert_eq!(line.matches('\n').count(), 1);
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(value["message"].as_str(), Some(message.as_str()));
        }
    }
}
