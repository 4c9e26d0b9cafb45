//! The command line.
//!
//! `-c -t -d -u` are Pingora's own options (its `Opt` is embedded), with weir's check behind `-t`. Exit status: 0
//! success, 1 bad configuration, 2 bad usage, 3 could not start or reach a running process.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use http::Method;
use pingora::server::configuration::Opt;

use crate::config;
use crate::exchange::Failure;
use crate::http::{host, path};
use crate::issue::Issues;
use crate::process::{self, Ended, How};
use crate::router::RequestFacts;
use crate::runtime::reload::{self, Source};

mod quick;
mod remote;

const EXIT_BAD_CONFIG: u8 = 1;
const EXIT_BAD_USAGE: u8 = 2;

/// Where the configuration is looked for without `-c`.
const DEFAULT_FILES: [&str; 2] = ["conf/weir.yaml", "/etc/weir/weir.yaml"];

#[derive(Parser)]
#[command(
    name = "weir",
    version,
    about = "Web server, reverse proxy and load balancer, configured in YAML",
    long_about = "Web server, reverse proxy and load balancer, configured in YAML.\n\n\
        Without a command, runs. Without -c, the configuration is ./conf/weir.yaml, or else \
        /etc/weir/weir.yaml.\n\n\
        Signals: HUP reloads the configuration, USR1 reopens log files, TERM ends when all requests \
        are done, QUIT hands the sockets to a waiting `weir -u` first, INT ends at once.",
    after_help = "Exit status: 0 success, 1 bad configuration, 2 bad usage, 3 could not start, or \
        not reach a running process, or no new one came up or passed its probation."
)]
struct Cli {
    #[command(flatten)]
    options: Opt,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a balanced, health-checked proxy without a file
    Proxy(quick::Proxy),
    /// Serve the files of a folder without a file of configuration
    Files(quick::Files),
    /// Test the configuration; show all mistakes or, when there are none, warnings
    Check(Check),
    /// Say which site, route, policies and action a request would take, and why
    Route(Route),
    /// Print the JSON Schema of the configuration language
    Schema,
    /// Say how a running weir is doing: its pools, and who of them is up
    Status(remote::Status),
    /// Have a running weir read its configuration again; print what changed, or the mistakes
    Reload(remote::Reload),
    /// Have a new process, of a new program perhaps, take over from a running weir without a lost request
    Upgrade(remote::Upgrade),
    /// Take a member of a pool out: no new requests, running ones end
    Drain(remote::Drain),
    /// Give a drained member requests again
    Undrain(remote::Drain),
    /// End a running weir when its requests are done, and wait for it
    Stop(remote::Stop),
}

#[derive(Args)]
struct Check {
    /// Print the issues as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Route {
    /// Such as GET
    method: Method,
    /// Such as https://shop.example/cart?x=1; without scheme and host, a path on any host
    url: http::Uri,
    /// A header of the request, as `Name: value`
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// The client's address
    #[arg(long)]
    client: Option<std::net::IpAddr>,
    /// The listener; default: the first that fits the URL's scheme and port
    #[arg(long)]
    listener: Option<String>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // The commands take Pingora's `-c` too, on either side of their name.
    let command = Cli::command().mut_arg("conf", |conf| {
        conf.global(true)
            .value_name("FILE")
            .help("The configuration file")
    });
    let cli = match command
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches))
    {
        Ok(cli) => cli,
        Err(e) => e.exit(),
    };
    let Cli { options, command } = cli;
    let file = options.conf.as_deref().map(PathBuf::from);
    let source = file.or_else(default_file).map(Source::File);
    match (command, source) {
        (Some(Command::Proxy(proxy)), _) => quick(proxy.server(), &options),
        (Some(Command::Files(files)), _) => quick(files.server(), &options),
        (Some(Command::Schema), _) => schema(),
        (Some(Command::Status(command)), source) => remote::status(&command, source.as_ref()),
        (Some(Command::Reload(command)), source) => remote::reload(&command, source.as_ref()),
        (Some(Command::Upgrade(command)), source) => remote::upgrade(&command, source.as_ref()),
        (Some(Command::Drain(command)), source) => remote::drain(&command, true, source.as_ref()),
        (Some(Command::Undrain(command)), source) => {
            remote::drain(&command, false, source.as_ref())
        }
        (Some(Command::Stop(command)), source) => remote::stop(&command, source.as_ref()),
        (_, None) => {
            no_file();
            ExitCode::from(EXIT_BAD_USAGE)
        }
        (Some(Command::Check(wanted)), Some(source)) => check(&source, wanted.json),
        (Some(Command::Route(request)), Some(source)) => route(&source, &request),
        (None, Some(source)) if options.test => test(&source),
        (None, Some(source)) => run(
            source,
            How {
                daemon: options.daemon,
                upgrade: options.upgrade,
                greeting: None,
            },
        ),
    }
}

fn default_file() -> Option<PathBuf> {
    DEFAULT_FILES
        .map(PathBuf::from)
        .into_iter()
        .find(|file| file.exists())
}

fn no_file() {
    let [here, there] = DEFAULT_FILES;
    eprintln!("weir: there is neither {here} nor {there}; name a configuration with -c");
}

fn quick(server: quick::Server, options: &Opt) -> ExitCode {
    if options.conf.is_some() || options.test || options.daemon || options.upgrade {
        eprintln!(
            "weir: `{}` takes none of -c -t -d -u; for a server that stays, save what `--print` shows, and run that",
            server.name
        );
        return ExitCode::from(EXIT_BAD_USAGE);
    }
    if server.print {
        let _ = write!(std::io::stdout().lock(), "{}", server.document);
        return ExitCode::SUCCESS;
    }
    let how = How {
        greeting: Some(server.greeting.clone()),
        ..How::default()
    };
    run(server.source(), how)
}

