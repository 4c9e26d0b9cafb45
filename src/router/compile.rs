//! From the file's sites and routes to the router: resolves names, builds the tables, finds what can never be reached.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::condition::Conditions;
use super::config;
use super::host::{Entry, Host, Hosts};
use super::path::{PathRule, PathTree};
use super::{Route, Router, Site};
use crate::build::Build;
use crate::filter::{Chain, Filters};
use crate::handler::Handler;
use crate::issue::{At, KeyPath};
use crate::value::{hint, pattern};

impl Router {
    /// The router of the document whose root is `root`; `sites` come in written order.
    pub fn compile<'a>(
        root: &At<'_>,
        defaults: &Filters,
        sites: impl IntoIterator<Item = (&'a str, &'a config::Site)>,
        listeners: &[&str],
        b: &mut Build<'_>,
    ) -> Router {
        let chain = defaults.compile(&root.key("defaults"), &Arc::default(), b);
        let mut tables: Vec<Hosts> = listeners.iter().map(|_| Hosts::default()).collect();
        let mut owners = HashMap::new();
        let at = root.key("sites");
        for (name, site) in sites {
            let at = at.key(name);
            let served_on = site.listeners(&at, listeners, b);
            let hosts = site.hosts(&at, b);
            for (index, host) in &hosts {
                let on_each = served_on
                    .iter()
                    .map(|listener| (*listener, host.to_string()));
                let owner = on_each
                    .filter_map(|place| owners.insert(place, name))
                    .last();
                if let Some(owner) = owner {
                    b.error(
                        &at.key("hosts").index(*index),
                        match owner == name {
                            true => format!("host `{host}` is given twice"),
                            false => format!("host `{host}` belongs to site `{owner}` already"),
                        },
                    )
                    .hint("on one listener a host has one site");
                }
            }
            let hosts = hosts.into_iter().map(|(_, host)| host).collect();
            let site = Arc::new(site.compile(&at, name, hosts, &chain, b));
            for listener in served_on {
                for host in 0..site.hosts.len() {
                    let site = site.clone();
                    tables[listener].insert(Entry { site, host });
                }
            }
        }
        let names = listeners.iter().map(|name| (*name).into());
        Router {
            listeners: names.zip(tables).collect(),
            chain,
        }
    }
}

impl config::Site {
    /// The indices of the listeners on which the site is served.
    fn listeners(&self, at: &At<'_>, known: &[&str], b: &mut Build<'_>) -> Vec<usize> {
        let Some(names) = &self.listeners else {
            return (0..known.len()).collect();
        };
        let at = at.key("listeners");
        if names.is_empty() {
            b.error(&at, "the site is served nowhere")
                .hint("leave the key out to serve it on all listeners");
        }
        let mut indices = Vec::new();
        for (i, name) in names.iter().enumerate() {
            match known.iter().position(|known| known == name) {
                Some(index) if indices.contains(&index) => {
                    b.error(&at.index(i), format!("listener `{name}` is given twice"));
                }
                Some(index) => indices.push(index),
                None if b.is_left_out("listeners", name) => {}
                None => {
                    let left_out = b.sources.left_out().names_in("listeners");
                    let known = known.iter().copied().chain(left_out);
                    let hint = hint(name, "listeners are", known);
                    b.error(&at.index(i), format!("no listener named `{name}`"))
                        .hint(hint);
                }
            }
        }
        indices
    }

    /// The hosts, each with its place in the list.
    fn hosts(&self, at: &At<'_>, b: &mut Build<'_>) -> Vec<(usize, Host)> {
        if self.hosts.0.is_empty() {
            b.error(at, "a site needs `hosts`")
                .hint("`hosts: \"*\"` takes every host that no other site has");
        }
        let at = at.key("hosts");
        let mut hosts = Vec::new();
        for (i, written) in self.hosts.0.iter().enumerate() {
            match Host::parse(written) {
                Ok(host) => hosts.push((i, host)),
                Err((message, hint)) => {
                    b.error(&at.index(i), message).hint(hint);
                }
            }
        }
        hosts
    }

    fn compile(
        &self,
        at: &At<'_>,
        name: &str,
        hosts: Vec<Host>,
        defaults: &Arc<Chain>,
        b: &mut Build<'_>,
    ) -> Site {
        let claims = b.claims.len();
        let chain = self.filters.compile(at, defaults, b);
        if self.routes.is_empty() {
            b.error(at, "a site needs `routes`")
                .hint("a route without `match` takes every request");
        }
        let at = at.key("routes");
        let mut routes = Vec::with_capacity(self.routes.len());
        for (i, route) in self.routes.iter().enumerate() {
            let name = format!("{name}.routes[{i}]");
            routes.extend(route.compile(&at.index(i), name, &chain, b).map(Arc::new));
        }
        b.claims.truncate(claims);
        let server_name = match hosts.first() {
            None | Some(Host::Any) => None,
            Some(host) => Some(host.to_string().into()),
        };
        let site = Site {
            name: name.into(),
            server_name,
            hosts,
            paths: PathTree::new(
                routes
                    .iter()
                    .map(|route| (&route.path, route.is_conditional())),
            ),
            routes,
            chain,
        };
        // a route that could not be made has left the others with wrong places, and an error is enough
        if site.routes.len() == self.routes.len() {
            site.warn_unreachable(&at, b);
            site.warn_of_dead_ends(&at, b);
            site.check_error_pages(b);
        }
        site
    }
}

