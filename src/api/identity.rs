//! The identity that a relay adds to each request: a short-lived token, bound to the
//! relay's own certificate.
//!
//! A token is a JWS in compact form, signed by ES256 with the private key of the
//! certificate that the relay shows in TLS, and sent as `authorization: Bearer TOKEN`:
//!
//! ```text
//! header  {"alg":"ES256","typ":"shunt-identity+jwt"}
//! claims  {"iss":"host1.example.net",      the relay's host, a DNS name of its certificate
//!          "sub":"router1",                the element, as the relay's configuration names it
//!          "fence":1769170000123,          number of the element's connection, ever rising
//!          "iat":1769170001,"exp":1769170061,
//!          "cnf":{"x5t#S256":"…"}}         SHA-256 of the relay's certificate
//! ```
//!
//! *Promises*: [`verify`] accepts a token only from the connection whose peer certificate
//! signed it, for a host that this certificate names, and for at most [`LIFETIME`] after
//! it was made, give or take [`LEEWAY`] of difference between clocks.
//! *Refuses*: every other algorithm, critical extensions, two `authorization` headers.
//! *Caller's duty*: the peer certificate given to [`verify`] is that of a completed mTLS
//! handshake, its chain checked there; a fence lower than one already seen is refused.
//! Whether the element is placed on the host is the controller's to judge.
//! *Standard*: RFC 7515 (JWS), RFC 7519 (claims), RFC 7518 section 3.4 (ES256), RFC 7800
//! and RFC 8705 section 3.1 (`cnf`, `x5t#S256`), RFC 6750 section 2.1 (`Bearer`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};
use rustls::pki_types::{CertificateDer, DnsName, ServerName};
use serde::{Deserialize, Serialize};
use webpki::EndEntityCert;

/// How long a token is valid.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How far the clocks of relay and controller may differ.
pub const LEEWAY: Duration = Duration::from_secs(5);
/// Longest token taken, bytes.
pub const TOKEN_MAX: usize = 2_048;

const ALGORITHM: &str = "ES256";
const TYPE: &str = "shunt-identity+jwt";
/// What precedes the point in the key information of every P-256 certificate (RFC 5480):
/// two sequences, id-ecPublicKey, prime256v1, a bit string.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Who sent a request, as its relay vouches.
#[derive(Clone, PartialEq, Eq, Debug, Hash)]
pub struct Identity {
    /// The relay's host.
    pub host: String,
    /// The element.
    pub element: String,
    /// The number of the element's connection on that host.
    pub fence: u64,
    /// When the token ends; what it opened (a stream) ends then too.
    pub expires: SystemTime,
}

/// Why a token is refused. To HTTP all of them are 401.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TokenError {
    /// There is no token.
    #[error("no token: send requests through the relay of the element's host")]
    Missing,
    /// It is not such a token.
    #[error("this is no token of a relay")]
    Malformed,
    /// The peer's certificate cannot carry identities.
    #[error("the peer's certificate is not one of a relay: it needs a P-256 key")]
    Certificate,
    /// It was made with another key, or changed.
    #[error("the token was not signed by the peer's key, or was changed")]
    Signature,
    /// It belongs to another certificate.
    #[error("the token is bound to another certificate")]
    Binding,
    /// The certificate is another host's.
    #[error("the token names a host that the peer's certificate does not name")]
    Host,
    /// Made in the future.
    #[error("the token is not valid yet: set the clocks of relay and controller")]
    Early,
    /// Ended.
    #[error("the token has expired")]
    Expired,
    /// Longer than [`LIFETIME`].
    #[error("the token is valid for too long")]
    TooLong,
}

/// Why a relay's certificate and key cannot sign identities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SignerError {
    /// The key is of another kind or form.
    #[error("the private key is not a P-256 key in PKCS #8: make it with `openssl genpkey`")]
    Key,
    /// Certificate and key do not belong together, or the certificate is of another kind.
    #[error("the certificate is not one of this private key, a P-256 one")]
    Certificate,
    /// The certificate does not name the host.
    #[error("the certificate does not name the host: add it as a DNS subject alternative name")]
    Host,
    /// No randomness for a signature.
    #[error("the system gave no randomness")]
    Random,
    /// The clock is before 1970.
    #[error("the system's clock is not set")]
    Clock,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    typ: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    fence: u64,
    iat: u64,
    exp: u64,
    cnf: Confirmation,
}

#[derive(Serialize, Deserialize)]
struct Confirmation {
    #[serde(rename = "x5t#S256")]
    thumbprint: String,
}

