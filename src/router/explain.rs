//! Which way a request takes, and why: `weir route`.

use std::fmt;
use std::sync::Arc;

use super::host::Host;
use super::path::PathRule;
use super::{RequestFacts, Route, Router, Site};
use crate::value::pattern;

/// The way of one request through the router. Printed, it is what `weir route` says.
pub struct Explanation<'a> {
    pub site: &'a Arc<Site>,
    /// The entry of `hosts` that led to the site.
    host: &'a Host,
    /// The routes before the chosen one whose path fits, each with the key of a condition that does not hold.
    passed: Vec<(&'a Arc<Route>, &'static str)>,
    /// `None` if no route matches.
    pub route: Option<&'a Arc<Route>>,
    /// What the route's regex captured, by name.
    captures: Vec<(String, String)>,
}

impl Router {
    /// `None` if no site has the host.
    pub fn explain(
        &self,
        listener: &str,
        host: &str,
        facts: &RequestFacts<'_>,
    ) -> Option<Explanation<'_>> {
        let entry = self.find_entry(listener, host)?;
        let site = &entry.site;
        let mut values = Vec::new();
        let route = site.find_route(facts, &mut values);
        let is_chosen =
            |candidate: &&Arc<Route>| route.is_some_and(|route| Arc::ptr_eq(route, candidate));
        let before = site
            .routes
            .iter()
            .take_while(|candidate| !is_chosen(candidate));
        let fitting = before.filter(|route| route.path.matches(facts.path));
        let passed = fitting.filter_map(|route| Some((route, route.failing_condition(facts)?)));
        let names = match route.map(|route| &route.path) {
            Some(PathRule::Regex(regex)) => pattern::capture_names(regex).collect(),
            _ => Vec::new(),
        };
        Some(Explanation {
            site,
            host: &site.hosts[entry.host],
            passed: passed.collect(),
            route,
            captures: names.into_iter().zip(values).collect(),
        })
    }
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.host {
            Host::Exact(_) => "exact name",
            Host::Wildcard(_) => "wildcard",
            Host::Regex(_) => "regex",
            Host::Any => "every other host",
        };
        writeln!(f, "site: {} (host {}: {why})", self.site.name, self.host)?;
        for (route, condition) in &self.passed {
            writeln!(
                f,
                "not: {} ({route}): `{condition}` does not hold",
                route.name
            )?;
        }
        let Some(route) = self.route else {
            return writeln!(f, "route: none matches");
        };
        writeln!(f, "route: {} ({route})", route.name)?;
        for (name, value) in &self.captures {
            writeln!(f, "capture: ${name} = {value}")?;
        }
        let policies: Vec<&str> = route.chain.names().collect();
        if !policies.is_empty() {
            writeln!(f, "policies: {}", policies.join(", "))?;
        }
        writeln!(f, "action: {}", route.handler.summary())
    }
}
