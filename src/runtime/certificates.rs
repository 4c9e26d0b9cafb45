//! Which certificates a configuration has, and which of them belong to a server name.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use indexmap::IndexMap;

use super::{Snapshot, status};
use crate::build::Build;
use crate::config::Config;
use crate::issue::At;
use crate::router::{Router, Site};
use crate::tls::{self, CertifiedKey, LoadError, Resolve};

/// From how many days on one is warned of the end of a certificate. Those who renew them by themselves do so earlier.
const SOON: i64 = 14;

type Shown = Vec<Arc<CertifiedKey>>;

/// All certificates of a configuration.
#[derive(Default)]
pub struct Certificates {
    /// In written order.
    sites: IndexMap<String, Shown>,
    listeners: HashMap<String, Shown>,
    /// All of them, by the key path of who shows them.
    by_owner: BTreeMap<String, Shown>,
    /// Those made here, by hosts: a reload goes on with the one that the browser has accepted.
    self_signed: HashMap<Vec<String>, Arc<CertifiedKey>>,
}

impl Certificates {
    pub fn compile(
        config: &Config,
        previous: Option<&Snapshot>,
        b: &mut Build<'_>,
    ) -> Certificates {
        let mut all = Certificates::default();
        let before = previous.map(|previous| &*previous.certificates);
        let at = At::Root.key("sites");
        for (name, site) in &config.sites {
            let Some(list) = &site.tls else { continue };
            let at = at.key(name);
            let own = all.load(&list.0, &site.hosts.0, before, &at.key("tls"), b);
            if !own.is_empty() {
                all.sites.insert(name.clone(), own);
            }
        }
        let at = At::Root.key("listeners");
        for (name, listener) in &config.listeners {
            let Some(tls) = &listener.tls else { continue };
            let at = at.key(name);
            let at = at.key("tls");
            let own = all.load(&tls.certificates.0, &[], before, &at.key("certificates"), b);
            all.listeners.insert(name.clone(), own);
        }
        all
    }

    /// By the key path of who shows them.
    pub fn by_owner(&self) -> &BTreeMap<String, Shown> {
        &self.by_owner
    }

    /// When they end.
    pub fn status(&self, now: SystemTime) -> Vec<status::Certificate> {
        const DAY: i64 = 24 * 60 * 60;
        let now = status::seconds(now).cast_signed();
        let each = |(owner, list): (&String, &Shown)| {
            let owner = owner.clone();
            let one = move |own: &Arc<CertifiedKey>| status::Certificate {
                owner: owner.clone(),
                names: own.names().to_vec(),
                expires: own.expires(),
                days_left: (own.expires() - now).div_euclid(DAY),
            };
            list.iter().map(one).collect::<Vec<_>>()
        };
        self.by_owner.iter().flat_map(each).collect()
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

    fn load(
        &mut self,
        list: &[tls::Config],
        hosts: &[String],
        before: Option<&Certificates>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Shown {
        let each = list.iter().enumerate();
        let list: Vec<_> = each
            .filter_map(|(i, one)| self.load_one(one, hosts, before, &at.index(i), b))
            .collect();
        if !list.is_empty() {
            self.by_owner.insert(at.to_path().to_string(), list.clone());
        }
        list
    }

    fn load_one(
        &mut self,
        config: &tls::Config,
        hosts: &[String],
        before: Option<&Certificates>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        match (&config.cert, &config.key, config.self_signed) {
            (Some(cert), Some(key), false) => {
                let mut own = load_pair(cert, key, config.password_file.as_deref(), at, b)?;
                if let Some(file) = &config.ocsp {
                    staple(&mut own, file, &at.key("ocsp"), b);
                }
                Some(Arc::new(own))
            }
            (None, None, true) if config.password_file.is_none() && config.ocsp.is_none() => {
                self.self_signed(hosts, before, at, b)
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

    fn self_signed(
        &mut self,
        hosts: &[String],
        before: Option<&Certificates>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> Option<Arc<CertifiedKey>> {
        let plain = hosts
            .iter()
            .filter(|host| *host != "*" && !host.starts_with('~'));
        let mut names: Vec<String> = plain.map(|host| host.to_ascii_lowercase()).collect();
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
        let known = self
            .self_signed
            .get(&names)
            .or_else(|| before?.self_signed.get(&names))
            .cloned();
        let certificate =
            match known.map_or_else(|| CertifiedKey::self_signed(&names).map(Arc::new), Ok) {
                Ok(certificate) => certificate,
                Err(e) => {
                    b.error(at, format!("cannot make a certificate: {e}"));
                    return None;
                }
            };
        self.self_signed.insert(names, certificate.clone());
        Some(certificate)
    }
}

fn load_pair(
    cert: &Path,
    key: &Path,
    password_file: Option<&Path>,
    at: &At<'_>,
    b: &mut Build<'_>,
) -> Option<CertifiedKey> {
    let cert = b.sources.input(&at.key("cert"), cert);
    let key = b.sources.input(&at.key("key"), key);
    let mut passwords = Vec::new();
    if let Some(file) = password_file {
        let at = at.key("password_file");
        match tls::passwords(&b.sources.input(&at, file)) {
            Ok(found) => passwords = found,
            Err(message) => {
                b.error(&at, message);
                return None;
            }
        }
    }
    match CertifiedKey::load(&cert, &key, &passwords) {
        Ok(certificate) => return Some(certificate),
        Err(LoadError::Cert(what)) => b.error(&at.key("cert"), what),
        Err(LoadError::Key(what)) => b.error(&at.key("key"), what),
        Err(LoadError::Mismatch) => b
            .error(&at.key("key"), "this key is not the certificate's")
            .hint("certificate and key must have been made together"),
    };
    None
}

fn staple(certificate: &mut CertifiedKey, file: &Path, at: &At<'_>, b: &mut Build<'_>) {
    if let Err(message) = certificate.staple(&b.sources.input(at, file)) {
        b.error(at, message);
    } else if certificate.has_stale_staple(SystemTime::now()) {
        b.warn(at, "an OCSP response that is out of date: it is not shown");
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
        for (resolver, names) in &self.resolvers {
            resolver.ask(names.clone());
        }
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
            || self.certificates.unite(listener, named, site)
    }
}
