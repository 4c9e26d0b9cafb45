//! `client_auth`: clients that show a certificate of their own.
//!
//! The handshake asks for one and takes whatever comes; a request on such a connection is refused with 400 and a word in
//! the access log, as nginx does. A failed handshake would tell nobody anything: with TLS 1.3 a client believes that it
//! has succeeded until its first read.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use boring::error::ErrorStack;
use boring::hash::{MessageDigest, hash};
use boring::ssl::{SslContextBuilder, SslMethod, SslRef, SslVerifyMode};
use boring::x509::verify::X509VerifyFlags;
use boring::x509::{X509, X509Name, X509NameRef};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use schemars::JsonSchema;
use serde::Deserialize;

use super::certificate::{read, seconds};
use crate::issue::{At, Issues, Sources};

/// Ask clients for a certificate. Requests with one that is not trusted are answered with 400.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// PEM file with the authorities that may have issued it. nginx: `ssl_client_certificate`.
    pub ca: PathBuf,
    /// Whether requests without one are answered with 400 (`require`) or go on (`request`). Default: `require`. nginx:
    /// `ssl_verify_client on` and `optional`.
    #[serde(default)]
    pub mode: Mode,
    /// How many authorities there may be between a certificate and one of `ca`. Default: 1. nginx: `ssl_verify_depth`.
    #[serde(default = "Config::default_depth")]
    pub depth: u32,
    /// PEM file with lists of revoked certificates, one from each authority of a chain. nginx: `ssl_crl`.
    pub crl: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Require,
    Request,
}

/// What clients have to show.
pub struct ClientAuth {
    mode: Mode,
    depth: u32,
    ca: PathBuf,
    authorities: Vec<X509>,
    crl: Option<PathBuf>,
    rules: Vec<u8>,
}

/// What a client has shown.
#[derive(Debug)]
pub struct Shown {
    certificate: Option<X509>,
    verdict: Verdict,
    required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Success,
    /// And why.
    Failed(&'static str),
    /// There was no certificate.
    None,
}

/// Something about a client's certificate, for variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientFact {
    Verify,
    Subject,
    Issuer,
    Serial,
    Fingerprint,
    Start,
    End,
    /// Days until its end.
    Remain,
    EscapedPem,
    Pem,
}

impl Config {
    fn default_depth() -> u32 {
        1
    }

    pub fn compile(
        &self,
        at: &At<'_>,
        sources: &Sources,
        issues: &mut Issues,
    ) -> Option<ClientAuth> {
        let ca = sources.input(&at.key("ca"), &self.ca);
        let authorities = authorities(&ca).map_err(|message| {
            issues.error(&at.key("ca"), message);
        });
        let mut rules = self.depth.to_be_bytes().to_vec();
        let mut crl = None;
        if let Some(written) = &self.crl {
            let at = at.key("crl");
            let file = sources.input(&at, written);
            match revoked(&file) {
                Ok(lists) => rules.extend(lists),
                Err(message) => {
                    issues.error(&at, message);
                }
            }
            crl = Some(file);
        }
        let authorities = authorities.ok()?;
        match digest(rules, &authorities) {
            Ok(rules) => Some(ClientAuth {
                mode: self.mode,
                depth: self.depth,
                ca,
                authorities,
                crl,
                rules,
            }),
            Err(e) => {
                issues.error(at, format!("the TLS library refuses this: {e}"));
                None
            }
        }
    }
}

fn digest(mut rules: Vec<u8>, authorities: &[X509]) -> Result<Vec<u8>, ErrorStack> {
    for authority in authorities {
        rules.extend(authority.to_der()?);
    }
    Ok(hash(MessageDigest::sha256(), &rules)?.to_vec())
}

fn authorities(file: &Path) -> Result<Vec<X509>, String> {
    let pem = read(file)?;
    match X509::stack_from_pem(&pem) {
        Ok(authorities) if !authorities.is_empty() => Ok(authorities),
        _ => Err("not a PEM file with certificates of authorities".to_owned()),
    }
}

/// The lists in a file, if it holds nothing else: the library would trust a certificate that stands among them.
fn revoked(file: &Path) -> Result<Vec<u8>, String> {
    let pem = read(file)?;
    let lists = memchr::memmem::find_iter(&pem, b"-----BEGIN X509 CRL-----").count();
    let blocks = memchr::memmem::find_iter(&pem, b"-----BEGIN ").count();
    let loads = || {
        let mut context = SslContextBuilder::new(SslMethod::tls())?;
        context.load_verify_locations(Some(file), None)
    };
    match lists > 0 && lists == blocks && loads().is_ok() {
        true => Ok(pem),
        false => Err("not a PEM file with lists of revoked certificates".to_owned()),
    }
}

