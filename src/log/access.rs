//! The access log: one line per request, the last thing that happens to it.
//!
//! A request has the logs of the nearest level that has `access_log`, or else that of the document.
//!
//! The line is made on the thread of the request, from facts that are there already, and handed to a [`Writer`], which
//! writes it elsewhere.
//!
//! In text formats the values are escaped as nginx does: a quote, a backslash, control characters and all bytes that
//! are not ASCII become `\xXX`. So whatever a client sends, a line stays one line and a quoted field one field.

use std::borrow::Cow;
use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::condition::{self, Condition};
use super::redact::{self, Redact};
use super::sink::{Destination, Syslog, To};
use super::writer::{Writer, Writers};
use crate::build::Build;
use crate::exchange::cx::{TlsFacts, Try};
use crate::exchange::date;
use crate::exchange::vars::{self, Piece, Stage, Text, Var, View};
use crate::issue::At;
use crate::value::{OneOrMany, Ratio, Template, suggest};

/// The access log (nginx's `access_log`).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The file, opened anew on USR1. Default: standard output.
    ///
    /// Lines are collected in memory and written once per second, or when 64 KiB have come together, or at once on a
    /// quiet server (nginx's `buffer` and `flush`). When the disk is full or too slow, up to 4 MiB of lines per
    /// worker thread wait in memory, further ones are dropped, and the error log says how many; requests never wait.
    pub file: Option<PathBuf>,
    /// Instead of `file`: `stdout`, `stderr`, or a unix socket, `unix:/run/collector.sock`, that takes lines as a stream
    /// or one in each datagram. A socket that is not there, or goes away, is connected as soon as it is there (again).
    pub to: Option<To>,
    /// Instead of `file`: a syslog server, which `{}` finds at `/dev/log`. nginx: `access_log syslog:`.
    pub syslog: Option<Syslog>,
    /// How a line looks: `combined`, `json`, or a template such as `"$remote_addr $status $upstream_addr $failure"`.
    /// Default: `combined`.
    ///
    /// - `combined` is nginx's format of that name. Where weir itself ended the request, the word for the reason
    ///   (`$failure`, such as `upstream_connect`) follows as one more field; readers of this format skip what follows
    ///   the user agent, and every other line has nothing there.
    /// - `json` is one object per line with always the same keys, `null` where there is nothing: `time` (UTC, RFC 3339
    ///   with milliseconds), `client`, `method`, `host`, `uri` (path and query as sent), `protocol`, `status`, `bytes`
    ///   (of the body, sent to the client), `request_time` (seconds), `failure`, `request_id`, `user_agent`,
    ///   `referer`, `site`, `listener`, `tls` (`version`, `cipher`, `server_name`), and `upstream`: a list with
    ///   `addr`, `status`, `connect_time`, `header_time` and `response_time` of every try.
    /// - In a template (nginx's `log_format`), a variable without a value is written `-`.
    pub format: Format,
    /// Which requests: `$status >= 400`, with `==`, `!=`, `<`, `<=`, `>`, `>=`, `~` (a regular expression) or `!~`
    /// between blanks; or a text with variables alone, which holds unless it is empty or `0`. Default: all. nginx: `if=`.
    pub when: Option<condition::Config>,
    /// What share of those, chosen at random: `10%`. Default: all.
    pub sample: Option<Ratio>,
    /// What is written `***`: `{ args: [token], headers: [Authorization], cookies: [session] }`.
    pub redact: Option<redact::Config>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum Format {
    #[default]
    Combined,
    Json,
    Template(Template),
}

impl Config {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<AccessLog> {
        let destination = self.destination(at, b);
        let line = self.format.compile(&at.key("format"), b);
        let when = self.when.as_ref();
        let when = when.map(|when| when.compile(&at.key("when"), b));
        let redact = self.redact.as_ref();
        let redact = redact.map(|redact| redact.compile(&at.key("redact"), b));
        Some(AccessLog {
            line: line?,
            when: when.map_or(Some(None), |when| when.map(Some))?,
            sample: self.sample.map(Ratio::get),
            redact: redact.map_or(Some(None), |redact| redact.map(Some))?,
            destination: destination?,
            writer: OnceLock::new(),
        })
    }