impl Site {
    /// `at` is the list of routes.
    fn warn_unreachable(&self, at: &At<'_>, b: &mut Build<'_>) {
        for (i, route) in self.routes.iter().enumerate() {
            let same_regex = |earlier: usize| match (&self.routes[earlier].path, &route.path) {
                (PathRule::Regex(one), PathRule::Regex(other)) => one.as_str() == other.as_str(),
                _ => false,
            };
            if let Some(earlier) = self.paths.covering(&route.path, i, same_regex) {
                b.warn(&at.index(i), "this route can never be reached")
                    .hint(format!(
                        "`routes[{earlier}]` ({}) comes first and takes all that would match",
                        self.routes[earlier]
                    ));
            }
        }
    }

    /// Of files whose `try` ends with a path that comes to nothing. `at` is the list of routes.
    fn warn_of_dead_ends(&self, at: &At<'_>, b: &mut Build<'_>) {
        for (i, route) in self.routes.iter().enumerate() {
            let Handler::Files(files) = &route.handler else {
                continue;
            };
            let Some((entry, path)) = files.leads_on_to() else {
                continue;
            };
            // The conditions of this route held, and hold again: what stands behind it is not reached.
            let mut takers = self.routes.iter().enumerate();
            let taker = takers.find(|(_, other)| other.path.matches(&path));
            if taker.is_none_or(|(taker, _)| taker == i) {
                let at = at.index(i);
                let at = at.key("files");
                b.warn(
                    &at.key("try").index(entry),
                    format!("there is no file `{path}` below `root`, and no other route takes it"),
                )
                .hint("404 answers; a route for it has to stand before this one");
            }
        }
    }
}

impl Site {
    /// Refuses paths of error pages that no route of the site answers by itself.
    fn check_error_pages(&self, b: &mut Build<'_>) {
        let chains = self.routes.iter().map(|route| &route.chain);
        let errors = chains.filter_map(|chain| chain.errors.as_ref());
        // routes share what they inherit
        let paths: BTreeMap<String, (&str, &KeyPath)> = errors
            .flat_map(|errors| errors.routes())
            .map(|(path, at)| (at.to_string(), (path, at)))
            .collect();
        for (path, at) in paths.into_values() {
            let taker = self.routes.iter().find(|route| route.path.matches(path));
            if taker.is_some_and(|route| route.handler.answers_itself()) {
                continue;
            }
            let message = format!(
                "no route of site `{}` answers `{path}` by itself",
                self.name
            );
            b.issues
                .error_at(at.clone(), message)
                .hint("a route to a backend cannot: its errors would need a page as well");
        }
    }
}

impl config::Route {
    fn compile(
        &self,
        at: &At<'_>,
        name: String,
        site: &Arc<Chain>,
        b: &mut Build<'_>,
    ) -> Option<Route> {
        let path = self.matches.path_rule(&at.key("match"), b);
        let conditions = Conditions::compile(&self.matches, &at.key("match"), b);
        // the templates of this route know the groups of its regex
        if let Some(PathRule::Regex(regex)) = &path {
            b.captures = pattern::capture_names(regex).collect();
        }
        b.captures_unknown = path.is_none();
        let claims = b.claims.len();
        let chain = self.filters.compile(at, site, b);
        let handler = self.actions.compile(at, b);
        b.captures.clear();
        b.claims.truncate(claims);
        b.captures_unknown = false;
        Some(Route {
            name: name.into(),
            path: path?,
            conditions: conditions.map(Box::new),
            chain,
            handler: handler?,
        })
    }
}

impl config::Match {
    /// `at` is the match.
    fn path_rule(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<PathRule> {
        let given = [
            ("path", &self.path),
            ("prefix", &self.prefix),
            ("starts_with", &self.starts_with),
            ("regex", &self.regex),
        ];
        let mut given = given
            .iter()
            .filter_map(|(key, text)| Some((*key, text.as_deref()?)));
        let Some((key, text)) = given.next() else {
            return Some(PathRule::Any);
        };
        if let Some((second, _)) = given.next() {
            b.error(
                &at.key(second),
                format!(
                    "a match has one condition on the path, but here are `{key}` and `{second}`"
                ),
            )
            .on_key()
            .hint("make two routes of it");
            return None;
        }
        let at = at.key(key);
        if key == "regex" {
            return match pattern::regex(text) {
                Ok(regex) => Some(PathRule::Regex(regex)),
                Err(error) => {
                    b.error(&at, format!("not a regular expression: {error}"));
                    None
                }
            };
        }
        check_path(&at, text, b)?;
        Some(match key {
            "path" => PathRule::Exact(text.to_owned()),
            "prefix" => match text.trim_end_matches('/') {
                "" => PathRule::Any,
                segments => PathRule::Prefix(segments.to_owned()),
            },
            _ => PathRule::StartsWith(text.to_owned()),
        })
    }
}

/// Refuses what no path can be or begin with once it is normalised.
fn check_path(at: &At<'_>, text: &str, b: &mut Build<'_>) -> Option<()> {
    let hint = if !text.starts_with('/') {
        "a path begins with `/`"
    } else if text.contains("//") {
        "slashes in a row are merged before paths are compared"
    } else if text.split('/').any(|segment| matches!(segment, "." | "..")) {
        "dot segments are resolved before paths are compared"
    } else if text.contains(['?', '#']) {
        "a path ends before the query, for which there is the condition `query`"
    } else {
        warn_encoded(at, text, b);
        return Some(());
    };
    b.error(at, format!("`{text}` matches no path")).hint(hint);
    None
}

/// A path may hold a percent sign, but one in front of two digits was probably not meant to be one.
fn warn_encoded(at: &At<'_>, text: &str, b: &mut Build<'_>) {
    let encoded = |digits: &str| {
        digits.len() >= 2
            && digits
                .bytes()
                .take(2)
                .all(|digit| digit.is_ascii_hexdigit())
    };
    if text.split('%').skip(1).any(encoded) {
        b.warn(at, format!("`{text}` is compared with decoded paths"))
            .hint("write the character itself");
    }
}