impl ClientAuth {
    /// Stands for all that a certificate is judged by.
    pub(super) fn rules(&self) -> &[u8] {
        &self.rules
    }

    pub(super) fn install(&self, context: &mut SslContextBuilder) -> Result<(), ErrorStack> {
        for authority in &self.authorities {
            context.cert_store_mut().add_cert(authority)?;
        }
        // Tells clients which of their certificates to show.
        context.set_client_ca_list(X509Name::load_client_ca_file(&self.ca)?);
        if let Some(crl) = &self.crl {
            context.load_verify_locations(Some(crl), None)?;
            let flags = X509VerifyFlags::CRL_CHECK | X509VerifyFlags::CRL_CHECK_ALL;
            context.cert_store_mut().try_set_flags(flags)?;
        }
        context.set_verify_depth(self.depth);
        // What is wrong with a certificate is kept with the session, and told by `Shown`.
        context.set_verify_callback(SslVerifyMode::PEER, |_, _| true);
        Ok(())
    }

    /// What the client of an established connection has shown.
    pub fn shown(&self, ssl: &SslRef, now: SystemTime) -> Shown {
        let certificate = ssl.peer_certificate();
        let verdict = match (&certificate, ssl.verify_result()) {
            (None, _) => Verdict::None,
            (Some(_), Err(error)) => Verdict::Failed(error.error_string()),
            // It was valid when the session began, which may be long ago.
            (Some(own), Ok(())) if seconds(own.not_after()) < unix(now) => {
                Verdict::Failed("certificate has expired")
            }
            (Some(_), Ok(())) => Verdict::Success,
        };
        Shown {
            certificate,
            verdict,
            required: self.mode == Mode::Require,
        }
    }
}

impl Shown {
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Whether requests need a certificate.
    pub fn is_required(&self) -> bool {
        self.required
    }

    /// Appends what nginx's variable of that name says; nothing where there is nothing to say.
    pub fn write(&self, fact: ClientFact, now: SystemTime, out: &mut String) -> Option<()> {
        if fact == ClientFact::Verify {
            match self.verdict {
                Verdict::Success => out.push_str("SUCCESS"),
                Verdict::Failed(why) => {
                    out.push_str("FAILED:");
                    out.push_str(why);
                }
                Verdict::None => out.push_str("NONE"),
            }
            return Some(());
        }
        let own = self.certificate.as_ref()?;
        match fact {
            ClientFact::Verify => {}
            ClientFact::Subject => out.push_str(&name(own.subject_name())?),
            ClientFact::Issuer => out.push_str(&name(own.issuer_name())?),
            ClientFact::Serial => {
                let serial = own.serial_number().to_bn().ok()?.to_vec();
                for byte in serial {
                    let _ = write!(out, "{byte:02X}");
                }
            }
            ClientFact::Fingerprint => {
                // A String takes everything, here and above.
                for byte in own.digest(MessageDigest::sha1()).ok()?.as_ref() {
                    let _ = write!(out, "{byte:02x}");
                }
            }
            ClientFact::Start => out.push_str(&own.not_before().to_string()),
            ClientFact::End => out.push_str(&own.not_after().to_string()),
            ClientFact::Remain => {
                let days = (seconds(own.not_after()) - unix(now)) / (24 * 60 * 60);
                out.push_str(&days.max(0).to_string());
            }
            ClientFact::EscapedPem => {
                let pem = String::from_utf8(own.to_pem().ok()?).ok()?;
                out.extend(utf8_percent_encode(&pem, ESCAPED));
            }
            ClientFact::Pem => out.push_str(std::str::from_utf8(&own.to_pem().ok()?).ok()?),
        }
        Some(())
    }
}

/// As in a component of a URI.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// By RFC 2253, other letters than ASCII's as they are.
fn name(name: &X509NameRef) -> Option<String> {
    // The library's XN_FLAG_RFC2253 without ASN1_STRFLGS_ESC_MSB.
    const RFC2253: i32 = 0x0111_0313;
    name.print_ex(RFC2253)
}

pub(super) fn unix(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs().cast_signed())
}
