//! `signed_url`: links that somebody with the secret has made, and that expire.
//!
//! ```yaml
//! signed_url: { secret: "${file:secret}" }
//! ```
//!
//! A link such as `/dl/report.pdf?expires=1795362225&signature=...`. Others are answered with 403, expired ones with
//! 410. The signature is HMAC-SHA256, with the secret for key, of the path (decoded, as `$uri`), a line break and the
//! value of `expires` (seconds since 1970), in base64 for URLs without padding; with `bind`, another line break and
//! that text follow. In a shell, for an hour:
//!
//! ```sh
//! path=/dl/report.pdf expires=$(($(date +%s) + 3600))
//! signature=$(printf '%s\n%s' "$path" "$expires" | openssl dgst -sha256 -hmac "$(cat secret)" -binary | basenc --base64url | tr -d =)
//! echo "https://shop.example$path?expires=$expires&signature=$signature"
//! ```
//!
//! nginx's `secure_link` has the same purpose, but links made for it do not work here: its hash is MD5 of a text with
//! the secret in it, which whoever has seen one link can try to extend, and paths and dates may run into each other.
//! Other parameters of the query are not signed unless `bind` names them.

use std::time::SystemTime;

use boring::hash::hmac_sha256;
use boring::memcmp;
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Filter, Flow};
use crate::build::Build;
use crate::exchange::vars::{Piece, Stage, Text, Var, View};
use crate::exchange::{Cx, Failure, date};
use crate::http::{base64url, query};
use crate::issue::At;
use crate::value::OneOrMany;

/// Lets requests through whose URL is signed and has not expired.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What links are signed with, of at least 16 bytes; a list while an old secret is exchanged for a new one.
    secret: OneOrMany<String>,
    /// A text with variables that is signed as well: `$remote_addr` for a link that works for one client only, `$arg_user`. A
    /// parameter in it may be there once.
    bind: Option<String>,
}

/// The shortest secret that is taken.
const LEAST: usize = 16;

pub struct SignedUrl {
    secrets: Vec<Vec<u8>>,
    bind: Option<Text>,
}

/// Whether a link holds.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad,
    Expired,
}

impl Filter for SignedUrl {
    async fn request(&self, cx: &mut Cx, request: &RequestHeader, wall: SystemTime) -> Flow {
        let view = View {
            cx,
            request,
            response: None,
            wall,
        };
        let query = request.uri.query().unwrap_or_default();
        if self.bind.as_ref().is_some_and(|bind| is_vague(bind, query)) {
            return Flow::Fail(Failure::SignedUrl);
        }
        let bind = self.bind.as_ref().map(|text| text.render(&view));
        let now = date::since_epoch(wall).as_secs();
        match self.judge(&cx.path, query, bind.as_deref(), now) {
            Verdict::Good => Flow::Continue,
            Verdict::Bad => Flow::Fail(Failure::SignedUrl),
            Verdict::Expired => Flow::Fail(Failure::SignedUrlExpired),
        }
    }
}

impl SignedUrl {
    fn judge(&self, path: &str, query: &str, bind: Option<&str>, now: u64) -> Verdict {
        let (Some(expires), Some(signature)) = (only(query, "expires"), only(query, "signature"))
        else {
            return Verdict::Bad;
        };
        let Some(signature) = base64url::decode(signature) else {
            return Verdict::Bad;
        };
        let mut message = format!("{path}\n{expires}");
        if let Some(bind) = bind {
            message.push('\n');
            message.push_str(bind);
        }
        let is_signed = |secret: &Vec<u8>| {
            let own = hmac_sha256(secret, message.as_bytes());
            own.is_ok_and(|own| own.len() == signature.len() && memcmp::eq(&own, &signature))
        };
        if !self.secrets.iter().any(is_signed) {
            return Verdict::Bad;
        }
        // Only now: what is not signed is not read.
        match expires.parse::<u64>() {
            Ok(expires) if now < expires => Verdict::Good,
            Ok(_) => Verdict::Expired,
            Err(_) => Verdict::Bad,
        }
    }
}

/// The value of a parameter that is given once.
fn only<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut values = query
        .split('&')
        .filter_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    values.next().filter(|_| values.next().is_none())
}

