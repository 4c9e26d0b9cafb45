//! Keys of session tickets: what lets a client resume a session with whoever has the key, without a certificate being
//! shown and signed for again.
//!
//! The library's own keys die with a listener's settings. These are kept over reloads, or come from files, which
//! several nodes and the next process share. Their layout is nginx's, whose keys can be taken over.

use std::path::Path;
use std::time::{Duration, Instant};

use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::hmac::HmacCtxRef;
use boring::ssl::{SslContextBuilder, TicketKeyCallbackResult};
use boring::symm::{Cipher, CipherCtxRef};
use parking_lot::RwLock;

use super::certificate::read;

/// How long a key made here encrypts: whoever gets hold of one reads what was said in that time over TLS 1.2.
const ROTATION: Duration = Duration::from_secs(12 * 60 * 60);
/// How many keys made here are known, the present one included: sessions can be resumed for a day.
const KEPT: usize = 3;

const NAME: usize = 16;
/// Length of a key with AES-256.
const LONG: usize = 80;
/// Length of an initialisation vector of AES-CBC.
const IV: usize = 16;

/// One key as two: to encrypt, and to authenticate.
#[derive(PartialEq)]
pub struct TicketKey {
    /// Stands in front of each ticket.
    name: [u8; NAME],
    /// 16 or 32 bytes.
    aes: Vec<u8>,
    hmac: Vec<u8>,
}

/// Keys of which the first encrypts and all decrypt.
pub enum TicketKeys {
    /// From files.
    Fixed(Vec<TicketKey>),
    /// Made here.
    Own(OwnKeys),
}

/// Keys that nobody else knows, a new one every [`ROTATION`].
pub struct OwnKeys(RwLock<Ring>);

struct Ring {
    /// The newest first; never empty.
    keys: Vec<TicketKey>,
    /// Since when the first encrypts.
    since: Instant,
}

impl TicketKey {
    /// # Errors
    /// When the file is unreadable or of another length.
    pub fn load(file: &Path) -> Result<TicketKey, String> {
        let bytes = read(file)?;
        TicketKey::parse(&bytes).ok_or_else(|| {
            let length = bytes.len();
            format!("a ticket key is 48 or 80 bytes long, this file has {length}")
        })
    }

    /// As nginx lays them out: with AES-128 the key to authenticate comes last, with AES-256 the other way round.
    fn parse(bytes: &[u8]) -> Option<TicketKey> {
        let (name, rest) = bytes.split_first_chunk::<NAME>()?;
        let (aes, hmac) = match rest.len() {
            32 => rest.split_at(16),
            64 => {
                let (hmac, aes) = rest.split_at(32);
                (aes, hmac)
            }
            _ => return None,
        };
        Some(TicketKey {
            name: *name,
            aes: aes.to_vec(),
            hmac: hmac.to_vec(),
        })
    }

    fn random() -> Result<TicketKey, ErrorStack> {
        let mut bytes = [0; LONG];
        boring::rand::rand_bytes(&mut bytes)?;
        Ok(TicketKey::parse(&bytes).expect("so long is a key"))
    }

    fn cipher(&self) -> Cipher {
        match self.aes.len() {
            16 => Cipher::aes_128_cbc(),
            _ => Cipher::aes_256_cbc(),
        }
    }

    fn encrypt(
        &self,
        name: &mut [u8; NAME],
        iv: &mut [u8; IV],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
    ) -> Result<(), ErrorStack> {
        *name = self.name;
        boring::rand::rand_bytes(iv)?;
        cipher.init_encrypt(&self.cipher(), &self.aes, iv)?;
        hmac.init(&self.hmac, &MessageDigest::sha256())
    }

    fn decrypt(
        &self,
        iv: &[u8; IV],
        cipher: &mut CipherCtxRef,
        hmac: &mut HmacCtxRef,
    ) -> Result<(), ErrorStack> {
        hmac.init(&self.hmac, &MessageDigest::sha256())?;
        cipher.init_decrypt(&self.cipher(), &self.aes, iv)
    }
}

impl TicketKeys {
    /// # Errors
    /// When there is no randomness.
    pub fn own(now: Instant) -> Result<TicketKeys, ErrorStack> {
        Ok(TicketKeys::Own(OwnKeys(RwLock::new(Ring {
            keys: vec![TicketKey::random()?],
            since: now,
        }))))
    }

    /// How many bytes [`TicketKeys::to_bytes`] may come to.
    pub const MAX_BYTES: usize = size_of::<u64>() + KEPT * LONG;

    /// Keys made here, for the next process: how many seconds the first has been in use, and all of them.
    pub fn to_bytes(&self, now: Instant) -> Vec<u8> {
        let TicketKeys::Own(OwnKeys(ring)) = self else {
            return Vec::new();
        };
        let ring = ring.read();
        let age = now.saturating_duration_since(ring.since).as_secs();
        let keys = ring.keys.iter();
        let keys = keys.flat_map(|key| [&key.name[..], &key.hmac, &key.aes].concat());
        age.to_be_bytes().into_iter().chain(keys).collect()
    }

