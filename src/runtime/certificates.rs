//! Which certificates a configuration has, and which of them belong to a server name.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;

use super::renewals::{Fault, Files, Outcome, Renewal, Renewals};
use super::{Snapshot, status};
use crate::build::Build;
use crate::config::Config;
use crate::issue::At;
use crate::router::{Router, Site};
use crate::tls::{self, CertifiedKey, Resolve};

/// From how many days on one is warned of the end of a certificate. Those who renew them by themselves do so earlier.
const SOON: i64 = 14;

type Shown = Vec<Arc<CertifiedKey>>;

/// All certificates of a configuration.
#[derive(Clone, Default)]
pub struct Certificates {
    /// In written order.
    sites: IndexMap<String, Shown>,
    listeners: HashMap<String, Shown>,
    /// All of them, by the key path of who shows them.
    by_owner: BTreeMap<String, Shown>,
    /// Those made here, by hosts: a reload goes on with the one that the browser has accepted.
    self_signed: HashMap<Vec<String>, Arc<CertifiedKey>>,
    /// Why what the files of a certificate hold by now is not shown.
    refused: Vec<(Arc<CertifiedKey>, String)>,
}

impl Certificates {
    /// And how they are renewed.
    pub(super) fn compile(
        config: &Config,
        previous: Option<&Snapshot>,
        b: &mut Build<'_>,
    ) -> (Certificates, Renewals) {
        let before = previous.map(|previous| previous.certificates.load_full());
        let mut loader = Loader {
            all: Certificates::default(),
            renewals: Renewals::default(),
            known: HashMap::new(),
            before: before.as_deref(),
        };
        let at = At::Root.key("sites");
        for (name, site) in &config.sites {
            let Some(list) = &site.tls else { continue };
            let at = at.key(name);
            let own = loader.load(&list.0, &site.hosts.0, &at.key("tls"), b);
            if !own.is_empty() {
                loader.all.sites.insert(name.clone(), own);
            }
        }
        let at = At::Root.key("listeners");
        for (name, listener) in &config.listeners {
            let Some(tls) = &listener.tls else { continue };
            let at = at.key(name);
            let at = at.key("tls");
            let own = loader.load(&tls.certificates.0, &[], &at.key("certificates"), b);
            loader.all.listeners.insert(name.clone(), own);
        }
        (loader.all, loader.renewals)
    }

    /// The same after these have changed.
    pub(super) fn with(&self, outcomes: &[Outcome]) -> Certificates {
        let mut next = self.clone();
        for Outcome {
            shown, next: now, ..
        } in outcomes
        {
            next.refused
                .retain(|(refused, _)| !Arc::ptr_eq(refused, shown));
            let now = match now {
                Ok(now) => now,
                Err(why) => {
                    next.refused.push((shown.clone(), why.clone()));
                    continue;
                }
            };
            let lists = next.sites.values_mut();
            let lists = lists.chain(next.listeners.values_mut());
            for list in lists.chain(next.by_owner.values_mut()) {
                for own in list.iter_mut().filter(|own| Arc::ptr_eq(own, shown)) {
                    own.clone_from(now);
                }
            }
        }
        next
    }

    /// By the key path of who shows them.
    pub fn by_owner(&self) -> &BTreeMap<String, Shown> {
        &self.by_owner
    }

    /// When they end.
    pub fn status(&self, now: SystemTime) -> Vec<status::Certificate> {
        let each = |(owner, list): (&String, &Shown)| {
            let one = |own: &Arc<CertifiedKey>| status::Certificate {
                owner: owner.clone(),
                names: own.names().to_vec(),
                expires: own.expires(),
                days_left: days_left(own, now),
                refused: self.why_refused(own).map(str::to_owned),
            };
            list.iter().map(one).collect::<Vec<_>>()
        };
        self.by_owner.iter().flat_map(each).collect()
    }

