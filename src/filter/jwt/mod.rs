//! `jwt`: lets requests through that bring a signed token.
//!
//! ```yaml
//! jwt: { keys: jwks.json, issuer: https://id.example, audience: shop, algorithms: [ES256], claims: { $user: sub } }
//! ```
//!
//! A JSON Web Token (RFC 7519) in `Authorization: Bearer`, or wherever `token` says. It must be signed by one of the
//! keys, have not expired (one without `exp` is refused), and be from `issuer` for `audience` where those are given.
//! Otherwise the answer is 401 with a challenge of RFC 6750; why is in the error log at level `info`. A claim `sub` is
//! `$remote_user`.
//!
//! Keys that are fetched stay in use when a fetch fails; before the first, tokens get 503 (`jwt_keys` in `$failure`). A
//! token that is signed by an unknown key has them fetched at once, but at most every 10 seconds.
//!
//! With `auth_basic` on the same route, to which `Authorization` belongs, `token` must say where else the token is.
//!
//! # Inside
//!
//! Signatures are checked on the worker: one of ES256 or RS256 takes less than a tenth of a millisecond.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode, header};
use indexmap::IndexMap;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::vars::{Stage, Text, View};
use crate::exchange::{Cx, Failure, Reply, date};
use crate::issue::At;
use crate::value::{OneOrMany, Span};

mod keys;
mod remote;
mod token;

use keys::{Algorithm, Key};
use remote::Remote;
use token::{Claims, Demands, Flaw};

/// Lets requests through that bring a signed token.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// File of public keys: a JWK set, one JWK, or PEM, read with the configuration. Or where a JWK set is fetched:
    /// `{ pool: id, path: /jwks.json }`. nginx: `auth_jwt_key_file`, `auth_jwt_key_request`.
    keys: Option<Source>,
    /// Secret for `HS256` and its kin, of at least 32 bytes; in place of `keys` or beside them.
    secret: Option<String>,
    /// Who must have issued the token (`iss`). Default: anybody who has a key.
    #[serde(default)]
    issuer: OneOrMany<String>,
    /// For whom it must be (`aud`), one of these. Default: for anybody.
    #[serde(default)]
    audience: OneOrMany<String>,
    /// Which algorithms are accepted. Default: those that the keys are for. Which one a key can be used with is up to its kind in any
    /// case, and `none` is none.
    algorithms: Option<Vec<Algorithm>>,
    /// By how much clocks may differ, for `exp` and `nbf`. Default 30s. nginx: `auth_jwt_leeway`.
    leeway: Option<Span>,
    /// Claims as variables for later policies, the action and their texts: `{ $user: sub }`. `a.b` is `b` in the object `a`, where there is no
    /// claim of the whole name; a list is joined by commas. nginx: `auth_jwt_claim_set`.
    #[serde(default)]
    claims: IndexMap<String, String>,
    /// Where the token is, a text with variables: `$cookie_session`, `$arg_token`. Default: `Authorization: Bearer`.
    /// nginx: `auth_jwt ... token=`.
    token: Option<String>,
    /// What the challenge says. Default `Restricted`. nginx: `auth_jwt`.
    #[serde(default = "default_realm")]
    realm: String,
}

/// Where keys are.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a file, or `{ pool: NAME, path: PATH }`")]
enum Source {
    File(PathBuf),
    Remote(remote::Config),
}

fn default_realm() -> String {
    "Restricted".to_owned()
}

const DEFAULT_LEEWAY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Jwt {
    keys: Vec<Key>,
    remote: Option<Remote>,
    demands: Demands,
    /// The claims that are variables, and where in the list of variables their values begin.
    claims: Vec<String>,
    offset: usize,
    token: Option<Text>,
    /// For requests without a token, and for those with a bad one.
    challenges: [HeaderValue; 2],
}

impl Filter for Jwt {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        let view = View {
            cx,
            request,
            response: None,
            wall,
        };
        let token = match &self.token {
            Some(text) => Some(text.render(&view).into_owned()).filter(|token| !token.is_empty()),
            None => bearer(request),
        };
        let Some(token) = token else {
            return self.refuse(0);
        };
        let now = date::since_epoch(wall).as_secs();
        match self.check(&token, now) {
            Ok(claims) => {
                self.remember(&claims, cx);
                Flow::Continue
            }
            Err(Flaw::NoKeys) => Flow::Fail(Failure::JwtKeys),
            Err(flaw) => {
                log::info!(
                    "jwt: a token is refused: {}: {}",
                    flaw.text(),
                    cx.asked(request)
                );
                self.refuse(1)
            }
        }
    }
}

