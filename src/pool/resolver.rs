//! Asking for names: the hosts file, then name servers.
//!
//! The system's own resolver would say neither how long an answer holds nor what SRV records there are, and it blocks.
//! Otherwise names mean here what they mean everywhere on the machine: `/etc/hosts` comes first, and the search domains
//! and `ndots` of `/etc/resolv.conf` hold. Both files are read for each look-up, so that a change of them needs no
//! reload, and nothing is cached: when to ask again is for the pool to say.
//!
//! All name servers are asked at once and the first that knows is believed, as in musl's resolver: one that is broken or
//! silent delays nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::config::{
    NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op;
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Hosts, TokioResolver, system_conf};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};
use tokio::task::{JoinSet, spawn_blocking};

use super::backend::{HEAVIEST, Query};
use super::reason;
use crate::issue::{At, Issues};
use crate::value::{OneOrMany, Span, from_text};

/// Who is asked for backends that are given by name.
///
/// ```yaml
/// resolver: { servers: [10.0.0.2, "127.0.0.1:5353"], timeout: 2s }
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name servers: an IP address each, with a port if it is not 53. All are asked at once. Default: those of
    /// `/etc/resolv.conf`, whose search domains hold in any case, as does `/etc/hosts`. nginx: `resolver`.
    pub servers: Option<OneOrMany<Server>>,
    /// How long one look-up may take in all. Default 5s. nginx: `resolver_timeout`.
    pub timeout: Span,
    /// Whether names also stand for their IPv6 addresses. Default `true`; `false` is for machines that cannot reach
    /// them. nginx: `ipv6=off`.
    pub ipv6: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            servers: None,
            timeout: Span::new(Duration::from_secs(5)),
            ipv6: true,
        }
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, issues: &mut Issues) -> Resolver {
        if self.timeout.get().is_zero() {
            issues.error(&at.key("timeout"), "`timeout` must be longer than zero");
        }
        let servers = self.servers.as_ref().map(|servers| {
            if servers.0.is_empty() {
                issues
                    .error(&at.key("servers"), "there is no name server to ask")
                    .hint("leave `servers` out for those of /etc/resolv.conf");
            }
            servers.0.iter().map(|server| server.0).collect()
        });
        Resolver {
            servers,
            timeout: self.timeout.get(),
            kinds: match self.ipv6 {
                true => &[RecordType::A, RecordType::AAAA],
                false => &[RecordType::A],
            },
        }
    }
}

/// The address of a name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server(SocketAddr);

impl FromStr for Server {
    type Err = String;

    fn from_str(text: &str) -> Result<Server, String> {
        let address = match text.parse::<IpAddr>() {
            Ok(ip) => Ok(SocketAddr::new(ip, 53)),
            Err(_) => text.parse(),
        };
        match address {
            Ok(address) if address.port() != 0 => Ok(Server(address)),
            _ => Err(format!("expected {SERVER}, found `{text}`")),
        }
    }
}

const SERVER: &str = "an IP address such as `10.0.0.2` or `10.0.0.2:5353`";

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Server, D::Error> {
        from_text(deserializer, SERVER)
    }
}

impl JsonSchema for Server {
    fn schema_name() -> Cow<'static, str> {
        "NameServer".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "An IP address, with or without port." })
    }
}

/// Knows whom to ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// `None`: those of the system.
    servers: Option<Box<[SocketAddr]>>,
    timeout: Duration,
    /// Of records that hold addresses.
    kinds: &'static [RecordType],
}

/// What stands for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In a stable order: name servers rotate their answers, which is no change.
    pub targets: Vec<Target>,
    /// How long it holds.
    pub ttl: Duration,
    /// What could not be found out this time.
    pub unknown: Vec<Unknown>,
}

/// One address that stands for a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: SocketAddr,
    /// Host and port, by name.
    pub authority: Arc<str>,
    /// What SRV records say about it.
    pub service: Option<Service>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    pub weight: u32,
    /// Whether there are records that go before.
    pub spare: bool,
}

/// Addresses of one kind, IPv4 or IPv6, that a host may or may not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    pub authority: Arc<str>,
    pub v4: bool,
}

impl Answer {
    /// With what `previous` had to say where no answer came: half of the name servers' answers is no reason to drop the
    /// other half of the members.
    pub fn completed_by(mut self, previous: &Answer) -> Answer {
        let kept = previous.targets.iter().filter(|target| {
            self.unknown.iter().any(|unknown| {
                unknown.authority == target.authority && unknown.v4 == target.address.is_ipv4()
            })
        });
        self.targets.extend(kept.cloned());
        self.targets.sort();
        self
    }
}

