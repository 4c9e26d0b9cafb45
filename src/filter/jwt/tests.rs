use boring::bn::{BigNum, BigNumContext};
use boring::ec::{EcGroup, EcKey};
use boring::ecdsa::EcdsaSig;
use boring::hash::{MessageDigest, hash, hmac_sha256};
use boring::nid::Nid;
use boring::pkey::{PKey, Private};
use boring::rsa::{Padding, Rsa};
use boring::sign::{RsaPssSaltlen, Signer};
use serde_json::json;

use super::*;
use crate::http::base64url::encode;

const NOW: u64 = 1_795_362_225;
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// The RFC's own token (RFC 7515 appendix A.1), whose secret stands there as a JWK.
#[test]
fn the_example_of_the_rfc_is_signed_by_its_key() {
    let token = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
        eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
        dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    let key = r#"{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;
    let keys = keys::parse(key).unwrap();
    let claims = token::check(token, &keys, &demands(), 1_300_819_379).unwrap();
    assert_eq!(claims["iss"], "joe");
    let late = token::check(token, &keys, &demands(), 1_300_819_380);
    assert_eq!(late, Err(Flaw::Expired));
}

/// RFC 8037 appendix A.4.
#[test]
fn the_example_of_ed25519_is_signed_by_its_key() {
    let key = r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    let message = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc";
    let signature =
        "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let keys = keys::parse(key).unwrap();
    let signature = crate::http::base64url::decode(signature).unwrap();
    assert!(keys[0].verify(Algorithm::EdDSA, message.as_bytes(), &signature));
    assert!(!keys[0].verify(Algorithm::EdDSA, b"else", &signature));
}

#[test]
fn each_algorithm_is_checked_with_its_key() {
    let (rsa, p256, p384) = (rsa(), curve(Nid::X9_62_PRIME256V1), curve(Nid::SECP384R1));
    let secret = vec![Key::secret(SECRET.as_bytes()).unwrap()];
    let set = [
        rsa_jwk(&rsa),
        curve_jwk(&p256, "P-256"),
        curve_jwk(&p384, "P-384"),
    ];
    let public = keys::parse(&json!({ "keys": set }).to_string()).unwrap();
    let pems = [pem(&rsa), pem(&p256), pem(&p384)].concat();
    let from_pem = keys::parse(&pems).unwrap();
    assert_eq!((public.len(), from_pem.len()), (3, 3));
    for (algorithm, key) in [
        ("RS256", Some(&rsa)),
        ("RS384", Some(&rsa)),
        ("RS512", Some(&rsa)),
        ("PS256", Some(&rsa)),
        ("PS512", Some(&rsa)),
        ("ES256", Some(&p256)),
        ("ES384", Some(&p384)),
        ("HS256", None),
    ] {
        let token = make(algorithm, key, &json!({ "exp": NOW + 60 }));
        let keys = if key.is_some() { &public } else { &secret };
        let others = if key.is_some() { &secret } else { &public };
        assert!(
            token::check(&token, keys, &demands(), NOW).is_ok(),
            "{algorithm}"
        );
        if key.is_some() {
            assert!(
                token::check(&token, &from_pem, &demands(), NOW).is_ok(),
                "{algorithm}"
            );
        }
        assert_eq!(
            token::check(&token, others, &demands(), NOW),
            Err(Flaw::Signature)
        );
        // any bit of the signature
        let (message, signature) = token.rsplit_once('.').unwrap();
        let mut bytes = crate::http::base64url::decode(signature).unwrap();
        bytes[7] ^= 1;
        let forged = format!("{message}.{}", encode(&bytes));
        assert_eq!(
            token::check(&forged, keys, &demands(), NOW),
            Err(Flaw::Signature)
        );
    }
}

