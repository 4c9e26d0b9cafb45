//! Certificates with their keys: from files, or made for development.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use boring::asn1::{Asn1Time, Asn1TimeRef};
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::pkey::{PKey, Private};
use boring::sha::sha256;
use boring::ssl::{SslConnectorBuilder, SslRef};
use boring::x509::X509;

use super::hello::Algorithm;
use super::ocsp::Staple;

/// A certificate chain with the key of its first certificate.
pub struct CertifiedKey {
    leaf: X509,
    intermediates: Vec<X509>,
    key: PKey<Private>,
    staple: Option<Staple>,
    /// What clients must be able to check.
    algorithm: Algorithm,
    /// A hash of all that clients are shown, to compare it by.
    fingerprint: [u8; 32],
    /// Names that the certificate is for, lower case, perhaps with `*.`.
    names: Vec<String>,
}

impl fmt::Debug for CertifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifiedKey")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

/// Why a pair of files is no certificate with its key.
pub enum LoadError {
    /// The certificate's file, or what is in it.
    Cert(String),
    /// The key's file, or what is in it.
    Key(String),
    /// Both are right, but not of each other.
    Mismatch,
}

impl CertifiedKey {
    /// # Errors
    /// When a file is unreadable or not PEM, the key is another certificate's, or is encrypted and none of `passwords`
    /// opens it.
    pub fn load(cert: &Path, key: &Path, passwords: &[Vec<u8>]) -> Result<CertifiedKey, LoadError> {
        let pem = read(cert).map_err(LoadError::Cert)?;
        let mut chain = X509::stack_from_pem(&pem)
            .map_err(|_| LoadError::Cert("not a PEM certificate".to_owned()))?
            .into_iter();
        let leaf = chain
            .next()
            .ok_or_else(|| LoadError::Cert("no certificate in it".to_owned()))?;
        let pem = read(key).map_err(LoadError::Key)?;
        let key = private_key(&pem, passwords).map_err(LoadError::Key)?;
        let fits = leaf.public_key().is_ok_and(|public| public.public_eq(&key));
        if !fits {
            return Err(LoadError::Mismatch);
        }
        let algorithm = Algorithm::of(&key).ok_or_else(|| {
            LoadError::Key("no key of an algorithm that TLS signs with".to_owned())
        })?;
        CertifiedKey::new(leaf, chain.collect(), key, algorithm)
            .map_err(|e| LoadError::Cert(e.to_string()))
    }

    /// Adds an answer of its authority, to be shown along with it.
    ///
    /// # Errors
    /// When the file is unreadable, or does not hold the answer that this certificate is good.
    pub fn staple_file(&mut self, file: &Path) -> Result<(), String> {
        Ok(self.staple(read(file)?)?)
    }

    /// # Errors
    /// When `response` is not the answer that this certificate is good.
    pub fn staple(&mut self, response: Vec<u8>) -> Result<(), &'static str> {
        self.staple = Some(Staple::parse(response, &self.leaf)?);
        Ok(())
    }

    /// Whether it is to be shown along with an answer that does not count any more.
    pub fn has_stale_staple(&self, now: SystemTime) -> bool {
        let staple = self.staple.as_ref();
        staple.is_some_and(|staple| staple.current(now).is_none())
    }

    /// Makes a certificate for `hosts` that nobody vouches for.
    ///
    /// # Errors
    /// When the library fails, which means that it is out of memory or randomness.
    pub fn self_signed(hosts: &[String]) -> Result<CertifiedKey, ErrorStack> {
        use boring::bn::{BigNum, MsbOption};
        use boring::nid::Nid;
        use boring::{ec, x509};
        let curve = ec::EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let key = PKey::from_ec_key(ec::EcKey::generate(&curve)?)?;
        let mut name = x509::X509NameBuilder::new()?;
        name.append_entry_by_nid(Nid::COMMONNAME, "weir self-signed")?;
        let name = name.build();
        let mut serial = BigNum::new()?;
        serial.rand(127, MsbOption::MAYBE_ZERO, false)?;
        let mut builder = X509::builder()?;
        builder.set_version(2)?;
        builder.set_serial_number(serial.to_asn1_integer()?.as_ref())?;
        builder.set_subject_name(&name)?;
        builder.set_issuer_name(&name)?;
        builder.set_not_before(Asn1Time::days_from_now(0)?.as_ref())?;
        builder.set_not_after(Asn1Time::days_from_now(365)?.as_ref())?;
        builder.set_pubkey(&key)?;
        let mut alternatives = x509::extension::SubjectAlternativeName::new();
        for host in hosts {
            match host.parse::<IpAddr>() {
                Ok(ip) => alternatives.ip(&ip.to_string()),
                Err(_) => alternatives.dns(host),
            };
        }
        let alternatives = alternatives.build(&builder.x509v3_context(None, None))?;
        builder.append_extension(&alternatives)?;
        builder.sign(&key, MessageDigest::sha256())?;
        CertifiedKey::new(builder.build(), Vec::new(), key, Algorithm::EcdsaP256)
    }

    fn new(
        leaf: X509,
        intermediates: Vec<X509>,
        key: PKey<Private>,
        algorithm: Algorithm,
    ) -> Result<CertifiedKey, ErrorStack> {
        let mut chain = Vec::new();
        for certificate in std::iter::once(&leaf).chain(&intermediates) {
            chain.extend(certificate.to_der()?);
        }
        Ok(CertifiedKey {
            names: names(&leaf),
            leaf,
            intermediates,
            key,
            staple: None,
            algorithm,
            fingerprint: sha256(&chain),
        })
    }

    /// Whether clients are shown the same chain by both.
    pub fn is_same(&self, other: &CertifiedKey) -> bool {
        self.fingerprint == other.fingerprint
    }

    /// Whether the certificate is for this name (lower case).
    pub fn covers(&self, name: &str) -> bool {
        let parent = name.split_once('.').map(|(_, parent)| parent);
        self.names.iter().any(|own| match own.strip_prefix("*.") {
            Some(suffix) => parent == Some(suffix),
            None => own == name,
        })
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// When it ends, in seconds since 1970.
    pub fn expires(&self) -> i64 {
        seconds(self.leaf.not_after())
    }

    pub(super) fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Makes a handshake use this certificate.
    pub(super) fn present(&self, ssl: &mut SslRef) -> Result<(), ErrorStack> {
        ssl.set_certificate(&self.leaf)?;
        for certificate in &self.intermediates {
            ssl.add_chain_cert(certificate)?;
        }
        let staple = self.staple.as_ref();
        if let Some(response) = staple.and_then(|staple| staple.current(SystemTime::now())) {
            ssl.set_ocsp_status(response)?;
        }
        ssl.set_private_key(&self.key)
    }

    /// Makes all handshakes of a client present this certificate to those who ask for one.
    pub fn install(&self, client: &mut SslConnectorBuilder) -> Result<(), ErrorStack> {
        client.set_certificate(&self.leaf)?;
        for certificate in &self.intermediates {
            client.add_extra_chain_cert(certificate.clone())?;
        }
        client.set_private_key(&self.key)
    }
}