    fn destination(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Destination> {
        let given = [
            ("file", self.file.is_some()),
            ("to", self.to.is_some()),
            ("syslog", self.syslog.is_some()),
        ];
        let mut given = given.iter().filter(|(_, given)| *given);
        if let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) {
            b.error(
                &at.key(second),
                format!("`{first}` says where the lines go already"),
            )
            .hint("a list of logs has several places: `[{ file: a.log }, { syslog: {} }]`");
            return None;
        }
        match (&self.file, &self.to, &self.syslog) {
            (Some(written), ..) => super::file(&at.key("file"), written, b).map(Destination::File),
            (_, Some(To(destination)), _) => Some(destination.clone()),
            (_, _, Some(syslog)) => Some(Destination::Syslog(syslog.clone())),
            _ => Some(Destination::Stdout),
        }
    }
}

impl Format {
    fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Line> {
        match self {
            Format::Combined => Text::compile(at, COMBINED, b).map(Line::Combined),
            Format::Json => Some(Line::Json),
            Format::Template(template) => {
                let text = Text::resolve(Stage::Log, at, template, b)?;
                check_literals(at, &text, b).then_some(Line::Template(text))
            }
        }
    }
}

/// Whether the template makes one line of one request; a tab is a common separator.
fn check_literals(at: &At<'_>, text: &Text, b: &mut Build<'_>) -> bool {
    let literals = text.pieces().iter().filter_map(|piece| match piece {
        Piece::Literal(literal) => Some(literal),
        Piece::Var(_) => None,
    });
    let mut chars = literals.flat_map(|literal| literal.chars());
    if let Some(c) = chars.find(|&c| c.is_control() && c != '\t') {
        b.error(
            at,
            format!("a log line cannot contain `{}`", c.escape_default()),
        );
        return false;
    }
    if matches!(text.pieces().first(), Some(Piece::Literal(literal)) if literal.starts_with('{')) {
        b.warn(
            at,
            "values in a template are escaped as text, which is not valid in JSON",
        )
        .hint("`format: json` writes JSON");
    }
    true
}

impl TryFrom<String> for Format {
    type Error = String;

    fn try_from(text: String) -> Result<Format, String> {
        match text.as_str() {
            "combined" => return Ok(Format::Combined),
            "json" => return Ok(Format::Json),
            _ => {}
        }
        if text.contains('$') {
            let template = Template::parse(&text).map_err(|error| error.to_string())?;
            return Ok(Format::Template(template));
        }
        Err(match suggest(&text, ["combined", "json"]) {
            Some(known) => format!("unknown format `{text}`; did you mean `{known}`?"),
            None => format!(
                "unknown format `{text}`: expected `combined`, `json` or a template with `$variables`"
            ),
        })
    }
}

impl JsonSchema for Format {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "AccessLogFormat".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "enum": ["combined", "json"] },
                { "type": "string", "pattern": "\\$" },
            ],
        })
    }
}

/// The logs that a request goes to, in written order.
#[derive(Debug)]
pub struct AccessLogs(Vec<AccessLog>);

impl AccessLogs {
    pub const fn none() -> AccessLogs {
        AccessLogs(Vec::new())
    }

    pub fn compile(
        config: &OneOrMany<Config>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<AccessLogs> {
        let logs = config.map_at(at, |log, at| log.compile(at, b));
        logs.into_iter().collect::<Option<_>>().map(AccessLogs)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Opens all destinations.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn open(&self, writers: &Writers) -> io::Result<()> {
        self.0.iter().try_for_each(|log| log.open(writers))
    }

    /// The files that are written.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter_map(|log| match &log.destination {
            Destination::File(path) => Some(path.as_path()),
            _ => None,
        })
    }

    /// Writes the lines of one request, which is over.
    pub fn log(&self, view: &View<'_>) {
        for log in &self.0 {
            log.log(view);
        }
    }
}