    fn why_refused(&self, own: &Arc<CertifiedKey>) -> Option<&str> {
        let mut refused = self.refused.iter();
        let found = refused.find(|(refused, _)| Arc::ptr_eq(refused, own));
        found.map(|(_, why)| &**why)
    }

    /// Tells the log of those that end soon, or are over.
    pub fn warn_of_ends(&self, now: SystemTime) {
        for one in self.status(now) {
            let names = one.names.join("`, `");
            match one.days_left {
                SOON.. => {}
                0..SOON => {
                    let days = one.days_left;
                    log::warn!("{}: certificate of `{names}`: days left: {days}", one.owner);
                }
                ..0 => log::warn!("{}: certificate of `{names}` has expired", one.owner),
            }
        }
    }

    /// The certificates for a site: its own, or of the listener, or of whichever site has some.
    fn of_site(&self, listener: &str, site: Option<&Site>) -> &[Arc<CertifiedKey>] {
        let own = site.and_then(|site| self.sites.get(&*site.name));
        let fallback = || self.listeners.get(listener).filter(|own| !own.is_empty());
        own.or_else(fallback)
            // A client that names no server, where only sites have certificates: nginx shows the first one, too.
            .or_else(|| self.sites.values().next())
            .map_or(&[], Vec::as_slice)
    }

    /// Whether there is a certificate for both: a client that believes it may ask for either on one connection.
    fn unite(&self, listener: &str, one: Option<&Site>, other: &Site) -> bool {
        let others = self.of_site(listener, Some(other));
        let mut own = self.of_site(listener, one).iter();
        own.any(|own| others.iter().any(|other| own.is_same(other)))
    }
}

/// Whole days until a certificate ends; below zero when it is over.
pub(super) fn days_left(certificate: &CertifiedKey, now: SystemTime) -> i64 {
    const DAY: i64 = 24 * 60 * 60;
    (certificate.expires() - status::seconds(now).cast_signed()).div_euclid(DAY)
}

/// Reads the certificates of a document.
struct Loader<'a> {
    all: Certificates,
    renewals: Renewals,
    /// Many sites may name the same ones.
    known: HashMap<Files, Arc<CertifiedKey>>,
    before: Option<&'a Certificates>,
}

impl Loader<'_> {
    fn load(
        &mut self,
        list: &[tls::Config],
        hosts: &[String],
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Shown {
        let each = list.iter().enumerate();
        let list: Vec<_> = each
            .filter_map(|(i, one)| self.load_one(one, hosts, at, &at.index(i), b))
            .collect();
        if !list.is_empty() {
            let owner = at.to_path().to_string();
            self.all.by_owner.insert(owner, list.clone());
        }
        list
    }

    fn load_one(
        &mut self,
        config: &tls::Config,
        hosts: &[String],
        owner: &At<'_>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        let (password_file, ocsp) = (config.password_file.as_ref(), config.ocsp.as_ref());
        match (&config.cert, &config.key, config.self_signed) {
            (Some(cert), Some(key), false) => {
                let path = |key, written| b.sources.renewed(&at.key(key), written);
                let files = Files {
                    cert: path("cert", cert),
                    key: path("key", key),
                    password_file: password_file.map(|file| path("password_file", file)),
                    ocsp: ocsp.map(|file| path("ocsp", file)),
                };
                self.read(files, owner, at, b)
            }
            (None, None, true) if password_file.is_none() && ocsp.is_none() => {
                self.self_signed(hosts, at, b)
            }
            (_, _, true) => {
                b.error(at, "`self_signed` makes its own certificate and key")
                    .hint("leave out the files, or `self_signed`");
                None
            }
            (cert, _, false) => {
                let missing = if cert.is_none() { "cert" } else { "key" };
                b.error(at, format!("missing key `{missing}`"))
                    .hint("give `{ cert: FILE, key: FILE }` or `{ self_signed: true }`");
                None
            }
        }
    }

    fn read(
        &mut self,
        files: Files,
        owner: &At<'_>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        if let Some(known) = self.known.get(&files) {
            return Some(known.clone());
        }
        let watch = files.watch();
        let loaded = match files.load() {
            Ok(loaded) => Arc::new(loaded),
            Err(Fault { key, message, hint }) => {
                let at = at.key(key);
                let issue = b.error(&at, message);
                if let Some(hint) = hint {
                    issue.hint(hint);
                }
                return None;
            }
        };
        if loaded.has_stale_staple(SystemTime::now()) {
            let message = "an OCSP response that is out of date: it is not shown";
            b.warn(&at.key("ocsp"), message);
        }
        self.known.insert(files.clone(), loaded.clone());
        self.renewals.add(Renewal {
            owner: owner.to_path().to_string(),
            files,
            watch,
            shown: loaded.clone(),
        });
        Some(loaded)
    }

    fn self_signed(
        &mut self,
        hosts: &[String],
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        let plain = hosts
            .iter()
            .filter(|host| *host != "*" && !host.starts_with('~'));
        let mut names: Vec<String> = plain.map(|host| host.to_ascii_lowercase()).collect();
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        let made = &mut self.all.self_signed;
        let known = made
            .get(&names)
            .or_else(|| self.before?.self_signed.get(&names))
            .cloned();
        let certificate =
            match known.map_or_else(|| CertifiedKey::self_signed(&names).map(Arc::new), Ok) {
                Ok(certificate) => certificate,
                Err(e) => {
                    b.error(at, format!("cannot make a certificate: {e}"));
                    return None;
                }
            };
        made.insert(names, certificate.clone());
        Some(certificate)
    }
}

