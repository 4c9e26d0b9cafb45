//! Keys that sign tokens, and which algorithms each may be used for.
//!
//! The key decides about the algorithm, never the token: an RSA key checks signatures of RSA and is no secret of an HMAC,
//! whatever the header of a token claims (RFC 8725 section 3.1).

use std::fmt;

use boring::bn::BigNum;
use boring::ec::{EcGroup, EcKey};
use boring::ecdsa::EcdsaSig;
use boring::error::ErrorStack;
use boring::hash::{MessageDigest, hash, hmac_sha256, hmac_sha512};
use boring::memcmp;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Public};
use boring::rsa::{Padding, Rsa};
use boring::sign::{RsaPssSaltlen, Verifier};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::http::base64url;

/// An algorithm of RFC 7518 section 3.1 or RFC 8037. `none` is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    EdDSA,
}

impl Algorithm {
    pub fn parse(name: &str) -> Option<Algorithm> {
        use Algorithm::{
            ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
        };
        Some(match name {
            "HS256" => HS256,
            "HS384" => HS384,
            "HS512" => HS512,
            "RS256" => RS256,
            "RS384" => RS384,
            "RS512" => RS512,
            "PS256" => PS256,
            "PS384" => PS384,
            "PS512" => PS512,
            "ES256" => ES256,
            "ES384" => ES384,
            "EdDSA" => EdDSA,
            _ => return None,
        })
    }

    fn family(self) -> Family {
        use Algorithm::{
            ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
        };
        match self {
            HS256 | HS384 | HS512 => Family::Secret,
            RS256 | RS384 | RS512 | PS256 | PS384 | PS512 => Family::Rsa,
            ES256 => Family::P256,
            ES384 => Family::P384,
            EdDSA => Family::Ed25519,
        }
    }

    fn digest(self) -> MessageDigest {
        use Algorithm::{
            ES256, ES384, EdDSA, HS256, HS384, HS512, PS256, PS384, PS512, RS256, RS384, RS512,
        };
        match self {
            HS256 | RS256 | PS256 | ES256 => MessageDigest::sha256(),
            HS384 | RS384 | PS384 | ES384 => MessageDigest::sha384(),
            HS512 | RS512 | PS512 | EdDSA => MessageDigest::sha512(),
        }
    }
}

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// One key.
pub struct Key {
    /// What tokens call it; without, it is tried for every token.
    id: Option<String>,
    /// The only algorithm that it is meant for, if it says so.
    only: Option<Algorithm>,
    family: Family,
    material: Material,
}

enum Material {
    Secret(Vec<u8>),
    Public(PKey<Public>),
    Curve(EcKey<Public>),
}

/// The shortest RSA key that is taken (RFC 7518 section 3.3).
const LEAST_RSA: u32 = 2048;
/// The shortest secret that is taken: as long as the shortest digest (RFC 7518 section 3.2).
const LEAST_SECRET: usize = 32;

impl Key {
    pub fn secret(secret: &[u8]) -> Result<Key, String> {
        if secret.len() < LEAST_SECRET {
            return Err(format!(
                "a secret of less than {LEAST_SECRET} bytes can be guessed"
            ));
        }
        Ok(Key::new(Family::Secret, Material::Secret(secret.to_vec())))
    }

    fn new(family: Family, material: Material) -> Key {
        Key {
            id: None,
            only: None,
            family,
            material,
        }
    }

    fn public(key: PKey<Public>) -> Result<Key, String> {
        let strange = |_: ErrorStack| "a key that the TLS library cannot use".to_owned();
        match key.id() {
            Id::RSA => {
                let bits = key.rsa().map_err(strange)?.size() * 8;
                if bits < LEAST_RSA {
                    return Err(format!(
                        "an RSA key of {bits} bits is too short; {LEAST_RSA} are the least"
                    ));
                }
                Ok(Key::new(Family::Rsa, Material::Public(key)))
            }
            Id::EC => {
                let key = key.ec_key().map_err(strange)?;
                let family = match key.group().curve_name() {
                    Some(Nid::X9_62_PRIME256V1) => Family::P256,
                    Some(Nid::SECP384R1) => Family::P384,
                    _ => return Err("the curve is neither P-256 nor P-384".to_owned()),
                };
                Ok(Key::new(family, Material::Curve(key)))
            }
            Id::ED25519 => Ok(Key::new(Family::Ed25519, Material::Public(key))),
            _ => Err("neither RSA, P-256, P-384 nor Ed25519".to_owned()),
        }
    }