impl Resolver {
    /// # Errors
    /// Why there is no answer: nobody knows the name, or nobody says.
    pub async fn look_up(&self, query: &Query) -> Result<Answer, String> {
        match tokio::time::timeout(self.timeout, self.ask(query)).await {
            Ok(answer) => answer,
            Err(_) => Err(no_answer_within(self.timeout)),
        }
    }

    async fn ask(&self, query: &Query) -> Result<Answer, String> {
        let resolver = self.clone();
        let system = spawn_blocking(move || System::read(&resolver));
        let system = system.await.map_err(|error| error.to_string())?;
        let system = Arc::new(system.map_err(|error| error.to_string())?);
        match query {
            Query::Host(host, port) => {
                let authority: Arc<str> = query.to_string().into();
                let found = system.addresses(&read_name(host)?).await?;
                Ok(found.answer(&authority, *port, None))
            }
            Query::Service(name) => system.service(&read_name(name)?).await,
        }
    }
}

pub fn no_answer_within(timeout: Duration) -> String {
    format!("no answer within {}", Span::new(timeout))
}

/// What the machine's files say at this moment, and ways to its name servers.
struct System {
    hosts: Hosts,
    servers: Vec<TokioResolver>,
    search: Vec<Name>,
    ndots: usize,
    kinds: &'static [RecordType],
}

/// How long a hosts file holds: it does not say.
const HOSTS_TTL: Duration = Duration::from_secs(10);

/// How many hosts of one SRV answer are asked for at the same time.
const AT_ONCE: usize = 16;

impl System {
    fn read(resolver: &Resolver) -> Result<System, NetError> {
        let text = std::fs::read("/etc/resolv.conf").unwrap_or_default();
        let (config, mut options) = match system_conf::parse_resolv_conf(&text) {
            Ok(read) => read,
            // that of this machine when the file names none, as everywhere
            Err(_) => {
                let local = [&text, &b"\nnameserver 127.0.0.1\n"[..]].concat();
                system_conf::parse_resolv_conf(local)?
            }
        };
        let search = match config.search() {
            [] => config.domain().cloned().into_iter().collect(),
            search => search.to_vec(),
        };
        options.use_hosts_file = ResolveHosts::Never; // done here, for both kinds of addresses at once
        options.cache_size = 0;
        options.server_ordering_strategy = ServerOrderingStrategy::UserProvidedOrder;
        // so that there is time for a second try
        options.timeout = options.timeout.min(resolver.timeout / 2);
        let servers: Vec<NameServerConfig> = match &resolver.servers {
            None => config.name_servers().to_vec(),
            Some(addresses) => addresses
                .iter()
                .map(|server| name_server(*server))
                .collect(),
        };
        let ndots = options.ndots;
        let servers = servers.into_iter().map(|server| client(server, &options));
        Ok(System {
            servers: servers.collect::<Result<_, _>>()?,
            hosts: Hosts::from_system().unwrap_or_default(),
            search,
            ndots,
            kinds: resolver.kinds,
        })
    }

    /// The addresses of the first name that has any of those that `name` may mean.
    async fn addresses(self: &Arc<Self>, name: &Name) -> Result<Addresses, String> {
        if let Some(found) = self.in_hosts_file(name) {
            return Ok(found);
        }
        let mut outcome = Outcome::default();
        for name in candidates(name, &self.search, self.ndots) {
            let mut found = Addresses::default();
            let mut asking = JoinSet::new();
            for &kind in self.kinds {
                let (system, name) = (self.clone(), name.clone());
                asking.spawn(async move { (kind, system.records(&name, kind).await) });
            }
            while let Some(asked) = asking.join_next().await {
                let (kind, records) = asked.map_err(|error| error.to_string())?;
                match records {
                    Ok(records) => found.add(records),
                    Err(Failure::Nothing(code)) => outcome.nothing(code),
                    Err(Failure::Silence(why)) => {
                        found.unknown.push(kind);
                        outcome.silence(why);
                    }
                }
            }
            if !found.ips.is_empty() {
                return Ok(found);
            }
        }
        Err(outcome.explain("no addresses"))
    }

    fn in_hosts_file(&self, name: &Name) -> Option<Addresses> {
        let kinds = self.kinds.iter();
        let lines = kinds
            .filter_map(|&kind| {
                let query = op::Query::query(name.clone(), kind);
                self.hosts.lookup_static_host(&query)
            })
            .flat_map(|lookup| lookup.answers().to_vec());
        let ips: Vec<IpAddr> = lines.filter_map(|line| line.data.ip_addr()).collect();
        (!ips.is_empty()).then_some(Addresses {
            ips,
            ttl: Some(HOSTS_TTL),
            unknown: Vec::new(),
        })
    }