/// What the handshakes of one listener ask.
pub struct ServerNames {
    listener: Arc<str>,
    router: Arc<Router>,
    certificates: Arc<Certificates>,
}

impl ServerNames {
    pub fn new(
        listener: Arc<str>,
        router: Arc<Router>,
        certificates: Arc<Certificates>,
    ) -> ServerNames {
        ServerNames {
            listener,
            router,
            certificates,
        }
    }
}

impl Resolve for ServerNames {
    fn certificates(&self, name: &str) -> &[Arc<CertifiedKey>] {
        let site = self.router.find_site(&self.listener, name);
        let site = site.map(|site| &**site);
        self.certificates.of_site(&self.listener, site)
    }

    fn knows(&self, name: &str) -> bool {
        let covers = |own: &Arc<CertifiedKey>| own.covers(name);
        self.router.names_host(&self.listener, name) || self.certificates(name).iter().any(covers)
    }
}

impl Snapshot {
    /// From now on handshakes get the certificates of this snapshot.
    pub fn present_certificates(&self) {
        let certificates = self.certificates.load_full();
        for (name, listener) in &self.edge {
            if let Some(tls) = &listener.tls {
                let (router, certificates) = (self.router.clone(), certificates.clone());
                let names = ServerNames::new(name.clone(), router, certificates);
                tls.resolver().ask(Arc::new(names));
            }
        }
    }

    /// Tells the log where the secrets of connections go to, if anywhere.
    pub fn warn_of_key_logs(&self) {
        for (name, listener) in &self.edge {
            if let Some(file) = listener.tls.as_ref().and_then(|tls| tls.key_log()) {
                let file = file.display();
                log::warn!("listener {name}: the secrets of all connections go to {file}");
            }
        }
    }

    /// Whether a client that has connected to `server_name` may ask for `host`, which is of `site`. Browsers send
    /// requests for several hosts over one connection of HTTP/2 where its certificate is for all of them. A client that
    /// named no server has chosen none.
    pub fn may_reach(&self, listener: &str, server_name: &str, host: &str, site: &Site) -> bool {
        if server_name.is_empty() || server_name == host {
            return true;
        }
        let named = self.router.find_site(listener, server_name);
        let named = named.map(|named| &**named);
        named.is_some_and(|named| std::ptr::eq(named, site))
            || self.certificates.load().unite(listener, named, site)
    }
}
