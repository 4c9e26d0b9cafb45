//! What a token says, and whether that holds: no keys, no clock.

use std::str;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::keys::{Algorithm, Key};
use crate::http::base64url;

/// The longest token that is looked at.
const LONGEST: usize = 16 * 1024;

/// What a token must be.
#[derive(Debug)]
pub struct Demands {
    /// Absent: each that a key allows.
    pub algorithms: Option<Vec<Algorithm>>,
    /// One of these; empty: any.
    pub issuers: Vec<String>,
    /// One of these; empty: any, or none.
    pub audiences: Vec<String>,
    /// By how many seconds clocks may differ.
    pub leeway: u64,
}

/// Why a token is refused. Told to the operator; the client learns only that it is.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It is none.
    Malformed,
    /// Its algorithm is none that is accepted here.
    Algorithm,
    /// It asks for something that is not understood (RFC 7515 section 4.1.11).
    Critical,
    /// No key has signed it.
    Signature,
    Issuer,
    Audience,
    /// It does not say when it ends.
    Endless,
    Expired,
    NotYet,
    /// Not known yet whether any key has signed it.
    NoKeys,
}

impl Flaw {
    pub fn text(&self) -> &'static str {
        match self {
            Flaw::Malformed => "not a token",
            Flaw::Algorithm => "signed by an algorithm that is not accepted",
            Flaw::Critical => "asks for an extension",
            Flaw::Signature => "not signed by any of the keys",
            Flaw::Issuer => "of another issuer",
            Flaw::Audience => "for another audience",
            Flaw::Endless => "without `exp`",
            Flaw::Expired => "expired",
            Flaw::NotYet => "not valid yet",
            Flaw::NoKeys => "there are no keys yet",
        }
    }
}

pub type Claims = Map<String, Value>;

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// The claims of a token that is signed by one of `keys` and meets the demands at `now`, in seconds since 1970.
pub fn check(token: &str, keys: &[Key], demands: &Demands, now: u64) -> Result<Claims, Flaw> {
    if token.len() > LONGEST {
        return Err(Flaw::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(Flaw::Malformed)?;
    let (head, payload) = message.split_once('.').ok_or(Flaw::Malformed)?;
    let part = |text: &str| base64url::decode(text).ok_or(Flaw::Malformed);
    let header: Header = serde_json::from_slice(&part(head)?).map_err(|_| Flaw::Malformed)?;
    let signature = part(signature)?;
    if header.crit.is_some() {
        return Err(Flaw::Critical);
    }
    let algorithm = Algorithm::parse(&header.alg).ok_or(Flaw::Algorithm)?;
    let accepted = demands.algorithms.as_ref();
    if accepted.is_some_and(|accepted| !accepted.contains(&algorithm)) {
        return Err(Flaw::Algorithm);
    }
    let mut signers = keys
        .iter()
        .filter(|key| key.fits(header.kid.as_deref(), algorithm));
    if !signers.any(|key| key.verify(algorithm, message.as_bytes(), &signature)) {
        return Err(Flaw::Signature);
    }
    let claims = serde_json::from_slice(&part(payload)?).map_err(|_| Flaw::Malformed)?;
    demands.meet(&claims, now)?;
    Ok(claims)
}

impl Demands {
    fn meet(&self, claims: &Claims, now: u64) -> Result<(), Flaw> {
        let end = date(claims, "exp")?.ok_or(Flaw::Endless)?;
        if now as f64 >= end + self.leeway as f64 {
            return Err(Flaw::Expired);
        }
        let begin = date(claims, "nbf")?;
        if begin.is_some_and(|begin| (now + self.leeway) as f64 + 1.0 <= begin) {
            return Err(Flaw::NotYet);
        }
        let issuer = claims.get("iss").and_then(Value::as_str);
        let known = |issuer: &str| self.issuers.iter().any(|known| known == issuer);
        if !self.issuers.is_empty() && !issuer.is_some_and(known) {
            return Err(Flaw::Issuer);
        }
        let meant = |audience: &Value| {
            let audience = audience.as_str();
            audience.is_some_and(|audience| self.audiences.iter().any(|own| own == audience))
        };
        let is_for_us = match claims.get("aud") {
            Some(Value::Array(list)) => list.iter().any(meant),
            Some(one) => meant(one),
            None => false,
        };
        match self.audiences.is_empty() || is_for_us {
            true => Ok(()),
            false => Err(Flaw::Audience),
        }
    }
}

/// A date of RFC 7519 section 2, in seconds since 1970.
fn date(claims: &Claims, name: &str) -> Result<Option<f64>, Flaw> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or(Flaw::Malformed),
    }
}
