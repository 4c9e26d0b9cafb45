//! Throw-away certificates: one CA per test, leaves signed by it.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use boring::asn1::Asn1Time;
use boring::bn::{BigNum, MsbOption};
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, PKeyRef, Private};
use boring::rsa::Rsa;
use boring::sign::Signer;
use boring::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use boring::x509::{X509, X509Builder, X509Name, X509NameBuilder, X509NameRef, X509Ref};

/// How long certificates live, in days: long enough that nobody warns of their end.
const LIFE: i64 = 90;

/// Its name, as an algorithm of a signature.
const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

/// A certificate authority that nobody trusts.
pub struct Authority {
    certificate: X509,
    key: PKey<Private>,
}

/// The files of one certificate and its key.
pub struct Pair {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new() -> Authority {
        Authority::below(None, "weir test authority")
    }

    /// One whose certificate this one has signed.
    pub fn subordinate(&self, common_name: &str) -> Authority {
        Authority::below(Some(self), common_name)
    }

    fn below(issuer: Option<&Authority>, common_name: &str) -> Authority {
        let key = new_key();
        let subject = name(common_name);
        let signed_by = issuer.map_or(&*subject, |issuer| issuer.certificate.subject_name());
        let mut builder = builder(&subject, signed_by, &key);
        let constraints = BasicConstraints::new().critical().ca().build();
        let usage = KeyUsage::new()
            .critical()
            .key_cert_sign()
            .crl_sign()
            .build();
        for extension in [constraints, usage] {
            let extension = extension.expect("a fixed extension");
            builder.append_extension(&extension).expect("append");
        }
        let signer = issuer.map_or(&key, |issuer| &issuer.key);
        builder.sign(signer, MessageDigest::sha256()).expect("sign");
        Authority {
            certificate: builder.build(),
            key,
        }
    }

    /// Its own certificate, in PEM.
    pub fn to_pem(&self) -> Vec<u8> {
        self.certificate.to_pem().expect("encode")
    }

    /// An OCSP response about a certificate, in DER, that counts until some days from now.
    pub fn answer(&self, pair: &Pair, word: Word, days: i64) -> Vec<u8> {
        const SHA1: &[u8] = b"\x06\x05\x2b\x0e\x03\x02\x1a";
        const BASIC: &[u8] = b"\x06\x09\x2b\x06\x01\x05\x05\x07\x30\x01\x01";
        let time = |days| {
            let date = chrono::Utc::now() + chrono::Duration::days(days);
            der(0x18, &[date.format("%Y%m%d%H%M%SZ").to_string().as_bytes()])
        };
        let before = time(days.min(0) - 1);
        let name = self.certificate.subject_name().to_der().expect("encode");
        let hash = boring::hash::hash(MessageDigest::sha1(), &name).expect("hash");
        let hash = der(4, &[&hash]);
        let id = der(0x30, &[&der(0x30, &[SHA1]), &hash, &hash, &pair.serial()]);
        let status = match word {
            Word::Good => der(0x80, &[]),
            Word::Revoked => der(0xa1, &[&before]),
        };
        let until = der(0xa0, &[&time(days)]);
        let single = der(0x30, &[&id, &status, &before, &until]);
        let by = der(0xa1, &[&name]);
        let body = der(0x30, &[&by, &before, &der(0x30, &[&single])]);
        let basic = der(0x30, &[&body, &self.sign(&body)]);
        let bytes = der(0x30, &[BASIC, &der(4, &[&basic])]);
        der(0x30, &[b"\x0a\x01\x00", &der(0xa0, &[&bytes])])
    }

    /// How it signs, and the signature.
    fn sign(&self, body: &[u8]) -> Vec<u8> {
        let mut signer = Signer::new(MessageDigest::sha256(), &self.key).expect("a signer");
        let signature = signer.sign_oneshot_to_vec(body).expect("sign");
        [ECDSA_WITH_SHA256, &der(3, &[&[0], &signature])].concat()
    }

    /// A list, in PEM, that revokes these certificates.
    pub fn revoke(&self, revoked: &[&Pair]) -> String {
        let [now, later] = [0, 1].map(|days| {
            let date = chrono::Utc::now() + chrono::Duration::days(days);
            der(0x17, &[date.format("%y%m%d%H%M%SZ").to_string().as_bytes()])
        });
        let entries = revoked
            .iter()
            .map(|pair| der(0x30, &[&pair.serial(), &now]));
        let issuer = self.certificate.subject_name().to_der().expect("encode");
        let entries = der(0x30, &[&entries.collect::<Vec<_>>().concat()]);
        let body = der(0x30, &[ECDSA_WITH_SHA256, &issuer, &now, &later, &entries]);
        let list = der(0x30, &[&body, &self.sign(&body)]);
        let text = boring::base64::encode_block(&list);
        format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
    }

