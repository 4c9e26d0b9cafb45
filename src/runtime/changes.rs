//! What a reload changes, in the words of the file: which sites, routes, pools, backends, listeners and certificates are
//! new, gone or different.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::pool;
use crate::router::config::{Match, Route, Site};
use crate::tls::CertifiedKey;

/// The differences between two configurations, in the order of the manual.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Changes(pub Vec<Change>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub change: Kind,
    /// What changed, as a key path: `pools.app`. A route or a backend is named by what it is for, in brackets:
    /// `pools.app.backends[127.0.0.1:9001]`, `sites.shop.routes[prefix /api]`.
    pub what: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Added,
    Removed,
    Changed,
    /// The same in another order, which counts.
    Reordered,
}

impl fmt::Display for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Change { change, what } in &self.0 {
            let word = match change {
                Kind::Added => "added",
                Kind::Removed => "removed",
                Kind::Changed => "changed",
                Kind::Reordered => "reordered",
            };
            writeln!(f, "{word:<9} {what}")?;
        }
        Ok(())
    }
}

impl Changes {
    /// Adds keys that only the start of a process reads.
    pub fn at_start(&mut self, keys: &[&str]) {
        for key in keys {
            self.push(Kind::Changed, *key);
        }
    }

    /// What is different in `new`, except for what only the start of a process reads.
    pub fn between(old: &Config, new: &Config) -> Changes {
        let mut changes = Changes::default();
        changes.in_map("pools", &old.pools, &new.pools, Changes::in_pool);
        changes.in_map("listeners", &old.listeners, &new.listeners, Changes::whole);
        changes.in_map("sites", &old.sites, &new.sites, Changes::in_site);
        changes.in_map("static", &old.statics, &new.statics, Changes::whole);
        changes.in_map("map", &old.map, &new.map, Changes::whole);
        changes.in_map("geo", &old.geo, &new.geo, Changes::whole);
        changes.in_map("split", &old.split, &new.split, Changes::whole);
        macro_rules! compare {
            ($($key:ident),*) => {
                $(if old.$key != new.$key { changes.push(Kind::Changed, stringify!($key)); })*
            };
        }
        compare!(
            resolver,
            defaults,
            trusted_proxies,
            log,
            drain,
            grace_period_seconds,
            watch
        );
        changes
    }

    /// Adds the certificates that are different, whether or not the file is: they are renewed under their old names.
    pub fn in_certificates(
        &mut self,
        old: &BTreeMap<String, Vec<Arc<CertifiedKey>>>,
        new: &BTreeMap<String, Vec<Arc<CertifiedKey>>>,
    ) {
        let same = |a: &[Arc<CertifiedKey>], b: &[Arc<CertifiedKey>]| {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.is_same(b))
        };
        for (what, certificates) in new {
            match old.get(what) {
                None => self.push(Kind::Added, what),
                Some(before) if !same(before, certificates) => self.push(Kind::Changed, what),
                Some(_) => {}
            }
        }
        for what in old.keys().filter(|what| !new.contains_key(*what)) {
            self.push(Kind::Removed, what);
        }
    }

    fn push(&mut self, change: Kind, what: impl Into<String>) {
        let change = Change {
            change,
            what: what.into(),
        };
        // A renewed certificate of a listener that changed as well, for example.
        if !self.0.contains(&change) {
            self.0.push(change);
        }
    }

    fn in_map<T: PartialEq>(
        &mut self,
        section: &str,
        old: &IndexMap<String, T>,
        new: &IndexMap<String, T>,
        compare: fn(&mut Changes, &str, &T, &T),
    ) {
        for (name, new) in new {
            let what = format!("{section}.{name}");
            match old.get(name) {
                None => self.push(Kind::Added, what),
                Some(old) if old != new => compare(self, &what, old, new),
                Some(_) => {}
            }
        }
        for name in old.keys().filter(|name| !new.contains_key(*name)) {
            self.push(Kind::Removed, format!("{section}.{name}"));
        }
    }

    fn whole<T>(&mut self, what: &str, _old: &T, _new: &T) {
        self.push(Kind::Changed, what);
    }

    fn in_pool(&mut self, what: &str, old: &pool::Config, new: &pool::Config) {
        let rest = pool::Config {
            backends: old.backends.clone(),
            ..new.clone()
        };
        if rest != *old {
            self.push(Kind::Changed, what);
        }
        self.in_list(
            &format!("{what}.backends"),
            &old.backends,
            &new.backends,
            |a, b| a.written() == b.written(),
            |backend| backend.written().to_owned(),
        );
    }

    fn in_site(&mut self, what: &str, old: &Site, new: &Site) {
        let rest = Site {
            routes: old.routes.clone(),
            ..new.clone()
        };
        if rest != *old {
            self.push(Kind::Changed, what);
        }
        self.in_list(
            &format!("{what}.routes"),
            &old.routes,
            &new.routes,
            |a, b| a.matches == b.matches,
            name_of_route,
        );
    }

    /// Compares lists in which the order counts. `is_one` tells whether two entries are one and the same, which may have
    /// changed.
    fn in_list<T: PartialEq>(
        &mut self,
        what: &str,
        old: &[T],
        new: &[T],
        is_one: fn(&T, &T) -> bool,
        name: fn(&T) -> String,
    ) {
        // Edits are small: what stays at both ends is out of the way first, and the rest may take its time.
        let start = old.iter().zip(new).take_while(|(a, b)| a == b).count();
        let (old, new) = (&old[start..], &new[start..]);
        let ends = old.iter().rev().zip(new.iter().rev());
        let end = ends.take_while(|(a, b)| a == b).count();
        let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
        let mut left: Vec<(usize, &T)> = old.iter().enumerate().collect();
        let mut kept = Vec::new();
        for entry in new {
            let before = left.iter().position(|(_, before)| is_one(before, entry));
            let before = before.map(|position| left.remove(position));
            let change = match before {
                Some((_, before)) if before == entry => None,
                Some(_) => Some(Kind::Changed),
                None => Some(Kind::Added),
            };
            kept.extend(before.map(|(index, _)| index));
            if let Some(change) = change {
                self.push(change, format!("{what}[{}]", name(entry)));
            }
        }
        for (_, entry) in left {
            self.push(Kind::Removed, format!("{what}[{}]", name(entry)));
        }
        if !kept.is_sorted() {
            self.push(Kind::Reordered, what);
        }
    }
}

