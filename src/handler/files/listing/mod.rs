//! `listing`: what is in a folder without index, as a page for people or as JSON for programs.
//!
//! A folder is read on a thread that may wait for the disk, and whole every time: it may change at any moment. What is
//! kept of it in memory is bounded whatever the folder holds: the entries up to the page that was asked for, [`REACH`]
//! at most, of [`AT_ONCE`] listings at a time.

mod page;
mod read;

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY};
use http::{HeaderMap, HeaderValue, StatusCode};
use nix::errno::Errno;
use serde::Serialize;
use tokio::sync::Semaphore;

use super::root::{Missing, Root};
use super::set;
use crate::exchange::{Body, Reply};
use crate::http::accept;

/// Entries on one page.
const PAGE: usize = 1000;
/// Entries that can be paged to, from either end of the order. To sort them takes some 20 MB.
const REACH: usize = 100_000;
/// Folders that are read at a time; the others wait.
const AT_ONCE: usize = 4;

/// Lists folders below one root.
#[derive(Debug)]
pub struct Listing {
    readers: Semaphore,
}

/// What the query of a request asks for; what it does not say, or says in a way that makes no sense, is the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    pub sort: Sort,
    pub order: Order,
    /// From 1.
    pub page: usize,
    pub format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Name,
    Size,
    Time,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Html,
    Json,
}

/// A file or folder, as a client may know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Kind,
    /// Of a file, in bytes.
    pub size: Option<u64>,
    /// Seconds since 1970.
    #[serde(serialize_with = "page::timestamp")]
    pub modified: i64,
}

/// Folders stand before files, however these are sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Folder,
    File,
}

/// One page of a folder's entries.
#[derive(Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// Entries of the folder in all.
    pub total: usize,
}

impl Page {
    /// How many pages there are; an empty folder has one.
    fn count(&self) -> usize {
        self.total.min(REACH).div_ceil(PAGE).max(1)
    }
}

/// What is to be listed.
#[derive(Debug)]
pub struct Folder {
    /// Below the root; empty, or with a slash at its end.
    pub relative: String,
    /// The path by which the client knows it.
    pub url: String,
    /// Whether dot-files are shown.
    pub hidden: bool,
}

impl Listing {
    pub fn new() -> Listing {
        Listing {
            readers: Semaphore::new(AT_ONCE),
        }
    }

    pub async fn reply(
        &self,
        root: Arc<Root>,
        folder: Folder,
        query: Option<&str>,
        headers: &HeaderMap,
    ) -> Result<Reply, Missing> {
        let view = View::of(query.unwrap_or_default(), headers);
        // nobody closes it
        let _reader = self.readers.acquire().await;
        let made = tokio::task::spawn_blocking(move || {
            let page = read::page(&root, &folder, &view)?;
            Ok(match view.format {
                Format::Html => page::html(&folder, &view, &page),
                Format::Json => page::json(&folder, &view, &page),
            })
        });
        // it does not panic, but a process that ends may not begin with it any more
        let body = made
            .await
            .unwrap_or(Err(Missing::Broken(Errno::ECANCELED)))?;
        Ok(reply(view.format, body))
    }
}

fn reply(format: Format, body: String) -> Reply {
    let mut reply = Reply::new(StatusCode::OK, Body::Bytes(Bytes::from(body)));
    let kind = match format {
        Format::Html => "text/html; charset=utf-8",
        Format::Json => "application/json",
    };
    set(&mut reply, CONTENT_TYPE, HeaderValue::from_static(kind));
    set(&mut reply, VARY, HeaderValue::from_static("Accept"));
    if format == Format::Html {
        // the names in it are other people's
        const POLICY: &str =
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";
        let policy = HeaderValue::from_static(POLICY);
        set(&mut reply, CONTENT_SECURITY_POLICY, policy);
    }
    reply
}

impl View {
    fn of(query: &str, headers: &HeaderMap) -> View {
        let value = |name: &str| {
            let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .rev()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| value)
        };
        View {
            sort: match value("sort") {
                Some("size") => Sort::Size,
                Some("time") => Sort::Time,
                _ => Sort::Name,
            },
            order: match value("order") {
                Some("desc") => Order::Descending,
                _ => Order::Ascending,
            },
            page: value("page")
                .and_then(|page| page.parse().ok())
                .filter(|page| *page > 0)
                .unwrap_or(1),
            format: match value("format") {
                Some("json") => Format::Json,
                Some("html") => Format::Html,
                _ if accept::prefers_json(headers) => Format::Json,
                _ => Format::Html,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_query_says_what_to_show() {
        let default = View {
            sort: Sort::Name,
            order: Order::Ascending,
            page: 1,
            format: Format::Html,
        };
        let none = HeaderMap::new();
        for query in [
            "",
            "sort=name&order=asc&page=1&format=html",
            "sort=&order=up&page=0&format=xml",
            "page=-1&sort",
            "page=99999999999999999999999",
        ] {
            assert_eq!(View::of(query, &none), default, "{query}");
        }
        let other = View {
            sort: Sort::Time,
            order: Order::Descending,
            page: 7,
            format: Format::Json,
        };
        let query = "x=1&sort=time&order=desc&page=7&format=json";
        assert_eq!(View::of(query, &none), other);
        let json = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
        assert_eq!(View::of("", &json).format, Format::Json);
        assert_eq!(View::of("format=html", &json).format, Format::Html);
    }

    proptest! {
        #[test]
        fn any_query_is_read(query in "[a-z=&0-9%]{0,40}") {
            prop_assert!(View::of(&query, &HeaderMap::new()).page > 0);
        }
    }
}
