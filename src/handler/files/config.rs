//! What the file says about a folder that is served: the raw keys, and what they are compiled to.

use std::path::PathBuf;

use nix::errno::Errno;
use schemars::JsonSchema;
use serde::de::MapAccess;
use serde::{Deserialize, Deserializer};

use super::Files;
use super::root::Root;
use super::tries::Tries;
use crate::build::Build;
use crate::issue::At;
use crate::value::FromShort;
use crate::value::keys::{self, Keyed};

/// Answers with files from a folder. A URL that ends with a slash stands for the folder's index; one that names a folder
/// without the slash is redirected to it. Links are followed as long as they lead to something within the folder.
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
    /// status 200. One with a slash at its end is a folder: its index answers, and a folder without one is passed over.
    /// The last entry may be a status, `=404`; without one, 404 answers when nothing exists. A single-page
    /// application: `["$uri", "$uri/", /index.html]`. nginx: `try_files`, where the last entry is taken unseen and may
    /// lead to another location.
    #[schemars(rename = "try")]
    pub tries: Option<Vec<String>>,
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
            tries: None,
            hidden: false,
        }
    }
}

impl Keyed for Config {
    const EXPECTING: &'static str = "a folder, or a map with a `root`";
    const KEYS: &'static [&'static str] = &["root", "index", "try", "hidden"];

    fn read<'de, A: MapAccess<'de>>(
        &mut self,
        key: &'static str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        match key {
            "root" => self.root = map.next_value()?,
            "index" => self.index = map.next_value()?,
            "try" => self.tries = Some(map.next_value()?),
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
        self.check_index(&at.key("index"), b);
        let tries = match &self.tries {
            Some(tries) => Tries::compile(tries, &at.key("try"), b).map(Some),
            None => Some(None),
        };
        let (path, root) = self.open_root(at, b)?;
        Some(Files {
            root,
            path,
            index: self.index.clone(),
            tries: tries?,
            hidden: self.hidden,
        })
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
        match Root::open(&path) {
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
