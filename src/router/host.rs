//! From a host name to a site: the table of one listener.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use regex::Regex;

use super::Site;
use crate::value::pattern;

/// One entry of `hosts`.
#[derive(Debug, Clone)]
pub enum Host {
    /// `shop.example`
    Exact(Arc<str>),
    /// `*.shop.example`, without the `*`: every name that ends so.
    Wildcard(Arc<str>),
    /// `~^shop[0-9]+\.example$`
    Regex(Arc<Regex>),
    /// `*`: every name that nothing else matches.
    Any,
}

impl Host {
    /// The error is a message for the configuration's author, and a way out.
    pub fn parse(written: &str) -> Result<Host, (String, &'static str)> {
        if written == "*" {
            return Ok(Host::Any);
        }
        if let Some(regex) = written.strip_prefix('~') {
            // host names have no case; the request's is in lower case already
            return pattern::regex(&format!("(?i){regex}"))
                .map(|regex| Host::Regex(Arc::new(regex)))
                .map_err(|error| {
                    let message = format!("not a regular expression: {error}");
                    (message, "what follows `~` is the syntax of Rust's `regex`")
                });
        }
        let name = written.to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name);
        let bare = name.strip_prefix("*.").unwrap_or(name);
        let refuse = |hint| Err((format!("`{written}` is not a host name"), hint));
        if bare.contains('*') {
            return refuse(
                "a wildcard is `*.` in front of a name; anything else is a regex, `~...`",
            );
        }
        if !bare.is_ascii() {
            return refuse("write an international name in its ASCII form, `xn--...`");
        }
        let address = bare.starts_with('[') && bare.ends_with(']');
        if bare.contains('/') || (bare.contains(':') && !address) {
            return refuse("neither scheme, port nor path belongs here");
        }
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:[]".contains(&byte);
        if bare.split('.').any(str::is_empty) || !bare.bytes().all(fit) {
            return refuse("it consists of labels such as `shop.example`");
        }
        Ok(match name.strip_prefix('*') {
            Some(suffix) => Host::Wildcard(suffix.into()),
            None => Host::Exact(name.into()),
        })
    }
}

/// As it is written in the configuration.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Exact(name) => f.write_str(name),
            Host::Wildcard(suffix) => write!(f, "*{suffix}"),
            Host::Regex(regex) => {
                let regex = regex.as_str();
                write!(f, "~{}", regex.strip_prefix("(?i)").unwrap_or(regex))
            }
            Host::Any => f.write_str("*"),
        }
    }
}

/// The hosts of one listener.
#[derive(Default)]
pub struct Hosts {
    exact: HashMap<Arc<str>, Entry>,
    /// By what follows the `*`.
    wildcards: HashMap<Arc<str>, Entry>,
    /// Length of the longest key of `wildcards`: a long name is not looked up label by label for nothing.
    longest_wildcard: usize,
    /// In written order.
    regexes: Vec<(Arc<Regex>, Entry)>,
    any: Option<Entry>,
}

/// A site, and which of its hosts stands in the table.
#[derive(Clone)]
pub struct Entry {
    pub site: Arc<Site>,
    pub host: usize,
}

impl Hosts {
    /// The caller has made sure that no other site has this host.
    pub fn insert(&mut self, entry: Entry) {
        match entry.site.hosts[entry.host].clone() {
            Host::Exact(name) => {
                self.exact.insert(name, entry);
            }
            Host::Wildcard(suffix) => {
                self.longest_wildcard = self.longest_wildcard.max(suffix.len());
                self.wildcards.insert(suffix, entry);
            }
            Host::Regex(regex) => self.regexes.push((regex, entry)),
            Host::Any => self.any = Some(entry),
        }
    }

    /// The sites, each once for each of its hosts.
    pub fn sites(&self) -> impl Iterator<Item = &Arc<Site>> {
        let named = self.exact.values().chain(self.wildcards.values());
        let regexes = self.regexes.iter().map(|(_, entry)| entry);
        let entries = named.chain(regexes).chain(&self.any);
        entries.map(|entry| &entry.site)
    }

    /// The entry for `host`, which is in lower case and without port and trailing dot.
    pub fn find(&self, host: &str) -> Option<&Entry> {
        let regex = || self.regexes.iter().find(|(regex, _)| regex.is_match(host));
        self.exact
            .get(host)
            .or_else(|| self.find_wildcard(host))
            .or_else(|| regex().map(|(_, entry)| entry))
            .or(self.any.as_ref())
    }

    fn find_wildcard(&self, host: &str) -> Option<&Entry> {
        // at least one character stands for the `*`; the first suffix is the longest
        let dots = host
            .bytes()
            .enumerate()
            .skip(1)
            .filter(|(_, byte)| *byte == b'.');
        dots.map(|(dot, _)| &host[dot..])
            .filter(|suffix| suffix.len() <= self.longest_wildcard)
            .find_map(|suffix| self.wildcards.get(suffix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_parsed_and_printed_as_written() {
        for written in [
            "shop.example",
            "*.shop.example",
            "~^shop[0-9]+$",
            "*",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "a_b.c",
        ] {
            assert_eq!(Host::parse(written).unwrap().to_string(), written);
        }
        assert_eq!(
            Host::parse("Shop.Example.").unwrap().to_string(),
            "shop.example"
        );
        assert_eq!(
            Host::parse("*.Shop.Example").unwrap().to_string(),
            "*.shop.example"
        );
    }

    #[test]
    fn what_is_no_host_is_refused_with_a_way_out() {
        for (written, hint) in [
            ("", "labels"),
            ("a..b", "labels"),
            ("a b", "labels"),
            ("*.", "wildcard"),
            ("a.*", "wildcard"),
            ("*a.b", "wildcard"),
            ("*.*.b", "wildcard"),
            ("a:80", "port"),
            ("https://a", "scheme"),
            ("bücher.example", "xn--"),
            ("~(", "regex"),
        ] {
            let (message, found) = Host::parse(written).unwrap_err();
            assert!(found.contains(hint), "{written}: {message} ({found})");
        }
    }
}