    /// Writes its own certificate as `file` into `dir`.
    pub fn write(&self, dir: &Path, file: &str) {
        let pem = self.certificate.to_pem().expect("encode");
        std::fs::write(dir.join(file), pem).expect("write the authority");
    }

    /// Writes `{file}.pem` and `{file}.key` for `names` into `dir`.
    pub fn issue(&self, dir: &Path, file: &str, names: &[&str]) -> Pair {
        self.issue_for(dir, file, names, &new_key(), LIFE)
    }

    /// The same with a key of RSA.
    pub fn issue_rsa(&self, dir: &Path, file: &str, names: &[&str]) -> Pair {
        let key = PKey::from_rsa(Rsa::generate(2048).expect("generate"));
        self.issue_for(dir, file, names, &key.expect("convert"), LIFE)
    }

    /// The same for a certificate that ends in some days.
    pub fn issue_until(&self, dir: &Path, file: &str, names: &[&str], days: i64) -> Pair {
        self.issue_for(dir, file, names, &new_key(), days)
    }

    fn issue_for(
        &self,
        dir: &Path,
        file: &str,
        names: &[&str],
        key: &PKeyRef<Private>,
        days: i64,
    ) -> Pair {
        let issuer = self.certificate.subject_name();
        let mut builder = builder(&name(names[0]), issuer, key);
        builder.set_not_after(&in_days(days)).expect("end");
        if days < 0 {
            builder.set_not_before(&in_days(2 * days)).expect("start");
        }
        let mut alternatives = SubjectAlternativeName::new();
        for name in names {
            alternatives.dns(name);
        }
        let context = builder.x509v3_context(Some(&self.certificate), None);
        let alternatives = alternatives.build(&context).expect("valid names");
        builder.append_extension(&alternatives).expect("append");
        builder
            .sign(&self.key, MessageDigest::sha256())
            .expect("sign");

        let pair = Pair {
            cert: dir.join(format!("{file}.pem")),
            key: dir.join(format!("{file}.key")),
        };
        let certificate = builder.build().to_pem().expect("encode");
        let secret = key.private_key_to_pem_pkcs8().expect("encode");
        std::fs::write(&pair.cert, certificate).expect("write the certificate");
        std::fs::write(&pair.key, secret).expect("write the key");
        pair
    }
}

impl Pair {
    /// The number of the certificate, encoded.
    fn serial(&self) -> Vec<u8> {
        let pem = std::fs::read(&self.cert).expect("read the certificate");
        let certificate = X509::from_pem(&pem).expect("a certificate");
        let number = certificate.serial_number().to_bn().expect("a number");
        let number = number.to_vec();
        // A first bit that is set would make it negative.
        let sign = &[0][..usize::from(number[0] >> 7)];
        der(2, &[sign, &number])
    }
}

/// The names that a certificate is good for.
pub fn names(certificate: &X509Ref) -> Vec<String> {
    let Some(alternatives) = certificate.subject_alt_names() else {
        return Vec::new();
    };
    let names = alternatives.iter().filter_map(|name| name.dnsname());
    names.map(str::to_owned).collect()
}

/// What an authority may say of a certificate (RFC 6960).
#[derive(Clone, Copy)]
pub enum Word {
    Good,
    Revoked,
}

/// A value of ASN.1 in its distinguished encoding.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let [.., high, low] = content.len().to_be_bytes();
    let length = match content.len() {
        0..0x80 => vec![low],
        0x80..0x100 => vec![0x81, low],
        _ => vec![0x82, high, low],
    };
    [&[tag][..], &length, &content].concat()
}

fn in_days(days: i64) -> Asn1Time {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.expect("after 1970").as_secs().cast_signed();
    Asn1Time::from_unix(now + days * 24 * 60 * 60).expect("a date")
}

fn new_key() -> PKey<Private> {
    let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("a known curve");
    PKey::from_ec_key(EcKey::generate(&group).expect("generate")).expect("convert")
}

fn name(common_name: &str) -> X509Name {
    let mut name = X509NameBuilder::new().expect("allocate");
    name.append_entry_by_nid(Nid::COMMONNAME, common_name)
        .expect("a valid name");
    name.build()
}

fn builder(subject: &X509NameRef, issuer: &X509NameRef, key: &PKeyRef<Private>) -> X509Builder {
    const VERSION_3: i32 = 2;
    let mut serial = BigNum::new().expect("allocate");
    serial.rand(64, MsbOption::ONE, false).expect("random");
    let serial = serial.to_asn1_integer().expect("convert");

    let mut builder = X509::builder().expect("allocate");
    builder.set_version(VERSION_3).expect("version");
    builder.set_serial_number(&serial).expect("serial");
    builder.set_subject_name(subject).expect("subject");
    builder.set_issuer_name(issuer).expect("issuer");
    builder.set_pubkey(key).expect("key");
    builder.set_not_before(&in_days(0)).expect("start");
    builder.set_not_after(&in_days(LIFE)).expect("end");
    builder
}