    /// Goes on with the keys of the process before. False: it is not they that are in `bytes`.
    pub fn adopt(&self, bytes: &[u8], now: Instant) -> bool {
        let (TicketKeys::Own(OwnKeys(ring)), Some((age, keys))) = (self, bytes.split_first_chunk())
        else {
            return false;
        };
        let (keys, rest) = keys.as_chunks::<LONG>();
        let keys: Vec<TicketKey> = keys
            .iter()
            .filter_map(|key| TicketKey::parse(key))
            .collect();
        if keys.is_empty() || !rest.is_empty() {
            return false;
        }
        let age = Duration::from_secs(u64::from_be_bytes(*age));
        let since = now.checked_sub(age).unwrap_or(now);
        *ring.write() = Ring { keys, since };
        true
    }

    fn with<T>(&self, now: Instant, f: impl FnOnce(&[TicketKey]) -> T) -> T {
        match self {
            TicketKeys::Fixed(keys) => f(keys),
            TicketKeys::Own(own) => {
                own.rotate(now);
                f(&own.0.read().keys)
            }
        }
    }
}

impl OwnKeys {
    fn rotate(&self, now: Instant) {
        if now.saturating_duration_since(self.0.read().since) < ROTATION {
            return;
        }
        let mut ring = self.0.write();
        // Another handshake may have been first. Without randomness the old key serves on.
        if now.saturating_duration_since(ring.since) >= ROTATION
            && let Ok(key) = TicketKey::random()
        {
            ring.keys.insert(0, key);
            ring.keys.truncate(KEPT);
            ring.since = now;
        }
    }
}

/// Makes all handshakes use `keys`, which are the same ones however often a context is made anew.
#[expect(
    unsafe_code,
    reason = "the library's only way to keys that outlive a context, or that others know"
)]
pub(super) fn install(context: &mut SslContextBuilder, keys: std::sync::Arc<TicketKeys>) {
    let callback = move |_: &_, name: &mut _, iv: &mut _, cipher: &mut _, hmac: &mut _, encrypt| {
        keys.with(Instant::now(), |keys| {
            use TicketKeyCallbackResult as Outcome;
            if encrypt {
                return match keys[0].encrypt(name, iv, cipher, hmac) {
                    Ok(()) => Outcome::Success,
                    Err(_) => Outcome::Error,
                };
            }
            match keys.iter().position(|key| key.name == *name) {
                None => Outcome::Noop,
                Some(known) => match (keys[known].decrypt(iv, cipher, hmac), known) {
                    (Ok(()), 0) => Outcome::Success,
                    (Ok(()), _) => Outcome::DecryptSuccessRenew,
                    (Err(_), _) => Outcome::Error,
                },
            }
        })
    };
    // SAFETY: what is asked of the callback is that, whenever it reports success, both contexts are set up, and that
    // name and vector are filled in where it encrypts. `encrypt` and `decrypt` report success only then; the references
    // hold for the call and are not kept.
    unsafe { context.set_ticket_key_callback(callback) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_laid_out_as_nginx_does() {
        let bytes: Vec<u8> = (0..80).collect();
        let long = TicketKey::parse(&bytes).unwrap();
        assert_eq!(long.name, bytes[..16]);
        assert_eq!(long.hmac, bytes[16..48]);
        assert_eq!(long.aes, bytes[48..80]);
        let short = TicketKey::parse(&bytes[..48]).unwrap();
        assert_eq!(short.name, bytes[..16]);
        assert_eq!(short.aes, bytes[16..32]);
        assert_eq!(short.hmac, bytes[32..48]);
        for length in [0, 15, 16, 47, 49, 79] {
            assert!(TicketKey::parse(&bytes[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn next_process_goes_on_with_the_keys_and_their_age() {
        let start = Instant::now();
        let hours = |hours: u64| start + Duration::from_secs(hours * 60 * 60);
        let (old, new) = (TicketKeys::own(start), TicketKeys::own(start));
        let (old, new) = (old.unwrap(), new.unwrap());
        let names = |keys: &TicketKeys, now| {
            keys.with(now, |keys| {
                keys.iter().map(|key| key.name).collect::<Vec<_>>()
            })
        };
        let before = names(&old, hours(12));
        let bytes = old.to_bytes(hours(13));
        assert!(bytes.len() <= TicketKeys::MAX_BYTES);
        assert!(new.adopt(&bytes, hours(13)));
        assert_eq!(names(&new, hours(23)), before);
        assert_eq!(names(&new, hours(24))[1..], before);
        for cut in [0, 7, 8, 50, bytes.len() - 1] {
            assert!(!new.adopt(&bytes[..cut], hours(13)), "{cut}");
        }
    }

    #[test]
    fn own_keys_encrypt_for_half_a_day_and_decrypt_for_a_day() {
        let start = Instant::now();
        let keys = TicketKeys::own(start).unwrap();
        let names = |hours: u64| {
            let now = start + Duration::from_secs(hours * 60 * 60);
            keys.with(now, |keys| {
                keys.iter().map(|key| key.name).collect::<Vec<_>>()
            })
        };
        let first = names(0)[0];
        assert_eq!(names(11), [first]);
        assert_eq!(names(12)[1..], [first]);
        assert_eq!(names(24).len(), 3);
        assert_eq!(names(24)[2], first);
        assert!(!names(36).contains(&first));
    }
}