/// Signs identities with the key of a relay's certificate.
#[derive(Debug)]
pub struct Signer {
    host: String,
    thumbprint: String,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    /// A signer for the relay of `host`. `certificate` is the relay's own, DER; `key` its
    /// private key, PKCS #8 DER.
    ///
    /// # Errors
    /// Key and certificate are not P-256, do not belong together, or the certificate does
    /// not name the host.
    pub fn new(host: &str, certificate: &[u8], key: &[u8]) -> Result<Self, SignerError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random)
            .map_err(|_| SignerError::Key)?;
        let signer = Self {
            host: host.to_owned(),
            thumbprint: thumbprint(certificate),
            key,
            random,
        };
        // The proof that all belongs together: its own tokens are accepted.
        let made = UNIX_EPOCH;
        match verify(&signer.sign("-", 0, made)?, certificate, made) {
            Ok(_) => Ok(signer),
            Err(TokenError::Host) => Err(SignerError::Host),
            Err(_) => Err(SignerError::Certificate),
        }
    }

    /// A token for a request of `element`'s connection number `fence`, valid from `now`
    /// for [`LIFETIME`].
    ///
    /// # Errors
    /// The system gives no randomness, or its clock is before 1970.
    pub fn sign(&self, element: &str, fence: u64, now: SystemTime) -> Result<String, SignerError> {
        let iat = unix_seconds(now).ok_or(SignerError::Clock)?;
        let claims = Claims {
            iss: self.host.clone(),
            sub: element.to_owned(),
            fence,
            iat,
            exp: iat.saturating_add(LIFETIME.as_secs()),
            cnf: Confirmation {
                thumbprint: self.thumbprint.clone(),
            },
        };
        let header = Header {
            alg: ALGORITHM.to_owned(),
            typ: TYPE.to_owned(),
            crit: None,
        };
        let mut token = segment(&header);
        token.push('.');
        token.push_str(&segment(&claims));
        let signature = self
            .key
            .sign(&self.random, token.as_bytes())
            .map_err(|_| SignerError::Random)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }
}

/// The token of a request.
///
/// # Errors
/// There is none, or not exactly one.
pub fn bearer(headers: &HeaderMap) -> Result<&str, TokenError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(TokenError::Missing);
    };
    let (scheme, token) = value
        .to_str()
        .ok()
        .and_then(|value| value.split_once(' '))
        .ok_or(TokenError::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        Ok(token)
    } else {
        Err(TokenError::Missing)
    }
}

/// Who sent a request with `token` over a TLS connection whose peer showed
/// `peer_certificate` (its own, DER).
///
/// # Errors
/// Why the token is not to be believed.
pub fn verify(
    token: &str,
    peer_certificate: &[u8],
    now: SystemTime,
) -> Result<Identity, TokenError> {
    let claims = signed_claims(token, peer_certificate)?;
    if claims.cnf.thumbprint != thumbprint(peer_certificate) {
        return Err(TokenError::Binding);
    }
    check_host(&claims.iss, peer_certificate)?;
    let now = unix_seconds(now).ok_or(TokenError::Early)?;
    if claims.iat > now.saturating_add(LEEWAY.as_secs()) {
        return Err(TokenError::Early);
    }
    if claims.exp.saturating_add(LEEWAY.as_secs()) <= now {
        return Err(TokenError::Expired);
    }
    if claims.exp > claims.iat.saturating_add(LIFETIME.as_secs()) {
        return Err(TokenError::TooLong);
    }
    let expires = UNIX_EPOCH
        .checked_add(Duration::from_secs(claims.exp))
        .ok_or(TokenError::TooLong)?;
    Ok(Identity {
        host: claims.iss,
        element: claims.sub,
        fence: claims.fence,
        expires,
    })
}

/// The claims of a token that the certificate's key has signed.
fn signed_claims(token: &str, certificate: &[u8]) -> Result<Claims, TokenError> {
    if token.len() > TOKEN_MAX {
        return Err(TokenError::Malformed);
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
    let header: Header = parse(header)?;
    if header.alg != ALGORITHM || header.typ != TYPE || header.crit.is_some() {
        return Err(TokenError::Malformed);
    }
    let signature = decode(signature)?;
    public_key(certificate)?
        .verify(message.as_bytes(), &signature)
        .map_err(|_| TokenError::Signature)?;
    parse(claims)
}

fn public_key(certificate: &[u8]) -> Result<UnparsedPublicKey<Vec<u8>>, TokenError> {
    let der = CertificateDer::from(certificate);
    let certificate = EndEntityCert::try_from(&der).map_err(|_| TokenError::Certificate)?;
    let information = certificate.subject_public_key_info();
    let point = information
        .strip_prefix(&P256_PREFIX)
        .ok_or(TokenError::Certificate)?;
    Ok(UnparsedPublicKey::new(
        &ECDSA_P256_SHA256_FIXED,
        point.to_vec(),
    ))
}

fn check_host(host: &str, certificate: &[u8]) -> Result<(), TokenError> {
    let name = DnsName::try_from(host).map_err(|_| TokenError::Host)?;
    let der = CertificateDer::from(certificate);
    EndEntityCert::try_from(&der)
        .map_err(|_| TokenError::Certificate)?
        .verify_is_valid_for_subject_name(&ServerName::DnsName(name))
        .map_err(|_| TokenError::Host)
}

/// RFC 8705 section 3.1: the SHA-256 of a certificate's DER, base64url.
fn thumbprint(certificate: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(digest(&SHA256, certificate))
}

fn unix_seconds(time: SystemTime) -> Option<u64> {
    Some(time.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

fn segment<T: Serialize>(part: &T) -> String {
    // Structs of strings and numbers: there is no value of them that JSON cannot say.
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).unwrap_or_default())
}

fn parse<T: for<'a> Deserialize<'a>>(segment: &str) -> Result<T, TokenError> {
    serde_json::from_slice(&decode(segment)?).map_err(|_| TokenError::Malformed)
}

fn decode(segment: &str) -> Result<Vec<u8>, TokenError> {
    URL_SAFE_NO_PAD
        .decode(segment)
        .map_err(|_| TokenError::Malformed)
}

#[cfg(test)]
mod tests;
