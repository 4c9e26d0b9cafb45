//! Running without a file: `weir proxy --to 127.0.0.1:3000`, `weir files ./www`.
//!
//! The options become a document in the configuration language, and the document runs like any other. So there is one
//! way for everything to work, and `--print` shows the file to go on with.

use std::fmt::Write;
use std::path::Path;

use clap::Args;

use crate::issue::{At, Issues, Sources};
use crate::net::Bind;
use crate::pool::backend;
use crate::runtime::reload::Source;
use crate::value::FromShort;

/// What a command line stands for.
pub struct Server {
    /// The command, which takes a file's place in messages.
    pub name: &'static str,
    pub document: String,
    /// What to tell whoever started it.
    pub greeting: String,
    /// Whether the document is only to be shown.
    pub print: bool,
}

impl Server {
    /// The document, to be run.
    pub fn source(self) -> Source {
        Source::Text {
            name: self.name,
            text: self.document,
        }
    }
}

/// Options of all these commands.
#[derive(Args)]
struct Common {
    /// Where to listen: `127.0.0.1:8080`, `:8080` for all addresses, `unix:/path` [default: `:8080`, or `:8443` with
    /// --self-signed]
    #[arg(long, value_name = "ADDRESS", value_parser = bind)]
    bind: Vec<Bind>,
    /// Serve TLS with a certificate made for the occasion
    #[arg(long)]
    self_signed: bool,
    /// Print the configuration that this stands for, and end
    #[arg(long)]
    print: bool,
}

impl Common {
    /// `listeners:` of the document.
    fn listeners(&self) -> String {
        let binds = self.bind_list();
        match self.self_signed {
            true => format!(
                "listeners:\n  https: {{ bind: {binds}, tls: {{ certificates: [{{ self_signed: true }}] }} }}\n"
            ),
            false => format!("listeners:\n  http: {{ bind: {binds} }}\n"),
        }
    }

    fn bind_list(&self) -> String {
        list(self.binds().iter().map(Bind::to_string))
    }

    /// Where it listens, and what is there.
    fn greeting(&self, what: &str) -> String {
        let scheme = if self.self_signed { "https" } else { "http" };
        let binds: Vec<String> = self.binds().iter().map(|bind| url(scheme, bind)).collect();
        format!("{} -> {what}", binds.join(", "))
    }

    fn binds(&self) -> Vec<Bind> {
        match (self.bind.as_slice(), self.self_signed) {
            ([], false) => vec![Bind::Any(8080)],
            ([], true) => vec![Bind::Any(8443)],
            (given, _) => given.to_vec(),
        }
    }
}

/// `weir proxy`.
#[derive(Args)]
pub struct Proxy {
    /// Where requests go: `host:port`, `http://host:port`, `unix:/path` or a port of this machine; again for each
    /// further backend
    #[arg(long, required = true, value_name = "ADDRESS", value_parser = to)]
    to: Vec<String>,
    #[command(flatten)]
    common: Common,
}

impl Proxy {
    pub fn server(&self) -> Server {
        Server {
            name: "weir proxy",
            document: self.document(),
            greeting: self.common.greeting(&self.to.join(", ")),
            print: self.common.print,
        }
    }

    fn document(&self) -> String {
        let listeners = self.common.listeners();
        let backends = list(self.to.iter().cloned());
        // Checks at a pace for somebody who restarts a backend and looks at the page.
        format!(
            "# made by `weir proxy`\nversion: 1\n{listeners}\
             pools:\n  app:\n    backends: {backends}\n    \
             health: {{ tcp: {{}}, interval: 1s, rise: 1, fall: 2 }}\n\
             sites:\n  main:\n    hosts: \"*\"\n    routes: [{{ proxy: app }}]\n"
        )
    }
}

/// `weir files`.
#[derive(Args)]
pub struct Files {
    /// The folder: `.` for this one
    #[arg(value_name = "DIR", value_parser = folder)]
    dir: String,
    /// Show what is in a folder that has no index.html
    #[arg(long)]
    listing: bool,
    /// Answer with /index.html for every path that is no file, as a single-page application needs it
    #[arg(long)]
    spa: bool,
    #[command(flatten)]
    common: Common,
}

impl Files {
    pub fn server(&self) -> Server {
        let mut greeting = self.common.greeting(&self.dir);
        if !self.listing && !Path::new(&self.dir).join("index.html").exists() {
            greeting.push_str(" (no index.html in it: --listing shows what there is)");
        }
        Server {
            name: "weir files",
            document: self.document(),
            greeting,
            print: self.common.print,
        }
    }

    /// A companion service, which is the shortest way to a file; but those have no TLS.
    fn document(&self) -> String {
        let mut keys = format!("root: {}", quoted(&self.dir));
        if self.listing {
            keys.push_str(", listing: true");
        }
        if self.spa {
            keys.push_str(", try: [\"$uri\", \"$uri/\", /index.html]");
        }
        let mut text = String::from("# made by `weir files`\nversion: 1\n");
        // Writing to a string does not fail.
        let _ = match self.common.self_signed {
            true => write!(
                text,
                "{}sites:\n  main:\n    hosts: \"*\"\n    routes:\n      - files: {{ {keys} }}\n",
                self.common.listeners()
            ),
            false => writeln!(
                text,
                "static:\n  main: {{ bind: {}, {keys} }}",
                self.common.bind_list()
            ),
        };
        text
    }
}

