//! Reads the document: the file, what it includes, and what is filled in from the environment and from files.
//!
//! Runs at start, for `-t` and `weir check`, and at each reload; never for a request. It finds every mistake that can be
//! found without knowing what the keys mean to each other, in one run, each with its place. What is wrong is left out, and the
//! rest goes to the `compile` functions all the same: they find the rest of the mistakes, whose issues are placed in the files
//! through the same [`Sources`], which also knows what was left out.
//!
//! `include: [conf.d/*.yaml]` adds the entries of other files, in the order of their names. An included file is written like
//! the main one. The maps at the top level (`pools`, `sites`, ...) are put together entry by entry; everything else may be
//! given once. Nothing overrides: what is given twice is a mistake, because which one counts would depend on file names.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::de::DeserializeOwned;

use super::de;
use super::fill::{Fill, process_env};
use super::node::{Content, Entry, Node, Scalar, SyntaxError};
use crate::issue::{At, Dependency, Issue, Issues, Place, Sources};

/// What came of reading a document.
pub struct Reading<T> {
    /// The document without what is wrong in it, so that the rest can be judged too; `None` when nothing could be made of it.
    pub document: Option<T>,
    /// The mistakes, located.
    pub issues: Issues,
    /// What paths in the document are relative to, where issues that are found later stand, and what was left out.
    pub sources: Sources,
}

/// Reads the document in `file` and all that it includes.
pub fn load<T: DeserializeOwned>(file: &Path) -> Reading<T> {
    load_with(file, &process_env)
}

/// As [`load`], for a document that is not in a file. `name` stands for the file in messages, and paths are relative to it.
pub fn parse<T: DeserializeOwned>(name: &Path, text: &str) -> Reading<T> {
    let mut loader = Loader::new(&process_env);
    loader.document(name, text.to_owned(), &[]);
    loader.finish()
}

/// Why a file cannot be read, in the manner of a message.
pub(super) fn unreadable(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        io::ErrorKind::IsADirectory => "it is a folder".to_owned(),
        _ => error.to_string().to_lowercase(),
    }
}

fn load_with<T: DeserializeOwned>(file: &Path, env: Env<'_>) -> Reading<T> {
    let mut loader = Loader::new(env);
    match fs::read(file) {
        Ok(bytes) => loader.bytes(file, bytes, &[canonical(file)]),
        Err(error) => {
            let file = loader.sources.add(file.to_owned(), String::new());
            let whole = loader.sources.whole(file);
            loader.failed(
                whole,
                format!("cannot read the file: {}", unreadable(&error)),
            );
        }
    }
    loader.finish()
}

type Env<'e> = &'e dyn Fn(&str) -> Option<OsString>;

struct Loader<'e> {
    env: Env<'e>,
    sources: Sources,
    issues: Issues,
    /// The sections of all files that have been read.
    sections: Vec<Entry>,
    /// Names of the entries of sections to which several files add.
    names: HashMap<String, HashSet<String>>,
    /// Files that have been read, by their canonical paths.
    read: HashSet<PathBuf>,
    /// A file could not be read or is not YAML: what it holds must not be called missing.
    incomplete: bool,
}

