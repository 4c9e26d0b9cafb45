//! What the file says about a folder that is served: the raw keys, and what they are compiled to.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use http::{HeaderValue, StatusCode};
use indexmap::IndexMap;
use nix::errno::Errno;
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use super::cache;
use super::glob::Glob;
use super::listing::Listing;
use super::resource::Boundary;
use super::root::{Found, Root, Symlinks};
use super::tries::Tries;
use super::{FAILURES, Files};
use crate::build::Build;
use crate::http::coding::Coding;
use crate::http::mime::Types;
use crate::http::path;
use crate::issue::At;
use crate::value::keys::{self, Keyed};
use crate::value::{FromShort, OrOff};

/// Answers with files from a folder. A URL that ends with a slash stands for the folder's index; one that names a folder
/// without the slash is redirected to it.
///
/// The whole path of the request is looked up below `root`. To leave out the prefix that the route matched (nginx: `alias`),
/// give the route `rewrite: { strip_prefix: /docs }`: redirects keep the prefix all the same.
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
    /// Paths to look for instead of the request's, as texts with variables; the first that exists answers, with the
    /// status 200. One with a slash at its end is a folder: its index answers, or its listing where it is the folder of
    /// the request; a folder that has neither is passed over. The last entry may be a status, `=404`. A last entry that
    /// begins with `/` may also lead to another route of the site: where no file is there, the request goes on as if it
    /// had asked for that path, with its own method, query and body, under the policies of the route that takes it. That
    /// happens once: when nothing is there either, 404 answers. A single-page application:
    /// `["$uri", "$uri/", /index.html]`; files before a backend: `["$uri", "/app$uri"]` behind a route with
    /// `match: { prefix: /app }`, `rewrite: { strip_prefix: /app }` and `proxy`. In a companion service there are no
    /// other routes. Default: the path of the request. nginx: `try_files`.
    #[schemars(rename = "try")]
    pub tries: Option<Vec<String>>,
    /// Whether a folder without index is answered with what is in it: a page that is sorted and turned by links
    /// (`?sort=name|size|time`, `&order=asc|desc`, `&page=2`), or JSON for programs (`Accept: application/json` or
    /// `?format=json`). Dot-files, special files and links that are not followed are left out. nginx: `autoindex`.
    #[schemars(default)]
    pub listing: bool,
    /// Codings in which files may stand beside themselves, made in advance: `app.js.br` (`br`), `app.js.zst` (`zstd`),
    /// `app.js.gz` (`gzip`). The client gets the one that it prefers by `Accept-Encoding`, the first of this list among
    /// those that it likes as well, under the type of `app.js`. The file itself has to be there too. Default: none.
    /// nginx: `gzip_static`.
    #[schemars(default)]
    pub precompressed: Vec<Coding>,
    /// `Content-Type` by the end of the name, `.wasm: application/wasm`, where the built-in table does not have it or
    /// something else is wanted. nginx: `types`.
    #[schemars(default)]
    pub types: IndexMap<String, String>,
    /// What `Content-Type` says about the character set of text (`text/*`); `off` says nothing. nginx: `charset`.
    #[schemars(default = "default_charset")]
    pub charset: OrOff<String>,
    /// `Cache-Control` by pattern: `"*.html"` for the name of the file, `"/assets/*"` (with a slash) for its path below
    /// `root`. `*` stands for any text, slashes too, `?` for a character. The first that matches, in written order, is
    /// sent. nginx: `expires`.
    #[schemars(default)]
    pub cache_control: IndexMap<String, String>,
    /// Pages by status, `404: /404.html`: files below `root` that are the body of an answer which had none. The status
    /// stays. nginx: `error_page`.
    #[schemars(default)]
    pub errors: IndexMap<u16, String>,
    /// Which symbolic links are followed: `follow_inside` those that end within `root`, however they are written;
    /// `follow` all; `deny` none. What is behind another link is not there (404). nginx: `disable_symlinks`.
    #[schemars(default)]
    pub symlinks: Symlinks,
    /// Whether files and folders whose name begins with a dot are served. `.well-known` always is (RFC 8615).
    #[schemars(default)]
    pub hidden: bool,
    /// Files that are remembered, so that a request for one of them asks the file system nothing; `off`: none. A changed
    /// file is served at most a moment (`valid`) later. nginx: `open_file_cache`.
    #[schemars(default = "default_open_files")]
    pub open_files: OrOff<cache::Config>,
}