/// Whether a parameter that is bound is there more than once, in whatever case, or with its name encoded: whoever reads the
/// query behind us may take another value for it than the one that is signed.
fn is_vague(bind: &Text, query: &str) -> bool {
    let is_vague = |bound: &str| {
        let mut names = query::parameters(query)
            .map(|(_, name, _)| name)
            .filter(|name| {
                let name: Vec<u8> = query::decode(name).collect();
                name.eq_ignore_ascii_case(bound.as_bytes())
            });
        let first = names.next();
        first.is_some_and(|name| !name.eq_ignore_ascii_case(bound)) || names.next().is_some()
    };
    bind.pieces()
        .iter()
        .any(|piece| matches!(piece, Piece::Var(Var::Arg(name)) if is_vague(name)))
}

impl Config {
    pub fn compile(&self, at: &At<'_>, b: &mut Build<'_>) -> Option<SignedUrl> {
        let before = b.issues.errors();
        let OneOrMany(secrets) = &self.secret;
        if secrets.is_empty() {
            b.error(&at.key("secret"), "needs at least one secret");
        }
        let mut own = Vec::new();
        for secret in secrets {
            // a file ends with a line break that nobody means
            let secret = secret.trim_end_matches(['\r', '\n']).as_bytes();
            if secret.len() < LEAST {
                b.error(
                    &at.key("secret"),
                    format!("a secret of less than {LEAST} bytes can be guessed"),
                )
                .hint("`openssl rand -hex 32` makes one");
            }
            own.push(secret.to_vec());
        }
        let bind = match &self.bind {
            Some(text) => Text::compile_for(Stage::Request, &at.key("bind"), text, b).map(Some),
            None => Some(None),
        };
        (b.issues.errors() == before).then_some(SignedUrl {
            secrets: own,
            bind: bind?,
        })
    }
}

/// Without the secrets.
impl std::fmt::Debug for SignedUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SignedUrl").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::issue::Sources;

    const SECRET: &str = "0123456789abcdef";

    fn policy() -> SignedUrl {
        SignedUrl {
            secrets: vec![b"an older secret.".to_vec(), SECRET.into()],
            bind: None,
        }
    }

    fn sign(message: &str) -> String {
        let signature = hmac_sha256(SECRET.as_bytes(), message.as_bytes());
        base64url::encode(&signature.unwrap())
    }

    #[test]
    fn a_link_holds_until_it_expires() {
        let query = format!("a=b&expires=100&signature={}", sign("/x y\n100"));
        let judge = |path, query: &str, now| policy().judge(path, query, None, now);
        assert_eq!(judge("/x y", &query, 99), Verdict::Good);
        assert_eq!(judge("/x y", &query, 100), Verdict::Expired);
        assert_eq!(judge("/x", &query, 99), Verdict::Bad);
        let longer = query.replace("expires=100", "expires=1000");
        assert_eq!(judge("/x y", &longer, 99), Verdict::Bad);
        // a second value that somebody else may read
        assert_eq!(
            judge("/x y", &format!("{query}&expires=9"), 99),
            Verdict::Bad
        );
        for query in [
            "",
            "expires=100",
            "expires=100&signature=",
            "expires=100&signature=%41",
        ] {
            assert_eq!(judge("/x y", query, 99), Verdict::Bad, "{query}");
        }
        let never = format!("expires=never&signature={}", sign("/x y\nnever"));
        assert_eq!(judge("/x y", &never, 99), Verdict::Bad);
    }

    #[test]
    fn what_is_bound_is_signed() {
        let query = format!("expires=100&signature={}", sign("/x\n100\n192.0.2.1"));
        let judge = |bind| policy().judge("/x", &query, bind, 0);
        assert_eq!(judge(Some("192.0.2.1")), Verdict::Good);
        assert_eq!(judge(Some("192.0.2.2")), Verdict::Bad);
        assert_eq!(judge(None), Verdict::Bad);
    }

    #[test]
    fn a_parameter_that_is_bound_has_one_value() {
        let sources = Sources::default();
        let mut b = Build::new(&sources);
        let bind = Text::compile(&At::Root, "x$arg_user", &mut b).unwrap();
        for query in ["", "user=me", "User=me&users=a&a=user", "a=1&user"] {
            assert!(!is_vague(&bind, query), "{query}");
        }
        for query in [
            "user=me&user=admin",
            "USER=me&user=admin",
            "user=me&%75ser=admin",
            "%75ser=admin",
        ] {
            assert!(is_vague(&bind, query), "{query}");
        }
    }

    #[test]
    fn openssl_makes_the_same_signature() {
        // printf '/dl/report.pdf\n1795362225' | openssl dgst -sha256 -hmac 0123456789abcdef -binary | basenc --base64url | tr -d =
        assert_eq!(
            sign("/dl/report.pdf\n1795362225"),
            "D4eyspsd2gW6WMS7LDpfDFy3nh7Ly_PGlB6wTfzbpFE"
        );
    }
}