    /// What the SRV records stand for that the first name has of those that `name` may mean.
    async fn service(self: &Arc<Self>, name: &Name) -> Result<Answer, String> {
        let mut outcome = Outcome::default();
        for name in candidates(name, &self.search, self.ndots) {
            match self.records(&name, RecordType::SRV).await {
                Ok(records) => {
                    let ttl = records.ttl;
                    let records = records.data.into_iter().filter_map(|data| match data {
                        RData::SRV(record) => Some(ServiceRecord {
                            priority: record.priority,
                            weight: record.weight,
                            port: record.port,
                            host: record.target,
                        }),
                        _ => None,
                    });
                    return self.targets(records.collect(), ttl).await;
                }
                Err(Failure::Nothing(code)) => outcome.nothing(code),
                Err(Failure::Silence(why)) => outcome.silence(why),
            }
        }
        Err(outcome.explain("no SRV records"))
    }

    async fn targets(
        self: &Arc<Self>,
        mut records: Vec<ServiceRecord>,
        ttl: Duration,
    ) -> Result<Answer, String> {
        // port 0 and the host `.` mean that there is no such service there (RFC 2782)
        records.retain(|record| record.port != 0 && !record.host.is_root());
        let services = services(&records);
        let mut answer = Answer {
            targets: Vec::new(),
            ttl,
            unknown: Vec::new(),
        };
        let mut failed = None;
        let mut records = records.into_iter().zip(services);
        let mut asking = JoinSet::new();
        loop {
            while asking.len() < AT_ONCE
                && let Some((mut record, service)) = records.next()
            {
                let system = self.clone();
                record.host.set_fqdn(true);
                asking.spawn(async move {
                    let found = system.addresses(&record.host).await;
                    (record, service, found)
                });
            }
            let Some(asked) = asking.join_next().await else {
                break;
            };
            let (record, service, found) = asked.map_err(|error| error.to_string())?;
            let host = record.host.to_ascii().to_ascii_lowercase();
            let host = host.trim_end_matches('.');
            let authority: Arc<str> = format!("{host}:{}", record.port).into();
            match found {
                Ok(found) => {
                    let part = found.answer(&authority, record.port, Some(service));
                    answer.ttl = answer.ttl.min(part.ttl);
                    answer.targets.extend(part.targets);
                    answer.unknown.extend(part.unknown);
                }
                Err(error) => {
                    failed.get_or_insert(format!("{host}: {error}"));
                    let unknown = |v4| Unknown {
                        authority: authority.clone(),
                        v4,
                    };
                    answer.unknown.extend([unknown(true), unknown(false)]);
                }
            }
        }
        if answer.targets.is_empty() {
            return Err(failed.unwrap_or_else(|| "the service is not offered".to_owned()));
        }
        answer.targets.sort();
        answer.targets.dedup_by_key(|target| target.address);
        Ok(answer)
    }

    /// The first answer of a name server that has one, or else that says that there is none.
    async fn records(&self, name: &Name, kind: RecordType) -> Result<Records, Failure> {
        let mut asking = JoinSet::new();
        for server in &self.servers {
            let (server, name) = (server.clone(), name.clone());
            asking.spawn(async move { server.lookup(name, kind).await });
        }
        let mut silence = Failure::Silence("there is no name server".to_owned());
        while let Some(asked) = asking.join_next().await {
            let lookup = asked
                .map_err(|error| Failure::Silence(error.to_string()))?
                .map_err(Failure::from);
            match lookup {
                Ok(lookup) => {
                    // of aliases on the way, too
                    let ttls = lookup.answers().iter().map(|record| record.ttl);
                    let ttl = Duration::from_secs(ttls.min().unwrap_or(0).into());
                    let records = lookup.answers().iter();
                    let data = records.filter(|record| record.record_type() == kind);
                    let data: Vec<RData> = data.map(|record| record.data.clone()).collect();
                    return match data.is_empty() {
                        true => Err(Failure::Nothing(ResponseCode::NoError)),
                        false => Ok(Records { data, ttl }),
                    };
                }
                Err(nothing @ Failure::Nothing(_)) => return Err(nothing),
                Err(failure) => silence = failure,
            }
        }
        Err(silence)
    }
}

