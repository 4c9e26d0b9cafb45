//! `auth_basic`: names and passwords, from a file of hashes.
//!
//! ```yaml
//! auth_basic: { realm: Staff, users: htpasswd }
//! ```
//!
//! Asks for a name and a password (RFC 7617); without them 401 answers. `$remote_user` is the name then.
//! `htpasswd -B htpasswd ada` adds a line for ada to the file.
//!
//! Hashes that are worth their name take a processor tens of milliseconds, on purpose. So they are computed on threads
//! of their own, on half of the processors at most; 512 requests may wait for that, and more are answered with 503
//! (`auth_busy` in `$failure`). A password that was right is remembered for five minutes, in memory and under a keyed
//! hash. A name that nobody has costs as much as a wrong password: the time tells nobody which names there are. Against
//! guessing, set a `limit_req` as well: it comes first.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use ahash::RandomState;
use boring::base64;
use boring::hash::hmac_sha256;
use boring::rand::rand_bytes;
use http::{HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::{Cx, Failure, Reply};
use crate::issue::At;

mod password;

use password::Hash;

/// Asks for a name and a password.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What the client shows its user. Default `Restricted`. nginx: `auth_basic`.
    #[serde(default = "default_realm")]
    realm: String,
    /// File of `name:hash` lines, as `htpasswd` writes them: bcrypt, argon2, SHA-256 and SHA-512 crypt, apr1, `{SSHA}`, `{SHA}`.
    /// Passwords in plain text are refused. Read with the configuration. nginx: `auth_basic_user_file`.
    users: PathBuf,
    /// Passes `Authorization` on to the backend. Default false: the password is none of its business.
    #[serde(default)]
    forward: bool,
}

fn default_realm() -> String {
    "Restricted".to_owned()
}

#[derive(Debug)]
pub struct AuthBasic {
    challenge: HeaderValue,
    users: Users,
    forward: bool,
    verifier: Arc<Verifier>,
}

impl Filter for AuthBasic {
    fn may_wait(&self) -> bool {
        true
    }

    async fn request(&self, cx: &mut Cx, request: &RequestHeader, _wall: SystemTime) -> Flow {
        let Some((name, password)) = credentials(request) else {
            return self.refuse();
        };
        let (hash, is_user) = match self.users.find(&name) {
            Some(found) => found,
            None => return self.refuse(),
        };
        match self.verifier.verify(hash, password).await {
            Ok(true) if is_user => {
                cx.user = Some(name);
                Flow::Continue
            }
            Ok(_) => self.refuse(),
            Err(Busy) => Flow::Fail(Failure::AuthBusy),
        }
    }

    fn upstream(
        &self,
        _cx: &Cx,
        _request: &RequestHeader,
        upstream: &mut RequestHeader,
        _wall: SystemTime,
    ) {
        if !self.forward {
            upstream.remove_header(&header::AUTHORIZATION);
        }
    }
}

impl AuthBasic {
    fn refuse(&self) -> Flow {
        let mut reply = Reply::empty(StatusCode::UNAUTHORIZED);
        // A static name with a value made at load cannot be refused.
        let _ = reply
            .head
            .insert_header("WWW-Authenticate", self.challenge.clone());
        Flow::Refuse(Failure::AuthBasic, reply)
    }
}