/// A format, which requests it is for, and where its lines go.
#[derive(Debug)]
struct AccessLog {
    line: Line,
    when: Option<Condition>,
    /// From 0 to 1.
    sample: Option<f64>,
    redact: Option<Redact>,
    destination: Destination,
    /// Empty until [`AccessLog::open`]: a test of the configuration opens nothing, and a daemon opens after its fork.
    writer: OnceLock<Arc<Writer>>,
}

#[derive(Debug)]
enum Line {
    Combined(Text),
    Json,
    Template(Text),
}

impl AccessLog {
    /// Opens the destination, or joins those who have it open. Before that, [`AccessLog::log`] does nothing.
    fn open(&self, writers: &Writers) -> io::Result<()> {
        if self.writer.get().is_none() {
            // if someone was quicker, it is the same writer
            let _ = self.writer.set(writers.open(&self.destination)?);
        }
        Ok(())
    }

    /// Writes the line of one request, which is over, if it is one of those that are logged.
    fn log(&self, view: &View<'_>) {
        thread_local! {
            /// One allocation per thread instead of one per line.
            static LINE: RefCell<Vec<u8>> = RefCell::default();
        }
        let Some(writer) = self.writer.get() else {
            return;
        };
        if self.when.as_ref().is_some_and(|when| !when.holds(view))
            || self.sample.is_some_and(|share| fastrand::f64() >= share)
        {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            self.line(view, line);
            writer.append(line);
        });
    }

    /// Appends the line of one request, with its end.
    fn line(&self, view: &View<'_>, out: &mut Vec<u8>) {
        let source = &Source {
            view,
            redact: self.redact.as_ref(),
        };
        match &self.line {
            Line::Combined(line) => {
                text(line, source, out);
                if let Some(failure) = view.cx.failure {
                    out.push(b' ');
                    out.extend_from_slice(failure.word().as_bytes());
                }
            }
            Line::Template(line) => text(line, source, out),
            Line::Json => json(source, out),
        }
        out.push(b'\n');
    }
}

/// Where a line takes its values from.
struct Source<'a> {
    view: &'a View<'a>,
    redact: Option<&'a Redact>,
}

impl Source<'_> {
    /// As [`Var::write`], without what is to be left out.
    fn write(&self, var: &Var, out: &mut Vec<u8>) -> Option<()> {
        match self.redact {
            None => var.write(self.view, out),
            Some(redact) => redact.write(var, self.view, out),
        }
    }
}

/// nginx's predefined format.
const COMBINED: &str = "$remote_addr - $remote_user [$time_local] \"$request\" $status $body_bytes_sent \
    \"$http_referer\" \"$http_user_agent\"";

fn text(line: &Text, source: &Source<'_>, out: &mut Vec<u8>) {
    for piece in line.pieces() {
        match piece {
            Piece::Literal(literal) => out.extend_from_slice(literal.as_bytes()),
            Piece::Var(var) => {
                let start = out.len();
                match source.write(var, out) {
                    Some(()) => escape_from(start, out),
                    None => out.push(b'-'),
                }
            }
        }
    }
}

