//! From the document to what runs: the only place that sees the raw and the compiled types of all modules.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::certificates::Certificates;
use super::{Boot, Drain, Plan, Snapshot};
use crate::build::Build;
use crate::config::{self, Admin, Config};
use crate::exchange::named;
use crate::handler::proxy;
use crate::http::version::Protocols;
use crate::issue::{At, Issues, Sources};
use crate::net::{Bind, Bounds, Listener, Listeners};
use crate::pool::{Names, Pool};
use crate::router::Router;
use crate::tls::{self, Acceptor, Resolver, TicketKeys};
use crate::value::{OneOrMany, OrOff, Span};

const DEFAULT_PID_FILE: &str = "/tmp/weir.pid";
const DEFAULT_UPGRADE_SOCK: &str = "/tmp/weir_upgrade.sock";
/// As Pingora's.
const DEFAULT_MAX_RETRIES: usize = 16;
/// Fits the stop time-out of the unit that weir comes with.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);
const DEFAULT_TUNNELS: Duration = Duration::from_secs(5);

/// Compiles a document; `previous` is what runs now, of which everything that stays the same is taken over.
///
/// The plan is there unless something is so wrong that none can be made; it may be used only if no issue is an error.
pub fn compile(
    config: &Config,
    sources: &Sources,
    previous: Option<&Snapshot>,
) -> (Option<Plan>, Issues) {
    let mut b = Build::new(sources);
    if let Some(previous) = previous {
        b.previous = previous.carry.clone();
    }
    let plan = plan(config, previous, &mut b);
    (plan, b.issues)
}

fn plan(config: &Config, previous: Option<&Snapshot>, b: &mut Build<'_>) -> Option<Plan> {
    let root = At::Root;
    let boot = boot(config, b);
    let drain = drain(config, b);
    // First: all texts may use them.
    let sections = named::Sections {
        map: &config.map,
        geo: &config.geo,
        split: &config.split,
    };
    let named = sections.compile(b);
    let log = config.log.compile(&root.key("log"), b);
    let pools = pools(config, previous, b);
    let by_name = config.pools.keys();
    let by_name = by_name.map(|name| (name.clone(), pools.get(name).cloned()));
    b.set_pools(by_name.collect());
    b.trusted_proxies = config.trusted_proxies.as_slice().into();
    distinct_binds(config, b);
    let (companion, statics) = companion(config, b);
    let names: Vec<&str> = config.listeners.keys().map(String::as_str).collect();
    let sites = config
        .sites
        .iter()
        .map(|(name, site)| (name.as_str(), site));
    let router = Arc::new(Router::compile(&root, &config.defaults, sites, &names, b));
    let (certificates, renewals) = Certificates::compile(config, previous, b);
    let ticket_keys = ticket_keys(previous, b);
    let edge = edge(config, ticket_keys.as_ref(), previous, b);
    let listens = !config.listeners.is_empty() || !config.statics.is_empty();
    if !listens && b.is_whole("listeners") && b.is_whole("static") {
        b.error(&root.key("listeners"), "there is nothing to listen on")
            .hint("give at least one listener: `listeners: { http: { bind: \":8080\" } }`");
    }
    unused_pools(config, b);
    let answers_itself = router.routes().any(|route| route.handler.answers_itself());
    let snapshot = Snapshot {
        generation: previous.map_or(1, |previous| previous.generation + 1),
        since: SystemTime::now(),
        answers_itself,
        router,
        pools,
        statics,
        trusted_proxies: config.trusted_proxies.clone(),
        named,
        upstream_fields: std::mem::take(&mut b.upstream_fields),
        log: log?,
        drain,
        watch: config.watch,
        cuts: previous.map_or_else(Arc::default, |previous| previous.cuts.clone()),
        carry: std::mem::take(&mut b.carried),
        tunnels: AtomicUsize::new(0),
        edge,
        companion,
        certificates: Arc::new(ArcSwap::from_pointee(certificates)),
        renewals: Arc::new(Mutex::new(renewals)),
        ticket_keys: ticket_keys?,
    };
    if let Some(previous) = previous {
        adopt_open_files(&snapshot, previous);
    }
    Some(Plan { boot, snapshot })
}

