//! What a client says of itself before it is shown a certificate: whether it could check one.

use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use boring::ssl::{ClientHello, ExtensionType, NameType, SslRef};

/// TLS 1.3 in `supported_versions` (RFC 8446 section 4.2.1).
const TLS13: u16 = 0x0304;

/// What a key signs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    EcdsaP256,
    EcdsaP384,
    EcdsaP521,
    Ed25519,
    Rsa,
}

impl Algorithm {
    /// `None`: TLS has no signatures with such a key.
    pub(super) fn of(key: &PKey<Private>) -> Option<Algorithm> {
        match key.id() {
            Id::RSA => Some(Algorithm::Rsa),
            Id::ED25519 => Some(Algorithm::Ed25519),
            Id::EC => match key.ec_key().ok()?.group().curve_name()? {
                Nid::X9_62_PRIME256V1 => Some(Algorithm::EcdsaP256),
                Nid::SECP384R1 => Some(Algorithm::EcdsaP384),
                Nid::SECP521R1 => Some(Algorithm::EcdsaP521),
                _ => None,
            },
            _ => None,
        }
    }

    /// Signature schemes with it (RFC 8446 section 4.2.3); SHA-1 is none of them.
    fn schemes(self) -> &'static [u16] {
        match self {
            Algorithm::EcdsaP256 => &[0x0403],
            Algorithm::EcdsaP384 => &[0x0503],
            Algorithm::EcdsaP521 => &[0x0603],
            Algorithm::Ed25519 => &[0x0807],
            Algorithm::Rsa => &[0x0804, 0x0805, 0x0806, 0x0401, 0x0501, 0x0601],
        }
    }

    /// How cipher suites before TLS 1.3 call it.
    fn authentication(self) -> Nid {
        match self {
            Algorithm::Rsa => Nid::AUTH_RSA,
            _ => Nid::AUTH_ECDSA,
        }
    }

    /// Whether the client can check signatures of such a key.
    pub(super) fn suits(self, hello: &mut ClientHello<'_>) -> bool {
        let signs = match hello.get_extension(ExtensionType::SIGNATURE_ALGORITHMS) {
            Some(list) => numbers(list.get(2..)).any(|scheme| self.schemes().contains(&scheme)),
            // Clients so old know SHA-1 alone.
            None => false,
        };
        signs && (offers_tls13(hello) || self.has_suite(hello))
    }

    /// Whether there is a suite for it that both sides know.
    fn has_suite(self, hello: &mut ClientHello<'_>) -> bool {
        let ours: Vec<u16> = hello
            .ssl_mut()
            .ciphers()
            .iter()
            .filter(|cipher| cipher.cipher_auth_nid() == Some(self.authentication()))
            .map(|cipher| cipher.protocol_id())
            .collect();
        numbers(Some(hello.ciphers())).any(|suite| ours.contains(&suite))
    }
}

/// The server name that the client asks for, lower case and without trailing dot; empty when it names none.
pub fn server_name(ssl: &SslRef) -> String {
    let name = ssl.servername(NameType::HOST_NAME).unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    name.to_ascii_lowercase()
}

fn offers_tls13(hello: &ClientHello<'_>) -> bool {
    let versions = hello.get_extension(ExtensionType::SUPPORTED_VERSIONS);
    numbers(versions.and_then(|list| list.get(1..))).any(|version| version == TLS13)
}

/// The numbers of a list, behind its length.
fn numbers(list: Option<&[u8]>) -> impl Iterator<Item = u16> + '_ {
    let pairs = list.unwrap_or_default().chunks_exact(2);
    pairs.map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}