/// The passwords in a file, one on each line.
///
/// # Errors
/// When the file is unreadable or holds none.
pub fn passwords(file: &Path) -> Result<Vec<Vec<u8>>, String> {
    let text = read(file)?;
    let lines = text.split(|byte| *byte == b'\n');
    let passwords: Vec<Vec<u8>> = lines
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line).to_vec())
        .filter(|password| !password.is_empty())
        .collect();
    match passwords.is_empty() {
        true => Err("no password in it".to_owned()),
        false => Ok(passwords),
    }
}

fn private_key(pem: &[u8], passwords: &[Vec<u8>]) -> Result<PKey<Private>, String> {
    // An empty password: without a callback the library would ask on the terminal.
    if let Ok(key) = PKey::private_key_from_pem_callback(pem, |_| Ok(0)) {
        return Ok(key);
    }
    let opened = passwords
        .iter()
        .find_map(|password| PKey::private_key_from_pem_passphrase(pem, password).ok());
    opened.ok_or_else(|| {
        let encrypted = memchr::memmem::find(pem, b"ENCRYPTED").is_some();
        match (encrypted, passwords.is_empty()) {
            (false, _) => "not a PEM private key",
            (true, true) => "the key is encrypted: give its `password_file`",
            (true, false) => "no password of `password_file` opens this key",
        }
        .to_owned()
    })
}

pub(super) fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => format!("no such file: `{}`", file.display()),
        _ => format!("cannot read `{}`: {e}", file.display()),
    })
}

/// In seconds since 1970.
pub(super) fn seconds(time: &Asn1TimeRef) -> i64 {
    let since = Asn1Time::from_unix(0).and_then(|epoch| epoch.diff(time));
    // What cannot be read as a time is long ago.
    since.map_or(0, |since| {
        i64::from(since.days) * 24 * 60 * 60 + i64::from(since.secs)
    })
}

fn names(certificate: &X509) -> Vec<String> {
    let Some(alternatives) = certificate.subject_alt_names() else {
        return Vec::new();
    };
    alternatives
        .iter()
        .filter_map(|name| {
            if let Some(dns) = name.dnsname() {
                return Some(dns.to_ascii_lowercase());
            }
            match name.ipaddress()? {
                v4 if v4.len() == 4 => <[u8; 4]>::try_from(v4).ok().map(IpAddr::from),
                v6 => <[u8; 16]>::try_from(v6).ok().map(IpAddr::from),
            }
            .map(|ip| ip.to_string())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_self_signed_certificate_covers_its_hosts() {
        let hosts = ["localhost", "*.shop.example", "127.0.0.1"].map(str::to_owned);
        let certificate = CertifiedKey::self_signed(&hosts).unwrap();
        for name in ["localhost", "www.shop.example", "127.0.0.1"] {
            assert!(certificate.covers(name), "{name}");
        }
        for name in ["shop.example", "a.b.shop.example", "example", ""] {
            assert!(!certificate.covers(name), "{name}");
        }
    }
}
