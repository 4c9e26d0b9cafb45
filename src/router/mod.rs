//! From a request to what is done with it: listener and host choose the site, path and other conditions the route.
//!
//! Runs once per request, before any policy. What is found does not depend on how much there is to find: hosts stand in
//! hash tables, paths in one radix tree per site, and the first route in written order wins because each entry
//! knows its place, not because all are tried. Everything that can be decided while loading has been: a
//! [`Route`] carries its inherited policies and its action ready to run.

mod compile;
mod condition;
pub mod config;
mod explain;
mod host;
mod path;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::filter::Chain;
use crate::handler::Handler;
use crate::value::pattern;

pub use condition::RequestFacts;
pub use explain::Explanation;

use condition::Conditions;
use host::{Entry, Host, Hosts};
use path::{PathRule, PathTree};

/// All sites, by listener and host.
pub struct Router {
    listeners: HashMap<Box<str>, Hosts>,
    /// The policies of `defaults:`, for answers to requests that no site takes.
    pub chain: Arc<Chain>,
}

/// What to do with the requests for some hosts.
pub struct Site {
    pub name: Arc<str>,
    /// The first of `hosts` as it is written, unless it is `*`: what nginx calls so.
    pub server_name: Option<Arc<str>>,
    hosts: Vec<Host>,
    pub routes: Vec<Arc<Route>>,
    /// The policies of the site, for answers to requests that no route takes.
    pub chain: Arc<Chain>,
    paths: PathTree,
}

/// What to do with some requests of a site.
pub struct Route {
    /// Such as `shop.routes[1]`.
    pub name: Arc<str>,
    path: PathRule,
    conditions: Option<Box<Conditions>>,
    pub chain: Arc<Chain>,
    pub handler: Handler,
}

impl Router {
    /// The site for `host` (lower case, without port and trailing dot) on a listener.
    pub fn find_site(&self, listener: &str, host: &str) -> Option<&Arc<Site>> {
        self.find_entry(listener, host).map(|entry| &entry.site)
    }

    /// All routes, those of a site once for each of its hosts.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        self.sites().flat_map(|site| &site.routes)
    }

    /// The policies of all levels, some of them several times.
    pub fn chains(&self) -> impl Iterator<Item = &Chain> {
        let sites = self.sites().map(|site| &*site.chain);
        let routes = self.routes().map(|route| &*route.chain);
        std::iter::once(&*self.chain).chain(sites).chain(routes)
    }

    fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        self.listeners.values().flat_map(Hosts::sites)
    }

    /// Whether a site names `host`, other than as one of all.
    pub fn names_host(&self, listener: &str, host: &str) -> bool {
        self.find_entry(listener, host)
            .is_some_and(|entry| !matches!(entry.site.hosts[entry.host], Host::Any))
    }

    fn find_entry(&self, listener: &str, host: &str) -> Option<&Entry> {
        self.listeners.get(listener)?.find(host)
    }
}

impl Site {
    /// The first route that matches. What its regex captures is appended to `captures`.
    pub fn find_route(
        &self,
        facts: &RequestFacts<'_>,
        captures: &mut Vec<String>,
    ) -> Option<&Arc<Route>> {
        let index = self.paths.first(facts.path, |index| {
            let route = &self.routes[index];
            route.failing_condition(facts).is_none() && route.path.regex_matches(facts.path)
        })?;
        let route = &self.routes[index];
        if let PathRule::Regex(regex) = &route.path {
            pattern::push_captures(regex, facts.path, captures);
        }
        Some(route)
    }
}

impl Route {
    /// Whether it may leave a request that its path fits to the next route.
    fn is_conditional(&self) -> bool {
        self.conditions.is_some() || self.handler.is_choosy()
    }

    fn failing_condition(&self, facts: &RequestFacts<'_>) -> Option<&'static str> {
        let conditions = self.conditions.as_ref();
        let failing = conditions.and_then(|conditions| conditions.failing(facts));
        failing.or_else(|| (!self.handler.takes(facts.path)).then_some("redirect.file"))
    }
}

/// The match, as it is written in the configuration.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        match &self.conditions {
            Some(conditions) => write!(f, ", {conditions}"),
            None => Ok(()),
        }
    }
}
