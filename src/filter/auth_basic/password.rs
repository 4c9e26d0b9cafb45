//! Hashes of passwords, as `htpasswd`, `openssl passwd` and LDAP write them.
//!
//! The crypt schemes are sequences of calls of a digest (U. Drepper, "Unix crypt using SHA-256 and SHA-512"; apr1 is FreeBSD's
//! MD5 crypt under another name), which the TLS library has; bcrypt and argon2 come from crates.

use std::fmt;

use argon2::{Argon2, PasswordVerifier};
use boring::base64;
use boring::error::ErrorStack;
use boring::hash::{Hasher, MessageDigest, hash};
use boring::memcmp;

/// What is kept of one password.
pub struct Hash {
    text: String,
    scheme: Scheme,
}

enum Scheme {
    /// `$2y$`, `$2b$`, `$2a$`
    Bcrypt,
    /// `$argon2id$` and its kin
    Argon2,
    /// `$5$` and `$6$`
    ShaCrypt(ShaCrypt),
    /// `$apr1$`
    Apr1 { salt: Vec<u8> },
    /// `{SHA}`, and `{SSHA}` with a salt
    Sha1 { digest: Vec<u8>, salt: Vec<u8> },
}

/// The dearest bcrypt that is taken: seconds for one password.
const MOST_BCRYPT: u32 = 16;

impl Hash {
    pub fn parse(text: &str) -> Result<Hash, String> {
        let scheme = if ["$2y$", "$2b$", "$2a$"]
            .iter()
            .any(|id| text.starts_with(id))
        {
            let parts = text.parse::<bcrypt::HashParts>();
            let parts = parts.map_err(|_| "not a hash of bcrypt")?;
            if parts.get_cost() > MOST_BCRYPT {
                let cost = parts.get_cost();
                return Err(format!(
                    "cost {cost} of bcrypt takes minutes for one request"
                ));
            }
            Scheme::Bcrypt
        } else if text.starts_with("$argon2") {
            let hash = argon2::PasswordHash::new(text);
            let hash = hash.map_err(|e| format!("not a hash of argon2: {e}"))?;
            let known = ["argon2id", "argon2i", "argon2d"].contains(&hash.algorithm.as_str());
            if !known || hash.hash.is_none() || argon2::Params::try_from(&hash).is_err() {
                return Err("not a hash of argon2".to_owned());
            }
            Scheme::Argon2
        } else if text.starts_with("$5$") || text.starts_with("$6$") {
            Scheme::ShaCrypt(ShaCrypt::parse(text).ok_or("not a hash of SHA-256 or SHA-512 crypt")?)
        } else if let Some(rest) = text.strip_prefix("$apr1$") {
            let (salt, encoded) = rest.split_once('$').ok_or("not a hash of apr1")?;
            if salt.len() > 8 || encoded.len() != 22 {
                return Err("not a hash of apr1".to_owned());
            }
            let salt = salt.as_bytes().to_vec();
            Scheme::Apr1 { salt }
        } else if let Some(encoded) = text.strip_prefix("{SHA}").or(text.strip_prefix("{SSHA}")) {
            const LENGTH: usize = 20;
            let is_salted = text.starts_with("{SSHA}");
            let mut digest = base64::decode_block(encoded).unwrap_or_default();
            if digest.len() < LENGTH || (digest.len() > LENGTH) != is_salted {
                return Err("not a hash of SHA-1 in base64".to_owned());
            }
            let salt = digest.split_off(LENGTH);
            Scheme::Sha1 { digest, salt }
        } else {
            return Err(
                "expected a hash of bcrypt, argon2, SHA-256 or SHA-512 crypt, apr1 or SHA-1, as `htpasswd -B` \
                 writes it; passwords in plain text are not taken"
                    .to_owned(),
            );
        };
        Ok(Hash {
            text: text.to_owned(),
            scheme,
        })
    }

    /// As it stands in the file.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is the password. What cannot be computed fits nothing.
    pub fn verify(&self, password: &[u8]) -> bool {
        match &self.scheme {
            Scheme::Bcrypt => bcrypt::verify(password, &self.text).unwrap_or(false),
            Scheme::Argon2 => argon2::PasswordHash::new(&self.text)
                .is_ok_and(|hash| Argon2::default().verify_password(password, &hash).is_ok()),
            Scheme::ShaCrypt(scheme) => self.is(scheme.compute(password)),
            Scheme::Apr1 { salt } => self.is(apr1(password, salt)),
            Scheme::Sha1 { digest, salt } => {
                let computed = hash(MessageDigest::sha1(), &[password, salt].concat());
                computed.is_ok_and(|computed| memcmp::eq(&computed, digest))
            }
        }
    }

