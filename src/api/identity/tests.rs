use super::*;

use axum::http::HeaderValue;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519};

const HOST: &str = "host1.example.net";
const NOW: SystemTime = UNIX_EPOCH;

struct Relay {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Relay {
    fn of(host: &str) -> Self {
        Self::with_key(
            host,
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        )
    }

    fn with_key(host: &str, key: KeyPair) -> Self {
        let parameters = CertificateParams::new(vec![host.to_owned()]).unwrap();
        Self {
            certificate: parameters.self_signed(&key).unwrap().der().to_vec(),
            key: key.serialize_der(),
        }
    }

    fn signer(&self) -> Signer {
        Signer::new(HOST, &self.certificate, &self.key).unwrap()
    }
}

fn later(seconds: u64) -> SystemTime {
    NOW + Duration::from_secs(seconds)
}

/// A token with claims of one's own, signed rightly.
fn signed(relay: &Relay, header: &str, claims: &str) -> String {
    let signer = relay.signer();
    let message = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode(header),
        URL_SAFE_NO_PAD.encode(claims)
    );
    let signature = signer.key.sign(&signer.random, message.as_bytes()).unwrap();
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[test]
fn a_token_says_host_element_and_fence() {
    let relay = Relay::of(HOST);
    let token = relay.signer().sign("router1", 77, later(1_000)).unwrap();
    let identity = verify(&token, &relay.certificate, later(1_001)).unwrap();
    assert_eq!(
        identity,
        Identity {
            host: HOST.to_owned(),
            element: "router1".to_owned(),
            fence: 77,
            expires: later(1_060),
        }
    );
}

#[test]
fn a_token_ends_after_its_lifetime_and_does_not_begin_early() {
    let relay = Relay::of(HOST);
    let token = relay.signer().sign("router1", 1, later(1_000)).unwrap();
    let at = |seconds| verify(&token, &relay.certificate, later(seconds)).map(|_| ());
    assert_eq!(at(994), Err(TokenError::Early));
    assert_eq!(at(995), Ok(()));
    assert_eq!(at(1_064), Ok(()));
    assert_eq!(at(1_065), Err(TokenError::Expired));
}

#[test]
fn a_token_of_another_certificate_is_refused() {
    let (one, other) = (Relay::of(HOST), Relay::of(HOST));
    let token = one.signer().sign("router1", 1, NOW).unwrap();
    assert_eq!(
        verify(&token, &other.certificate, NOW),
        Err(TokenError::Signature)
    );
    // The same key under a renewed certificate is another binding.
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let again = KeyPair::try_from(key.serialize_der()).unwrap();
    let (old, new) = (Relay::with_key(HOST, key), Relay::with_key(HOST, again));
    let token = old.signer().sign("router1", 1, NOW).unwrap();
    assert_eq!(
        verify(&token, &new.certificate, NOW),
        Err(TokenError::Binding)
    );
}

#[test]
fn a_host_that_the_certificate_does_not_name_is_refused() {
    let relay = Relay::of(HOST);
    let claims = format!(
        r#"{{"iss":"host2.example.net","sub":"r","fence":1,"iat":0,"exp":60,"cnf":{{"x5t#S256":"{}"}}}}"#,
        thumbprint(&relay.certificate)
    );
    let token = signed(
        &relay,
        r#"{"alg":"ES256","typ":"shunt-identity+jwt"}"#,
        &claims,
    );
    assert_eq!(
        verify(&token, &relay.certificate, NOW),
        Err(TokenError::Host)
    );
    assert_eq!(
        Signer::new("host2.example.net", &relay.certificate, &relay.key).map(|_| ()),
        Err(SignerError::Host)
    );
}

#[test]
fn other_algorithms_extensions_and_long_lives_are_refused() {
    let relay = Relay::of(HOST);
    let claims = |exp: u64| {
        format!(
            r#"{{"iss":"{HOST}","sub":"r","fence":1,"iat":0,"exp":{exp},"cnf":{{"x5t#S256":"{}"}}}}"#,
            thumbprint(&relay.certificate)
        )
    };
    let good = r#"{"alg":"ES256","typ":"shunt-identity+jwt"}"#;
    let outcome = |header: &str, exp| {
        verify(
            &signed(&relay, header, &claims(exp)),
            &relay.certificate,
            NOW,
        )
        .map(|_| ())
    };
    assert_eq!(outcome(good, 60), Ok(()));
    assert_eq!(outcome(good, 61), Err(TokenError::TooLong));
    assert_eq!(outcome(good, u64::MAX), Err(TokenError::TooLong));
    for header in [
        r#"{"alg":"none","typ":"shunt-identity+jwt"}"#,
        r#"{"alg":"HS256","typ":"shunt-identity+jwt"}"#,
        r#"{"alg":"ES256","typ":"JWT"}"#,
        r#"{"alg":"ES256"}"#,
        r#"{"alg":"ES256","typ":"shunt-identity+jwt","crit":["b64"],"b64":false}"#,
        "",
    ] {
        assert_eq!(outcome(header, 60), Err(TokenError::Malformed), "{header}");
    }
}

#[test]
fn keys_of_another_kind_or_another_certificate_cannot_sign() {
    let relay = Relay::of(HOST);
    let edwards = Relay::with_key(HOST, KeyPair::generate_for(&PKCS_ED25519).unwrap());
    let outcome = |certificate: &[u8], key: &[u8]| Signer::new(HOST, certificate, key).map(|_| ());
    assert_eq!(
        outcome(&relay.certificate, &edwards.key),
        Err(SignerError::Key)
    );
    assert_eq!(
        outcome(&edwards.certificate, &relay.key),
        Err(SignerError::Certificate)
    );
    assert_eq!(
        outcome(b"nothing", &relay.key),
        Err(SignerError::Certificate)
    );
    assert_eq!(
        outcome(&Relay::of(HOST).certificate, &relay.key),
        Err(SignerError::Certificate)
    );
}

#[test]
fn exactly_one_bearer_token_is_taken() {
    let headers = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    };
    assert_eq!(bearer(&headers(&["Bearer a.b.c"])), Ok("a.b.c"));
    assert_eq!(bearer(&headers(&["bearer a.b.c"])), Ok("a.b.c"));
    for wrong in [
        &[][..],
        &["Basic YTpi"],
        &["Bearer"],
        &["Bearer a", "Bearer b"],
    ] {
        assert_eq!(
            bearer(&headers(wrong)),
            Err(TokenError::Missing),
            "{wrong:?}"
        );
    }
}

#[test]
fn no_changed_byte_goes_unseen() {
    let relay = Relay::of(HOST);
    let token = relay.signer().sign("router1", 9, NOW).unwrap();
    proptest!(|(at in 0..token.len(), to in any::<char>())| {
        let mut changed: Vec<char> = token.chars().collect();
        prop_assume!(changed[at] != to);
        changed[at] = to;
        let changed: String = changed.into_iter().collect();
        prop_assert!(verify(&changed, &relay.certificate, NOW).is_err());
    });
}

#[test]
fn any_text_is_judged_without_panic() {
    let relay = Relay::of(HOST);
    proptest!(|(text in "\\PC{0,80}", certificate in prop::collection::vec(any::<u8>(), 0..64))| {
        prop_assert!(verify(&text, &relay.certificate, NOW).is_err());
        prop_assert!(verify(&text, &certificate, NOW).is_err());
    });
}
