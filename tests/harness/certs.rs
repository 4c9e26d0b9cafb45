//! Throw-away certificates: one CA per test, leaves signed by it.

use std::path::{Path, PathBuf};

use boring::asn1::Asn1Time;
use boring::bn::{BigNum, MsbOption};
use boring::ec::{EcGroup, EcKey};
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{PKey, PKeyRef, Private};
use boring::x509::extension::{BasicConstraints, KeyUsage, SubjectAlternativeName};
use boring::x509::{X509, X509Builder, X509Name, X509NameBuilder, X509NameRef, X509Ref};

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
        let key = new_key();
        let subject = name("weir test authority");
        let mut builder = builder(&subject, &subject, &key);
        let constraints = BasicConstraints::new().critical().ca().build();
        let usage = KeyUsage::new().critical().key_cert_sign().build();
        for extension in [constraints, usage] {
            let extension = extension.expect("a fixed extension");
            builder.append_extension(&extension).expect("append");
        }
        builder.sign(&key, MessageDigest::sha256()).expect("sign");
        Authority {
            certificate: builder.build(),
            key,
        }
    }

    /// Writes its own certificate as `file` into `dir`.
    pub fn write(&self, dir: &Path, file: &str) {
        let pem = self.certificate.to_pem().expect("encode");
        std::fs::write(dir.join(file), pem).expect("write the authority");
    }

    /// Writes `{file}.pem` and `{file}.key` for `names` into `dir`.
    pub fn issue(&self, dir: &Path, file: &str, names: &[&str]) -> Pair {
        let key = new_key();
        let issuer = self.certificate.subject_name();
        let mut builder = builder(&name(names[0]), issuer, &key);
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

/// The names that a certificate is good for.
pub fn names(certificate: &X509Ref) -> Vec<String> {
    let Some(alternatives) = certificate.subject_alt_names() else {
        return Vec::new();
    };
    let names = alternatives.iter().filter_map(|name| name.dnsname());
    names.map(str::to_owned).collect()
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
    let today = Asn1Time::days_from_now(0).expect("a date");
    let tomorrow = Asn1Time::days_from_now(1).expect("a date");

    let mut builder = X509::builder().expect("allocate");
    builder.set_version(VERSION_3).expect("version");
    builder.set_serial_number(&serial).expect("serial");
    builder.set_subject_name(subject).expect("subject");
    builder.set_issuer_name(issuer).expect("issuer");
    builder.set_pubkey(key).expect("key");
    builder.set_not_before(&today).expect("start");
    builder.set_not_after(&tomorrow).expect("end");
    builder
}
