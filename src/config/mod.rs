//! The document: everything that one YAML file says. Raw types only; `runtime::compile` makes it run.

use std::path::PathBuf;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use crate::exchange::named;
use crate::filter::Filters;
use crate::router::config::Site;
use crate::value::keys::{self, Keyed};
use crate::value::{Cidr, OneOrMany, OrOff, Span};
use crate::{handler, log, net, pool};

mod de;
mod fill;
pub mod load;
mod node;

/// The configuration of weir.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Version of the configuration language: `1`.
    pub version: Option<Version>,
    /// Worker threads of each service: a number, or `auto` (default) for one per CPU. nginx: `worker_processes`.
    pub threads: Threads,
    /// File to hold the process id. Default: none, or `/tmp/weir.pid` with `daemon: true`. nginx: `pid`.
    pub pid_file: Option<PathBuf>,
    /// Unix socket over which a new process (`weir -u`) takes the listening sockets of the running one. Default:
    /// beside `pid_file`, or `/tmp/weir_upgrade.sock`.
    pub upgrade_sock: Option<PathBuf>,
    /// User to run as once the sockets are bound; needs root to start with, of whose rights only that to ports below 1024 is
    /// kept. nginx: `user`.
    pub user: Option<String>,
    /// Group to run as. Default: the user's.
    pub group: Option<String>,
    /// Run in the background, as `-d`.
    pub daemon: bool,
    /// File for what the process prints outside its logs when it runs in the background. Default: `/dev/null`.
    pub error_log: Option<PathBuf>,
    /// Folder to change to when running in the background. Default: `/`.
    pub working_directory: Option<PathBuf>,
    /// How the process ends after TERM, QUIT or `weir stop`. nginx: `worker_shutdown_timeout`.
    pub drain: Drain,
    /// Reload when the document changes, or a file that it names: what it includes or fills in, certificates and keys.
    /// Default: false.
    pub watch: bool,
    /// `drain.deadline` in seconds, as Pingora spells it; give one of the two.
    pub grace_period_seconds: Option<u64>,
    /// Let idle worker threads take work of busy ones. Default: true.
    pub work_stealing: Option<bool>,
    /// Tasks that accept from one socket. Default: 1.
    pub listener_tasks_per_fd: Option<usize>,
    /// Idle HTTP/2 connections to backends kept for reuse, per worker thread; for HTTP/1.1 see `keepalive` of a pool. Default: 128.
    pub upstream_keepalive_pool_size: Option<usize>,
    /// Tries at most for one request, over all backends. Default: 16. nginx: `proxy_next_upstream_tries`.
    pub max_retries: Option<usize>,
    /// Access log and error log.
    pub log: log::Config,
    /// Where requests can go: groups of backends, by name. nginx: `upstream`.
    pub pools: IndexMap<String, pool::Config>,
    /// Who is asked for backends that are given by name.
    pub resolver: pool::resolver::Config,
    /// Where requests come from, by name. nginx: `listen`.
    pub listeners: IndexMap<String, net::Config>,
    /// Peers whose `X-Forwarded-For` is believed when finding the client's address. nginx: `set_real_ip_from`.
    pub trusted_proxies: Vec<Cidr>,
    /// Variables whose value is looked up by a text, by name, `$tier`. nginx: `map`.
    pub map: IndexMap<String, named::map::Config>,
    /// Variables whose value depends on an address, by name, `$region`. nginx: `geo`.
    pub geo: IndexMap<String, named::geo::Config>,
    /// Variables that split requests by share, by name, `$variant`. nginx: `split_clients`.
    pub split: IndexMap<String, named::split::Config>,
    /// Policies of all sites that do not set the same key.
    pub defaults: Filters,
    /// What to do with requests, by name. nginx: `server`.
    pub sites: IndexMap<String, Site>,
    /// Companion static-file services: own listeners, own Pingora service, nothing but files.
    #[serde(rename = "static")]
    pub statics: IndexMap<String, Static>,
    /// The socket over which `weir status`, `reload`, `upgrade`, `drain`, `undrain` and `stop` speak to this process, or `off`.
    /// Default: `admin.sock` beside `pid_file`; without a `pid_file`, off.
    pub admin: Option<OrOff<Admin>>,
}