impl<'e> Loader<'e> {
    fn new(env: Env<'e>) -> Loader<'e> {
        Loader {
            env,
            sources: Sources::default(),
            issues: Issues::default(),
            sections: Vec::new(),
            names: HashMap::new(),
            read: HashSet::new(),
            incomplete: false,
        }
    }

    fn finish<T: DeserializeOwned>(mut self) -> Reading<T> {
        let mut root = Node::new(Content::Map(self.sections));
        let (mut document, left_out) =
            de::deserialize(&mut root, self.incomplete, &mut self.issues);
        self.issues.locate(&self.sources);
        self.sources.leave_out(left_out);
        if self.issues.0.len() > de::MISTAKES {
            // the rest is not judged either: that is enough to do
            document = None;
            self.issues.0.truncate(de::MISTAKES);
            let message = format!(
                "and more: only the first {} mistakes are shown",
                de::MISTAKES
            );
            self.issues.error(&At::Root, message);
        }
        Reading {
            document,
            issues: self.issues,
            sources: self.sources,
        }
    }

    /// Reads a file that is in memory. `chain` leads from the main file to this one.
    fn bytes(&mut self, path: &Path, bytes: Vec<u8>, chain: &[PathBuf]) {
        self.read.extend(chain.last().cloned());
        match String::from_utf8(bytes) {
            Ok(text) => self.document(path, text, chain),
            Err(error) => {
                let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let start = good
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                let column = 1 + String::from_utf8_lossy(&good[start..]).chars().count();
                let file = self.sources.add(path.to_owned(), text);
                let place = self.sources.spot(file, line, column);
                self.failed(place, "this is not valid UTF-8".to_owned());
            }
        }
    }

    fn document(&mut self, path: &Path, text: String, chain: &[PathBuf]) {
        // A byte order mark says nothing in UTF-8, and editors that write it do not show it.
        let text = text
            .strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text);
        let parsed = Node::parse(&text);
        let file = self.sources.add(path.to_owned(), text);
        let mut root = match parsed {
            Ok(root) => root,
            Err(error) => return self.not_yaml(file, error),
        };
        let mut issues = Issues::default();
        root.settle(&At::Root, &mut issues);
        for issue in &mut issues.0 {
            self.given_again(file, issue);
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let fill = Fill {
            env: self.env,
            folder,
        };
        fill.node(&mut root, &At::Root, &mut self.sources, &mut issues);
        self.report(file, issues);
        match root.content {
            Content::Map(mut entries) => {
                let include = entries.iter().position(|entry| entry.key.name == INCLUDE);
                let include = include.map(|position| entries.remove(position).value);
                self.add(file, entries);
                if let Some(include) = include {
                    self.include(file, include, folder, chain);
                }
            }
            Content::Scalar(Scalar::Null) => {}
            _ => {
                let mut issues = Issues::default();
                issues.error(
                    &At::Root,
                    "expected a map of sections at the top level, such as `sites:`",
                );
                self.report(file, issues);
                self.incomplete = true;
            }
        }
    }

    /// Adds the sections of a file to those of the files before it.
    fn add(&mut self, file: usize, entries: Vec<Entry>) {
        let mut issues = Issues::default();
        for entry in entries {
            let at = At::Root.key(&entry.key.name);
            let Some(section) = self
                .sections
                .iter_mut()
                .find(|section| section.key.name == entry.key.name)
            else {
                self.sources.section_from(&entry.key.name, file);
                self.sections.push(entry);
                continue;
            };
            let (Content::Map(have), Content::Map(more)) =
                (&mut section.value.content, entry.value.content)
            else {
                let first = self.sources.given_at(&at.to_path());
                let message = format!("key `{}` is given twice", entry.key.name);
                issues
                    .error(&at, message)
                    .on_key()
                    .hint(format!("first given at {first}"));
                continue;
            };
            let names = self.names.entry(entry.key.name.clone());
            let names =
                names.or_insert_with(|| have.iter().map(|entry| entry.key.name.clone()).collect());
            for entry in more {
                let name = &entry.key.name;
                let at = at.key(name);
                if !names.insert(name.clone()) {
                    let first = self.sources.given_at(&at.to_path());
                    let message = format!("`{name}` is given twice");
                    issues
                        .error(&at, message)
                        .on_key()
                        .hint(format!("first given at {first}"));
                    continue;
                }
                self.sources.entry_from(&section.key.name, name, file);
                have.push(entry);
            }
        }
        self.report(file, issues);
    }

    fn include(&mut self, file: usize, include: Node, folder: &Path, chain: &[PathBuf]) {
        let at = At::Root.key(INCLUDE);
        let (patterns, listed) = match include.content {
            Content::List(items) => (items, true),
            _ => (vec![include], false),
        };
        for (index, pattern) in patterns.iter().enumerate() {
            let item = at.index(index);
            let at = if listed { &item } else { &at };
            let mut issues = Issues::default();
            match &pattern.content {
                Content::Scalar(Scalar::Text(pattern)) | Content::Filled(pattern) => {
                    self.sources.depends_on(Dependency::Pattern {
                        folder: folder.to_owned(),
                        pattern: pattern.clone(),
                    });
                    match matching(folder, pattern) {
                        Ok(paths) => {
                            for path in paths {
                                self.include_one(&path, chain, at, &mut issues);
                            }
                        }
                        Err(message) => {
                            issues.error(at, message);
                        }
                    }
                }
                _ => {
                    issues.error(at, "expected a path or a pattern such as `conf.d/*.yaml`");
                }
            }
            self.incomplete |= issues.has_errors();
            self.report(file, issues);
        }
    }

    fn include_one(&mut self, path: &Path, chain: &[PathBuf], at: &At<'_>, issues: &mut Issues) {
        let canonical = canonical(path);
        let shown = path.display();
        if chain.contains(&canonical) {
            issues.error(at, format!("`{shown}` includes itself"));
            return;
        }
        if self.read.contains(&canonical) {
            issues.error(at, format!("`{shown}` is included twice"));
            return;
        }
        // Also one that is not there: it may come.
        self.sources.depends_on(Dependency::File(path.to_owned()));
        match fs::read(path) {
            Ok(bytes) => {
                let chain: Vec<PathBuf> = chain.iter().cloned().chain([canonical]).collect();
                self.bytes(path, bytes, &chain);
            }
            Err(error) => {
                issues.error(at, format!("cannot read `{shown}`: {}", unreadable(&error)));
            }
        }
    }

    /// Places an issue about a key that is given twice at the second, and names the first.
    fn given_again(&self, file: usize, issue: &mut Issue) {
        if !issue.on_key {
            return;
        }
        let mut first = issue.clone();
        self.sources.locate_in(file, &mut first);
        issue.place = self.sources.last_given(file, &issue.path);
        let spot = first.place.and_then(|place| place.spot);
        issue.hint = spot.map(|spot| format!("first given in line {}", spot.line));
    }

    /// Reports issues that are known to stand in `file`.
    fn report(&mut self, file: usize, mut issues: Issues) {
        for issue in &mut issues.0 {
            if issue.place.is_none() {
                self.sources.locate_in(file, issue);
            }
        }
        self.issues.append(issues);
    }

    /// Reports that a file cannot be used at all.
    fn failed(&mut self, place: Option<Place>, message: String) -> &mut Issue {
        self.incomplete = true;
        let issue = self.issues.error(&At::Root, message);
        issue.place = place;
        issue
    }

    fn not_yaml(&mut self, file: usize, error: SyntaxError) {
        let place = match error.location {
            Some((line, column)) => self.sources.spot(file, line, column),
            None => self.sources.whole(file),
        };
        let hint = place.as_ref().and_then(|place| slip(&error.message, place));
        self.failed(place, format!("not valid YAML: {}", error.message))
            .hint = hint.map(str::to_owned);
    }
}

/// The files that `pattern` means, in the order of their names. Without a wildcard that is one file, there or not.
pub fn matching(folder: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    if !pattern.contains(['*', '?', '[']) {
        return Ok(vec![folder.join(pattern)]);
    }
    let refused = || {
        format!(
            "`{}` cannot be a part of a pattern: it is not valid UTF-8",
            folder.display()
        )
    };
    let folder = glob::Pattern::escape(folder.to_str().ok_or_else(refused)?);
    let pattern = Path::new(&folder).join(pattern);
    // a hidden file is the copy that an editor keeps while it writes
    let options = glob::MatchOptions {
        require_literal_leading_dot: true,
        ..glob::MatchOptions::new()
    };
    let paths = glob::glob_with(&pattern.to_string_lossy(), options)
        .map_err(|error| format!("`{}` is not a pattern: {}", pattern.display(), error.msg))?;
    paths
        .map(|path| {
            path.map_err(|error| {
                format!(
                    "cannot read `{}`: {}",
                    error.path().display(),
                    unreadable(error.error())
                )
            })
        })
        .collect()
}

/// The same for all ways to write a path; the path itself for a file that is not there.
fn canonical(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The usual slips behind what the YAML reader says.
fn slip(message: &str, place: &Place) -> Option<&'static str> {
    if place.source.contains("${") && message.contains("flow") {
        return Some("inside `{ }` and `[ ]`, text with `${...}` needs quotes");
    }
    if message.contains("cannot start any token") {
        return Some(
            "a tab cannot indent, and text that begins with `@`, `%` or a backtick needs quotes",
        );
    }
    if message.contains("mapping values are not allowed") {
        return Some("text that holds `: ` needs quotes");
    }
    if message.contains("expected <block end>") || message.contains("did not find expected key") {
        return Some("is the indentation right here, and in the lines above?");
    }
    None
}

const INCLUDE: &str = "include";

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use serde::Deserialize;