fn read_name(text: &str) -> Result<Name, String> {
    Name::from_ascii(text).map_err(|error| error.to_string())
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

fn client(server: NameServerConfig, options: &ResolverOpts) -> Result<TokioResolver, NetError> {
    let config = ResolverConfig::from_name_servers(vec![server]);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options.clone())
        .build()
}

/// The names that a written one may mean, in the order in which they are tried: as in glibc, a name with `ndots` dots is
/// first taken as it stands, one with fewer at last; one that ends in a dot is never anything else.
fn candidates(name: &Name, search: &[Name], ndots: usize) -> Vec<Name> {
    let mut absolute = name.clone();
    absolute.set_fqdn(true);
    if name.is_fqdn() {
        return vec![absolute];
    }
    let longer = search.iter();
    // one that gets too long is none
    let longer = longer.filter_map(|domain| name.clone().append_domain(domain).ok());
    let mut names: Vec<Name> = longer.collect();
    let dots = usize::from(name.num_labels()).saturating_sub(1);
    let at = if dots < ndots { names.len() } else { 0 };
    names.insert(at, absolute);
    names
}

struct Records {
    data: Vec<RData>,
    ttl: Duration,
}

/// The addresses of a host.
#[derive(Default)]
struct Addresses {
    ips: Vec<IpAddr>,
    ttl: Option<Duration>,
    /// Kinds that nobody would tell.
    unknown: Vec<RecordType>,
}

impl Addresses {
    fn add(&mut self, records: Records) {
        let ips = records.data.iter().filter_map(RData::ip_addr);
        self.ips.extend(ips);
        self.ttl = Some(self.ttl.map_or(records.ttl, |ttl| ttl.min(records.ttl)));
    }

    fn answer(self, authority: &Arc<str>, port: u16, service: Option<Service>) -> Answer {
        let target = |ip| Target {
            address: SocketAddr::new(ip, port),
            authority: authority.clone(),
            service,
        };
        let mut targets: Vec<Target> = self.ips.into_iter().map(target).collect();
        targets.sort();
        targets.dedup();
        let unknown = self.unknown.iter().map(|kind| Unknown {
            authority: authority.clone(),
            v4: *kind == RecordType::A,
        });
        Answer {
            targets,
            ttl: self.ttl.unwrap_or_default(),
            unknown: unknown.collect(),
        }
    }
}

struct ServiceRecord {
    priority: u16,
    weight: u16,
    port: u16,
    host: Name,
}

/// What each record says about its target: those of the lowest priority go before all others, and weights are made small
/// enough for turns to be taken by them. A weight of 0 is the least there is, not none (RFC 2782).
fn services(records: &[ServiceRecord]) -> Vec<Service> {
    let first = records.iter().map(|record| record.priority).min();
    let mut tiers: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
    for record in records {
        let weights = tiers.entry(record.priority).or_default();
        weights.push(u32::from(record.weight.max(1)));
    }
    let scale = |record: &ServiceRecord| {
        let weights = &tiers[&record.priority];
        let divisor = weights.iter().copied().fold(0, greatest_common_divisor);
        let heaviest = weights.iter().max().unwrap_or(&1) / divisor;
        let weight = u32::from(record.weight.max(1)) / divisor;
        match heaviest > HEAVIEST {
            true => (weight * HEAVIEST / heaviest).max(1),
            false => weight,
        }
    };
    let service = |record| Service {
        weight: scale(record),
        spare: Some(record.priority) != first,
    };
    records.iter().map(service).collect()
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    match a {
        0 => b,
        a => greatest_common_divisor(b % a, a),
    }
}

/// Why there are no records.
#[derive(Debug)]
enum Failure {
    /// A name server says so.
    Nothing(ResponseCode),
    /// No name server says anything about it; this is what went wrong.
    Silence(String),
}

impl From<NetError> for Failure {
    fn from(error: NetError) -> Failure {
        let code = match &error {
            NetError::Dns(DnsError::NoRecordsFound(nothing)) => {
                return Failure::Nothing(nothing.response_code);
            }
            NetError::Dns(DnsError::ResponseCode(code)) => *code,
            NetError::Timeout => return Failure::Silence("no answer".to_owned()),
            NetError::Io(error) => return Failure::Silence(reason::of_io(error)),
            error => return Failure::Silence(error.to_string()),
        };
        let code = match code {
            ResponseCode::ServFail => "SERVFAIL",
            ResponseCode::Refused => "REFUSED",
            code => code.to_str(),
        };
        Failure::Silence(format!("the name server answers `{code}`"))
    }
}