/// A route by what it matches: `prefix /api`, `GET,POST path /x`, `*` for everything.
fn name_of_route(route: &Route) -> String {
    let Match {
        path,
        prefix,
        starts_with,
        regex,
        methods,
        headers,
        query,
        client,
    } = &route.matches;
    let mut words: Vec<String> = Vec::new();
    words.extend(methods.as_ref().map(|methods| methods.0.join(",")));
    for (key, value) in [
        ("path", path),
        ("prefix", prefix),
        ("starts_with", starts_with),
        ("regex", regex),
    ] {
        words.extend(value.as_ref().map(|value| format!("{key} {value}")));
    }
    for (key, pairs) in [("header", headers), ("query", query)] {
        let pairs = pairs.iter();
        words.extend(pairs.map(|(name, value)| format!("{key} {name}={value}")));
    }
    if let Some(client) = client {
        let networks: Vec<String> = client.0.iter().map(ToString::to_string).collect();
        words.push(format!("client {}", networks.join(",")));
    }
    match words.is_empty() {
        true => "*".to_owned(),
        false => words.join(" "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(old: &str, new: &str) -> String {
        let read = |text: &str| serde_yaml::from_str::<Config>(text).unwrap();
        Changes::between(&read(old), &read(new)).to_string()
    }

    const OLD: &str = "
listeners: { http: { bind: ':80' } }
pools:
  app: { backends: ['a:1', 'b:1', 'c:1'] }
sites:
  shop:
    hosts: [shop.example]
    routes:
      - { match: { prefix: /api, methods: [GET, POST] }, proxy: app }
      - { match: { path: /x }, respond: x }
      - { respond: rest }
";

    #[test]
    fn nothing_changed() {
        assert_eq!(changes(OLD, OLD), "");
    }

    #[test]
    fn entries_come_go_and_change() {
        let new = OLD
            .replace("http:", "web:")
            .replace("[shop.example]", "[shop.example, www.shop.example]")
            + "trusted_proxies: [10.0.0.0/8]\n";
        assert_eq!(
            changes(OLD, &new),
            "added     listeners.web\nremoved   listeners.http\nchanged   sites.shop\nchanged   trusted_proxies\n"
        );
    }

    #[test]
    fn backends_and_routes_are_told_one_by_one() {
        let new = OLD.replace("'b:1', 'c:1'", "{ addr: 'c:1', weight: 2 }, 'd:1'");
        assert_eq!(
            changes(OLD, &new),
            "changed   pools.app.backends[c:1]\nadded     pools.app.backends[d:1]\nremoved   pools.app.backends[b:1]\n"
        );
        let new = OLD
            .replace("{ respond: rest }", "{ respond: other }")
            .replace("path: /x", "path: /y");
        assert_eq!(
            changes(OLD, &new),
            "added     sites.shop.routes[path /y]\nchanged   sites.shop.routes[*]\nremoved   sites.shop.routes[path /x]\n"
        );
        let new = OLD.replace("proxy: app", "respond: no");
        assert_eq!(
            changes(OLD, &new),
            "changed   sites.shop.routes[GET,POST prefix /api]\n"
        );
    }

    /// A key that is added to the document must be looked at here, unless only the start of a process reads it.
    #[test]
    fn every_key_is_compared_or_refused() {
        const SECTIONS: [&str; 7] = [
            "pools",
            "listeners",
            "sites",
            "static",
            "map",
            "geo",
            "split",
        ];
        const SETTINGS: [&str; 7] = [
            "resolver",
            "defaults",
            "trusted_proxies",
            "log",
            "drain",
            "grace_period_seconds",
            "watch",
        ];
        const OF_THE_START: [&str; 13] = [
            "admin",
            "daemon",
            "error_log",
            "group",
            "listener_tasks_per_fd",
            "max_retries",
            "pid_file",
            "threads",
            "upgrade_sock",
            "upstream_keepalive_pool_size",
            "user",
            "work_stealing",
            "working_directory",
        ];
        let known = [
            &SECTIONS[..],
            &SETTINGS,
            &OF_THE_START,
            &["include", "version"],
        ]
        .concat();
        let schema = crate::config::schema();
        let keys = schema
            .get("properties")
            .unwrap()
            .as_object()
            .unwrap()
            .keys();
        let unknown: Vec<_> = keys.filter(|key| !known.contains(&key.as_str())).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn another_order_is_a_change() {
        let new = OLD.replace("'a:1', 'b:1'", "'b:1', 'a:1'");
        assert_eq!(changes(OLD, &new), "reordered pools.app.backends\n");
    }
}