/// The public key of RSA, which everybody has, as the secret of an HMAC.
#[test]
fn a_public_key_is_no_secret() {
    let rsa = rsa();
    let pem = pem(&rsa);
    let keys = keys::parse(&pem).unwrap();
    let message = format!(
        "{}.{}",
        encode(br#"{"alg":"HS256"}"#),
        encode(json!({ "exp": NOW + 60 }).to_string().as_bytes())
    );
    let signature = hmac_sha256(pem.as_bytes(), message.as_bytes()).unwrap();
    let token = format!("{message}.{}", encode(&signature));
    assert_eq!(
        token::check(&token, &keys, &demands(), NOW),
        Err(Flaw::Signature)
    );
}

#[test]
fn what_is_not_signed_is_refused() {
    let keys = [Key::secret(SECRET.as_bytes()).unwrap()];
    let claims = encode(json!({ "exp": NOW + 60 }).to_string().as_bytes());
    for (header, flaw) in [
        (r#"{"alg":"none"}"#, Flaw::Algorithm),
        (r#"{"alg":"None"}"#, Flaw::Algorithm),
        (r#"{"alg":""}"#, Flaw::Algorithm),
        (r#"{"alg":"HS256"}"#, Flaw::Signature),
        (
            r#"{"alg":"HS256","crit":["b64"],"b64":false}"#,
            Flaw::Critical,
        ),
        (r#"{}"#, Flaw::Malformed),
        ("", Flaw::Malformed),
    ] {
        let token = format!("{}.{claims}.", encode(header.as_bytes()));
        assert_eq!(
            token::check(&token, &keys, &demands(), NOW),
            Err(flaw),
            "{header}"
        );
    }
    for token in ["", ".", "..", "a.b.c.d", "ä.b.c"] {
        assert_eq!(
            token::check(token, &keys, &demands(), NOW),
            Err(Flaw::Malformed)
        );
    }
}

#[test]
fn claims_are_what_was_asked_for() {
    let keys = [Key::secret(SECRET.as_bytes()).unwrap()];
    let demands = Demands {
        algorithms: Some(vec![Algorithm::HS256]),
        issuers: vec!["https://id.example".to_owned()],
        audiences: vec!["shop".to_owned(), "api".to_owned()],
        leeway: 30,
    };
    let good =
        json!({ "iss": "https://id.example", "aud": ["x", "shop"], "exp": NOW + 1, "nbf": NOW });
    let check = |claims: &Value| {
        let token = make("HS256", None, claims);
        token::check(&token, &keys, &demands, NOW).map(drop)
    };
    assert_eq!(check(&good), Ok(()));
    for (name, value, expected) in [
        ("aud", json!("api"), Ok(())),
        ("exp", json!(NOW - 29), Ok(())),
        ("nbf", json!(NOW + 30), Ok(())),
        ("exp", json!(NOW - 30), Err(Flaw::Expired)),
        ("exp", json!("soon"), Err(Flaw::Malformed)),
        ("exp", Value::Null, Err(Flaw::Malformed)),
        ("nbf", json!(NOW + 31), Err(Flaw::NotYet)),
        ("iss", json!("https://id.example.evil"), Err(Flaw::Issuer)),
        ("iss", json!(["https://id.example"]), Err(Flaw::Issuer)),
        ("aud", json!("other"), Err(Flaw::Audience)),
        ("aud", json!([]), Err(Flaw::Audience)),
    ] {
        let mut claims = good.clone();
        claims[name] = value.clone();
        assert_eq!(check(&claims), expected, "{name}: {value}");
    }
    let mut claims = good.clone();
    claims.as_object_mut().unwrap().remove("exp");
    assert_eq!(check(&claims), Err(Flaw::Endless));
}

#[test]
fn keys_are_found_by_their_names() {
    let key = |id: &str| json!({ "kty": "oct", "kid": id, "k": encode(SECRET.as_bytes()) });
    let keys = keys::parse(&json!({ "keys": [key("one")] }).to_string()).unwrap();
    assert!(keys[0].fits(Some("one"), Algorithm::HS256));
    assert!(keys[0].fits(None, Algorithm::HS256));
    assert!(!keys[0].fits(Some("two"), Algorithm::HS256));
    let mut only = key("one");
    only["alg"] = json!("HS512");
    let keys = keys::parse(&only.to_string()).unwrap();
    assert!(!keys[0].fits(None, Algorithm::HS256) && keys[0].fits(None, Algorithm::HS512));
}

#[test]
fn keys_that_are_none_are_refused_and_others_passed_over() {
    for (text, expected) in [
        ("secret", "neither a JWK set in JSON nor keys in PEM"),
        ("{", "not JSON"),
        ("{\"keys\":[]}", "there are no keys"),
        ("{\"kty\":\"oct\",\"k\":\"AQID\"}", "can be guessed"),
        (
            "{\"kty\":\"EC\",\"crv\":\"P-256\",\"x\":\"AQ\",\"y\":\"AQ\"}",
            "cannot use",
        ),
        (
            "{\"kty\":\"RSA\",\"n\":\"AQAB\",\"e\":\"AQAB\"}",
            "no key in it can be used",
        ),
        ("-----BEGIN PRIVATE KEY-----\n", "a private key"),
        ("-----BEGIN PUBLIC KEY-----\n", "not a public key"),
    ] {
        let error = keys::parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let good = json!({ "kty": "oct", "k": encode(SECRET.as_bytes()) });
    let set = json!({ "keys": [{ "kty": "RSA", "use": "enc" }, { "kty": "new" }, good] });
    assert_eq!(keys::parse(&set.to_string()).unwrap().len(), 1);
}

#[test]
fn claims_are_found_by_name_and_by_way() {
    let claims = json!({
        "sub": "ada", "a.b": 1, "a": { "b": 2, "c": { "d": true } }, "roles": ["x", "y"], "none": null,
    });
    let claims = claims.as_object().unwrap();
    let text = |name| find(claims, name).and_then(as_text);
    assert_eq!(text("sub").as_deref(), Some("ada"));
    assert_eq!(text("a.b").as_deref(), Some("1"));
    assert_eq!(text("a.c.d").as_deref(), Some("true"));
    assert_eq!(text("roles").as_deref(), Some("x,y"));
    assert_eq!(
        (text("none"), text("else"), text("sub.x")),
        (None, None, None)
    );
}

fn demands() -> Demands {
    Demands {
        algorithms: None,
        issuers: Vec::new(),
        audiences: Vec::new(),
        leeway: 0,
    }
}

fn rsa() -> PKey<Private> {
    PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap()
}

fn curve(nid: Nid) -> PKey<Private> {
    let group = EcGroup::from_curve_name(nid).unwrap();
    PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
}

fn pem(key: &PKey<Private>) -> String {
    String::from_utf8(key.public_key_to_pem().unwrap()).unwrap()
}

fn rsa_jwk(key: &PKey<Private>) -> Value {
    let rsa = key.rsa().unwrap();
    json!({ "kty": "RSA", "n": encode(&rsa.n().to_vec()), "e": encode(&rsa.e().to_vec()) })
}

fn curve_jwk(key: &PKey<Private>, name: &str) -> Value {
    let key = key.ec_key().unwrap();
    let (mut x, mut y) = (BigNum::new().unwrap(), BigNum::new().unwrap());
    let mut context = BigNumContext::new().unwrap();
    let point = key.public_key();
    point
        .affine_coordinates_gfp(key.group(), &mut x, &mut y, &mut context)
        .unwrap();
    json!({ "kty": "EC", "crv": name, "x": encode(&x.to_vec()), "y": encode(&y.to_vec()) })
}

/// A token; without a key, signed with the secret.
fn make(algorithm: &str, key: Option<&PKey<Private>>, claims: &Value) -> String {
    let header = json!({ "alg": algorithm }).to_string();
    let message = format!(
        "{}.{}",
        encode(header.as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let digest = match &algorithm[2..] {
        "256" => MessageDigest::sha256(),
        "384" => MessageDigest::sha384(),
        _ => MessageDigest::sha512(),
    };
    let signature = match (&algorithm[..2], key) {
        ("HS", _) => hmac_sha256(SECRET.as_bytes(), message.as_bytes())
            .unwrap()
            .to_vec(),
        ("ES", Some(key)) => {
            let key = key.ec_key().unwrap();
            let length = if algorithm == "ES384" { 48 } else { 32 };
            let digest = hash(digest, message.as_bytes()).unwrap();
            let signature = EcdsaSig::sign(&digest, &key).unwrap();
            let padded = |number: &boring::bn::BigNumRef| {
                let bytes = number.to_vec();
                [vec![0; length - bytes.len()], bytes].concat()
            };
            [padded(signature.r()), padded(signature.s())].concat()
        }
        (family, Some(key)) => {
            let mut signer = Signer::new(digest, key).unwrap();
            if family == "PS" {
                signer.set_rsa_padding(Padding::PKCS1_PSS).unwrap();
                signer.set_rsa_mgf1_md(digest).unwrap();
                signer
                    .set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)
                    .unwrap();
            }
            signer.update(message.as_bytes()).unwrap();
            signer.sign_to_vec().unwrap()
        }
        _ => panic!("no key for {algorithm}"),
    };
    format!("{message}.{}", encode(&signature))
}