/// Folders that are served as before go on with the files that are open.
fn adopt_open_files(snapshot: &Snapshot, previous: &Snapshot) {
    let before = previous.files();
    for files in snapshot.files().values() {
        for before in before.values() {
            files.adopt(before);
        }
    }
}

fn boot(config: &Config, b: &mut Build<'_>) -> Boot {
    let root = At::Root;
    let path = |key: &str, written: &Option<PathBuf>, b: &Build<'_>| {
        written
            .as_ref()
            .map(|written| b.path(&root.key(key), written))
    };
    let pid_file = path("pid_file", &config.pid_file, b);
    let upgrade_sock = path("upgrade_sock", &config.upgrade_sock, b);
    let admin = admin(config, pid_file.as_deref(), b);
    for (key, value) in [
        ("listener_tasks_per_fd", config.listener_tasks_per_fd),
        ("max_retries", config.max_retries),
    ] {
        if value == Some(0) {
            b.error(&root.key(key), "must be at least 1");
        }
    }
    Boot {
        threads: config.threads.count(),
        upgrade_sock: upgrade_sock.unwrap_or_else(|| match &pid_file {
            Some(pid_file) => pid_file.with_file_name("upgrade.sock"),
            None => DEFAULT_UPGRADE_SOCK.into(),
        }),
        admin,
        admin_is_given: config.admin.is_some(),
        pid_file: pid_file.or_else(|| config.daemon.then(|| DEFAULT_PID_FILE.into())),
        user: config.user.clone(),
        group: config.group.clone(),
        daemon: config.daemon,
        error_log: path("error_log", &config.error_log, b).unwrap_or_else(|| "/dev/null".into()),
        working_directory: path("working_directory", &config.working_directory, b)
            .unwrap_or_else(|| "/".into()),
        work_stealing: config.work_stealing.unwrap_or(true),
        listener_tasks_per_fd: config.listener_tasks_per_fd.unwrap_or(1),
        upstream_keepalive_pool_size: config.upstream_keepalive_pool_size,
        max_retries: config.max_retries.unwrap_or(DEFAULT_MAX_RETRIES),
    }
}

fn drain(config: &Config, b: &mut Build<'_>) -> Drain {
    let at = At::Root.key("drain");
    let config::Drain {
        announce,
        tunnels,
        deadline,
    } = config.drain;
    if deadline.is_some() && config.grace_period_seconds.is_some() {
        let at = At::Root.key("grace_period_seconds");
        b.error(&at, "`drain.deadline` says the same")
            .hint("leave `grace_period_seconds` out");
    }
    let deadline = match (deadline, config.grace_period_seconds) {
        (Some(deadline), _) => deadline.get(),
        (None, Some(seconds)) => Duration::from_secs(seconds),
        (None, None) => DEFAULT_DEADLINE,
    };
    let announce = announce.map(Span::get).unwrap_or_default();
    let left = deadline.saturating_sub(announce);
    let longest = |what: Duration| format!("must be less than {}", Span::new(what));
    if left.is_zero() && !announce.is_zero() {
        b.error(&at.key("announce"), longest(deadline))
            .hint("`deadline` ends all of it, `announce` included");
    } else if let Some(tunnels) = tunnels
        && tunnels.get() >= left
        && !left.is_zero()
    {
        b.error(&at.key("tunnels"), longest(left))
            .hint("at `deadline` they are cut without a word");
    }
    Drain {
        announce,
        tunnels: tunnels.map_or(DEFAULT_TUNNELS.min(left / 2), Span::get),
        deadline,
    }
}

/// The admin socket of a configuration that need not be free of mistakes: one speaks to a running process to tell it
/// of the next file as well.
pub fn admin_socket(config: &Config, sources: &Sources) -> Option<Bind> {
    let mut b = Build::new(sources);
    let at = At::Root.key("pid_file");
    let pid_file = config.pid_file.as_ref().map(|path| b.path(&at, path));
    admin(config, pid_file.as_deref(), &mut b)
}

