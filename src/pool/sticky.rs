//! Sessions that stay with their member, by a cookie.
//!
//! The cookie holds a token of the member: the HMAC of its name. It tells nothing about the backends, and nobody can make
//! one up. All tokens are known ahead, so that to check a cookie is to look it up.

use std::fmt::Write;

use boring::error::ErrorStack;
use boring::hash::hmac_sha256;
use http::{HeaderMap, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Member;
use crate::http::cookie;
use crate::issue::{At, Issues};
use crate::value::Span;

/// A client comes back to the member that it was first given, until that one is down, draining or full; then it is given
/// another one for good. nginx: `sticky cookie`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the cookie. It is set when the client gets another member than the one it came with, with `Path=/`,
    /// `HttpOnly`, `SameSite=Lax` and, on TLS, `Secure`. Backends see it, as all cookies; it means nothing to them.
    pub cookie: String,
    /// How long the client keeps the cookie, from when it was set. Absent: until the browser is closed.
    pub ttl: Option<Span>,
    /// What nobody else knows, so that nobody can choose a member. Absent: made from `/etc/machine-id` and the name of the
    /// pool, so that sessions outlive restarts on this machine; where there is no such file, sessions end with the
    /// process. Several machines that serve the same clients need the same one here, such as `${file:/run/secrets/sticky}`.
    pub secret: Option<String>,
}

const MACHINE_ID: &str = "/etc/machine-id";

/// How the members of one pool are recognised.
#[derive(Clone, Debug)]
pub struct Sticky {
    cookie: String,
    ttl: Option<u64>,
    key: Key,
}

#[derive(Clone, Debug)]
enum Key {
    /// The same after a restart.
    Lasting([u8; 32]),
    Random([u8; 32]),
}

/// What stands for a member in a cookie.
pub type Token = u128;

/// A member's token, and the headers that hand it out.
#[derive(Debug)]
pub struct Badge {
    pub token: Token,
    plain: HeaderValue,
    secure: HeaderValue,
}

impl Badge {
    /// The value of `Set-Cookie`.
    pub fn set_cookie(&self, secure: bool) -> HeaderValue {
        match secure {
            true => self.secure.clone(),
            false => self.plain.clone(),
        }
    }
}

impl Config {
    /// `previous` is what the pool had before a reload.
    pub fn compile(
        &self,
        pool: &str,
        previous: Option<&Sticky>,
        at: &At<'_>,
        issues: &mut Issues,
    ) -> Option<Sticky> {
        let mut complete = true;
        if !cookie::is_name(&self.cookie) {
            let message = format!("`{}` cannot be the name of a cookie", self.cookie);
            issues
                .error(&at.key("cookie"), message)
                .hint("letters, digits and any of !#$%&'*+-.^_`|~");
            complete = false;
        }
        if self.ttl.is_some_and(|ttl| ttl.get().as_secs() == 0) {
            issues.error(&at.key("ttl"), "`ttl` must be at least 1s");
            complete = false;
        }
        if self.secret.as_ref().is_some_and(String::is_empty) {
            issues.error(&at.key("secret"), "the secret is empty");
            complete = false;
        }
        let key = match self.key(pool, previous) {
            Ok(key) => Some(key),
            Err(error) => {
                issues.error(at, format!("the TLS library makes no key: {error}"));
                None
            }
        };
        if let Some(Key::Random(_)) = key {
            let message = format!("sessions will end with the process: there is no {MACHINE_ID}");
            issues.warn(at, message).hint("give a `secret`");
        }
        let key = key.filter(|_| complete)?;
        Some(Sticky {
            cookie: self.cookie.clone(),
            ttl: self.ttl.map(|ttl| ttl.get().as_secs()),
            key,
        })
    }

    fn key(&self, pool: &str, previous: Option<&Sticky>) -> Result<Key, ErrorStack> {
        let machine = || std::fs::read_to_string(MACHINE_ID).ok();
        let secret = self.secret.clone().or_else(machine);
        if let Some(secret) = secret.filter(|secret| !secret.trim().is_empty()) {
            let purpose = format!("weir: sticky cookie of pool {pool}");
            return hmac_sha256(secret.trim().as_bytes(), purpose.as_bytes()).map(Key::Lasting);
        }
        if let Some(previous @ Key::Random(_)) = previous.map(|previous| &previous.key) {
            return Ok(previous.clone());
        }
        let mut key = [0; 32];
        boring::rand::rand_bytes(&mut key)?;
        Ok(Key::Random(key))
    }
}

impl Sticky {
    /// What clients of this member come back with; `None` if the TLS library fails at it, which leaves them unbound.
    pub fn badge(&self, member: &Member) -> Option<Badge> {
        let (Key::Lasting(key) | Key::Random(key)) = &self.key;
        let mac = hmac_sha256(key, member.backend().as_bytes()).ok()?;
        let token = Token::from_be_bytes(*mac.first_chunk()?);
        let mut cookie = format!("{}={token:032x}; Path=/", self.cookie);
        if let Some(ttl) = self.ttl {
            let _ = write!(cookie, "; Max-Age={ttl}"); // a string takes all
        }
        cookie.push_str("; HttpOnly; SameSite=Lax");
        Some(Badge {
            token,
            plain: HeaderValue::try_from(&cookie).ok()?,
            secure: HeaderValue::try_from(cookie + "; Secure").ok()?,
        })
    }

    /// The token that a request brings, of whichever member or of none.
    pub fn token(&self, headers: &HeaderMap) -> Option<Token> {
        let ours = |(name, _): &(&[u8], &[u8])| *name == self.cookie.as_bytes();
        let values = cookie::pairs(headers).filter(ours);
        values.map(|(_, value)| value).find_map(token)
    }
}

/// 32 hexadecimal digits, as they are written above.
fn token(value: &[u8]) -> Option<Token> {
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if value.len() != 32 || !value.iter().all(is_digit) {
        return None;
    }
    Token::from_str_radix(std::str::from_utf8(value).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request(cookies: &[&str]) -> HeaderMap {
        let cookies = cookies.iter().map(|cookie| {
            let cookie = HeaderValue::from_bytes(cookie.as_bytes()).expect("a header");
            (http::header::COOKIE, cookie)
        });
        cookies.collect()
    }

    fn sticky() -> Sticky {
        Sticky {
            cookie: "id".to_owned(),
            ttl: None,
            key: Key::Random([7; 32]),
        }
    }

    #[test]
    fn a_token_is_found_among_other_cookies() {
        let digits = "000102030405060708090a0b0c0d0e0f";
        let expected = Some(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f);
        for cookies in [
            &[&*format!("id={digits}")][..],
            &[&format!("a=b; id={digits}; id=x")],
            &["ID=x; x-id=1", &format!("id=; id={digits}")],
        ] {
            assert_eq!(sticky().token(&request(cookies)), expected, "{cookies:?}");
        }
        let upper = digits.to_uppercase();
        for value in [
            "",
            "0",
            &digits[1..],
            &upper,
            &format!("0{digits}"),
            "+00102030405060708090a0b0c0d0e0f",
        ] {
            let cookies = [&*format!("id={value}")];
            assert_eq!(sticky().token(&request(&cookies)), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read(value in "[ -~\u{80}-\u{ff}]{0,80}") {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                let headers = HeaderMap::from_iter([(http::header::COOKIE, value)]);
                let _ = sticky().token(&headers);
            }
        }
    }
}
