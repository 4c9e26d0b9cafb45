//! Files from a folder: the action `files` of a route, and all that a companion service under `static` does.
//!
//! ```yaml
//! files: ./www                    # short for { root: ./www }
//! ```
//!
//! [`Files::serve`] is the whole of it: a request in, a reply out. The reply holds a small file as bytes and a large one
//! as an open file, which the sender reads as fast as the client takes it. What a URL may reach is decided in two places:
//! here by name (no dot-files, no backslash), and in `root` by where it leads.

mod root;
#[cfg(test)]
mod tests;

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED,
    LOCATION,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use nix::errno::Errno;
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use crate::build::Build;
use crate::exchange::{Body, Reply};
use crate::http::conditional::{self, Verdict, Version};
use crate::http::range::{self, Wanted};
use crate::http::{date, mime, path};
use crate::issue::At;
use crate::value::FromShort;
use crate::value::keys::{self, Keyed};
use root::{Found, Missing, Root};

/// Answers with files from a folder. A URL that ends with a slash stands for the folder's index; one that names a folder
/// without the slash is redirected to it. Links are followed as long as they lead to something within the folder.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Config {
    /// Folder that the files are in, relative to the file that this stands in. The path of the request is looked up below
    /// it. The folder is opened when the configuration is loaded: when another one takes its place (rather than its
    /// files being changed), reload. nginx: `root`.
    pub root: PathBuf,
    /// Names of the file that answers for a folder; the first that exists does. nginx: `index`.
    #[schemars(default = "default_index")]
    pub index: Vec<String>,
    /// Whether files and folders whose name begins with a dot are served. `.well-known` always is (RFC 8615).
    #[schemars(default)]
    pub hidden: bool,
}

fn default_index() -> Vec<String> {
    vec!["index.html".to_owned()]
}

/// The root has to follow.
impl Default for Config {
    fn default() -> Config {
        Config {
            root: PathBuf::new(),
            index: default_index(),
            hidden: false,
        }
    }
}

impl Keyed for Config {
    const EXPECTING: &'static str = "a folder, or a map with a `root`";
    const KEYS: &'static [&'static str] = &["root", "index", "hidden"];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "root" => self.root = map.next_value()?,
            "index" => self.index = map.next_value()?,
            "hidden" => self.hidden = map.next_value()?,
            _ => unreachable!("`{key}` is not one of KEYS"),
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Config, D::Error> {
        keys::deserialize(deserializer)
    }
}

impl FromShort for Config {
    fn from_short(root: &str) -> Result<Config, String> {
        if root.is_empty() {
            return Err("expected a folder, found an empty string".to_owned());
        }
        Ok(Config {
            root: root.into(),
            ..Config::default()
        })
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Files> {
        if self.root.as_os_str().is_empty() {
            b.error(at, "needs a folder: `root`");
            return None;
        }
        let at_index = at.key("index");
        for (i, name) in self.index.iter().enumerate() {
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\\', '\0']) {
                b.error(
                    &at_index.index(i),
                    format!("`{name}` is not the name of a file"),
                )
                .hint("give a plain name, such as `index.html`; it is looked for in every folder");
            }
        }
        let at_root = at.key("root");
        // it would be the folder of the configuration, with its keys and passwords
        if self.root.as_os_str().is_empty() {
            b.error(&at_root, "expected a folder, found an empty string")
                .hint("`.` is the folder that this file is in");
            return None;
        }
        let path = b.path(&at_root, &self.root);
        let root = match Root::open(&path) {
            Ok(root) => root,
            Err(error) => {
                let path = path.display();
                let message = match error {
                    Errno::ENOENT => format!("there is no folder `{path}`"),
                    Errno::ENOTDIR => format!("`{path}` is not a folder"),
                    error => format!("cannot open the folder `{path}`: {}", error.desc()),
                };
                b.error(&at_root, message);
                return None;
            }
        };
        Some(Files {
            root,
            path,
            index: self.index.clone(),
            hidden: self.hidden,
        })
    }
}