    /// Whether the text ends with this.
    fn is(&self, encoded: Result<String, ErrorStack>) -> bool {
        let stored = self.text.rsplit('$').next().unwrap_or_default();
        encoded.is_ok_and(|encoded| {
            encoded.len() == stored.len() && memcmp::eq(encoded.as_bytes(), stored.as_bytes())
        })
    }
}

/// Without what could be guessed at.
impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hash").finish_non_exhaustive()
    }
}

struct ShaCrypt {
    is_512: bool,
    rounds: u32,
    salt: Vec<u8>,
}

impl ShaCrypt {
    const ROUNDS: u32 = 5000;
    /// The longest salt that counts.
    const SALT: usize = 16;

    fn parse(text: &str) -> Option<ShaCrypt> {
        let is_512 = text.starts_with("$6$");
        let mut rest = &text[3..];
        let mut rounds = ShaCrypt::ROUNDS;
        if let Some(given) = rest.strip_prefix("rounds=") {
            let (number, after) = given.split_once('$')?;
            // a minute and more for one request, where the specification allows for hours
            rounds = number
                .parse()
                .ok()
                .filter(|rounds| (1000..=50_000_000).contains(rounds))?;
            rest = after;
        }
        let (salt, encoded) = rest.split_once('$')?;
        let length = if is_512 { 86 } else { 43 };
        if encoded.len() != length || salt.len() > ShaCrypt::SALT {
            return None;
        }
        let salt = salt.as_bytes().to_vec();
        Some(ShaCrypt {
            is_512,
            rounds,
            salt,
        })
    }

    fn compute(&self, password: &[u8]) -> Result<String, ErrorStack> {
        let kind = || match self.is_512 {
            true => MessageDigest::sha512(),
            false => MessageDigest::sha256(),
        };
        let salt = &self.salt;
        let other = hash(kind(), &[password, salt, password].concat())?;
        let mut first = Hasher::new(kind())?;
        first.update(password)?;
        first.update(salt)?;
        first.update(&repeated(&other, password.len()))?;
        let mut length = password.len();
        while length > 0 {
            first.update(if length & 1 == 1 { &other } else { password })?;
            length >>= 1;
        }
        let mut sum = first.finish()?;
        let password_sum = hash(kind(), &password.repeat(password.len()))?;
        let p = repeated(&password_sum, password.len());
        let salt_sum = hash(kind(), &salt.repeat(16 + usize::from(sum[0])))?;
        let s = repeated(&salt_sum, salt.len());
        let mut round = Hasher::new(kind())?;
        for i in 0..self.rounds {
            round.update(if i & 1 == 1 { &p } else { &sum })?;
            if i % 3 != 0 {
                round.update(&s)?;
            }
            if i % 7 != 0 {
                round.update(&p)?;
            }
            round.update(if i & 1 == 1 { &sum } else { &p })?;
            sum = round.finish()?;
        }
        // In which order the bytes are written: in threes that run through the digest in three steps.
        let (step, triples) = if self.is_512 { (21, 21) } else { (10, 10) };
        let mut text = String::new();
        let mut order = [0, step, 2 * step];
        for _ in 0..triples {
            let [a, b, c] = order;
            encode(sum[a], sum[b], sum[c], 4, &mut text);
            order = match self.is_512 {
                true => [b + 1, c + 1, a + 1],
                false => [c + 1, a + 1, b + 1],
            };
        }
        match self.is_512 {
            true => encode(0, 0, sum[63], 2, &mut text),
            false => encode(0, sum[31], sum[30], 3, &mut text),
        }
        Ok(text)
    }
}

/// So many bytes of endless repetitions.
fn repeated(bytes: &[u8], length: usize) -> Vec<u8> {
    bytes.iter().copied().cycle().take(length).collect()
}

