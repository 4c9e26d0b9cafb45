//! Answers of a certificate's authority that it is still good (RFC 6960), to be shown along with the certificate
//! ("stapled"), so that clients need not ask.
//!
//! What is checked here is that an answer is for the certificate, says that it is good, and since when no longer. Whether
//! its signature is right is for the client to find out, whose trust it is.

use std::time::SystemTime;

use boring::hash::{MessageDigest, hash};
use boring::x509::X509Ref;
use chrono::NaiveDateTime;

use super::client_auth::unix;

/// id-pkix-ocsp-basic, 1.3.6.1.5.5.7.48.1.1
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0] IMPLICIT NULL`, as in `good`.
const GOOD: u8 = 0x80;
/// `[0] EXPLICIT`
const EXPLICIT: u8 = 0xa0;

/// An answer that fits its certificate.
pub struct Staple {
    response: Vec<u8>,
    /// Until when there is a newer one, in seconds since 1970.
    until: Option<i64>,
}

impl Staple {
    /// # Errors
    /// When `response` is no answer in DER, or not that `certificate` is good.
    pub fn parse(response: Vec<u8>, certificate: &X509Ref) -> Result<Staple, &'static str> {
        let singles = responses(&response).ok_or("not a successful OCSP response in DER")?;
        let own = singles.iter().find(|single| single.is_about(certificate));
        let own = own.ok_or("an OCSP response for another certificate")?;
        if !own.good {
            return Err("an OCSP response that the certificate is revoked or unknown");
        }
        let until = own.until;
        Ok(Staple { response, until })
    }

    /// The answer, while it counts.
    pub fn current(&self, now: SystemTime) -> Option<&[u8]> {
        let fresh = self.until.is_none_or(|until| unix(now) < until);
        fresh.then_some(&self.response)
    }
}

/// What an answer says of one certificate.
struct Single<'a> {
    issuer_hash: &'a [u8],
    serial: &'a [u8],
    good: bool,
    until: Option<i64>,
}

impl Single<'_> {
    fn is_about(&self, certificate: &X509Ref) -> bool {
        // The length tells which function it is; there are no others in use.
        let digest = match self.issuer_hash.len() {
            20 => MessageDigest::sha1(),
            _ => MessageDigest::sha256(),
        };
        let issuer = certificate.issuer_name().to_der();
        let issuer = issuer.and_then(|name| hash(digest, &name));
        let number = certificate.serial_number().to_bn();
        let start = self.serial.iter().position(|byte| *byte != 0);
        let serial = &self.serial[start.unwrap_or(self.serial.len())..];
        issuer.is_ok_and(|hash| *hash == *self.issuer_hash)
            && number.is_ok_and(|number| number.to_vec() == serial)
    }
}

fn responses(mut response: &[u8]) -> Option<Vec<Single<'_>>> {
    let mut response = take(&mut response, SEQUENCE)?;
    if take(&mut response, ENUMERATED)? != [0] {
        return None;
    }
    let mut bytes = take(&mut response, EXPLICIT)?;
    let mut bytes = take(&mut bytes, SEQUENCE)?;
    if take(&mut bytes, OBJECT_IDENTIFIER)? != BASIC {
        return None;
    }
    let mut basic = take(&mut bytes, OCTET_STRING)?;
    let mut basic = take(&mut basic, SEQUENCE)?;
    let mut data = take(&mut basic, SEQUENCE)?;
    if data.first() == Some(&EXPLICIT) {
        next(&mut data)?; // the version
    }
    next(&mut data)?; // who answers
    take(&mut data, GENERALIZED_TIME)?;
    let mut list = take(&mut data, SEQUENCE)?;
    let mut singles = Vec::new();
    while !list.is_empty() {
        singles.push(single(take(&mut list, SEQUENCE)?)?);
    }
    Some(singles)
}

fn single(mut single: &[u8]) -> Option<Single<'_>> {
    let mut id = take(&mut single, SEQUENCE)?;
    take(&mut id, SEQUENCE)?; // the hash function
    let issuer_hash = take(&mut id, OCTET_STRING)?;
    take(&mut id, OCTET_STRING)?; // of the issuer's key
    let serial = take(&mut id, INTEGER)?;
    let (status, _) = next(&mut single)?;
    take(&mut single, GENERALIZED_TIME)?;
    let until = match single.first() {
        Some(&EXPLICIT) => {
            let mut explicit = take(&mut single, EXPLICIT)?;
            let text = str::from_utf8(take(&mut explicit, GENERALIZED_TIME)?).ok()?;
            let time = NaiveDateTime::parse_from_str(text, "%Y%m%d%H%M%SZ").ok()?;
            Some(time.and_utc().timestamp())
        }
        _ => None,
    };
    Some(Single {
        issuer_hash,
        serial,
        good: status == GOOD,
        until,
    })
}

/// Takes the next value, which has this tag, from the front.
fn take<'a>(input: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let (found, content) = next(input)?;
    (found == tag).then_some(content)
}

/// Takes the next value, with its tag, from the front.
fn next<'a>(input: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, short], mut rest) = input.split_first_chunk()?;
    let mut length = usize::from(short);
    if short >= 0x80 {
        let (digits, after) = rest.split_at_checked(length - 0x80)?;
        if digits.is_empty() || digits.len() > 4 {
            return None;
        }
        length = digits
            .iter()
            .fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = after;
    }
    let (content, rest) = rest.split_at_checked(length)?;
    *input = rest;
    Some((tag, content))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_a_file_holds_is_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            responses(&bytes);
            let mut wrapped = vec![SEQUENCE, 0x82, 0, 3 + bytes.len() as u8, ENUMERATED, 1, 0];
            wrapped.extend(bytes);
            responses(&wrapped);
        }
    }
}
