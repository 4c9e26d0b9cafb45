//! Files from a folder: the action `files` of a route, and all that a companion service under `static` does.
//!
//! ```yaml
//! files: ./www                    # short for { root: ./www }
//! ```
//!
//! ```yaml
//! files: { root: ./app, try: ["$uri", "$uri/", /index.html] }       # a single-page application
//! ```
//!
//! [`Files::serve`] is the whole of it: a request in, a reply out. The reply holds a small file as bytes and a large one
//! as an open file, which the sender reads as fast as the client takes it. What a URL may reach is decided in two places:
//! here by name (no dot-files, no backslash), and in `root` by where it leads. What it led to lately is in the `cache`.

mod cache;
mod config;
mod glob;
mod listing;
mod resource;
mod root;
#[cfg(test)]
mod tests;
mod tries;

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::header::{ALLOW, CONTENT_RANGE, ETAG, LAST_MODIFIED, LOCATION, VARY};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use nix::errno::Errno;

use crate::exchange::Reply;
use crate::exchange::vars::View;
use crate::http::coding::{self, Coding};
use crate::http::mime::Types;
use crate::http::path;
use crate::value::OrOff;
use cache::Cache;
use glob::Glob;
use listing::Listing;
use resource::{About, Boundary, Open, Resource, Version};
use root::{Missing, Root, broken};
use tries::{Candidate, Tries};