/// What a file may weigh to be read at once, on the worker that serves the request.
///
/// To look up and read 64 KiB that the kernel has in memory took 15 us, the look-up alone 4 us; the same on a thread of
/// the blocking pool took 75 us, for it wakes another thread and is woken in turn. A disk that has to be waited for
/// stops the worker for the length of one read, as in nginx without `aio`. What is larger is read by the sender, off the
/// worker.
const SMALL: u64 = 64 * 1024;

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
const BYTES: HeaderValue = HeaderValue::from_static("bytes");

/// A folder, ready to serve from.
#[derive(Debug)]
pub struct Files {
    root: Root,
    /// Where the folder was, for the log.
    path: PathBuf,
    index: Vec<String>,
    hidden: bool,
}

impl Files {
    /// Answers a request for the normalised `path`; `query` is needed for redirects only.
    ///
    /// An answer of 400 and above has no body. One to HEAD has none either, but the `Content-Length` that GET would get.
    pub fn serve(
        &self,
        method: &Method,
        headers: &HeaderMap,
        path: &str,
        query: Option<&str>,
    ) -> Reply {
        match *method {
            Method::GET | Method::HEAD => {}
            Method::OPTIONS => return methods(StatusCode::NO_CONTENT),
            _ => return methods(StatusCode::METHOD_NOT_ALLOWED),
        }
        match self.find(path) {
            Ok(Target::File(file)) => file.reply(method, headers).unwrap_or_else(|error| {
                log::error!("cannot read {path:?} in {:?}: {error}", self.path);
                Reply::empty(StatusCode::INTERNAL_SERVER_ERROR)
            }),
            Ok(Target::Folder) => to_folder(path, query),
            Err(missing) => self.missing(path, missing),
        }
    }

    fn find(&self, path: &str) -> Result<Target, Missing> {
        let relative = self.allowed(path).ok_or(Missing::NotFound)?;
        if !relative.is_empty() && !relative.ends_with('/') {
            return Ok(match self.root.find(relative)? {
                Found::File(file, metadata) => {
                    Target::File(Resource::new(relative, file, metadata))
                }
                Found::Folder => Target::Folder,
            });
        }
        for name in &self.index {
            match self.root.find(&format!("{relative}{name}")) {
                Ok(Found::File(file, metadata)) => {
                    return Ok(Target::File(Resource::new(name, file, metadata)));
                }
                Ok(Found::Folder) | Err(Missing::NotFound) => {}
                Err(missing) => return Err(missing),
            }
        }
        // nginx looks once more, to answer 403 when there is a folder without index. There is nothing at this URL either
        // way, and whether there is a folder is nobody's business.
        Err(Missing::NotFound)
    }

    /// `path` without its first slash, if it may be looked for.
    ///
    /// Dot segments and empty ones are gone from a normalised path, but a rewrite can make new ones. A backslash in the
    /// name of a file is hardly more than an attempt to get around somebody's filter.
    fn allowed<'a>(&self, path: &'a str) -> Option<&'a str> {
        let relative = path.strip_prefix('/')?;
        let names = relative.strip_suffix('/').unwrap_or(relative);
        let is_allowed = |name: &str| match name {
            "" | "." | ".." => false,
            ".well-known" => true,
            name => self.hidden || !name.starts_with('.'),
        };
        let allowed = relative.is_empty() || names.split('/').all(is_allowed);
        (allowed && !relative.contains(['\\', '\0'])).then_some(relative)
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

/// What a URL stands for.
enum Target {
    File(Resource),
    /// A folder, but the slash at the end is missing.
    Folder,
}

/// A file as HTTP sees it.
struct Resource {
    file: File,
    size: u64,
    content_type: HeaderValue,
    etag: HeaderValue,
    /// Seconds since 1970; `None` before.
    modified: Option<u64>,
}