/// Name and password of a request (RFC 7617 section 2), if it brings exactly one pair.
fn credentials(request: &RequestHeader) -> Option<(String, Vec<u8>)> {
    let mut given = request.headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (given.next()?.to_str().ok()?, given.next()) else {
        return None;
    };
    let (scheme, token) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let token = token.trim_matches(' ');
    // the decoder takes any length, and has no word for an empty one
    if token.is_empty() || !token.len().is_multiple_of(4) {
        return None;
    }
    let mut pair = base64::decode_block(token).ok()?;
    let colon = pair.iter().position(|byte| *byte == b':')?;
    let password = pair.split_off(colon + 1);
    pair.pop();
    let name = String::from_utf8(pair).ok()?;
    // it goes into logs and headers
    (!name.contains(char::is_control)).then_some((name, password))
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<AuthBasic> {
        let challenge = challenge(&self.realm);
        if challenge.is_none() {
            b.error(&at.key("realm"), "cannot stand in a header")
                .hint("it is a line of printable characters");
        }
        let at = at.key("users");
        let path = b.sources.input(&at, &self.users);
        let users = Users::load(&path, &at, b);
        let verifier = b.carry("auth_basic".to_owned(), |_| true, Verifier::new);
        Some(AuthBasic {
            challenge: challenge?,
            users: users?,
            forward: self.forward,
            verifier,
        })
    }
}

/// The value of `WWW-Authenticate`.
fn challenge(realm: &str) -> Option<HeaderValue> {
    let mut quoted = String::new();
    for c in realm.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    let text = format!("Basic realm=\"{quoted}\", charset=\"UTF-8\"");
    HeaderValue::try_from(text).ok()
}

/// The names and hashes of one file.
struct Users {
    /// In the order of the file.
    hashes: Vec<Arc<Hash>>,
    names: HashMap<String, usize>,
    /// Gives each name that nobody has a hash of somebody else.
    strangers: RandomState,
}

/// How many mistakes in one file are told.
const MISTAKES: usize = 5;

impl Users {
    fn load(path: &Path, at: &At<'_>, b: &mut Build<'_>) -> Option<Users> {
        let shown = path.display();
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) => {
                b.error(at, format!("cannot read `{shown}`: {e}"));
                return None;
            }
        };
        let mut users = Users {
            hashes: Vec::new(),
            names: HashMap::new(),
            strangers: RandomState::new(),
        };
        let mut mistakes = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_end();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(message) = users.add(line) {
                mistakes.push(format!("`{shown}`, line {}: {message}", number + 1));
            }
        }
        for message in mistakes.iter().take(MISTAKES) {
            b.error(at, message.clone());
        }
        if users.names.is_empty() && mistakes.is_empty() {
            b.warn(at, format!("`{shown}` has no users: nobody gets in"));
        }
        mistakes.is_empty().then_some(users)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (name, rest) = line
            .split_once(':')
            .ok_or("expected a name, a colon and a hash")?;
        // nginx allows a comment behind a second colon; no hash has one
        let hash = rest.split(':').next().unwrap_or_default();
        let hash = Hash::parse(hash)?;
        if self.names.contains_key(name) {
            return Err(format!("`{name}` is given twice"));
        }
        self.names.insert(name.to_owned(), self.hashes.len());
        self.hashes.push(Arc::new(hash));
        Ok(())
    }

    /// The hash for that name; for one that nobody has another's, to take as long. `None` if there are no users.
    fn find(&self, name: &str) -> Option<(&Arc<Hash>, bool)> {
        if let Some(index) = self.names.get(name) {
            return Some((&self.hashes[*index], true));
        }
        let count = self.hashes.len() as u64;
        let any = self.strangers.hash_one(name).checked_rem(count)?;
        Some((&self.hashes[any as usize], false))
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names.keys()).finish()
    }
}

/// How long a password that was right need not be computed again.
const MEMORY: Duration = Duration::from_secs(5 * 60);
/// How many are remembered.
const MOST: usize = 10_000;
/// How many requests may wait for their hash to be computed.
const QUEUE: usize = 512;

/// Computes hashes for all policies of the process, and remembers those that were right.
struct Verifier {
    /// As many as may be computed at a time: half of the processors, so that the others go on serving.
    turns: Arc<Semaphore>,
    waiting: AtomicUsize,
    secret: [u8; 32],
    /// Until when a pair of password and stored hash is known to fit, under a keyed hash of both. So a hash that is changed in the file
    /// is not found here, and memory that leaks shows no password.
    right: Mutex<HashMap<[u8; 32], Instant, RandomState>>,
}