pub use cache::OpenFiles;
pub use config::Config;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// Statuses for which there can be a page, beside the one that `try` gives.
const FAILURES: [StatusCode; 7] = [
    StatusCode::FORBIDDEN,
    StatusCode::NOT_FOUND,
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::PRECONDITION_FAILED,
    StatusCode::RANGE_NOT_SATISFIABLE,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// A folder, ready to serve from.
#[derive(Debug)]
pub struct Files {
    root: Arc<Root>,
    /// Where the folder was, for the log.
    path: PathBuf,
    index: Vec<String>,
    tries: Option<Tries>,
    listing: Option<Listing>,
    precompressed: Vec<Coding>,
    types: Types,
    /// The first that takes the file counts.
    cache_control: Vec<(Glob, HeaderValue)>,
    /// Paths of pages, without their first slash.
    errors: HashMap<StatusCode, String>,
    boundary: Boundary,
    hidden: bool,
    /// Made when it is first needed: one that is in use may take its place before.
    cache: OnceLock<Arc<Cache>>,
    /// What all this was made from.
    config: Config,
}

/// What a path leads to.
enum Found {
    File(Arc<Open>),
    Folder,
}

/// There is nothing, and `try` ends with a path that another route may have an answer for.
#[derive(Debug)]
pub struct Elsewhere {
    /// Normalised, as that of a request.
    pub path: String,
    /// The answer where no other route has one.
    pub otherwise: Reply,
}

/// What a URL stands for.
enum Target<'a> {
    File(Resource),
    /// A folder without index.
    Listing(&'a Listing, listing::Folder),
    /// A folder, but the slash at the end is missing.
    Folder,
    /// Nothing, and this is what `try` says about it.
    Nothing(&'a Tries),
}

impl Files {
    /// Answers a request for the path that the exchange has by now.
    ///
    /// An answer of 400 and above has no body where there is no page for it. One to HEAD may have none and the
    /// `Content-Length` that GET would get.
    ///
    /// # Errors
    /// When it is for other routes to answer. A companion service has none, and gives what is there `otherwise`.
    pub async fn serve(&self, view: &View<'_>) -> Result<Reply, Elsewhere> {
        let (mut reply, elsewhere) = self.answer(view).await;
        if let Some(page) = self.errors.get(&reply.head.status) {
            self.add_page(&mut reply, page, view).await;
        }
        match elsewhere {
            None => Ok(reply),
            Some(path) => Err(Elsewhere {
                path,
                otherwise: reply,
            }),
        }
    }

    /// Whether a request may be for other routes to answer.
    pub fn leads_on(&self) -> bool {
        let tries = self.tries.as_ref();
        tries.is_some_and(|tries| tries.elsewhere().is_some())
    }

    /// Goes on with the open files of `before`, if it stood for the same folder in the same way.
    pub fn adopt(&self, before: &Files) {
        let is_same = self.path == before.path
            && self.config == before.config
            && self
                .root
                .identity()
                .is_ok_and(|own| before.root.identity() == Ok(own));
        if is_same && let Some(cache) = before.cache.get() {
            // nobody uses this one yet
            let _ = self.cache.set(cache.clone());
        }
    }

    /// How well the open files do, once there are any.
    pub fn open_files(&self) -> Option<OpenFiles> {
        Some(self.cache.get()?.status())
    }

    /// The place and path of the last entry of `try`, if it is the same path for every request, other routes may answer
    /// for it, and no file is there.
    pub fn leads_on_to(&self) -> Option<(usize, String)> {
        let tries = self.tries.as_ref()?;
        let path = tries.elsewhere()?.fixed_path()?;
        let index = self.index.iter().map(|name| format!("{path}{name}"));
        let mut files = match path.ends_with('/') {
            true => index.collect(),
            false => vec![path.clone()],
        }
        .into_iter();
        let is_file = |path: String| {
            let relative = self.allowed(&path);
            relative.is_some_and(|path| matches!(self.root.find(path), Ok(root::Found::File(_))))
        };
        (!files.any(is_file)).then(|| (tries.candidates.len() - 1, path))
    }

    /// The answer of this folder; with a path, another one may be found there.
    async fn answer(&self, view: &View<'_>) -> (Reply, Option<String>) {
        let refusal = match view.request.method {
            Method::GET | Method::HEAD => None,
            Method::OPTIONS => Some(methods(StatusCode::NO_CONTENT)),
            _ => Some(methods(StatusCode::METHOD_NOT_ALLOWED)),
        };
        let found = match refusal {
            // a route that takes the method may have to be found, where there is no file
            Some(refusal) if !self.leads_on() => return (refusal, None),
            _ => self.find(view).await,
        };
        let elsewhere = match &found {
            Ok(Target::Nothing(tries)) => tries.elsewhere(),
            _ => None,
        };
        let elsewhere = elsewhere.and_then(|candidate| normal(&candidate.path(view)));
        match refusal {
            Some(refusal) => (refusal, elsewhere),
            None => (self.reply(found, view).await, elsewhere),
        }
    }

    async fn reply(&self, found: Result<Target<'_>, Missing>, view: &View<'_>) -> Reply {
        let request = view.request;
        let path = &view.cx.path;
        match found {
            Ok(Target::File(file)) => file.reply(&request.method, &request.headers, &self.boundary),
            Ok(Target::Listing(listing, folder)) => {
                let query = request.uri.query();
                let root = self.root.clone();
                let reply = listing.reply(root, folder, query, &request.headers).await;
                reply.unwrap_or_else(|missing| self.missing(path, missing))
            }
            Ok(Target::Folder) => to_folder(&asked(view), request.uri.query()),
            Ok(Target::Nothing(tries)) => Reply::empty(tries.status),
            Err(missing) => self.missing(path, missing),
        }
    }

    async fn find(&self, view: &View<'_>) -> Result<Target<'_>, Missing> {
        match &self.tries {
            Some(tries) => self.find_first(tries, view).await,
            None => self.find_path(view).await,
        }
    }

    async fn find_path(&self, view: &View<'_>) -> Result<Target<'_>, Missing> {
        let relative = self.allowed(&view.cx.path).ok_or(Missing::NotFound)?;
        if relative.is_empty() || relative.ends_with('/') {
            return match is_slash_missing(view) {
                true => Ok(Target::Folder),
                false => self.find_folder(relative, view).await,
            };
        }
        match self.look_up(relative, view.cx.started).await? {
            Found::File(file) => Ok(Target::File(self.resource(relative, file, view).await)),
            Found::Folder if is_slash_missing(view) => Ok(Target::Folder),
            // a rewrite took the slash
            Found::Folder => self.find_folder(&format!("{relative}/"), view).await,
        }
    }

    async fn find_first<'a>(
        &'a self,
        tries: &'a Tries,
        view: &View<'_>,
    ) -> Result<Target<'a>, Missing> {
        for candidate in &tries.candidates {
            match self.find_candidate(candidate, view).await {
                Err(Missing::NotFound) => {}
                found => return found,
            }
        }
        Ok(Target::Nothing(tries))
    }

    async fn find_candidate(
        &self,
        candidate: &Candidate,
        view: &View<'_>,
    ) -> Result<Target<'_>, Missing> {
        let path = candidate.path(view);
        let relative = self.allowed(&path).ok_or(Missing::NotFound)?;
        match candidate {
            Candidate::Folder(_) => {
                // Another folder than that of the URL only lends its index: links of a listing would lead astray.
                if view.cx.path.trim_end_matches('/') != path.trim_end_matches('/') {
                    return self.find_index(relative, view).await;
                }
                let found = self.find_folder(relative, view).await?;
                match is_slash_missing(view) {
                    true => Ok(Target::Folder),
                    false => Ok(found),
                }
            }
            Candidate::File(_) if relative.is_empty() || relative.ends_with('/') => {
                Err(Missing::NotFound)
            }
            Candidate::File(_) => match self.look_up(relative, view.cx.started).await? {
                Found::File(file) => Ok(Target::File(self.resource(relative, file, view).await)),
                Found::Folder => Err(Missing::NotFound),
            },
        }
    }

    /// What answers for the folder `relative` of the URL, which is empty or ends with a slash.
    async fn find_folder(&self, relative: &str, view: &View<'_>) -> Result<Target<'_>, Missing> {
        let found = self.find_index(relative, view).await;
        let (Err(Missing::NotFound), Some(listing)) = (&found, &self.listing) else {
            return found;
        };
        let folder = relative.trim_end_matches('/');
        match self.look_up(folder, view.cx.started).await? {
            Found::Folder => {
                let folder = listing::Folder {
                    relative: relative.to_owned(),
                    url: asked(view).into_owned(),
                    hidden: self.hidden,
                };
                Ok(Target::Listing(listing, folder))
            }
            Found::File(_) => Err(Missing::NotFound),
        }
    }

    async fn find_index(&self, relative: &str, view: &View<'_>) -> Result<Target<'_>, Missing> {
        for name in &self.index {
            let index = format!("{relative}{name}");
            match self.look_up(&index, view.cx.started).await {
                Ok(Found::File(file)) => {
                    return Ok(Target::File(self.resource(&index, file, view).await));
                }
                Ok(Found::Folder) | Err(Missing::NotFound) => {}
                Err(missing) => return Err(missing),
            }
        }
        // nginx looks once more, to answer 403 when there is a folder without index. There is nothing at this URL either
        // way, and whether there is a folder is nobody's business.
        Err(Missing::NotFound)
    }

    /// What stands at `relative`, as far as is known at `now`.
    async fn look_up(&self, relative: &str, now: Instant) -> Result<Found, Missing> {
        let known = self.cache(now).and_then(|cache| cache.fresh(relative, now));
        match known {
            Some(file) => Ok(Found::File(file)),
            None => self.look_up_anew(relative, now).await,
        }
    }

    async fn look_up_anew(&self, relative: &str, now: Instant) -> Result<Found, Missing> {
        let found = match self.root.find_known(relative) {
            Some(found) => found,
            None => self.look_up_on_disk(relative).await,
        };
        let Some(cache) = self.cache(now) else {
            return match found? {
                root::Found::File(opened) => Ok(Found::File(open(opened).await?)),
                root::Found::Folder => Ok(Found::Folder),
            };
        };
        let opened = match found {
            Ok(root::Found::File(opened)) => opened,
            other => {
                cache.remove(relative);
                return other.map(|_| Found::Folder);
            }
        };
        if let Some(file) = cache.confirm(relative, &Version::of(&opened.1), now) {
            return Ok(Found::File(file));
        }
        let file = open(opened).await?;
        match file.is_settled() {
            true => cache.insert(relative, file.clone(), now),
            false => cache.remove(relative),
        }
        Ok(Found::File(file))
    }

    fn cache(&self, now: Instant) -> Option<&Cache> {
        match &self.config.open_files {
            OrOff::On(config) => {
                let cache = self.cache.get_or_init(|| Arc::new(Cache::new(config, now)));
                Some(cache)
            }
            OrOff::Off => None,
        }
    }

    /// On a thread that may wait for the disk.
    async fn look_up_on_disk(&self, relative: &str) -> Result<root::Found, Missing> {
        let (root, relative) = (self.root.clone(), relative.to_owned());
        let found = tokio::task::spawn_blocking(move || root.find(&relative)).await;
        found.unwrap_or(Err(Missing::Broken(Errno::EIO)))
    }

    /// The file at `relative`, or the one beside it in a coding that the client likes better.
    async fn resource(&self, relative: &str, file: Arc<Open>, view: &View<'_>) -> Resource {
        let about = |coding, has_variants| {
            let rule = |(glob, _): &&(Glob, HeaderValue)| glob.takes(relative);
            let cache_control = self.cache_control.iter().find(rule);
            About {
                content_type: self.types.of(relative),
                coding,
                has_variants,
                cache_control: cache_control.map(|(_, value)| value.clone()),
            }
        };
        let (coding, has_variants, file) = match self.precompressed.is_empty() {
            true => (None, false, file),
            false => self.variant(relative, file, view).await,
        };
        let head = match has_variants {
            false => file.plain(|| about(None, false)),
            true => Arc::new(file.head(about(coding, true))),
        };
        Resource { file, head }
    }

    /// A coding and the file that is in it, and whether another request could have got another.
    async fn variant(
        &self,
        relative: &str,
        file: Arc<Open>,
        view: &View<'_>,
    ) -> (Option<Coding>, bool, Arc<Open>) {
        let beside = async |coding: &Coding| {
            let name = format!("{relative}{}", coding.suffix());
            match self.look_up(&name, view.cx.started).await {
                Ok(Found::File(file)) => Some(file),
                // the file itself is there: what is wrong with this one need not be the client's trouble
                Ok(Found::Folder) | Err(_) => None,
            }
        };
        let preferred = coding::preferred(&view.request.headers, &self.precompressed);
        for coding in &preferred {
            if let Some(encoded) = beside(coding).await {
                return (Some(*coding), true, encoded);
            }
        }
        let mut has_variants = false;
        for other in &self.precompressed {
            if !preferred.contains(other) && beside(other).await.is_some() {
                has_variants = true;
                break;
            }
        }
        (None, has_variants, file)
    }

    /// Makes the file at `page` the body of an answer without one.
    async fn add_page(&self, reply: &mut Reply, page: &str, view: &View<'_>) {
        match self.look_up(page, view.cx.started).await {
            Ok(Found::File(file)) => {
                let page = self.resource(page, file, view).await;
                page.become_body(reply);
            }
            Err(Missing::Broken(error)) => {
                let root = &self.path;
                log::error!("cannot read an error page in {root:?}: {}", error.desc());
            }
            // it was reported when the configuration was loaded, and the client has an answer without it
            Ok(Found::Folder) | Err(_) => {}
        }
    }

    /// `path` without its first slash, if it may be looked for.
    ///
    /// Dot segments and empty ones are gone from a normalised path, but a rewrite can make new ones.
    fn allowed<'a>(&self, path: &'a str) -> Option<&'a str> {
        let relative = path.strip_prefix('/')?;
        let names = relative.strip_suffix('/').unwrap_or(relative);
        let allowed =
            relative.is_empty() || names.split('/').all(|name| is_visible(name, self.hidden));
        allowed.then_some(relative)
    }

    fn missing(&self, path: &str, missing: Missing) -> Reply {
        let status = match missing {
            Missing::NotFound => StatusCode::NOT_FOUND,
            Missing::Forbidden => {
                log::warn!("not permitted to read {path:?} in {:?}", self.path);
                StatusCode::FORBIDDEN
            }
            Missing::Broken(error) => {
                let root = &self.path;
                log::error!("cannot open {path:?} in {root:?}: {}", error.desc());
                match error {
                    // may well be over in a moment
                    Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM => {
                        StatusCode::SERVICE_UNAVAILABLE
                    }
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                }
            }
        };
        Reply::empty(status)
    }
}

async fn open(opened: root::Opened) -> Result<Arc<Open>, Missing> {
    Ok(Arc::new(Open::new(opened).await.map_err(broken)?))
}

/// Whether a client may know of a file or folder with this name; `hidden`: of dot-files too. A backslash in the name of a file
/// is hardly more than an attempt to get around somebody's filter.
fn is_visible(name: &str, hidden: bool) -> bool {
    match name {
        "" | "." | ".." => false,
        ".well-known" => true,
        name => (hidden || !name.starts_with('.')) && !name.contains(['\\', '\0']),
    }
}

/// What a path made of variables is to the router; nothing where it leads out of the root.
fn normal(path: &str) -> Option<String> {
    let encoded: String = path::encode(path).collect();
    path::normalise(&encoded).ok().map(Cow::into_owned)
}

/// The path that the client asked for, before any rewrite. Redirects lead to it: what a rewrite makes is nothing that the
/// client could ask for.
fn asked<'a>(view: &View<'a>) -> Cow<'a, str> {
    let path = match view.cx.target {
        Some(_) => path::normalise(view.request.uri.path()).ok(),
        None => None,
    };
    path.unwrap_or(Cow::Borrowed(&view.cx.path))
}