fn apr1(password: &[u8], salt: &[u8]) -> Result<String, ErrorStack> {
    let kind = MessageDigest::md5;
    let other = hash(kind(), &[password, salt, password].concat())?;
    let mut first = Hasher::new(kind())?;
    first.update(password)?;
    first.update(b"$apr1$")?;
    first.update(salt)?;
    first.update(&repeated(&other, password.len()))?;
    let mut length = password.len();
    while length > 0 {
        first.update(if length & 1 == 1 {
            b"\0"
        } else {
            &password[..1]
        })?;
        length >>= 1;
    }
    let mut sum = first.finish()?;
    let mut round = Hasher::new(kind())?;
    for i in 0..1000 {
        round.update(if i & 1 == 1 { password } else { &sum })?;
        if i % 3 != 0 {
            round.update(salt)?;
        }
        if i % 7 != 0 {
            round.update(password)?;
        }
        round.update(if i & 1 == 1 { &sum } else { password })?;
        sum = round.finish()?;
    }
    let mut text = String::new();
    for [a, b, c] in [[0, 6, 12], [1, 7, 13], [2, 8, 14], [3, 9, 15], [4, 10, 5]] {
        encode(sum[a], sum[b], sum[c], 4, &mut text);
    }
    encode(0, 0, sum[11], 2, &mut text);
    Ok(text)
}

/// Three bytes in the base64 of crypt, lowest bits first.
fn encode(high: u8, middle: u8, low: u8, characters: usize, out: &mut String) {
    const ALPHABET: &[u8; 64] = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut bits = u32::from_be_bytes([0, high, middle, low]);
    for _ in 0..characters {
        out.push(ALPHABET[(bits & 63) as usize].into());
        bits >>= 6;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str =
        "correct horse battery staple, and a long one at that, of more than 64 bytes";

    /// What `openssl passwd`, libxcrypt and the reference of argon2 say.
    #[test]
    fn passwords_fit_their_hashes_and_no_others() {
        for (password, text) in [
            (
                "Hello world!",
                "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5",
            ),
            (
                "Hello world!",
                "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
            ),
            (
                "Hello world!",
                "$2y$05$abcdefghijklmnopqrstuu7nFISH/8YdwlXD3lw69A4iBUf6fvWAW",
            ),
            (
                "password",
                "$argon2id$v=19$m=256,t=2,p=1$c29tZXNhbHQ$nf65EOgLrQMR/uIPnA4rEsF5h7TKyQwu9U1bMCHGi/4",
            ),
            ("Hello world!", "{SHA}00hq6RNueFa8QiEjhep5cJRHWAI="),
            ("Hello world!", "{SSHA}M8XN+MyCuGNn0qVHAt++nhI4sBNzYWx0"),
            (
                "a",
                "$5$abcdefgh$GzAL/HPD/MYJIjVUUnvBTiqueLrt/LVxJEZtz0qaNX2",
            ),
            (
                LONG,
                "$5$abcdefgh$V1PgaNKe8sGSZ0Qo70JTHIg4JtDfuWzv6TlT.LCtCeA",
            ),
            (
                LONG,
                "$6$abcdefghijklmnop$WRs9vwntmucICiFCAer0NTcZzDUl6Gv.UhtXUzavVnIB79R3.xWWrO5sUKi1XRxkfbOcRiKo0SgCXaOujmCwY/",
            ),
            ("a", "$apr1$abcdefgh$G8IsPsylW5ROvIKsQMRG61"),
            (LONG, "$apr1$abcdefgh$XxG7yMTt0xkkw/kHTXcFg0"),
            (
                "Hello world!",
                "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA",
            ),
        ] {
            let hash = Hash::parse(text).unwrap();
            assert!(hash.verify(password.as_bytes()), "{text}");
            assert!(!hash.verify(b"Hello world"), "{text}");
            assert!(!hash.verify(b""), "{text}");
        }
        let of_nothing = Hash::parse("$apr1$abcdefgh$L.PT565ESX4Tp2bqNs7Ie.").unwrap();
        assert!(of_nothing.verify(b"") && !of_nothing.verify(b"a"));
    }

    #[test]
    fn what_is_no_hash_is_refused() {
        for (text, expected) in [
            ("", "in plain text are not taken"),
            ("secret", "in plain text are not taken"),
            ("{PLAIN}secret", "in plain text are not taken"),
            ("rl.3StKT.4T8M", "in plain text are not taken"), // DES crypt
            ("$2y$05$short", "not a hash of bcrypt"),
            (
                "$2y$31$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui",
                "takes minutes",
            ),
            ("$6$salt$short", "not a hash of SHA-256 or SHA-512"),
            (
                "$6$rounds=999999999$salt$x",
                "not a hash of SHA-256 or SHA-512",
            ),
            ("$argon2id$v=19$m=65536", "not a hash of argon2"),
            ("$apr1$abcdefgh", "not a hash of apr1"),
            ("{SHA}QUJD", "not a hash of SHA-1"),
            ("{SSHA}qZk+NkcGgWq6PiVxeFDCbJzQ2J0=", "not a hash of SHA-1"),
        ] {
            let error = Hash::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