/// Escapes what stands from `start` on; hardly ever is there anything to escape.
fn escape_from(start: usize, out: &mut Vec<u8>) {
    if out[start..].iter().all(|&byte| is_plain(byte)) {
        return;
    }
    for byte in out.split_off(start) {
        if is_plain(byte) {
            out.push(byte);
        } else {
            let digit = |n: u8| b"0123456789ABCDEF"[usize::from(n)];
            out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\'
}

fn json(source: &Source<'_>, out: &mut Vec<u8>) {
    let View { cx, wall, .. } = *source.view;
    out.extend_from_slice(b"{\"time\":\"");
    date::utc_millis(wall, out);
    out.push(b'"');
    variable("client", &Var::RemoteAddr, source, out);
    variable("method", &Var::RequestMethod, source, out);
    variable("host", &Var::Host, source, out);
    variable("uri", &Var::RequestUri, source, out);
    variable("protocol", &Var::ServerProtocol, source, out);
    number("status", vars::status(cx), out);
    number("bytes", cx.body_bytes_sent, out);
    seconds("request_time", vars::request_time(cx), out);
    variable("failure", &Var::Failure, source, out);
    // the variable would make one
    match cx.request_id.get() {
        Some(_) => variable("request_id", &Var::RequestId, source, out),
        None => null("request_id", out),
    }
    variable("user_agent", &Var::Http(header::USER_AGENT), source, out);
    variable("referer", &Var::Http(header::REFERER), source, out);
    variable("site", &Var::Site, source, out);
    variable("listener", &Var::Listener, source, out);
    key("tls", out);
    match &cx.connection.tls {
        Some(facts) => tls(facts, source, out),
        None => out.extend_from_slice(b"null"),
    }
    key("upstream", out);
    out.push(b'[');
    for (i, attempt) in cx.tries.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        upstream(attempt, out);
    }
    out.extend_from_slice(b"]}");
}

fn tls(facts: &TlsFacts, source: &Source<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"version\":");
    super::quote(facts.version, out);
    variable("cipher", &Var::SslCipher, source, out);
    variable("server_name", &Var::SslServerName, source, out);
    out.push(b'}');
}

fn upstream(attempt: &Try, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"addr\":");
    super::quote(&attempt.backend, out);
    match attempt.status {
        0 => null("status", out),
        status => number("status", status, out),
    }
    seconds("connect_time", attempt.connect, out);
    seconds("header_time", attempt.header, out);
    seconds("response_time", attempt.response, out);
    out.push(b'}');
}

/// Appends a member that is not the first of its object.
fn variable(name: &str, var: &Var, source: &Source<'_>, out: &mut Vec<u8>) {
    key(name, out);
    let start = out.len();
    out.push(b'"');
    if source.write(var, out).is_none() {
        out.truncate(start);
        out.extend_from_slice(b"null");
        return;
    }
    if out[start + 1..].iter().all(|&byte| is_plain(byte)) {
        out.push(b'"');
        return;
    }
    let value = out.split_off(start + 1);
    out.truncate(start);
    super::quote(&String::from_utf8_lossy(&value), out);
}