/// What came of all candidates of a name, none of which had anything.
#[derive(Default)]
struct Outcome {
    exists: bool,
    silence: Option<String>,
}

impl Outcome {
    fn nothing(&mut self, code: ResponseCode) {
        self.exists |= code == ResponseCode::NoError;
    }

    fn silence(&mut self, why: String) {
        self.silence.get_or_insert(why);
    }

    fn explain(self, nothing: &str) -> String {
        match self.silence {
            Some(why) => why,
            None if self.exists => format!("it has {nothing}"),
            None => "there is no such name".to_owned(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(service) = self.service else {
            return self.address.ip().fmt(f);
        };
        write!(f, "{} (weight {}", self.address, service.weight)?;
        f.write_str(if service.spare { ", backup)" } else { ")" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn search_domains_are_tried_as_the_system_does() {
        let search = [name("a.example."), name("example")];
        let read = |text: &str, ndots| -> Vec<String> {
            let names = candidates(&name(text), &search, ndots);
            names.iter().map(Name::to_ascii).collect()
        };
        assert_eq!(read("app", 1), ["app.a.example.", "app.example.", "app."]);
        assert_eq!(
            read("app.x", 1),
            ["app.x.", "app.x.a.example.", "app.x.example."]
        );
        assert_eq!(read("app.x", 5).last().unwrap(), "app.x.");
        assert_eq!(read("app.x.", 5), ["app.x."]);
    }

    fn record(priority: u16, weight: u16) -> ServiceRecord {
        ServiceRecord {
            priority,
            weight,
            port: 80,
            host: name("a."),
        }
    }

    #[test]
    fn records_of_the_lowest_priority_go_before_all_others() {
        let records = [record(20, 1), record(10, 1), record(30, 1), record(10, 2)];
        let spare: Vec<bool> = services(&records).iter().map(|s| s.spare).collect();
        assert_eq!(spare, [true, false, true, false]);
    }

    #[test]
    fn weights_of_records_keep_their_proportions() {
        let read = |weights: &[u16]| -> Vec<u32> {
            let records: Vec<_> = weights.iter().map(|w| record(10, *w)).collect();
            services(&records).iter().map(|s| s.weight).collect()
        };
        assert_eq!(read(&[60, 30, 10]), [6, 3, 1]);
        assert_eq!(read(&[0, 0]), [1, 1]);
        assert_eq!(read(&[0, 5]), [1, 5]);
        assert_eq!(read(&[65535, 1]), [1000, 1]);
        assert_eq!(read(&[50000, 25000, 1]), [1000, 500, 1]);
        assert!(services(&[]).is_empty());
        // each priority by itself
        let records = [record(1, 1000), record(1, 2000), record(2, 7)];
        let weights: Vec<u32> = services(&records).iter().map(|s| s.weight).collect();
        assert_eq!(weights, [1, 2, 1]);
    }

    #[test]
    fn what_nobody_told_stays_as_it_was() {
        let authority: Arc<str> = "app:80".into();
        let answer = |ips: &[&str], unknown: &[RecordType]| {
            let found = Addresses {
                ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
                ttl: None,
                unknown: unknown.to_vec(),
            };
            found.answer(&authority, 80, None)
        };
        let before = answer(&["10.0.0.1", "::1", "::2"], &[]);
        let shown = |answer: &Answer| {
            let targets = answer.targets.iter().map(Target::to_string);
            targets.collect::<Vec<_>>().join(", ")
        };
        let after = answer(&["10.0.0.2"], &[RecordType::AAAA]).completed_by(&before);
        assert_eq!(shown(&after), "10.0.0.2, ::1, ::2");
        let after = answer(&["10.0.0.2"], &[]).completed_by(&before);
        assert_eq!(shown(&after), "10.0.0.2");
    }

    #[test]
    fn a_name_server_is_an_address_with_or_without_port() {
        let read = |text: &str| text.parse::<Server>().map(|server| server.0.to_string());
        assert_eq!(read("10.0.0.2").unwrap(), "10.0.0.2:53");
        assert_eq!(read("10.0.0.2:5353").unwrap(), "10.0.0.2:5353");
        assert_eq!(read("fd00::2").unwrap(), "[fd00::2]:53");
        assert_eq!(read("[fd00::2]:5353").unwrap(), "[fd00::2]:5353");
        for text in ["", "ns.example", "10.0.0.2:0", "10.0.0.256"] {
            let message = read(text).unwrap_err();
            assert!(message.contains("expected an IP address"), "{message}");
        }
    }
}
