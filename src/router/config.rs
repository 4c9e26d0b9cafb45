//! What the file says about sites and routes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use crate::filter::Filters;
use crate::handler::Actions;
use crate::tls;
use crate::value::keys::{self, Keyed};
use crate::value::{Cidr, OneOrMany};

/// What to do with the requests for some hosts. Beside the keys of its own it may hold any policy, for all its
/// routes.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Site {
    /// Names of the site: `shop.example`; `*.shop.example` for every name below; `~REGEX`; `*` for every name that
    /// no site has. An exact name goes before a wildcard, the longest wildcard first, then regexes in written
    /// order, then `*`. Case, port and a trailing dot of the request's host do not matter. nginx: `server_name`.
    pub hosts: OneOrMany<String>,
    /// Listeners on which the site is served. Default: all.
    pub listeners: Option<Vec<String>>,
    /// Certificates of the site: one or a list, or `{ self_signed: true }` for development.
    pub tls: Option<OneOrMany<tls::Config>>,
    /// The first route that matches answers, in written order; if there is none, the answer is 404.
    pub routes: Vec<Route>,
    #[schemars(flatten)]
    pub filters: Filters,
}

/// What to do with some requests: a match, policies and exactly one action.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Route {
    /// Which requests; all conditions must hold. Default: every request.
    #[schemars(rename = "match", default)]
    pub matches: Match,
    #[schemars(flatten)]
    pub actions: Actions,
    #[schemars(flatten)]
    pub filters: Filters,
}

/// Conditions on a request. At most one of `path`, `prefix`, `starts_with` and `regex`; they see the path decoded and
/// normalised (nginx's `$uri`).
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Match {
    /// This path and no other. nginx: `location = /x`.
    pub path: Option<String>,
    /// This path and all below it, in whole segments: `/api` takes `/api` and `/api/x`, not `/apix`.
    pub prefix: Option<String>,
    /// Every path that begins with these characters. nginx: `location /x`.
    pub starts_with: Option<String>,
    /// Every path that this regular expression matches; its groups are variables of the route, `$name`. nginx:
    /// `location ~ x`.
    pub regex: Option<String>,
    /// One of these methods. `GET` takes HEAD too.
    pub methods: Option<OneOrMany<String>>,
    /// These headers, each with this value in one of its lines.
    pub headers: BTreeMap<String, String>,
    /// These parameters of the query, each with this value (both compared decoded).
    pub query: BTreeMap<String, String>,
    /// Clients from one of these networks.
    pub client: Option<OneOrMany<Cidr>>,
}

const SITE: &[&str] = &["hosts", "listeners", "tls", "routes"];

impl Keyed for Site {
    const EXPECTING: &'static str = "a site";
    const KEYS: &'static [&'static str] =
        &keys::join::<{ SITE.len() + Filters::KEYS.len() }>(&[SITE, Filters::KEYS]);

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "hosts" => self.hosts = map.next_value()?,
            "listeners" => self.listeners = Some(map.next_value()?),
            "tls" => self.tls = Some(map.next_value()?),
            "routes" => self.routes = map.next_value()?,
            policy => self.filters.read(policy, map)?,
        }
        Ok(())
    }
}

const ROUTE: &[&str] = &["match"];

impl Keyed for Route {
    const EXPECTING: &'static str = "a route";
    const KEYS: &'static [&'static str] = &keys::join::<
        { ROUTE.len() + Actions::KEYS.len() + Filters::KEYS.len() },
    >(&[ROUTE, Actions::KEYS, Filters::KEYS]);

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "match" => self.matches = map.next_value()?,
            action if Actions::KEYS.contains(&action) => self.actions.read(action, map)?,
            policy => self.filters.read(policy, map)?,
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Site {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Site, D::Error> {
        keys::deserialize(deserializer)
    }
}

impl<'de> Deserialize<'de> for Route {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Route, D::Error> {
        keys::deserialize(deserializer)
    }
}