impl Jwt {
    /// Fetches keys that are published elsewhere, for as long as it is polled; `None` if there are none.
    pub fn follow_keys(self: &Arc<Self>) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.remote.as_ref()?;
        let this = self.clone();
        Some(async move {
            if let Some(remote) = &this.remote {
                remote.follow().await;
            }
        })
    }

    /// Whether the token is to stand in `Authorization`.
    pub fn wants_authorization(&self) -> bool {
        self.token.is_none()
    }

    fn check(&self, token: &str, now: u64) -> Result<Claims, Flaw> {
        let own = token::check(token, &self.keys, &self.demands, now);
        let (Some(remote), Err(Flaw::Signature)) = (&self.remote, &own) else {
            return own;
        };
        let keys = remote.keys().ok_or(Flaw::NoKeys)?;
        let checked = token::check(token, &keys, &self.demands, now);
        if checked == Err(Flaw::Signature) {
            remote.want();
        }
        checked
    }

    fn refuse(&self, challenge: usize) -> Flow {
        let mut reply = Reply::empty(StatusCode::UNAUTHORIZED);
        // A static name with a value made at load cannot be refused.
        let _ = reply
            .head
            .insert_header("WWW-Authenticate", self.challenges[challenge].clone());
        Flow::Refuse(Failure::Jwt, reply)
    }

    fn remember(&self, claims: &Claims, cx: &mut Cx) {
        if let Some(Value::String(subject)) = claims.get("sub")
            && !subject.contains(char::is_control)
        {
            cx.user = Some(subject.clone());
        }
        cx.claims.resize(self.offset, None);
        let values = self
            .claims
            .iter()
            .map(|name| find(claims, name).and_then(as_text));
        cx.claims.extend(values);
    }
}

/// The token in `Authorization` (RFC 6750 section 2.1), if there is exactly one.
fn bearer(request: &RequestHeader) -> Option<String> {
    let mut given = request.headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (given.next()?.to_str().ok()?, given.next()) else {
        return None;
    };
    let (scheme, token) = value.split_once(' ')?;
    scheme
        .eq_ignore_ascii_case("bearer")
        .then(|| token.trim_matches(' ').to_owned())
}

/// The claim of that name, or along that way.
fn find<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let mut steps = name.split('.');
    let first = claims.get(steps.next()?)?;
    steps.try_fold(first, |value, step| value.get(step))
}

/// A list as its members with commas between them, anything else that is not a text as JSON.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let texts: Vec<_> = list.iter().filter_map(as_text).collect();
            Some(texts.join(","))
        }
        other => Some(other.to_string()),
    }
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<Jwt> {
        let before = b.issues.errors();
        let mut keys = Vec::new();
        let mut remote = None;
        if let Some(Source::Remote(config)) = &self.keys {
            remote = config.compile(&at.key("keys"), b);
        }
        if let Some(Source::File(written)) = &self.keys {
            let at = at.key("keys");
            if written.to_string_lossy().contains("://") {
                b.error(&at, "the way to keys that are fetched is a pool")
                    .hint("`keys: { pool: id, path: /jwks.json }`, and `pools: { id: { backends: [...], tls: true } }`");
                return None;
            }
            let path = b.sources.input(&at, written);
            let shown = path.display();
            let text = fs::read_to_string(&path);
            let text = text.map_err(|e| format!("cannot read `{shown}`: {e}"));
            match text
                .and_then(|text| keys::parse(&text).map_err(|why| format!("`{shown}`: {why}")))
            {
                Ok(found) => keys.extend(found),
                Err(message) => drop(b.error(&at, message)),
            }
        }
        if let Some(secret) = &self.secret {
            match Key::secret(secret.as_bytes()) {
                Ok(key) => keys.push(key),
                Err(message) => drop(b.error(&at.key("secret"), message)),
            }
        }
        if self.keys.is_none() && self.secret.is_none() {
            b.error(at, "nothing to check tokens with")
                .hint("give `keys`, a file of public keys, or `secret`");
        }
        for (i, algorithm) in self.algorithms.iter().flatten().enumerate() {
            let is_known = remote.is_none() && b.issues.errors() == before;
            if is_known && !keys.iter().any(|key| key.allows(*algorithm)) {
                b.error(
                    &at.key("algorithms").index(i),
                    format!("no key is for `{algorithm:?}`"),
                );
            }
        }
        if self.algorithms.as_ref().is_some_and(Vec::is_empty) {
            b.error(
                &at.key("algorithms"),
                "no token can be signed by none of them",
            );
        }
        let token = match &self.token {
            Some(text) => Text::compile_for(Stage::Request, &at.key("token"), text, b).map(Some),
            None => Some(None),
        };
        let challenges = challenges(&self.realm);
        if challenges.is_none() {
            b.error(&at.key("realm"), "cannot stand in a header")
                .hint("it is a line of printable characters");
        }
        let offset = b.claims.len();
        for name in self.claims.keys() {
            let at = at.key("claims");
            match name.strip_prefix('$') {
                Some(bare) if is_name(bare) => b.claims.push(bare.to_owned()),
                _ => {
                    b.error(&at.key(name), format!("`{name}` is not a variable"))
                        .on_key()
                        .hint("a variable is written `$name`: letters, digits and `_`");
                }
            }
        }
        if b.issues.errors() > before {
            return None;
        }
        Some(Jwt {
            keys,
            remote,
            demands: Demands {
                algorithms: self.algorithms.clone(),
                issuers: self.issuer.0.clone(),
                audiences: self.audience.0.clone(),
                leeway: self.leeway.map_or(DEFAULT_LEEWAY, Span::get).as_secs(),
            },
            claims: self.claims.values().cloned().collect(),
            offset,
            token: token?,
            challenges: challenges?,
        })
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// RFC 6750 section 3.
fn challenges(realm: &str) -> Option<[HeaderValue; 2]> {
    let mut quoted = String::new();
    for c in realm.chars() {
        if matches!(c, '"' | '\\') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    let none = format!("Bearer realm=\"{quoted}\"");
    let bad = format!("{none}, error=\"invalid_token\"");
    Some([
        HeaderValue::try_from(none).ok()?,
        HeaderValue::try_from(bad).ok()?,
    ])
}

#[cfg(test)]
mod tests;