    /// Whether a token with this header may have been signed by it.
    pub fn fits(&self, id: Option<&str>, algorithm: Algorithm) -> bool {
        let named = match (&self.id, id) {
            (Some(own), Some(id)) => own == id,
            _ => true,
        };
        named && self.allows(algorithm)
    }

    pub fn allows(&self, algorithm: Algorithm) -> bool {
        self.family == algorithm.family() && self.only.is_none_or(|only| only == algorithm)
    }

    /// Whether `signature` is that of `message`. An algorithm that the key is not for has no signatures.
    pub fn verify(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> bool {
        if !self.allows(algorithm) {
            return false;
        }
        let verified = match &self.material {
            Material::Secret(secret) => hmac(algorithm, secret, message)
                .map(|own| own.len() == signature.len() && memcmp::eq(&own, signature)),
            Material::Curve(key) => verify_curve(algorithm, key, message, signature),
            Material::Public(key) => verify_public(algorithm, key, message, signature),
        };
        // What the library finds malformed is no signature either.
        verified.unwrap_or(false)
    }
}

fn hmac(algorithm: Algorithm, secret: &[u8], message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    Ok(match algorithm {
        Algorithm::HS256 => hmac_sha256(secret, message)?.to_vec(),
        Algorithm::HS512 => hmac_sha512(secret, message)?.to_vec(),
        _ => {
            // The library's wrapper leaves this one out (RFC 2104 section 2).
            const BLOCK: usize = 128;
            let digest = algorithm.digest();
            let mut key = match secret.len() > BLOCK {
                true => hash(digest, secret)?.to_vec(),
                false => secret.to_vec(),
            };
            key.resize(BLOCK, 0);
            let masked = |mask: u8| key.iter().map(|byte| byte ^ mask).collect::<Vec<u8>>();
            let inner = hash(digest, &[&masked(0x36), message].concat())?;
            hash(digest, &[&masked(0x5c), &inner[..]].concat())?.to_vec()
        }
    })
}

/// RFC 7518 section 3.4: the two numbers one after the other, each as long as the curve.
fn verify_curve(
    algorithm: Algorithm,
    key: &EcKey<Public>,
    message: &[u8],
    signature: &[u8],
) -> Result<bool, ErrorStack> {
    let length = if algorithm == Algorithm::ES384 {
        48
    } else {
        32
    };
    if signature.len() != 2 * length {
        return Ok(false);
    }
    let (r, s) = signature.split_at(length);
    let (r, s) = (BigNum::from_slice(r)?, BigNum::from_slice(s)?);
    let digest = hash(algorithm.digest(), message)?;
    EcdsaSig::from_private_components(r, s)?.verify(&digest, key)
}

fn verify_public(
    algorithm: Algorithm,
    key: &PKey<Public>,
    message: &[u8],
    signature: &[u8],
) -> Result<bool, ErrorStack> {
    if algorithm == Algorithm::EdDSA {
        return Verifier::new_without_digest(key)?.verify_oneshot(signature, message);
    }
    let mut verifier = Verifier::new(algorithm.digest(), key)?;
    if matches!(
        algorithm,
        Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512
    ) {
        verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
        verifier.set_rsa_mgf1_md(algorithm.digest())?;
        verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
    }
    verifier.update(message)?;
    verifier.verify(signature)
}

/// The keys in a text: a JWK set, one JWK, or public keys in PEM.
///
/// # Errors
/// A message for the operator. Keys of a set that are for something else (encryption, other curves) are passed over, as RFC 7517
/// section 5 says, as long as there are others.
pub fn parse(text: &str) -> Result<Vec<Key>, String> {
    if text.trim_start().starts_with('{') {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let list = match value.get("keys") {
            Some(Value::Array(list)) => list.as_slice(),
            Some(_) => return Err("`keys` is not a list".to_owned()),
            None => std::slice::from_ref(&value),
        };
        return some_of(list.iter().map(jwk).collect());
    }
    const BEGIN: &str = "-----BEGIN ";
    if !text.contains(BEGIN) {
        return Err("neither a JWK set in JSON nor keys in PEM".to_owned());
    }
    let blocks = text.split(BEGIN).skip(1);
    let keys = blocks.map(|block| pem(&format!("{BEGIN}{block}")));
    keys.collect()
}

fn some_of(keys: Vec<Result<Key, String>>) -> Result<Vec<Key>, String> {
    let (mut found, mut why) = (Vec::new(), None);
    for key in keys {
        match key {
            Ok(key) => found.push(key),
            Err(message) => why = why.or(Some(message)),
        }
    }
    match (found.is_empty(), why) {
        (false, _) => Ok(found),
        (true, None) => Err("there are no keys in it".to_owned()),
        (true, Some(why)) => Err(format!("no key in it can be used: {why}")),
    }
}

fn pem(block: &str) -> Result<Key, String> {
    if block.contains(" PRIVATE KEY") {
        return Err("a private key: who checks tokens needs the public one only".to_owned());
    }
    let key = PKey::public_key_from_pem(block.as_bytes());
    Key::public(key.map_err(|_| "not a public key in PEM".to_owned())?)
}

/// RFC 7517, RFC 7518 section 6, RFC 8037 section 2.
fn jwk(value: &Value) -> Result<Key, String> {
    let text = |name: &str| value.get(name).and_then(Value::as_str);
    let bytes = |name: &str| {
        let encoded = text(name).ok_or(format!("a key without `{name}`"))?;
        base64url::decode(encoded).ok_or(format!("`{name}` of a key is not base64url"))
    };
    let number = |name: &str| {
        BigNum::from_slice(&bytes(name)?).map_err(|_| format!("`{name}` of a key is no number"))
    };
    if text("use").is_some_and(|usage| usage != "sig") {
        return Err("a key that is not for signatures".to_owned());
    }
    let strange = |_: ErrorStack| "a key that the TLS library cannot use".to_owned();
    let mut key = match (text("kty"), text("crv")) {
        (Some("oct"), _) => Key::secret(&bytes("k")?)?,
        (Some("RSA"), _) => {
            let rsa = Rsa::from_public_components(number("n")?, number("e")?).map_err(strange)?;
            Key::public(PKey::from_rsa(rsa).map_err(strange)?)?
        }
        (Some("EC"), Some(curve @ ("P-256" | "P-384"))) => {
            let nid = match curve {
                "P-256" => Nid::X9_62_PRIME256V1,
                _ => Nid::SECP384R1,
            };
            let group = EcGroup::from_curve_name(nid).map_err(strange)?;
            let (x, y) = (number("x")?, number("y")?);
            let key = EcKey::from_public_key_affine_coordinates(&group, &x, &y).map_err(strange)?;
            // that the point is on the curve
            key.check_key().map_err(strange)?;
            Key::public(PKey::from_ec_key(key).map_err(strange)?)?
        }
        (Some("OKP"), Some("Ed25519")) => {
            // RFC 8410 section 4: what stands before the 32 bytes in a SubjectPublicKeyInfo
            const HEAD: [u8; 12] = [
                0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
            ];
            let der = [&HEAD[..], &bytes("x")?].concat();
            Key::public(PKey::public_key_from_der(&der).map_err(strange)?)?
        }
        (kind, curve) => {
            let kind = kind.unwrap_or("unknown");
            let curve = curve.unwrap_or_default();
            return Err(format!("a key of kind {kind} {curve}")
                .trim_end()
                .to_owned());
        }
    };
    key.id = text("kid").map(str::to_owned);
    if let Some(name) = text("alg") {
        let only = Algorithm::parse(name).ok_or(format!("a key for `{name}`"))?;
        key.only = Some(only);
        if !key.allows(only) {
            return Err(format!("a key of another kind than `{name}`"));
        }
    }
    Ok(key)
}

/// Without what could be read from it.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("id", &self.id)
            .field("family", &self.family)
            .finish_non_exhaustive()
    }
}