impl Resource {
    fn new(name: &str, file: File, metadata: Metadata) -> Resource {
        Resource {
            file,
            size: metadata.len(),
            content_type: mime::content_type(name),
            etag: etag(&metadata),
            modified: u64::try_from(metadata.mtime()).ok(),
        }
    }

    fn reply(self, method: &Method, headers: &HeaderMap) -> io::Result<Reply> {
        let version = Version {
            etag: self.etag.as_bytes(),
            modified: self.modified,
        };
        let verdict = conditional::evaluate(method, headers, &version);
        // ranges are for GET alone (RFC 9110 section 14.2)
        let wanted = match method == Method::GET && conditional::range_applies(headers, &version) {
            true => range::wanted(headers, self.size),
            false => Wanted::Whole,
        };
        let size = self.size;
        match (verdict, wanted) {
            (Verdict::NotModified, _) => Ok(self.start(StatusCode::NOT_MODIFIED).0),
            (Verdict::Failed, _) => Ok(Reply::empty(StatusCode::PRECONDITION_FAILED)),
            (Verdict::Proceed, Wanted::Whole) if method == Method::HEAD => {
                let (mut reply, _) = self.start(StatusCode::OK);
                set(&mut reply, CONTENT_LENGTH, size.into());
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Whole) => {
                let (mut reply, file) = self.start(StatusCode::OK);
                reply.body = body(file, 0..size)?;
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Part(part)) => {
                let (mut reply, file) = self.start(StatusCode::PARTIAL_CONTENT);
                let content_range = range::content_range(&part, size);
                set(&mut reply, CONTENT_RANGE, content_range);
                reply.body = body(file, part)?;
                Ok(reply)
            }
            (Verdict::Proceed, Wanted::Nothing) => {
                let mut reply = Reply::empty(StatusCode::RANGE_NOT_SATISFIABLE);
                let content_range = range::content_range_unsatisfied(size);
                set(&mut reply, CONTENT_RANGE, content_range);
                Ok(reply)
            }
        }
    }

    /// The header that tells about this file; a 304 repeats only what a cache compares by (RFC 9110 section 15.4.5).
    fn start(self, status: StatusCode) -> (Reply, File) {
        let mut reply = Reply::empty(status);
        set(&mut reply, ETAG, self.etag);
        if let Some(modified) = self.modified.and_then(date::format) {
            set(&mut reply, LAST_MODIFIED, modified);
        }
        if status != StatusCode::NOT_MODIFIED {
            set(&mut reply, CONTENT_TYPE, self.content_type);
            set(&mut reply, ACCEPT_RANGES, BYTES);
        }
        (reply, self.file)
    }
}

/// A strong tag: a file that is replaced has another inode, one that is written to another time or size.
fn etag(metadata: &Metadata) -> HeaderValue {
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    let (size, inode) = (metadata.size(), metadata.ino());
    let tag = format!("\"{seconds:x}.{nanoseconds:x}-{size:x}-{inode:x}\"");
    HeaderValue::try_from(tag).expect("hexadecimal digits and punctuation make a header value")
}

fn body(mut file: File, part: Range<u64>) -> io::Result<Body> {
    let length = part.end - part.start;
    if length > SMALL {
        return Ok(Body::File {
            file: Arc::new(file),
            start: part.start,
            length,
        });
    }
    let mut bytes = Vec::with_capacity(length as usize);
    if part.start > 0 {
        file.seek(SeekFrom::Start(part.start))?;
    }
    file.take(length).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != length {
        // somebody is writing to it; what was read belongs to no version that a tag could name
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it became shorter while it was read",
        ));
    }
    Ok(Body::Bytes(Bytes::from(bytes)))
}

/// 301 to the same path with a slash at its end. The path begins with exactly one slash, for two would name a host, and
/// holds no backslash, which browsers take for a slash: [`Files::allowed`] sees to both.
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
    // typed name, typed value: there is nothing left to refuse
    let _ = reply.head.insert_header(name, value);
}