fn default_index() -> Vec<String> {
    vec!["index.html".to_owned()]
}

fn default_charset() -> OrOff<String> {
    OrOff::On("utf-8".to_owned())
}

fn default_open_files() -> OrOff<cache::Config> {
    OrOff::On(cache::Config::default())
}

/// The root has to follow.
impl Default for Config {
    fn default() -> Config {
        Config {
            root: PathBuf::new(),
            index: default_index(),
            tries: None,
            listing: false,
            precompressed: Vec::new(),
            types: IndexMap::new(),
            charset: default_charset(),
            cache_control: IndexMap::new(),
            errors: IndexMap::new(),
            symlinks: Symlinks::default(),
            hidden: false,
            open_files: default_open_files(),
        }
    }
}

impl Keyed for Config {
    const EXPECTING: &'static str = "a folder, or a map with a `root`";
    const KEYS: &'static [&'static str] = &[
        "root",
        "index",
        "try",
        "listing",
        "precompressed",
        "types",
        "charset",
        "cache_control",
        "errors",
        "symlinks",
        "hidden",
        "open_files",
    ];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "root" => self.root = map.next_value()?,
            "index" => self.index = map.next_value()?,
            "try" => self.tries = Some(map.next_value()?),
            "listing" => self.listing = map.next_value()?,
            "precompressed" => self.precompressed = map.next_value()?,
            "types" => self.types = map.next_value()?,
            "charset" => self.charset = map.next_value()?,
            "cache_control" => self.cache_control = map.next_value()?,
            "errors" => self.errors = map.next_value()?,
            "symlinks" => self.symlinks = map.next_value()?,
            "hidden" => self.hidden = map.next_value()?,
            "open_files" => self.open_files = map.next_value()?,
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
        self.check_index(&at.key("index"), b);
        let tries = match &self.tries {
            Some(tries) => Tries::compile(tries, &at.key("try"), b).map(Some),
            None => Some(None),
        };
        self.check_precompressed(&at.key("precompressed"), b);
        let types = self.types(at, b);
        let cache_control = self.cache_control(&at.key("cache_control"), b);
        let opened = self.open_root(at, b);
        let root = opened.as_ref().map(|(_, root)| root);
        let statuses = tries.as_ref().map(|tries| {
            let of_try = tries.as_ref().map(|tries| tries.status);
            FAILURES.into_iter().chain(of_try).collect()
        });
        let errors = self.error_pages(statuses, root, &at.key("errors"), b);
        let ((path, root), tries) = (opened?, tries?);
        Some(Files {
            root: Arc::new(root),
            path,
            index: self.index.clone(),
            tries,
            listing: self.listing.then(Listing::new),
            precompressed: self.precompressed.clone(),
            types,
            cache_control,
            errors,
            boundary: Boundary::new([random(), random()]),
            hidden: self.hidden,
            cache: OnceLock::new(),
            config: self.clone(),
        })
    }

    fn check_precompressed(&self, at: &At<'_>, b: &mut Build<'_>) {
        for (i, coding) in self.precompressed.iter().enumerate() {
            if self.precompressed[..i].contains(coding) {
                let message = format!("`{}` is in the list already", coding.name());
                b.error(&at.index(i), message);
            }
        }
    }

    fn types(&self, at: &At<'_>, b: &mut Build<'_>) -> Types {
        let charset = match &self.charset {
            OrOff::On(charset) if !is_token(charset) => {
                let message = format!("`{charset}` is not the name of a character set");
                b.error(&at.key("charset"), message)
                    .hint("give a name such as `utf-8`, or `off`");
                None
            }
            OrOff::On(charset) => Some(charset.as_str()),
            OrOff::Off => None,
        };
        let mut types = Types::new(charset);
        let at = at.key("types");
        for (extension, essence) in &self.types {
            let at = at.key(extension);
            match extension.strip_prefix('.') {
                Some(end) if !end.is_empty() && !end.contains('/') => {
                    if !types.set(end, essence) {
                        b.error(&at, format!("`{essence}` is not a media type"))
                            .hint("give one such as `application/wasm`");
                    }
                }
                _ => {
                    b.error(&at, format!("`{extension}` is not the end of a name"))
                        .on_key()
                        .hint("begin it with a dot, such as `.wasm`");
                }
            }
        }
        types
    }

    fn cache_control(&self, at: &At<'_>, b: &mut Build<'_>) -> Vec<(Glob, HeaderValue)> {
        let mut rules = Vec::new();
        for (pattern, value) in &self.cache_control {
            let at = at.key(pattern);
            let glob = Glob::parse(pattern).map_err(|message| {
                b.error(&at, message).on_key().hint(
                    "`\"*.html\"` is matched with the name of a file, `\"/assets/*\"` with its path below `root`",
                );
            });
            let value = HeaderValue::from_str(value).map_err(|_| {
                b.error(&at, format!("`{value}` cannot stand in a header"));
            });
            if let (Ok(glob), Ok(value)) = (glob, value) {
                rules.push((glob, value));
            }
        }
        rules
    }

    /// `statuses` are those that there can be; `None`: that is not known, for `try` is wrong.
    fn error_pages(
        &self,
        statuses: Option<Vec<StatusCode>>,
        root: Option<&Root>,
        at: &At<'_>,
        b: &mut Build<'_>,
    ) -> HashMap<StatusCode, String> {
        let mut pages = HashMap::new();
        for (code, page) in &self.errors {
            let key = code.to_string();
            let at = at.key(&key);
            let status = StatusCode::from_u16(*code).ok();
            if let Some(statuses) = &statuses
                && !status.is_some_and(|status| statuses.contains(&status))
            {
                let codes: Vec<_> = statuses.iter().map(|status| status.as_str()).collect();
                b.error(&at, format!("files are never answered with `{code}`"))
                    .on_key()
                    .hint(format!("the statuses are {}", codes.join(", ")));
            }
            let relative = page
                .strip_prefix('/')
                .filter(|relative| !relative.is_empty());
            let is_normal = path::normalise(page).is_ok_and(|normal| normal == page.as_str());
            let (Some(relative), true) = (relative, is_normal) else {
                b.error(&at, format!("`{page}` is not the path of a file"))
                    .hint("it begins with `/`, and is looked up below `root`");
                continue;
            };
            if let Some(root) = root
                && !matches!(root.find(relative), Ok(Found::File(_)))
            {
                b.warn(&at, format!("there is no file `{page}` below `root`"));
            }
            pages.extend(status.map(|status| (status, relative.to_owned())));
        }
        pages
    }

    fn check_index(&self, at: &At<'_>, b: &mut Build<'_>) {
        for (i, name) in self.index.iter().enumerate() {
            if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\\', '\0']) {
                b.error(&at.index(i), format!("`{name}` is not the name of a file"))
                    .hint(
                        "give a plain name, such as `index.html`; it is looked for in every folder",
                    );
            }
        }
    }

    fn open_root(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<(PathBuf, Root)> {
        // an empty path would be the folder of the configuration, with its keys and passwords
        if self.root.as_os_str().is_empty() {
            b.error(at, "needs a folder: `root`")
                .hint("`.` is the folder that this file is in");
            return None;
        }
        let at_root = at.key("root");
        let path = b.path(&at_root, &self.root);
        match Root::open(&path, self.symlinks) {
            Ok(root) => Some((path, root)),
            Err(error) => {
                let path = path.display();
                let message = match error {
                    Errno::ENOENT => format!("there is no folder `{path}`"),
                    Errno::ENOTDIR => format!("`{path}` is not a folder"),
                    error => format!("cannot open the folder `{path}`: {}", error.desc()),
                };
                b.error(&at_root, message);
                None
            }
        }
    }
}

/// The keys of a hash map are random, and each map's are others.
fn random() -> u64 {
    RandomState::new().hash_one(())
}

/// RFC 9110 section 5.6.2.
fn is_token(text: &str) -> bool {
    let is_token_byte =
        |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token_byte)
}