/// A YAML list of texts.
fn list(texts: impl Iterator<Item = String>) -> String {
    let quoted: Vec<String> = texts.map(|text| quoted(&text)).collect();
    format!("[{}]", quoted.join(", "))
}

/// A text in YAML: quoted as JSON, which YAML reads as it is meant.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// What to type into a browser on this machine.
fn url(scheme: &str, bind: &Bind) -> String {
    match bind {
        Bind::Any(port) => format!("{scheme}://localhost:{port}/"),
        Bind::Tcp(addr) if addr.ip().is_unspecified() => {
            format!("{scheme}://localhost:{}/", addr.port())
        }
        Bind::Tcp(addr) => format!("{scheme}://{addr}/"),
        Bind::Unix(_) | Bind::Systemd(_) => bind.to_string(),
    }
}

/// A backend as people write and paste it, as the configuration has it.
fn to(text: &str) -> Result<String, String> {
    let address = match (text.strip_prefix(':').unwrap_or(text), scheme(text)) {
        (port, _) if is_number(port) => format!("127.0.0.1:{port}"),
        (_, Some(("http", rest))) => authority(text, rest)?,
        (_, Some(("https", _))) => {
            return Err("backends are spoken to without TLS: give their plain port".to_owned());
        }
        _ => match text.strip_prefix("unix:") {
            // In a file it would be relative to that.
            Some(path) if !path.is_empty() => {
                let path = std::path::absolute(path).map_err(|e| e.to_string())?;
                format!("unix:{}", path.display())
            }
            _ => text.to_owned(),
        },
    };
    let mut issues = Issues::default();
    let backend = backend::Config::from_short(&address)?;
    backend.compile(&At::Root, &Sources::default(), &mut issues);
    match issues.0.into_iter().next() {
        None => Ok(address),
        Some(issue) => Err(match issue.hint {
            Some(hint) => format!("{} ({hint})", issue.message),
            None => issue.message,
        }),
    }
}

/// A folder that is there, by a path that does not depend on where the file with it will lie.
fn folder(text: &str) -> Result<String, String> {
    let path = match std::fs::canonicalize(text) {
        Ok(path) if path.is_dir() => path,
        Ok(_) => return Err(format!("`{text}` is not a folder")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(format!("there is no folder `{text}`"));
        }
        Err(error) => return Err(format!("cannot open the folder `{text}`: {error}")),
    };
    match path.into_os_string().into_string() {
        // no file can say this and mean it
        Ok(path) if path.contains("${env:") || path.contains("${file:") => Err(format!(
            "`{path}` would be filled in while loading: rename the folder"
        )),
        Ok(path) => Ok(path),
        Err(_) => Err(format!(
            "the path of `{text}` is not UTF-8, and YAML is nothing else"
        )),
    }
}

fn bind(text: &str) -> Result<Bind, String> {
    let bind = match is_number(text) {
        true => format!(":{text}").parse()?,
        false => text.parse()?,
    };
    match &bind {
        Bind::Any(0) => Err("choose a port: nobody would know which one it is".to_owned()),
        Bind::Tcp(addr) if addr.port() == 0 => {
            Err("choose a port: nobody would know which one it is".to_owned())
        }
        _ => Ok(bind),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn scheme(text: &str) -> Option<(&str, &str)> {
    text.split_once("://")
}

/// `host:port` of a URL that consists of nothing else.
fn authority(url: &str, rest: &str) -> Result<String, String> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('/') {
        return Err(format!(
            "`{url}` has a path: leave it out, requests come with their own"
        ));
    }
    let host_end = authority.rfind(']').unwrap_or(0);
    match authority[host_end..].contains(':') {
        true => Ok(authority.to_owned()),
        false => Ok(format!("{authority}:80")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_taken_as_people_write_them() {
        for (text, address) in [
            ("3000", "127.0.0.1:3000"),
            (":3000", "127.0.0.1:3000"),
            ("127.0.0.1:3000", "127.0.0.1:3000"),
            ("[::1]:3000", "[::1]:3000"),
            ("app:3000", "app:3000"),
            ("http://127.0.0.1:3000", "127.0.0.1:3000"),
            ("http://127.0.0.1:3000/", "127.0.0.1:3000"),
            ("http://app", "app:80"),
            ("http://[::1]", "[::1]:80"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
        ] {
            assert_eq!(to(text).as_deref(), Ok(address));
        }
        for text in [
            "",
            "app",
            "0",
            "70000",
            "https://app",
            "http://app/api",
            "http://app?x",
            "ftp://app:21",
            "unix:",
        ] {
            assert!(to(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_alone_listens_on_all_addresses() {
        assert_eq!(bind("8080"), Ok(Bind::Any(8080)));
        assert_eq!(bind(":8080"), Ok(Bind::Any(8080)));
        for text in ["0", "127.0.0.1:0", "localhost:80", "70000"] {
            assert!(bind(text).is_err(), "{text}");
        }
    }
}