fn number(name: &str, value: impl itoa::Integer, out: &mut Vec<u8>) {
    key(name, out);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn seconds(name: &str, value: Option<Duration>, out: &mut Vec<u8>) {
    let Some(value) = value else {
        return null(name, out);
    };
    key(name, out);
    date::seconds(value, out);
}

fn null(name: &str, out: &mut Vec<u8>) {
    key(name, out);
    out.extend_from_slice(b"null");
}

fn key(name: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

#[cfg(test)]
mod tests {
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use http::{HeaderValue, Version};
    use pingora::http::RequestHeader;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::exchange::cx::Connection;
    use crate::exchange::{Cx, Failure};
    use crate::issue::Sources;

    fn compile(format: &str) -> Result<AccessLog, String> {
        let format = Format::try_from(format.to_owned())?;
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let config = Config {
            format,
            ..Config::default()
        };
        let log = config.compile(&At::Root, &mut b);
        match b.issues.0.pop() {
            Some(issue) => Err(issue.message),
            None => Ok(log.unwrap()),
        }
    }

    fn wall() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_795_362_225_123)
    }

    fn cx() -> Cx {
        let connection = Connection {
            peer: Some("192.0.2.1:40000".parse().unwrap()),
            listener: "https".into(),
            ..Connection::default()
        };
        let mut cx = Cx::new(Instant::now(), Arc::new(connection));
        cx.ended = Some(cx.started + Duration::from_millis(42));
        cx.host = "shop.example".into();
        cx.site = Some("shop".into());
        cx.status = 200;
        cx.body_bytes_sent = 612;
        cx
    }

    fn request(target: &[u8], user_agent: &[u8]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", target, None).unwrap();
        request.set_version(Version::HTTP_11);
        let user_agent = HeaderValue::from_bytes(user_agent).unwrap();
        request.insert_header("user-agent", user_agent).unwrap();
        request
    }

    fn line(format: &str, cx: &Cx, request: &RequestHeader) -> String {
        let view = View {
            cx,
            request,
            response: None,
            wall: wall(),
        };
        let mut out = Vec::new();
        compile(format).unwrap().line(&view, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn combined_is_nginx_combined() {
        let mut time = Vec::new();
        date::common(wall(), &mut time);
        let time = String::from_utf8(time).unwrap();
        let request = request(b"/a?b=c", b"curl/8.5.0");
        let expected = format!(
            "192.0.2.1 - - [{time}] \"GET /a?b=c HTTP/1.1\" 200 612 \"-\" \"curl/8.5.0\"\n"
        );
        assert_eq!(line("combined", &cx(), &request), expected);
    }

    #[test]
    fn combined_names_the_reason_of_a_failed_request_at_its_end() {
        let mut cx = cx();
        cx.failure = Some(Failure::UpstreamConnect);
        let line = line("combined", &cx, &request(b"/", b"curl"));
        assert!(
            line.ends_with(" \"-\" \"curl\" upstream_connect\n"),
            "{line}"
        );
    }

    #[test]
    fn values_are_escaped_and_the_template_is_not() {
        let request = request(b"/\"\\\xff", "a\t\"é".as_bytes());
        assert_eq!(
            line(
                "\"$request_uri\"\t\"$http_user_agent\" $http_none é",
                &cx(),
                &request
            ),
            "\"/\\x22\\x5C\\xFF\"\t\"a\\x09\\x22\\xC3\\xA9\" - é\n"
        );
    }

    #[test]
    fn json_has_all_keys_of_a_failed_request() {
        let mut cx = cx();
        cx.connection = Arc::new(Connection {
            listener: "https".into(),
            tls: Some(TlsFacts {
                version: "TLSv1.3",
                cipher: "TLS_AES_128_GCM_SHA256",
                server_name: String::new(),
                ..TlsFacts::default()
            }),
            ..Connection::default()
        });
        cx.request_id = "id-1".to_owned().into();
        cx.failure = Some(Failure::UpstreamTimeout);
        cx.tries = vec![Try {
            backend: "127.0.0.1:9001".into(),
            started: cx.started,
            connect: Some(Duration::from_millis(1)),
            header: None,
            response: Some(Duration::from_millis(40)),
            status: 0,
            head: 0,
            length: 0,
        }];
        let line = line("json", &cx, &request(b"/a?b", b"a\xff\"b"));
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({
                "time": "2026-11-22T15:43:45.123Z",
                "client": "192.0.2.1",
                "method": "GET",
                "host": "shop.example",
                "uri": "/a?b",
                "protocol": "HTTP/1.1",
                "status": 200,
                "bytes": 612,
                "request_time": 0.042,
                "failure": "upstream_timeout",
                "request_id": "id-1",
                "user_agent": "a\u{fffd}\"b",
                "referer": null,
                "site": "shop",
                "listener": "https",
                "tls": { "version": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "server_name": null },
                "upstream": [{
                    "addr": "127.0.0.1:9001",
                    "status": null,
                    "connect_time": 0.001,
                    "header_time": null,
                    "response_time": 0.04,
                }],
            })
        );
    }

    #[test]
    fn json_writes_null_for_what_there_is_not() {
        let cx = Cx::new(Instant::now(), Arc::new(Connection::default()));
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let value: Value = serde_json::from_str(&line("json", &cx, &request)).unwrap();
        assert_eq!(value["client"], "unix:");
        assert_eq!(value["status"], 0);
        assert_eq!(value["upstream"], json!([]));
        for key in [
            "host",
            "request_time",
            "failure",
            "user_agent",
            "site",
            "tls",
        ] {
            assert_eq!(value.get(key), Some(&Value::Null), "{key}");
        }
    }

    #[test]
    fn what_is_no_format_is_an_error_that_helps() {
        assert_eq!(
            compile("combine").unwrap_err(),
            "unknown format `combine`; did you mean `combined`?"
        );
        assert!(
            compile("")
                .unwrap_err()
                .contains("expected `combined`, `json` or a template")
        );
        assert_eq!(compile("$hots").unwrap_err(), "no variable named `$hots`");
        assert!(compile("$host $").is_err());
        assert_eq!(
            compile("$host\n").unwrap_err(),
            "a log line cannot contain `\\n`"
        );
        assert!(
            compile("{\"host\":\"$host\"}")
                .unwrap_err()
                .contains("not valid in JSON")
        );
    }

    #[test]
    fn reads_what_the_manual_shows() {
        let config: Config =
            serde_yaml::from_str("{ file: /var/log/weir/access.log, format: combined }").unwrap();
        assert_eq!(config.file, Some("/var/log/weir/access.log".into()));
        assert_eq!(config.format, Format::Combined);
        let config: Config = serde_yaml::from_str(r#"{ format: "$host $status" }"#).unwrap();
        assert!(matches!(config.format, Format::Template(_)));
        assert!(serde_yaml::from_str::<Config>("{ path: x }").is_err());
    }

    #[test]
    fn a_logged_line_reaches_the_file() {
        let path = std::env::temp_dir().join(format!("weir-access-{}.log", std::process::id()));
        let log = compile("$request_uri").unwrap();
        let log = AccessLog {
            destination: Destination::File(path.clone()),
            ..log
        };
        let writers = Writers::default();
        let (cx, request) = (cx(), request(b"/here", b""));
        let view = View {
            cx: &cx,
            request: &request,
            response: None,
            wall: wall(),
        };
        log.log(&view);
        log.open(&writers).unwrap();
        log.log(&view);
        assert!(writers.flush(Duration::from_secs(20)));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "/here\n");
        std::fs::remove_file(&path).unwrap();
    }

    fn header_bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = any::<u8>().prop_filter("allowed in a header", |&byte| {
            byte == b'\t' || byte >= b' ' && byte != 0x7f
        });
        prop::collection::vec(byte, 0..40)
    }

    proptest! {
        #[test]
        fn no_text_line_holds_a_control_byte(agent in header_bytes(), host in "\\PC{0,20}|(?s).{0,20}") {
            let mut cx = cx();
            cx.path = host.clone();
            cx.host = host;
            let request = request(b"/", &agent);
            for format in ["combined", "$host \"$uri\" \"$http_user_agent\""] {
                let line = line(format, &cx, &request);
                let body = line.strip_suffix('\n').unwrap();
                prop_assert!(body.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{line:?}");
                prop_assert_eq!(body.matches('"').count() % 2, 0);
            }
        }

        #[test]
        fn every_json_line_parses(agent in header_bytes(), host in "(?s).{1,20}") {
            let mut cx = cx();
            cx.host = host.clone();
            let line = line("json", &cx, &request(b"/", &agent));
            prop_assert_eq!(line.matches('\n').count(), 1);
            let value: Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(value["host"].as_str(), Some(host.as_str()));
            let agent = String::from_utf8_lossy(&agent).into_owned();
            prop_assert_eq!(value["user_agent"].as_str(), Some(agent.as_str()));
        }
    }
}