fn run(source: Source, how: How) -> ExitCode {
    // The background process leaves this folder; all paths in the file are relative to the file's own.
    let source = match source {
        Source::File(file) => Source::File(std::path::absolute(&file).unwrap_or(file)),
        text => text,
    };
    process::raise_file_limit();
    let loaded = match reload::load(&source, None) {
        Ok(loaded) => loaded,
        Err(issues) => return refuse(&issues),
    };
    print_issues(&loaded.warnings);
    match process::run(source, loaded, how) {
        Ok(Ended::Whole) => ExitCode::SUCCESS,
        Ok(Ended::Cut) => ExitCode::from(process::EXIT_CUT),
        Err(e) => {
            eprintln!("weir: {e:#}");
            ExitCode::from(process::EXIT_FAILED)
        }
    }
}

fn test(source: &Source) -> ExitCode {
    match reload::load(source, None) {
        Ok(loaded) => {
            print_issues(&loaded.warnings);
            eprintln!("{source}: the configuration is good");
            ExitCode::SUCCESS
        }
        Err(issues) => refuse(&issues),
    }
}

fn check(source: &Source, json: bool) -> ExitCode {
    if !json {
        return test(source);
    }
    let (issues, status) = match reload::load(source, None) {
        Ok(loaded) => (loaded.warnings, ExitCode::SUCCESS),
        Err(issues) => (issues, ExitCode::from(EXIT_BAD_CONFIG)),
    };
    print_json(&issues.report());
    status
}

fn refuse(issues: &Issues) -> ExitCode {
    print_issues(issues);
    let errors = issues.errors();
    let (noun, verb) = if errors == 1 {
        ("mistake", "is")
    } else {
        ("mistakes", "are")
    };
    eprintln!("\nthere {verb} {errors} {noun} in the configuration");
    ExitCode::from(EXIT_BAD_CONFIG)
}

fn print_issues(issues: &Issues) {
    if !issues.0.is_empty() {
        eprint!("{issues}");
    }
}

fn schema() -> ExitCode {
    print_json(&config::schema());
    ExitCode::SUCCESS
}

fn print_json(value: &impl serde::Serialize) {
    let mut out = std::io::stdout().lock();
    let printed = serde_json::to_writer_pretty(&mut out, value).map_err(std::io::Error::from);
    // Whoever reads may have had enough (`| head`).
    let _ = printed.and_then(|()| writeln!(out));
}

fn route(source: &Source, request: &Route) -> ExitCode {
    let snapshot = match reload::load(source, None) {
        Ok(loaded) => loaded.plan.snapshot,
        Err(issues) => return refuse(&issues),
    };
    match explain(&snapshot, request) {
        Ok(explanation) => {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{}", explanation.trim_end());
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("weir: {e}");
            ExitCode::from(EXIT_BAD_USAGE)
        }
    }
}

fn explain(snapshot: &crate::runtime::Snapshot, request: &Route) -> Result<String, String> {
    let (mut host, mut path) = (String::new(), String::new());
    let authority = request
        .url
        .authority()
        .map_or("", |authority| authority.as_str());
    host::normalise_into(authority.as_bytes(), &mut host)
        .map_err(|e| format!("`{authority}` is no host: {e}"))?;
    path::normalise_into(request.url.path(), &mut path)
        .map_err(|e| format!("`{}` is no path: {e}; weir answers 400", request.url.path()))?;
    let mut headers = http::HeaderMap::new();
    for header in &request.headers {
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| format!("expected `Name: value`, found `{header}`"))?;
        let name: http::HeaderName = name
            .trim()
            .parse()
            .map_err(|_| format!("`{name}` is no header name"))?;
        let value: http::HeaderValue = value
            .trim()
            .parse()
            .map_err(|_| format!("`{value}` is no header value"))?;
        headers.append(name, value);
    }
    let listener = choose_listener(snapshot, request)?;
    let facts = RequestFacts {
        method: &request.method,
        path: &path,
        headers: &headers,
        query: request.url.query(),
        client: request.client,
    };
    let secure = request.url.scheme_str() == Some("https");
    Ok(match snapshot.router.explain(&listener, &host, &facts) {
        Some(explanation) => format!("listener: {listener}\n{explanation}"),
        None => {
            let status = Failure::NoSite { secure }.status();
            format!("listener: {listener}\nno site has the host `{host}`: weir answers {status}")
        }
    })
}

fn choose_listener(
    snapshot: &crate::runtime::Snapshot,
    request: &Route,
) -> Result<std::sync::Arc<str>, String> {
    use crate::net::Bind;
    let listeners = snapshot.listeners(crate::runtime::Part::Edge);
    if let Some(name) = &request.listener {
        return match listeners.get(name.as_str()) {
            Some(listener) => Ok(listener.name.clone()),
            None => Err(format!("no listener named `{name}`")),
        };
    }
    let port = request.url.port_u16();
    let fits = |listener: &&crate::net::Listener| {
        let scheme = request.url.scheme_str();
        let secure = listener.tls.is_some();
        let of_port = |bind: &Bind| match bind {
            Bind::Tcp(addr) => Some(addr.port()) == port,
            Bind::Any(own) => Some(*own) == port,
            Bind::Unix(_) | Bind::Systemd(_) => false,
        };
        scheme.is_none_or(|scheme| (scheme == "https") == secure)
            && (port.is_none() || listener.binds.iter().any(of_port))
    };
    let fitting = listeners
        .values()
        .find(fits)
        .or_else(|| listeners.values().next());
    fitting
        .map(|listener| listener.name.clone())
        .ok_or_else(|| "there are no listeners".to_owned())
}