fn admin(config: &Config, pid_file: Option<&Path>, b: &mut Build<'_>) -> Option<Bind> {
    match &config.admin {
        Some(OrOff::Off) => None,
        Some(OrOff::On(Admin { bind })) => {
            if !matches!(bind, Bind::Unix(_)) {
                let at = At::Root.key("admin");
                // Every program of this machine, and by a trick every page in a browser on it, may connect to a port.
                b.error(&at.key("bind"), format!("`{bind}` is not a unix socket"))
                    .hint("give a path, to which files' permissions apply: `unix:/run/weir/admin.sock`");
                return None;
            }
            Some(bind.clone())
        }
        // Without one, many processes may share a folder.
        None => pid_file.map(|path| Bind::Unix(path.with_file_name("admin.sock"))),
    }
}

fn pools(
    config: &Config,
    previous: Option<&Snapshot>,
    b: &mut Build<'_>,
) -> BTreeMap<String, Arc<Pool>> {
    let at = At::Root.key("resolver");
    let resolver = config.resolver.compile(&at, &mut b.issues);
    let running = previous.iter().flat_map(|previous| previous.pools.values());
    let names = Names::look_up(resolver, config.pools.values(), running);
    let at = At::Root.key("pools");
    let mut pools = BTreeMap::new();
    for (name, pool) in &config.pools {
        let before = previous.and_then(|previous| previous.pools.get(name));
        let at = at.key(name);
        let hash = proxy::hash(&pool.balance, &at, b);
        let pool = pool.compile(name, before, &names, &at, b.sources, &mut b.issues);
        if let (Some(pool), Some(_)) = (pool, hash) {
            pools.insert(name.clone(), pool);
        }
    }
    pools
}

/// A pool that no route names is hardly meant.
fn unused_pools(config: &Config, b: &mut Build<'_>) {
    let at = At::Root.key("pools");
    for name in config.pools.keys() {
        if !b.uses_pool(name) {
            b.warn(&at.key(name), "no route uses this pool").on_key();
        }
    }
}

/// No address may be bound twice, by whichever listener or static service.
fn distinct_binds(config: &Config, b: &mut Build<'_>) {
    let listeners = config
        .listeners
        .iter()
        .map(|(name, own)| ("listeners", name, &own.bind.0));
    let statics = config
        .statics
        .iter()
        .map(|(name, own)| ("static", name, &own.bind.0));
    let mut seen: Vec<(&Bind, String)> = Vec::new();
    for (section, name, binds) in listeners.chain(statics) {
        let at = At::Root.key(section);
        let at = at.key(name);
        let at = at.key("bind");
        if binds.is_empty() {
            b.error(&at, "needs at least one address");
        }
        for (i, bind) in binds.iter().enumerate() {
            let place = at.index(i);
            match seen.iter().find(|(other, _)| bind.collides(other)) {
                Some((_, owner)) => {
                    b.error(&place, format!("`{bind}` is bound by `{owner}` already"));
                }
                None => seen.push((bind, format!("{section}.{name}"))),
            }
        }
    }
    if let Some(OrOff::On(Admin { bind })) = &config.admin
        && let Some((_, owner)) = seen.iter().find(|(other, _)| bind.collides(other))
    {
        let at = At::Root.key("admin");
        b.error(
            &at.key("bind"),
            format!("`{bind}` is bound by `{owner}` already"),
        );
    }
}

type Statics = HashMap<Arc<str>, Arc<crate::handler::files::Files>>;

fn companion(config: &Config, b: &mut Build<'_>) -> (Listeners, Statics) {
    let at = At::Root.key("static");
    let (mut listeners, mut statics) = (Listeners::new(), Statics::new());
    for (name, own) in &config.statics {
        let Some(files) = own.files.compile(&at.key(name), b) else {
            continue;
        };
        let name: Arc<str> = name.as_str().into();
        let listener = Listener {
            name: name.clone(),
            binds: own.bind.0.clone(),
            tls: None,
            protocols: Protocols::ALL,
            bounds: Bounds::default(),
            proxies: Arc::default(),
            proxy_protocol: None,
        };
        listeners.insert(name.clone(), listener);
        statics.insert(name, Arc::new(files));
    }
    (listeners, statics)
}