/// Whether the client asked for a folder without the slash at the end, so that relative links in what answers for the
/// folder would lead astray.
fn is_slash_missing(view: &View<'_>) -> bool {
    match view.cx.path.ends_with('/') {
        true => view.cx.is_stripped_whole,
        false => !asked(view).ends_with('/'),
    }
}

/// 301 to the same path with a slash at its end. A normalised path begins with exactly one slash (two would name a host),
/// and encoded it holds no backslash, which browsers take for a slash.
fn to_folder(path: &str, query: Option<&str>) -> Reply {
    let path = path::encode(path);
    let location = match query {
        Some(query) => format!("{path}/?{}", path::encode_query(query)),
        None => format!("{path}/"),
    };
    let mut reply = Reply::empty(StatusCode::MOVED_PERMANENTLY);
    let location = HeaderValue::try_from(location).expect("percent-encoded text is visible ASCII");
    set(&mut reply, LOCATION, location);
    reply
}

fn methods(status: StatusCode) -> Reply {
    let mut reply = Reply::empty(status);
    set(&mut reply, ALLOW, METHODS);
    reply
}

fn set(reply: &mut Reply, name: HeaderName, value: HeaderValue) {
    // a known name, a typed value: there is nothing left to refuse
    let _ = match spelling(&name) {
        Some(spelling) => reply.head.insert_header(spelling, value),
        None => reply.head.insert_header(name, value),
    };
}

/// How HTTP/1 writes a name that Pingora would write in lower case.
fn spelling(name: &HeaderName) -> Option<&'static str> {
    Some(match *name {
        ALLOW => "Allow",
        CONTENT_RANGE => "Content-Range",
        ETAG => "ETag",
        LAST_MODIFIED => "Last-Modified",
        LOCATION => "Location",
        VARY => "Vary",
        _ => return None,
    })
}