/// There are more passwords to check than can be.
#[derive(Debug, PartialEq)]
struct Busy;

impl Verifier {
    fn new() -> Verifier {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let mut secret = [0; 32];
        // BoringSSL has no way to fail at it, only the type has.
        rand_bytes(&mut secret).expect("random bytes");
        Verifier {
            turns: Arc::new(Semaphore::new(processors.div_ceil(2))),
            waiting: AtomicUsize::new(0),
            secret,
            right: Mutex::default(),
        }
    }

    async fn verify(&self, hash: &Arc<Hash>, password: Vec<u8>) -> Result<bool, Busy> {
        let pair = [hash.text().as_bytes(), b"\0", &password].concat();
        let pair = hmac_sha256(&self.secret, &pair).expect("memory for a hash");
        let known = self.right.lock().get(&pair).copied();
        if known.is_some_and(|until| Instant::now() < until) {
            return Ok(true);
        }
        let waiting = Waiting::new(&self.waiting)?;
        let turn = self.turns.clone().acquire_owned().await;
        drop(waiting);
        let hash = hash.clone();
        let computed = tokio::task::spawn_blocking(move || {
            // to its end, also if the client goes meanwhile: nothing can stop it
            let _turn = turn;
            hash.verify(&password)
        });
        let is_right = computed.await.unwrap_or(false);
        if is_right {
            self.remember(pair, Instant::now());
        }
        Ok(is_right)
    }

    fn remember(&self, pair: [u8; 32], now: Instant) {
        let mut right = self.right.lock();
        if right.len() >= MOST {
            right.retain(|_, until| now < *until);
        }
        if right.len() >= MOST {
            right.clear();
        }
        right.insert(pair, now + MEMORY);
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

/// One request that waits for its turn.
struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Result<Waiting<'_>, Busy> {
        let before = count.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(count);
        (before < QUEUE).then_some(waiting).ok_or(Busy)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(values: &[&str]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for value in values {
            request
                .append_header("Authorization", (*value).to_owned())
                .unwrap();
        }
        request
    }

    #[test]
    fn credentials_are_one_pair_in_base64() {
        let found = |values: &[&str]| credentials(&request(values));
        let pair =
            |name: &str, password: &str| Some((name.to_owned(), password.as_bytes().to_vec()));
        assert_eq!(
            found(&["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]),
            pair("Aladdin", "open sesame")
        );
        assert_eq!(found(&["basic  YTo="]), pair("a", ""));
        assert_eq!(found(&["BASIC YTpiOmM="]), pair("a", "b:c"));
        for values in [
            &[][..],
            &["Basic"],
            &["Basic "],
            &["Basic !!!!"],
            &["Basic YTo"],
            &["Basic YWJj"],     // no colon
            &["Basic YQo6Yg=="], // a line break in the name
            &["Basic /zpi"],     // not UTF-8
            &["Bearer YTo="],
            &["Basic YTo=", "Basic YTo="],
        ] {
            assert_eq!(found(values), None, "{values:?}");
        }
    }

    #[test]
    fn realms_are_quoted() {
        let value = challenge("a \"b\" \\").unwrap();
        assert_eq!(value, r#"Basic realm="a \"b\" \\", charset="UTF-8""#);
        assert!(challenge("a\nb").is_none());
    }

    #[test]
    fn the_queue_has_an_end() {
        let count = AtomicUsize::new(0);
        let waiting: Vec<_> = (0..QUEUE).map(|_| Waiting::new(&count)).collect();
        assert!(waiting.iter().all(Result::is_ok));
        assert!(Waiting::new(&count).is_err());
        drop(waiting);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let verifier = Verifier::new();
        let now = Instant::now();
        for i in 0..=MOST as u64 {
            let mut pair = [0; 32];
            pair[..8].copy_from_slice(&i.to_le_bytes());
            verifier.remember(pair, now);
        }
        assert!(verifier.right.lock().len() <= MOST);
    }
}