/// The keys of session tickets that are made here: as long as the process lives.
fn ticket_keys(previous: Option<&Snapshot>, b: &mut Build<'_>) -> Option<Arc<TicketKeys>> {
    if let Some(previous) = previous {
        return Some(previous.ticket_keys.clone());
    }
    match TicketKeys::own(Instant::now()) {
        Ok(keys) => Some(Arc::new(keys)),
        Err(e) => {
            b.error(&At::Root, format!("cannot make keys for sessions: {e}"));
            None
        }
    }
}

fn edge(
    config: &Config,
    ticket_keys: Option<&Arc<TicketKeys>>,
    previous: Option<&Snapshot>,
    b: &mut Build<'_>,
) -> Listeners {
    let at = At::Root.key("listeners");
    let mut listeners = Listeners::new();
    let proxies = b.trusted_proxies.clone();
    for (name, own) in &config.listeners {
        let at = at.key(name);
        let name: Arc<str> = name.as_str().into();
        let protocols = own.protocols();
        if !protocols.h1 && !protocols.h2 {
            b.error(&at.key("protocols"), "needs at least one of h1, h2");
        }
        let bounds = Bounds::compile(own.http, own.limits, own.tls.as_ref(), &at, &mut b.issues);
        let mut acceptor = None;
        if let Some(tls) = &own.tls {
            let at = at.key("tls");
            if no_certificate(config, tls) && b.is_whole("sites") {
                b.error(&at, "there is no certificate to show on this listener").hint(
                    "give `certificates` here, or `tls: { cert, key }` or `tls: { self_signed: true }` \
                     in a site",
                );
            }
            let before = previous.and_then(|previous| previous.edge.get(&name)?.tls.as_ref());
            let resolver = before.map_or_else(Resolver::default, |tls| tls.resolver().clone());
            let made = ticket_keys
                .and_then(|keys| make_acceptor(&name, tls, protocols, keys, &resolver, &at, b));
            acceptor = made.map(Arc::new);
        }
        let binds = own.bind.0.clone();
        listeners.insert(
            name.clone(),
            Listener {
                name,
                binds,
                tls: acceptor,
                protocols,
                bounds,
                proxies: proxies.clone(),
                proxy_protocol: own.proxy_protocol.clone(),
            },
        );
    }
    listeners
}

/// `own_keys` are for a listener that names none.
fn make_acceptor(
    name: &Arc<str>,
    tls: &tls::ListenerConfig,
    protocols: Protocols,
    own_keys: &Arc<TicketKeys>,
    resolver: &Resolver,
    at: &At<'_>,
    b: &mut Build<'_>,
) -> Option<Acceptor> {
    let before = b.issues.errors();
    let (sources, issues) = (b.sources, &mut b.issues);
    let client_auth = tls.client_auth.as_ref();
    let client_auth =
        client_auth.and_then(|own| own.compile(&at.key("client_auth"), sources, issues));
    let settings = tls::Settings {
        listener: name.clone(),
        min_version: tls.min_version,
        protocols,
        ciphers: tls.ciphers(at, issues),
        groups: tls.groups(at, issues),
        ticket_keys: match tls.ticket_keys(at, sources, issues) {
            Some(keys) => Arc::new(keys),
            None => own_keys.clone(),
        },
        client_auth: client_auth.map(Arc::new),
        reject_unknown_sni: tls.reject_unknown_sni,
        key_log: tls.key_log(at, sources, issues),
    };
    if issues.errors() > before {
        return None;
    }
    match Acceptor::new(settings, resolver.clone()) {
        Ok(acceptor) => Some(acceptor),
        Err(e) => {
            b.error(at, format!("the TLS library refuses this: {e}"));
            None
        }
    }
}

/// Whether none is written; what is wrong with one that is written is told elsewhere.
fn no_certificate(config: &Config, listener: &tls::ListenerConfig) -> bool {
    let none = |list: &OneOrMany<tls::Config>| list.0.is_empty();
    none(&listener.certificates)
        && config
            .sites
            .values()
            .all(|site| site.tls.as_ref().is_none_or(none))
}