/// The admin socket: HTTP with JSON, for weir's own commands and for programs.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// A unix socket: `unix:/run/weir/admin.sock`. Only the user that weir runs as, and root, may connect.
    pub bind: net::Bind,
}

/// How the process ends: its load balancer is told, then no more connections are accepted, and what runs may finish.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long new connections are still accepted while `GET /ready` on the admin socket and a `status` action answer
    /// 503, so that a load balancer in front sends its clients elsewhere. Default: `0s`.
    pub announce: Option<Span>,
    /// How long WebSockets go on after that, before each is closed with code 1012, service restart. Default: `5s`, or
    /// half of the time that there is if that is less.
    pub tunnels: Option<Span>,
    /// When the process ends at the latest, counted from the signal. Must be below `TimeoutStopSec` of a systemd unit.
    /// Default: `30s`.
    pub deadline: Option<Span>,
}

/// One companion static-file service: `static.NAME`.
#[derive(Clone, Debug, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Static {
    /// Where to listen, as in `listeners`.
    pub bind: OneOrMany<net::Bind>,
    #[schemars(flatten)]
    pub files: handler::files::Config,
}

impl Keyed for Static {
    const EXPECTING: &'static str = "a static-file service";
    const KEYS: &'static [&'static str] =
        &keys::join::<{ 1 + handler::files::Config::KEYS.len() }>(&[
            &["bind"],
            handler::files::Config::KEYS,
        ]);

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "bind" => self.bind = map.next_value()?,
            key => self.files.read(key, map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Static {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Static, D::Error> {
        keys::deserialize(deserializer)
    }
}

/// The only version so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Version, D::Error> {
        match u64::deserialize(deserializer)? {
            1 => Ok(Version),
            other => Err(serde::de::Error::custom(format!(
                "expected `1`, found `{other}`"
            ))),
        }
    }
}

impl JsonSchema for Version {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Version".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "const": 1 })
    }
}

/// Worker threads: a number, or as many as there are CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    #[default]
    Auto,
    Fixed(usize),
}

impl Threads {
    pub fn count(self) -> usize {
        match self {
            Threads::Auto => std::thread::available_parallelism().map_or(1, usize::from),
            Threads::Fixed(count) => count,
        }
    }
}

impl<'de> Deserialize<'de> for Threads {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Threads, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Threads;

            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number of threads from 1 to 1024, or `auto`")
            }

            fn visit_u64<E: serde::de::Error>(self, count: u64) -> Result<Threads, E> {
                match usize::try_from(count) {
                    Ok(count @ 1..=1024) => Ok(Threads::Fixed(count)),
                    _ => Err(E::invalid_value(
                        serde::de::Unexpected::Unsigned(count),
                        &self,
                    )),
                }
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Threads, E> {
                match text {
                    "auto" => Ok(Threads::Auto),
                    _ => Err(E::invalid_type(serde::de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Threads {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Threads".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [
                { "const": "auto" },
                { "type": "integer", "minimum": 1, "maximum": 1024 },
            ],
        })
    }
}

/// The JSON Schema of the language, for editors.
pub fn schema() -> schemars::Schema {
    let mut schema = schemars::schema_for!(Config);
    // Not among the raw types: the loader has taken it out before they are read.
    let include = serde_json::json!({
        "description": "Files whose entries are added to those of this one, such as `conf.d/*.yaml`, relative to \
                        this file.",
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
    });
    if let Some(properties) = schema
        .get_mut("properties")
        .and_then(|keys| keys.as_object_mut())
    {
        properties.insert("include".to_owned(), include);
    }
    schema
}