    use super::*;
    use crate::issue::{KeyPath, Step};
    use crate::value::{FromShort, OneOrMany, Short, Span, hint};

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Document {
        threads: Option<u16>,
        daemon: bool,
        pools: BTreeMap<String, Pool>,
        sites: BTreeMap<String, Site>,
        trusted: Vec<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Pool {
        backends: OneOrMany<String>,
        timeout: Option<Span>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Site {
        hosts: Vec<String>,
        #[serde(default)]
        routes: Vec<Route>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Route {
        path: Option<String>,
        proxy: Short<Proxy>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Proxy {
        pool: String,
    }

    impl FromShort for Proxy {
        fn from_short(text: &str) -> Result<Proxy, String> {
            let pool = text.to_owned();
            Ok(Proxy { pool })
        }
    }

    /// A folder with files, removed when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(files: &[(&str, &str)]) -> Folder {
            static COUNT: AtomicUsize = AtomicUsize::new(0);
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let folder = std::env::temp_dir().join(format!("weir-load-{}-{count}", process::id()));
            for (name, text) in files {
                let path = folder.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            Folder(folder)
        }

        fn load(&self) -> (Result<Document, Issues>, Sources) {
            self.load_as("weir.yaml")
        }

        fn load_as(&self, name: &str) -> (Result<Document, Issues>, Sources) {
            let env = |name: &str| match name {
                "THREADS" => Some("4".into()),
                "WORD" => Some("hunter22".into()),
                "HOME_PORT" => Some("127.0.0.1:80".into()),
                _ => None,
            };
            right(load_with(&self.0.join(name), &env))
        }

        fn document(&self) -> Document {
            self.load()
                .0
                .unwrap_or_else(|issues| panic!("{}", self.shown(&issues)))
        }

        /// The issues as they are shown, with paths relative to the folder.
        fn wrong(&self) -> String {
            self.shown(&self.load().0.unwrap_err())
        }

        fn shown(&self, issues: &Issues) -> String {
            issues
                .to_string()
                .replace(&format!("{}/", self.0.display()), "")
        }
    }

    /// The document, if nothing in it is wrong.
    fn right(reading: Reading<Document>) -> (Result<Document, Issues>, Sources) {
        let Reading {
            document,
            issues,
            sources,
        } = reading;
        let result = match issues.is_empty() {
            true => Ok(document.unwrap()),
            false => Err(issues),
        };
        (result, sources)
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn one(text: &str) -> Folder {
        Folder::new(&[("weir.yaml", text)])
    }

    fn path(steps: &[&str]) -> KeyPath {
        KeyPath(
            steps
                .iter()
                .map(|key| Step::Key((*key).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn an_issue_is_shown_as_the_language_says() {
        let text = "\
pools:
  app: { backends: 127.0.0.1:9001 }
  assets: { backends: 127.0.0.1:9002 }
sites:
  shop:
    hosts:
      - shop.example
    routes:
      # health comes first

      - path: /health
        proxy: assets

      - path: /
        proxy: ap
";
        let (document, sources) = right(parse(
            Path::new("conf/weir.yaml"),
            &text.replace("\n\n", "\n"),
        ));
        let document = document.unwrap();
        let mut issues = Issues::default();
        let pool = &document.sites["shop"].routes[1].proxy.pool;
        let at = At::Root.key("sites");
        let at = at.key("shop");
        let at = at.key("routes");
        let at = at.index(1);
        let at = at.key("proxy");
        let names = document.pools.keys().map(String::as_str);
        // the short form has no key `pool`, so none is shown
        issues
            .error(&at.key("pool"), format!("no pool named `{pool}`"))
            .hint(hint(pool, "pools are", names));
        issues.locate(&sources);
        assert_eq!(
            issues.to_string(),
            "conf/weir.yaml:13:16: sites.shop.routes[1].proxy: no pool named `ap`\n\
             \x20  13 |         proxy: ap\n\
             \x20     |                ^^ did you mean `app`? pools are: app, assets\n"
        );
    }

    #[test]
    fn all_mistakes_are_shown_in_document_order() {
        let folder = one(
            "threads: many\nsites:\n  shop:\n    hosts: x\n    routes:\n      - { proxi: app }\npools: { a: {} }\nthreads: 5\n",
        );
        assert_eq!(
            folder.wrong(),
            "\
weir.yaml:1:10: threads: expected a whole number from 0 to 65535, found `many`
    1 | threads: many
      |          ^^^^
weir.yaml:4:12: sites.shop.hosts: expected a list, found `x`
    4 |     hosts: x
      |            ^
weir.yaml:6:11: sites.shop.routes[0].proxi: unknown key `proxi`
    6 |       - { proxi: app }
      |           ^^^^^ did you mean `proxy`? keys here are: path, proxy
weir.yaml:7:13: pools.a: missing key `backends`
    7 | pools: { a: {} }
      |             ^^
weir.yaml:8:1: threads: key `threads` is given twice
    8 | threads: 5
      | ^^^^^^^ first given in line 1
"
        );
    }

    #[test]
    fn after_a_hundred_mistakes_it_is_enough() {
        let text: String = (0..150).map(|n| format!("k{n}: 1\n")).collect();
        let wrong = one(&text).wrong();
        assert_eq!(wrong.matches("unknown key").count(), 100);
        assert!(
            wrong.ends_with("\nand more: only the first 100 mistakes are shown\n"),
            "{wrong}"
        );
    }

    #[test]
    fn files_that_are_no_document_are_refused() {
        assert_eq!(one("").document(), Document::default());
        assert_eq!(one("# nothing\n").document(), Document::default());
        let wrong = one("- a\n- b\n").wrong();
        assert!(
            wrong.starts_with("weir.yaml:1:1: expected a map of sections at the top level"),
            "{wrong}"
        );
        let folder = one("");
        fs::write(folder.0.join("weir.yaml"), b"threads: 1\n# caf\xe9\n").unwrap();
        assert!(
            folder
                .wrong()
                .starts_with("weir.yaml:2:6: this is not valid UTF-8\n    2 | # caf"),
            "{}",
            folder.wrong()
        );
        let shown = |name: &str| folder.shown(&folder.load_as(name).0.unwrap_err());
        assert_eq!(
            shown("none.yaml"),
            "none.yaml: cannot read the file: no such file\n"
        );
        fs::create_dir(folder.0.join("folder.yaml")).unwrap();
        assert_eq!(
            shown("folder.yaml"),
            "folder.yaml: cannot read the file: it is a folder\n"
        );
    }

    #[test]
    fn byte_order_marks_and_foreign_line_ends_are_read() {
        let folder = one("\u{feff}threads: 2\r\npools:\r\n  a: { backends: x, timeout: 5 }\r\n");
        assert_eq!(
            folder.wrong(),
            "weir.yaml:3:30: pools.a.timeout: expected a duration such as `5s`, found `5`\n    \
             3 |   a: { backends: x, timeout: 5 }\n      |                              ^\n"
        );
        assert_eq!(one("\u{feff}threads: 2\r\n").document().threads, Some(2));
    }

    #[test]
    fn text_that_is_not_yaml_is_shown_with_its_place() {
        let wrong = one("threads: 1\npools:\n  a: { backends: [x }\n").wrong();
        assert!(
            wrong.starts_with("weir.yaml:3:21: not valid YAML: "),
            "{wrong}"
        );
        let wrong = one("threads: 1\npools: {\n  a: { backends: ${env:WORD} } }\n").wrong();
        assert!(wrong.contains("text with `${...}` needs quotes"), "{wrong}");
        let wrong = one("pools:\n\ta: 1\n").wrong();
        assert!(
            wrong.contains("weir.yaml:2:1:") && wrong.contains("a tab cannot indent"),
            "{wrong}"
        );
        let wrong = one("sites:\n  a: !x { hosts: [] }\n").wrong();
        assert!(wrong.contains("the tag `!x` means nothing here"), "{wrong}");
    }

    #[test]
    fn values_are_filled_in() {
        let folder = Folder::new(&[
            (
                "weir.yaml",
                "threads: ${env:THREADS}\ndaemon: ${env:DAEMON:-true}\n\
                 pools: { a: { backends: '${env:HOME_PORT}', timeout: \"${env:THREADS}s\" } }\n\
                 trusted: [\"${file:secrets/one}\", \"${env:THREADS}\"]\ninclude: more/a.yaml\n",
            ),
            ("secrets/one", "first\nsecond\n"),
            (
                "more/a.yaml",
                "pools: { b: { backends: \"${file:here}\" } }\n",
            ),
            ("more/here", "b:80\r\n"),
        ]);
        let document = folder.document();
        assert_eq!((document.threads, document.daemon), (Some(4), true));
        assert_eq!(document.pools["a"].backends.0, ["127.0.0.1:80"]);
        assert_eq!(
            document.pools["a"].timeout.unwrap().get(),
            Duration::from_secs(4)
        );
        assert_eq!(document.trusted, ["first\nsecond", "4"]);
        assert_eq!(document.pools["b"].backends.0, ["b:80"]);
    }

    #[test]
    fn what_was_filled_in_is_not_shown() {
        let folder = one(
            "threads: ${env:WORD}\npools: { a: { backends: x, timeout: \"${env:WORD}\" } }\ndaemon: ${env:NONE}\ntrusted: [\"${env:WORD}\"]\n",
        );
        let wrong = folder.wrong();
        assert!(!wrong.contains("hunter22"), "{wrong}");
        assert!(wrong.contains("weir.yaml:1:10: threads: expected a whole number from 0 to 65535, found `${env:WORD}`"), "{wrong}");
        assert!(
            wrong
                .contains("pools.a.timeout: expected a duration such as `5s`, found `${env:WORD}`"),
            "{wrong}"
        );
        assert!(
            wrong.contains("weir.yaml:3:9: daemon: the environment variable `NONE` is not set"),
            "{wrong}"
        );

        let (_, sources) = one("trusted: [\"${env:WORD}\"]\n").load();
        let mut issues = Issues::default();
        let at = At::Root.key("trusted");
        issues
            .error(&at.index(0), "`hunter22` is no address")
            .hint("what is hunter22?");
        issues.locate(&sources);
        assert_eq!(issues.0[0].message, "`${env:WORD}` is no address");
        assert_eq!(issues.0[0].hint.as_deref(), Some("what is ${env:WORD}?"));
    }

    #[test]
    fn included_files_add_entries() {
        let folder = Folder::new(&[
            (
                "weir.yaml",
                "threads: 1\ninclude: [conf.d/*.yaml]\npools: { a: { backends: x } }\n",
            ),
            ("conf.d/2.yaml", "pools: { c: { backends: z } }\n"),
            (
                "conf.d/1.yaml",
                "pools: { b: { backends: y } }\nsites: { s: { hosts: [h] } }\ninclude: deeper/x.yaml\n",
            ),
            ("conf.d/.hidden.yaml", "nonsense: 1\n"),
            (
                "conf.d/deeper/x.yaml",
                "sites: { t: { hosts: [i] } }\ntrusted: [a]\n",
            ),
        ]);
        let (document, sources) = folder.load();
        let document = document.unwrap();
        assert_eq!(document.pools.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(document.sites.keys().collect::<Vec<_>>(), ["s", "t"]);
        let file = |steps: &[&str]| {
            sources
                .file(&path(steps))
                .strip_prefix(&folder.0)
                .unwrap()
                .to_owned()
        };
        assert_eq!(file(&[]), Path::new("weir.yaml"));
        assert_eq!(file(&["threads"]), Path::new("weir.yaml"));
        assert_eq!(file(&["pools", "a", "backends"]), Path::new("weir.yaml"));
        assert_eq!(
            file(&["pools", "b", "backends"]),
            Path::new("conf.d/1.yaml")
        );
        assert_eq!(file(&["pools", "c"]), Path::new("conf.d/2.yaml"));
        assert_eq!(file(&["sites", "s"]), Path::new("conf.d/1.yaml"));
        assert_eq!(file(&["sites", "t"]), Path::new("conf.d/deeper/x.yaml"));
        assert_eq!(file(&["trusted"]), Path::new("conf.d/deeper/x.yaml"));
        assert_eq!(sources.files().count(), 4);
    }

    #[test]
    fn what_two_files_give_is_shown_with_both_places() {
        let folder = Folder::new(&[
            (
                "weir.yaml",
                "threads: 1\ntrusted: [a]\npools:\n  a: { backends: x }\ninclude: b.yaml\n",
            ),
            (
                "b.yaml",
                "threads: 2\npools:\n  b: { backends: x, timeout: 1 }\n  a: { backends: y }\ntrusted: [b]\n",
            ),
        ]);
        let wrong = folder.wrong();
        assert_eq!(
            wrong,
            "\
b.yaml:1:1: threads: key `threads` is given twice
    1 | threads: 2
      | ^^^^^^^ first given at weir.yaml:1:1
b.yaml:3:30: pools.b.timeout: expected a duration such as `5s`, found `1`
    3 |   b: { backends: x, timeout: 1 }
      |                              ^
b.yaml:4:3: pools.a: `a` is given twice
    4 |   a: { backends: y }
      |   ^ first given at weir.yaml:4:3
b.yaml:5:1: trusted: key `trusted` is given twice
    5 | trusted: [b]
      | ^^^^^^^ first given at weir.yaml:2:1
"
        );
    }

    #[test]
    fn includes_that_lead_nowhere_or_back_are_refused() {
        let folder = Folder::new(&[
            (
                "weir.yaml",
                "include: [none.yaml, none/*.yaml, a.yaml, 5, b.yaml, a.yaml]\n",
            ),
            ("a.yaml", "include: weir.yaml\n"),
            ("b.yaml", "threads: {\n"),
        ]);
        let wrong = folder.wrong();
        let heads: Vec<&str> = wrong
            .lines()
            .filter(|line| line.contains(".yaml:"))
            .collect();
        assert_eq!(heads.len(), 5, "{wrong}");
        assert!(
            heads[0]
                .starts_with("weir.yaml:1:11: include[0]: cannot read `none.yaml`: no such file"),
            "{wrong}"
        );
        assert!(
            heads[1].starts_with("weir.yaml:1:43: include[3]: expected a path"),
            "{wrong}"
        );
        assert!(
            heads[2].starts_with("weir.yaml:1:54: include[5]: `a.yaml` is included twice"),
            "{wrong}"
        );
        assert!(
            heads[3].starts_with("a.yaml:1:10: include: `weir.yaml` includes itself"),
            "{wrong}"
        );
        assert!(
            heads[4].starts_with("b.yaml:2:1: not valid YAML"),
            "{wrong}"
        );
    }

    #[test]
    fn anchors_and_merges_are_followed_to_the_mistake() {
        let folder =
            one("pools:\n  a: &a { backends: x, timeout: 5 }\n  b: { <<: *a, backends: y }\n");
        let wrong = folder.wrong();
        assert!(wrong.contains("weir.yaml:2:33: pools.a.timeout"), "{wrong}");
        assert!(wrong.contains("weir.yaml:2:33: pools.b.timeout"), "{wrong}");
        let folder = one(
            "pools:\n  a: &a { backends: x, timeout: 5s }\n  b: { <<: *a, backends: y }\n  c: *a\n",
        );
        let document = folder.document();
        assert_eq!(document.pools["b"].timeout, document.pools["a"].timeout);
        assert_eq!(document.pools["c"], document.pools["a"]);
    }

    #[test]
    fn a_thousand_files_are_read_without_delay() {
        let mut files = vec![("weir.yaml".to_owned(), "include: sites/*.yaml\n".to_owned())];
        for n in 0..1000 {
            files.push((
                format!("sites/{n}.yaml"),
                format!("sites: {{ s{n}: {{ hosts: [h{n}.example] }} }}\n"),
            ));
        }
        let files: Vec<(&str, &str)> = files
            .iter()
            .map(|(name, text)| (name.as_str(), text.as_str()))
            .collect();
        let folder = Folder::new(&files);
        assert_eq!(folder.document().sites.len(), 1000);
    }

    /// Timings, for who changes the passes: `cargo test --release --lib -- --ignored --nocapture large_documents`.
    #[test]
    #[ignore = "prints timings"]
    fn large_documents_are_read_in_seconds() {
        for mistakes in [0, 20, 100] {
            let mut text = "sites:\n".to_owned();
            for site in 0..10_000 {
                text += &format!(
                    "  site{site}:\n    hosts: [h{site}.example, www.h{site}.example]\n    routes:\n"
                );
                for route in 0..10 {
                    let key = if route == 5 && site < mistakes * 100 && site % 100 == 50 {
                        "proxi"
                    } else {
                        "proxy"
                    };
                    text += &format!("      - path: /some/path/{route}\n        {key}: app\n");
                }
            }
            let start = Instant::now();
            let reading = parse::<Document>(Path::new("large.yaml"), &text);
            let found = reading.issues.0.len();
            println!(
                "{} MiB, {found} issues: {:?}",
                text.len() >> 20,
                start.elapsed()
            );
        }
    }
}
